"""A run directory: layout, manifest (``run.json``), log, and the lock that allows one process at a time."""

from __future__ import annotations

import difflib
import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson

from memskill_cli import __version__, config
from memskill_cli.agent import prompts
from memskill_cli.errors import RunError
from memskill_cli.utils import files
from memskill_cli.utils.locks import is_held, locked
from memskill_cli.utils.redaction import redact
from memskill_cli.utils.registry import loaded_plugins
from memskill_cli.utils.rows import COUNT, NUMBER, TEXT, check, table_of

FORMAT = 1
UNTRAINED = "untrained"
"""Name of the run for evaluations without a trained run."""


@dataclass(frozen=True)
class RunManifest:
    """``run.json``. ``status`` is new, running, paused (resumable), finished or untrained."""

    format: int
    memskill: str
    dataset: str
    data_digest: str
    seed: int
    status: str
    created: str
    updated: str
    prompts: str = ""
    """Digest of the prompts at the start of the run; "" in runs of older versions."""
    plugins: dict[str, str] = field(default_factory=dict)
    """File names of the run's plug-ins, each with its sha256. Only names, so that a run directory cannot choose code
    to run."""
    id: str = ""
    """A random name, made at creation, that its checkpoints bear; "" in runs of older versions."""
    number: int = 0
    """Place of the run in the order of creation in its folder, from 1; 0 in runs of older versions."""


_MANIFEST = {
    "format": COUNT,
    **dict.fromkeys(("memskill", "dataset", "data_digest", "status", "created", "updated"), TEXT),
    "seed": NUMBER,
    **dict.fromkeys(("prompts", "id"), TEXT._replace(required=False)),
    "plugins": table_of(TEXT)._replace(required=False),
    "number": COUNT._replace(required=False),
}


