"""Trackers: copy the metrics to TensorBoard or to Weights & Biases, in addition to ``metrics.jsonl``.

Names are those of ``metrics.jsonl`` (entries of a dict as ``skill_usage/insert``); the step is the number of inner
epochs done. A resumed run first sends the rows that it already has, so there are no missing or duplicate steps after a
kill, or if the tracker is new.
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
from memskill_cli.runs.run_dir import RunDir
from memskill_cli.utils import files, process
from memskill_cli.utils.rows import TEXT, read_object

Kind = Literal["none", "tensorboard", "wandb"]
PROJECT = "memskill"
"""Default W&B project; the environment variable WANDB_PROJECT overrides it."""
FINISH_TIMEOUT = 60.0
"""Seconds that a finished training waits for the upload of its last rows to W&B."""


class Tracker(Protocol):
    """Receives rows of metrics in order of step. Methods may raise any exception of the tracker's library."""

    where: str
    """Where to find the metrics, for display; "" for no tracker."""

    def log(self, step: int, row: dict[str, Any]) -> None:
        """Log ``row`` of ``metrics.jsonl`` after ``step`` inner epochs."""
        ...

    def close(self) -> None: ...


def check_installed(kind: Kind) -> None:
    """Raise UsageError if the package that ``kind`` needs is not installed."""
    if kind != "none" and importlib.util.find_spec(kind) is None:
        raise UsageError(f"--tracker {kind} needs the package {kind}", hint=f'pip install "memskill[{kind}]"')


@contextmanager
def tracked(
    run: RunDir, settings: Config, notice: Callable[[str], None]
) -> Iterator[Callable[[int, dict[str, Any]], None]]:
    """The ``log`` function of the run's tracker. Opening sends the rows of ``metrics.jsonl``; leaving the block closes.

    A tracker that fails is disabled with one notice, because ``metrics.jsonl`` has everything. Raises TrackerError if
    the tracker cannot be opened.
    """
    check_installed(settings.tracker)
    opened = _open(run, settings)
    if opened.where:
        notice(f"metrics also go to {opened.where}")
    tracker = _FailSafeTracker(opened, notice)
    try:
        for step, row in enumerate(files.read_jsonl(run.metrics), start=1):
            tracker.log(step, row)
        yield tracker.log
    finally:
        tracker.close()


def _open(run: RunDir, settings: Config) -> Tracker:
    if settings.tracker == "tensorboard":
        return TensorBoard(run, settings)
    return WandB(run, settings) if settings.tracker == "wandb" else NullTracker()


class NullTracker:
    """No tracker."""

    where = ""

    def log(self, step: int, row: dict[str, Any]) -> None:
        pass

    def close(self) -> None:
        pass


class TensorBoard:
    """Event files in ``tensorboard/`` of the run. Events of earlier processes are marked as superseded."""

    def __init__(self, run: RunDir, settings: Config) -> None:
        from torch.utils.tensorboard import SummaryWriter

        folder = run.path / "tensorboard"
        try:
            self._writer = SummaryWriter(str(folder), purge_step=0)
        except OSError as error:
            raise TrackerError(f"{folder}: TensorBoard cannot write to it: {error.strerror}") from None
        self.where = f"{folder}; view them with: tensorboard --logdir {run.path.parent}"
        self._writer.add_text("config", _indented(_anonymised(settings)), 0)

    def log(self, step: int, row: dict[str, Any]) -> None:
        for name, value in numbers(row):
            self._writer.add_scalar(name, value, step)
        self._writer.flush()  # a run may be killed at any time

    def close(self) -> None:
        self._writer.close()


class WandB:
    """A W&B run. Its id is stored in ``wandb.json``, its files in ``wandb/`` of the run.

    Online, a resumed run sends only rows that the server lacks. Offline, each process writes a folder with the whole
    history, so the last one is complete. Only logged rows and settings are sent: no console output, code, command
    line, environment or machine data.
    """

    def __init__(self, run: RunDir, settings: Config) -> None:
        process.set_variable("WANDB_ERROR_REPORTING", "false")  # W&B's own crash reports
        import wandb

        try:
            self._run = wandb.init(
                project=os.environ.get("WANDB_PROJECT", PROJECT),
                id=_wandb_id(run),
                name=run.name,
                resume="allow",
                dir=str(run.path),
                config=tomllib.loads(_anonymised(settings)),
                settings=wandb.Settings(
                    silent=True,
                    console="off",
                    disable_code=True,
                    disable_git=True,
                    finish_timeout=FINISH_TIMEOUT,
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
                hint="log in with: wandb login; or keep the metrics on this machine with: export WANDB_MODE=offline",
            ) from None
        folder = Path(self._run.dir).parent
        self.where = self._run.url or f"{folder}; upload them with: wandb sync {folder}"

    def log(self, step: int, row: dict[str, Any]) -> None:
        if step >= self._run.starting_step:
            self._run.log(dict(numbers(row)), step=step)

    def close(self) -> None:
        self._run.finish()


class _FailSafeTracker:
    """Disables a tracker at its first failure."""

    def __init__(self, tracker: Tracker, notice: Callable[[str], None]) -> None:
        self._tracker: Tracker | None = tracker
        self._notice = notice

    def log(self, step: int, row: dict[str, Any]) -> None:
        self._try(lambda tracker: tracker.log(step, row))

    def close(self) -> None:
        self._try(lambda tracker: tracker.close())

    def _try(self, action: Callable[[Tracker], None]) -> None:
        if self._tracker is None:
            return
        try:
            action(self._tracker)
        except Exception as error:  # the libraries raise many types, and a tracker must not end a training
            self._tracker = None
            # Only the type: the library's error text may contain keys.
            self._notice(f"the tracker failed ({type(error).__name__}); training continues with metrics.jsonl only")


def numbers(row: dict[str, Any], prefix: str = "") -> Iterable[tuple[str, float]]:
    """The numbers of a row of metrics by name, dicts flattened (``skill_usage/insert``); other values are skipped."""
    for name, value in row.items():
        if isinstance(value, dict):
            yield from numbers(value, f"{prefix}{name}/")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield prefix + name, value


def _anonymised(settings: Config) -> str:
    """The settings as TOML with ``~`` for the home folder, because its path may contain the user's name."""
    return re.sub(rf'(?<=[":=]){re.escape(str(Path.home()))}(?=[/"])', "~", to_toml(settings))


def _wandb_id(run: RunDir) -> str:
    """The W&B id of the run; created at the first call."""
    file = run.path / "wandb.json"
    if not file.exists():
        files.write_json(file, {"id": secrets.token_hex(6)})
    return str(read_object(file, {"id": TEXT}, hint="delete the file")["id"])


def _indented(text: str) -> str:
    """``text`` as a Markdown code block."""
    return "".join(f"    {line}\n" for line in text.splitlines())
