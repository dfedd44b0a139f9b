"""Where metrics go besides ``metrics.jsonl``: nowhere, to TensorBoard's event files, or to Weights & Biases.

A tracker is a copy: ``metrics.jsonl`` is the truth, under the same names (a table's entries as ``skill_usage/insert``),
with the number of inner epochs done as the step. A run that goes on gives its tracker the rows it already has, so that
neither a kill nor a tracker that is first asked for on resuming leaves a hole or a doubled step.
"""

from __future__ import annotations

import importlib.util
import os
import re
import secrets
import tomllib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, Protocol

from memskill_cli.config import Config, to_toml
from memskill_cli.errors import TrackerError, UsageError
from memskill_cli.runs.run_dir import RunDir, read_json
from memskill_cli.utils import files

Kind = Literal["none", "tensorboard", "wandb"]
PROJECT = "memskill"
"""W&B project, unless WANDB_PROJECT names another."""
FAREWELL = 60.0
"""Seconds that a training that has ended waits for W&B to take its last rows."""


class Tracker(Protocol):
    """Takes one row of metrics at a time, in the order of their steps. May raise whatever its library raises."""

    where: str
    """Where to look, for people; "" if nowhere."""

    def log(self, step: int, row: dict[str, Any]) -> None:
        """Note ``row`` of ``metrics.jsonl`` as of ``step`` inner epochs done."""
        ...

    def close(self) -> None: ...


def require(kind: Kind) -> None:
    """Raise UsageError if the package that ``kind`` needs is not installed."""
    if kind != "none" and importlib.util.find_spec(kind) is None:
        raise UsageError(f"--tracker {kind} needs the package {kind}", hint=f'pip install "memskill[{kind}]"')


@contextmanager
def tracked(
    run: RunDir, settings: Config, notice: Callable[[str], None]
) -> Iterator[Callable[[int, dict[str, Any]], None]]:
    """The ``log`` of the run's tracker, opened with the rows that ``metrics.jsonl`` has and closed with the block.

    A tracker that fails is given up with one notice, since nothing but a copy is lost. Raises TrackerError if it
    cannot even be opened.
    """
    require(settings.tracker)
    opened = _open(run, settings)
    if opened.where:
        notice(f"metrics also go to {opened.where}")
    tracker = _Forgiving(opened, notice)
    try:
        for step, row in enumerate(files.read_jsonl(run.metrics), start=1):
            tracker.log(step, row)
        yield tracker.log
    finally:
        tracker.close()


def _open(run: RunDir, settings: Config) -> Tracker:
    if settings.tracker == "tensorboard":
        return TensorBoard(run, settings)
    return WandB(run, settings) if settings.tracker == "wandb" else Nowhere()


class Nowhere:
    """No tracker."""

    where = ""

    def log(self, step: int, row: dict[str, Any]) -> None:
        pass

    def close(self) -> None:
        pass


class TensorBoard:
    """Event files in ``tensorboard/`` of the run. What an earlier process wrote there is marked as superseded."""

    def __init__(self, run: RunDir, settings: Config) -> None:
        from torch.utils.tensorboard import SummaryWriter

        folder = run.path / "tensorboard"
        try:
            self._writer = SummaryWriter(str(folder), purge_step=0)
        except OSError as error:
            raise TrackerError(f"{folder}: TensorBoard cannot write there: {error.strerror}") from None
        self.where = f"{folder}; see them with: tensorboard --logdir {run.path.parent}"
        self._writer.add_text("config", _indented(_shared(settings)), 0)

    def log(self, step: int, row: dict[str, Any]) -> None:
        for name, value in numbers(row):
            self._writer.add_scalar(name, value, step)
        self._writer.flush()  # a run may be killed at any time

    def close(self) -> None:
        self._writer.close()


class WandB:
    """One W&B run, whose id is kept in ``wandb.json``; its files are in ``wandb/`` of the run.

    Online, a resumed run takes only rows that the server lacks. Offline, every process leaves a folder that holds the
    whole history, so the last one synced is complete. Nothing is captured but what is logged: no console, code,
    command line, environment or machine.
    """

    def __init__(self, run: RunDir, settings: Config) -> None:
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # its own crash reports
        import wandb

        try:
            self._run = wandb.init(
                project=os.environ.get("WANDB_PROJECT", PROJECT),
                id=_wandb_id(run),
                name=run.name,
                resume="allow",
                dir=str(run.path),
                config=tomllib.loads(_shared(settings)),
                settings=wandb.Settings(
                    silent=True,
                    console="off",
                    disable_code=True,
                    disable_git=True,
                    finish_timeout=FAREWELL,
                    host="-",
                    save_code=False,
                    symlink=False,
                    x_disable_machine_info=True,
                    x_disable_meta=True,
                    x_disable_stats=True,
                    x_save_requirements=False,
                ),
            )
        except (wandb.Error, OSError) as error:
            what = str(error).partition("\n")[0]
            raise TrackerError(
                f"Weights & Biases cannot be used: {what}",
                hint="log in with: wandb login; or keep everything on this machine with: export WANDB_MODE=offline",
            ) from None
        folder = Path(self._run.dir).parent
        self.where = self._run.url or f"{folder}; upload them with: wandb sync {folder}"

    def log(self, step: int, row: dict[str, Any]) -> None:
        if step >= self._run.starting_step:
            self._run.log(dict(numbers(row)), step=step)

    def close(self) -> None:
        self._run.finish()


class _Forgiving:
    """A tracker that is given up at its first failure."""

    def __init__(self, tracker: Tracker, notice: Callable[[str], None]) -> None:
        self._tracker: Tracker | None = tracker
        self._notice = notice

    def log(self, step: int, row: dict[str, Any]) -> None:
        self._try(lambda tracker: tracker.log(step, row))

    def close(self) -> None:
        self._try(lambda tracker: tracker.close())

    def _try(self, work: Callable[[Tracker], None]) -> None:
        if self._tracker is None:
            return
        try:
            work(self._tracker)
        except Exception as error:  # of a library that can fail in any way, and must not take a training with it
            self._tracker = None
            # Only the kind: what such an error says was not written with keys in mind.
            self._notice(f"the tracker failed ({type(error).__name__}); going on with metrics.jsonl alone")


def numbers(row: dict[str, Any], prefix: str = "") -> Iterable[tuple[str, float]]:
    """The numbers of a row of metrics by name, tables flattened (``skill_usage/insert``); nothing else."""
    for name, value in row.items():
        if isinstance(value, dict):
            yield from numbers(value, f"{prefix}{name}/")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield prefix + name, value


def _shared(settings: Config) -> str:
    """The settings as TOML for others to read: the user's home folder, which holds a name, is ``~``."""
    return re.sub(rf'(?<=[":=]){re.escape(str(Path.home()))}(?=[/"])', "~", to_toml(settings))


def _wandb_id(run: RunDir) -> str:
    """The W&B id of the run, made when it is first asked for."""
    file = run.path / "wandb.json"
    if not file.exists():
        files.write_json(file, {"id": secrets.token_hex(6)})
    return str(read_json(file)["id"])


def _indented(text: str) -> str:
    """``text`` as a block of Markdown code."""
    return "".join(f"    {line}\n" for line in text.splitlines())
