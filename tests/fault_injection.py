"""Real processes with faults in them: ``memskill`` killed, or its disk failing, at a named place.

``python tests/fault_injection.py "kill half write metrics.jsonl 2" -- train --dataset locomo`` installs faults, then
does what the command does. Faults are separated by ";", each ``ACT MOMENT KIND WHAT [N[+]]``:

- ACT: ``kill`` (SIGKILL to itself), or the name of an errno (``ENOSPC``, ``EROFS``, ``EIO``) that is raised as OSError
- MOMENT: ``before``, ``half`` (of a write: with half of its bytes on the disk), ``after``
- KIND: ``write``, ``open`` (for writing), ``mkdir``, ``replace`` or ``fsync`` of paths that match WHAT (an error names
  the path where a system's own would); or ``call`` of the function WHAT, ``module:name`` or ``module:Class.name``
- N: the how manyth time, 1 if left out; ``N+``: that time and ever after

A path matches by its last parts (``state.json``, ``checkpoints/*/state.json``); a file being written aside counts under
the name it is going to have. Only Python's own files are seen, not SQLite's, Chroma's or Arrow's.

``--nursery`` imports everything once and then forks a process for each line of JSON on stdin: real processes too, which
begin at once. :class:`Nursery` is its other end.
"""

from __future__ import annotations

import builtins
import contextlib
import errno
import fnmatch
import functools
import importlib
import inspect
import io
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

HEAVY = (
    *("memskill_cli.app.train", "memskill_cli.app.evolve", "memskill_cli.app.evaluate"),
    *("memskill_cli.llm.local_model", "memskill_cli.llm.billing", "memskill_cli.reports.run_report"),
    *("memskill_cli.reports.eval_report", "memskill_cli.cli.prepare", "litellm", "chromadb", "sklearn.cluster"),
)
_ASIDE = re.compile(r"^\.(.+?\.[^.]+)\.[^.]+\.tmp$|^\.(\d+)\.tmp$")
"""A file (``.run.json.x7f3.tmp``) or a checkpoint's folder (``.000001.tmp``) that is written aside."""


@dataclass
class Fault:
    """One fault, and how often its place was passed so far."""

    act: str
    moment: str
    kind: str
    what: str
    first: int = 1
    lasting: bool = False
    passed: int = 0

    @classmethod
    def parse(cls, text: str) -> Fault:
        act, moment, kind, what, *count = text.split()
        number = count[0] if count else "1"
        assert moment in ("before", "half", "after"), text
        assert act == "kill" or hasattr(errno, act), text
        return cls(act, moment, kind, what, int(number.rstrip("+")), number.endswith("+"))

    def due(self) -> bool:
        self.passed += 1
        return self.passed == self.first or (self.lasting and self.passed > self.first)

    def strike(self, path: str = "") -> None:
        if self.act == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        code = getattr(errno, self.act)
        raise OSError(code, os.strerror(code), path or None)


class Saboteur:
    """The faults of this process, installed around what it calls."""

    def __init__(self, spec: str) -> None:
        self.faults = [Fault.parse(part) for part in spec.split(";") if part.strip()]

    def install(self) -> None:
        for fault in self.faults:
            if fault.kind == "call":
                _wrap(fault)
        kinds = {fault.kind for fault in self.faults}
        if kinds & {"open", "write"}:
            self._open, self._os_open = io.open, os.open
            builtins.open = io.open = self.open  # type: ignore[assignment]
            os.open = self.os_open  # type: ignore[assignment]
        if "mkdir" in kinds:
            os.mkdir = self._around("mkdir", os.mkdir)
        if "replace" in kinds:
            os.replace = self._around("replace", os.replace)
        if "fsync" in kinds:
            os.fsync = self._around("fsync", os.fsync)

    def at(self, kind: str, path: str) -> Iterator[Fault]:
        """The faults due at a place that is passed now."""
        for fault in self.faults:
            if fault.kind == kind and matches(path, fault.what) and fault.due():
                yield fault

    def _around(self, kind: str, work: Callable[..., Any]) -> Any:
        def passed(*args: Any, **kwargs: Any) -> Any:
            path = name_of(args[1] if kind == "replace" else args[0])
            named = "" if kind == "fsync" else path
            due = list(self.at(kind, path))
            _strike(due, "before", named)
            result = work(*args, **kwargs)
            _strike(due, "after", named)
            return result

        return passed

    def os_open(self, path: Any, flags: int, *args: Any, **kwargs: Any) -> int:
        if flags & (os.O_WRONLY | os.O_RDWR):
            name = name_of(path)
            _strike(list(self.at("open", name)), "before", name)
        return self._os_open(path, flags, *args, **kwargs)

    def open(
        self,
        file: Any,
        mode: str = "r",
        buffering: int = -1,
        encoding: str | None = None,
        errors: str | None = None,
        newline: str | None = None,
        closefd: bool = True,
        opener: Any = None,
    ) -> Any:
        path = name_of(file)
        writes = bool(set(mode) & set("wax+"))
        if writes and not isinstance(file, int):
            _strike(list(self.at("open", path)), "before", path)
        watched = any(fault.kind == "write" and matches(path, fault.what) for fault in self.faults)
        if not writes or not watched:
            return self._open(file, mode, buffering, encoding, errors, newline, closefd, opener)
        raw = _Raw(self, path, file, mode.replace("b", "").replace("t", ""), closefd, opener)
        buffered = io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)  # type: ignore[arg-type]
        return buffered if "b" in mode else io.TextIOWrapper(buffered, encoding, errors, newline, buffering == 1)