class RunDir:
    """Paths of a run, its manifest and its settings. A run writes only below ``path``; see docs/run-directory.md."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = path.name
        self.config_file = path / "config.toml"
        self.skill_bank = path / "skill_bank.json"
        self.stages = path / "stages"
        self.checkpoints = path / "checkpoints"
        self.metrics = path / "metrics.jsonl"
        self.steps = path / "steps.jsonl"
        self.hard_cases = path / "hard_cases.jsonl"
        self.usage = path / "usage.jsonl"
        self.memory = path / "memory"
        self.evals = path / "evals"
        self.log = path / "logs" / "memskill.log"
        self._new_id = ""  # before the manifest is written

    @classmethod
    def create(
        cls,
        runs_dir: Path,
        name: str,
        settings: config.Config,
        data_digest: str,
        status: str = "new",
        fill: Callable[[RunDir], None] = lambda run: None,
    ) -> RunDir:
        """Create the directory; ``fill`` adds files. The manifest is written last: without it there is no run.

        Raises RunError if the name is taken or is no plain folder name.
        """
        run = cls(runs_dir / name)
        run._new_id = secrets.token_hex(8)
        if not _is_plain(name):
            raise RunError(f"{name[:200]!r} cannot name a run: it must be a plain folder name, at most 100 bytes long")
        with run.lock():
            if (run.path / "run.json").exists():
                raise RunError(
                    f"run {name} already exists",
                    hint=f"continue it: memskill train --run {name} --resume; or choose another --run",
                )
            (run.path / "logs").mkdir(exist_ok=True)
            run.write_config(settings)
            fill(run)
            now = _now()
            facts = (FORMAT, __version__, settings.dataset, data_digest, settings.seed, status, now, now)
            made_with = {plugin.name: plugin.sha256 for plugin in loaded_plugins()}
            order = 1 + max((_order(other.parent)[0] for other in runs_dir.glob("*/run.json")), default=0)
            wording = prompts.digest(designer=True)
            run._write(RunManifest(*facts, prompts=wording, plugins=made_with, id=run._new_id, number=order))
        return run

    @classmethod
    def open(cls, path: Path) -> RunDir:
        """An existing run. Raises RunError if its manifest is missing, damaged or of a newer format."""
        run = cls(path)
        found = run.manifest().format
        if found > FORMAT:
            raise RunError(
                f"run {run.name}: format {found} is newer than this memskill supports ({FORMAT})",
                hint="pip install -U memskill",
            )
        return run

    def manifest(self) -> RunManifest:
        file = self.path / "run.json"
        try:
            return RunManifest(**check(orjson.loads(file.read_bytes()), _MANIFEST, "a wrong value"))
        except (OSError, orjson.JSONDecodeError, TypeError, RunError) as error:
            raise RunError(f"{file}: not a valid manifest: {error}", hint="restore the file from a copy") from None

    @property
    def id(self) -> str:
        """The name that the checkpoints of this run bear: random; in runs of older versions, the time of creation."""
        return self._new_id or id_of(self.path)

    @property
    def status(self) -> str:
        """The status in the manifest; ``paused`` instead of ``running`` if no process holds the run's lock."""
        return true_status(self.path, self.manifest().status)

    def set_status(self, status: str) -> None:
        self._write(replace(self.manifest(), status=status, updated=_now()))

    def write_config(self, settings: config.Config) -> None:
        files.write_atomic(self.config_file, config.to_toml(settings))

    def settings(self) -> config.Config:
        """The settings in ``config.toml``. Raises RunError if a plug-in of the run is not loaded."""
        self.check_plugins()
        return config.from_dict(config.read_toml(self.config_file), str(self.config_file))

    def check_plugins(self) -> None:
        """Raise RunError if a plug-in of the run is not loaded in this process."""
        loaded = {plugin.name for plugin in loaded_plugins()}
        if missing := [name for name in self.manifest().plugins if name not in loaded]:
            raise RunError(
                f"run {self.name} was made with the plug-in {missing[0]}, which is not loaded",
                hint=f"add --plugin FILE, where FILE is the path of {missing[0]}",
            )

    def record_plugins(self) -> list[str]:
        """Add the plug-ins of this process to the manifest. Returns the names of those whose file has changed."""
        manifest, loaded = self.manifest(), {plugin.name: plugin.sha256 for plugin in loaded_plugins()}
        if loaded.items() - manifest.plugins.items():
            self._write(replace(manifest, plugins={**manifest.plugins, **loaded}, updated=_now()))
        return [name for name, digest in loaded.items() if manifest.plugins.get(name, digest) != digest]

    @contextmanager
    def logged(self, notice: Callable[[str], None]) -> Iterator[Callable[[str], None]]:
        """A ``notice`` that also writes to ``logs/memskill.log``. An exception that leaves the block is logged too.

        A failure to write the log is ignored: results are in other files, and writing these raises.
        """
        self.log.parent.mkdir(parents=True, exist_ok=True)

        def log(text: str) -> None:
            with suppress(OSError, RunError):
                files.check_owned(self.log)
                with self.log.open("a", encoding="utf-8") as file:
                    print(f"{_now()} {os.getpid()} {_in_one_line(redact(text))}", file=file)

        def log_and_notice(text: str) -> None:
            log(text)
            notice(text)

        try:
            yield log_and_notice
        except BaseException as error:
            log(f"ended by {type(error).__name__}: {error}")
            raise

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the run's lock. Raises RunLockedError with the holder's pid at once if another process holds it."""
        with locked(self.path, f"run {self.name}"):
            yield

    def _write(self, manifest: RunManifest) -> None:
        table = asdict(manifest)
        for name in ("plugins", "id", "number"):
            if not table[name]:
                del table[name]  # the same file as in versions without it
        files.write_json(self.path / "run.json", table)


def find_run(runs_dir: Path, name: str | None, *, trained: bool = False) -> Path | None:
    """The run called ``name``, or the newest run (``trained``: the newest with a checkpoint); None if there is none.

    Raises RunError, with the nearest name, if ``name`` is given and there is no such run.
    """
    runs = {run.parent.name: run.parent for run in sorted(runs_dir.glob("*/run.json"))}
    if name is not None:
        if name in runs:
            return runs[name]
        near = difflib.get_close_matches(name, runs, n=1)
        known = f"did you mean {near[0]}?" if near else "there are: " + (", ".join(sorted(runs)) or "none yet")
        raise RunError(f"no run is called {name} in {runs_dir}", hint=known)
    candidates = [run for run in runs.values() if run.name != UNTRAINED]
    if trained:
        candidates = [run for run in candidates if any(run.glob("checkpoints/[0-9]*/checkpoint.json"))]
    return max(candidates, key=_order, default=None)


def true_status(run: Path, recorded: str) -> str:
    """The status of a run whose manifest says ``recorded``: ``paused`` if its process was killed while running."""
    return "paused" if recorded == "running" and not is_held(run) else recorded


def new_name(runs_dir: Path, dataset: str) -> str:
    """A free name: the dataset, and the local date and time."""
    name = f"{dataset}-{datetime.now():%Y%m%d-%H%M%S}"
    names = (name, *(f"{name}-{number}" for number in range(2, 1000)))
    return next(free for free in names if not (runs_dir / free).exists())


def created_at(run: Path) -> str:
    """The creation time of the run in this folder, which identifies it; "" if the manifest has none."""
    return str(_manifest_table(run).get("created", ""))


def id_of(run: Path) -> str:
    """The id of the run in this folder: that of its manifest, else its time of creation; "" without a manifest."""
    return str(_manifest_table(run).get("id") or created_at(run))


def has_id(run: Path) -> bool:
    """Whether the run in this folder was made by a version whose checkpoints name their run."""
    return bool(_manifest_table(run).get("id"))


def _order(run: Path) -> tuple[int, str, str]:
    """Sorts runs by their creation. The clock decides only among runs that have the same number."""
    number = _manifest_table(run).get("number")
    return number if COUNT.accepts(number) else 0, created_at(run), run.name  # type: ignore[return-value]


def _manifest_table(run: Path) -> dict[str, Any]:
    """The content of ``run.json``, unchecked; empty if it is missing or damaged."""
    try:
        table = orjson.loads((run / "run.json").read_bytes())
    except (OSError, orjson.JSONDecodeError):
        return {}
    return table if isinstance(table, dict) else {}


def _is_plain(name: str) -> bool:
    plain = Path(name).name == name and name not in ("", ".", "..") and name.isprintable()
    return plain and len(name.encode()) <= 100


def _in_one_line(text: str) -> str:
    """``text`` with control characters escaped, so that it cannot look like another line of the log."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="microseconds")
