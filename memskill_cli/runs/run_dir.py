"""One run directory: its layout, its manifest, and the lock that says who owns it."""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson

from memskill_cli import __version__, config
from memskill_cli.agent import prompts
from memskill_cli.errors import RunError
from memskill_cli.utils import files
from memskill_cli.utils.locks import is_held, locked
from memskill_cli.utils.redaction import clean

FORMAT = 1
UNTRAINED = "untrained"
"""Name of the run that holds evaluations made without any trained run."""


@dataclass(frozen=True)
class Manifest:
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
    """Digest of the prompts it was begun with; "" of a run made before this was recorded."""


class RunDir:
    """Paths of a run and its manifest. Everything a run writes lies below ``path``; the layout is the contract's."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = path.name
        self.config_file = path / "config.toml"
        self.skill_bank = path / "skill_bank.json"
        self.stages = path / "stages"
        self.checkpoints = path / "checkpoints"
        self.metrics = path / "metrics.jsonl"
        self.hard_cases = path / "hard_cases.jsonl"
        self.usage = path / "usage.jsonl"
        self.memory = path / "memory"
        self.evals = path / "evals"
        self.log = path / "logs" / "memskill.log"

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
        """Make the directory; ``fill`` puts more into it. It is a run once it has its manifest, which comes last.

        Raises RunError if the name is taken or is no plain folder name.
        """
        run = cls(runs_dir / name)
        if not _is_plain(name):
            raise RunError(f"{name[:200]!r} cannot name a run: it must be a plain folder name, at most 100 bytes long")
        with run.owned():
            if (run.path / "run.json").exists():
                raise RunError(
                    f"run {name} exists already",
                    hint=f"go on with it: memskill train --run {name} --resume; or choose another --run",
                )
            (run.path / "logs").mkdir(exist_ok=True)
            run.write_config(settings)
            fill(run)
            now = _now()
            facts = (FORMAT, __version__, settings.dataset, data_digest, settings.seed, status, now, now)
            run._write(Manifest(*facts, prompts=prompts.digest(designer=True)))
        return run

    @classmethod
    def open(cls, path: Path) -> RunDir:
        """An existing run. Raises RunError if its manifest is damaged or of a newer format."""
        run = cls(path)
        found = run.manifest().format
        if found > FORMAT:
            raise RunError(
                f"run {run.name} has format {found}; this memskill reads up to {FORMAT}", hint="pip install -U memskill"
            )
        return run

    def manifest(self) -> Manifest:
        file = self.path / "run.json"
        try:
            return Manifest(**orjson.loads(file.read_bytes()))
        except (OSError, orjson.JSONDecodeError, TypeError) as error:
            raise RunError(f"{file}: not a run's manifest: {error}") from None

    @property
    def status(self) -> str:
        """The manifest's, but of a run that was killed ``paused``: one that nobody owns is not running."""
        return true_status(self.path, self.manifest().status)

    def set_status(self, status: str) -> None:
        self._write(replace(self.manifest(), status=status, updated=_now()))

    def write_config(self, settings: config.Config) -> None:
        files.write_atomic(self.config_file, config.to_toml(settings))

    def settings(self) -> config.Config:
        return config.from_dict(config.read_toml(self.config_file), str(self.config_file))

    @contextmanager
    def logged(self, notice: Callable[[str], None]) -> Iterator[Callable[[str], None]]:
        """A ``notice`` that also writes to ``logs/memskill.log``; an error that ends the block is written there too.

        A log that cannot be written stops nothing: what matters is in other files, and fails there.
        """
        self.log.parent.mkdir(parents=True, exist_ok=True)

        def log(text: str) -> None:
            with suppress(OSError), self.log.open("a", encoding="utf-8") as file:
                print(f"{_now()} {os.getpid()} {_in_one_line(clean(text))}", file=file)

        def tell(text: str) -> None:
            log(text)
            notice(text)

        try:
            yield tell
        except BaseException as error:
            log(f"ended by {type(error).__name__}: {error}")
            raise

    @contextmanager
    def owned(self) -> Iterator[None]:
        """Own the run while the block lasts. Raises RunLockedError with the holder's pid at once if another does."""
        with locked(self.path, f"run {self.name}"):
            yield

    def _write(self, manifest: Manifest) -> None:
        files.write_json(self.path / "run.json", asdict(manifest))


def find_run(runs_dir: Path, name: str | None, *, trained: bool = False) -> Path | None:
    """The run called ``name``, or the newest one (with ``trained``, the newest that has a checkpoint); None if none is.

    Raises RunError, with the nearest name, if ``name`` is given and no run is called so.
    """
    runs = {run.parent.name: run.parent for run in sorted(runs_dir.glob("*/run.json"))}
    if name is not None:
        if name in runs:
            return runs[name]
        near = difflib.get_close_matches(name, runs, n=1)
        known = f"did you mean {near[0]}?" if near else "there are: " + (", ".join(sorted(runs)) or "none yet")
        raise RunError(f"no run is called {name} in {runs_dir}", hint=known)
    able = [run for run in runs.values() if run.name != UNTRAINED]
    if trained:
        able = [run for run in able if any(run.glob("checkpoints/[0-9]*/checkpoint.json"))]
    return max(able, key=lambda run: (created_at(run), run.name), default=None)


def true_status(run: Path, told: str) -> str:
    """The status of a run whose manifest says ``told``, which a process that was killed could not change."""
    return "paused" if told == "running" and not is_held(run) else told


def new_name(runs_dir: Path, dataset: str) -> str:
    """A name that no run has: what is trained, and when it was begun."""
    name = f"{dataset}-{datetime.now():%Y%m%d-%H%M%S}"
    names = (name, *(f"{name}-{number}" for number in range(2, 1000)))
    return next(free for free in names if not (runs_dir / free).exists())


def created_at(run: Path) -> str:
    """When the run in this folder was made, which tells it from all others; "" if its record does not say."""
    try:
        return str(orjson.loads((run / "run.json").read_bytes())["created"])
    except (FileNotFoundError, orjson.JSONDecodeError, KeyError, TypeError):
        return ""


def _is_plain(name: str) -> bool:
    plain = Path(name).name == name and name not in ("", ".", "..") and name.isprintable()
    return plain and len(name.encode()) <= 100


def _in_one_line(text: str) -> str:
    """``text`` with line breaks and other control characters as escapes, so that none passes for a line of the log."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="microseconds")


def read_json(file: Path) -> Any:
    """A JSON file of a run; RunError names it when it is damaged."""
    try:
        return orjson.loads(file.read_bytes())
    except (OSError, orjson.JSONDecodeError) as error:
        raise RunError(f"{file}: {error}") from None