class _Raw(io.FileIO):
    """A file whose writes fail or are cut short where a fault says so."""

    def __init__(self, saboteur: Saboteur, path: str, *args: Any) -> None:
        super().__init__(*args)
        self._saboteur, self._path = saboteur, path
        self._rest: list[Fault] = []  # what strikes in place of the second half

    def write(self, data: Any) -> int:
        _strike(self._rest, "half")
        due = list(self._saboteur.at("write", self._path))
        _strike(due, "before")
        if halves := [fault for fault in due if fault.moment == "half"]:
            written = super().write(bytes(data)[: len(data) // 2])
            _strike([fault for fault in halves if fault.act == "kill"], "half")
            self._rest = halves
            return written  # as a disk does that fills up: less than was asked, and an error for the rest
        written = super().write(data)
        _strike(due, "after")
        return written


def matches(path: str, what: str) -> bool:
    return fnmatch.fnmatch(path, what) or fnmatch.fnmatch(path, f"*/{what}")


def name_of(file: Any) -> str:
    """The path of a file name or handle; of a file written aside, the one it will have."""
    if isinstance(file, int):
        with contextlib.suppress(OSError):
            file = os.readlink(f"/proc/self/fd/{file}")
    path = str(file) if isinstance(file, int) else os.fspath(file)
    return "/".join(_ASIDE.sub(r"\1\2", part) for part in path.split("/"))


def _strike(due: Sequence[Fault], moment: str, path: str = "") -> None:
    for fault in due:
        if fault.moment == moment:
            fault.strike(path)


def _wrap(fault: Fault) -> None:
    """Put ``fault`` before or after a function, wherever in our modules it goes by a name."""
    module, _, name = fault.what.partition(":")
    owner: Any = importlib.import_module(module)
    *path, name = name.split(".")
    for part in path:
        owner = getattr(owner, part)
    work = getattr(owner, name)

    @functools.wraps(work)
    def called(*args: Any, **kwargs: Any) -> Any:
        due = [fault] if fault.due() else []
        _strike(due, "before")
        result = work(*args, **kwargs)
        _strike(due, "after")
        return result

    @functools.wraps(work)
    async def awaited(*args: Any, **kwargs: Any) -> Any:
        due = [fault] if fault.due() else []
        _strike(due, "before")
        result = await work(*args, **kwargs)
        _strike(due, "after")
        return result

    wrapped = awaited if inspect.iscoroutinefunction(work) else called
    setattr(owner, name, wrapped)
    for known in [m for m in sys.modules.values() if getattr(m, "__name__", "").startswith("memskill_cli.")]:
        for alias in [alias for alias, value in vars(known).items() if value is work]:
            setattr(known, alias, wrapped)


def run(spec: str, arguments: Sequence[str]) -> None:
    from memskill_cli.cli import app

    sys.argv = ["memskill", *arguments]
    Saboteur(spec).install()
    app.main()


# --- many processes from one ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Done:
    """A command that has ended; ``code`` is negative for the signal that killed it."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


class Nursery:
    """A process that has imported everything, and its children, one at a time.

    ``hash_seed`` is that of Python's sets: another one shows whether a result depends on their order.
    """

    def __init__(self, folder: Path, environ: dict[str, str], hash_seed: int = 0) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._process = subprocess.Popen(
            [sys.executable, __file__, "--nursery"],
            env={**environ, "PYTHONHASHSEED": str(hash_seed), "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> Nursery:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(timeout=60)

    def start(self, *arguments: str, faults: str = "", cwd: Path, **environ: str) -> int:
        """The pid of a new process. Only one may run at a time; :meth:`wait` for it."""
        order = {"faults": faults, "arguments": arguments, "cwd": str(cwd), "environ": environ}
        order |= {"out": str(self._folder / "out"), "err": str(self._folder / "err")}
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        return int(self._reply()["pid"])

    def wait(self) -> Done:
        code = os.waitstatus_to_exitcode(self._reply()["status"])
        out, err = ((self._folder / name).read_text("utf-8", "replace") for name in ("out", "err"))
        return Done(code, out, err)

    def memskill(self, *arguments: str, faults: str = "", cwd: Path, **environ: str) -> Done:
        self.start(*arguments, faults=faults, cwd=cwd, **environ)
        return self.wait()

    def _reply(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "the nursery has died"
        return json.loads(line)


def nurse() -> None:
    """Import everything, then a child for each order, told of by its pid and then its status."""
    os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    for name in HEAVY:
        importlib.import_module(name)
    for line in sys.stdin:
        order = json.loads(line)
        pid = os.fork()
        if not pid:
            _child(order)
        print(json.dumps({"pid": pid}), flush=True)
        print(json.dumps({"status": os.waitpid(pid, 0)[1]}), flush=True)


def _child(order: dict[str, Any]) -> None:
    for name, handle in (("out", 1), ("err", 2)):
        file = os.open(order[name], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, handle)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.chdir(order["cwd"])
    os.environ.update(order["environ"])
    run(order["faults"], order["arguments"])


if __name__ == "__main__":
    if sys.argv[1:] == ["--nursery"]:
        nurse()
    else:
        spec, dashes, *arguments = sys.argv[1:]
        assert dashes == "--", __doc__
        run(spec, arguments)
