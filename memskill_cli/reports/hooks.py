"""Write reports at the end of a command. A report that fails gives a notice and does not stop the command."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

Notice = Callable[[str], None]


def report_run(run: Path, notice: Notice) -> str:
    """Write the run's ``report.html``. Returns its path, or "" if that failed, after a call of ``notice``."""
    from memskill_cli.reports.run_report import write_run_report

    return _attempt(write_run_report, run, notice)


def report_evaluations(folders: Sequence[Path], notice: Notice) -> list[str]:
    """Write each evaluation's ``report.html``, then that of its run, which links to it.

    Returns the paths of the evaluations' reports, "" for one that failed.
    """
    from memskill_cli.reports.eval_report import write_eval_report

    written = [_attempt(write_eval_report, folder, notice) for folder in folders]
    for run in dict.fromkeys(folder.parent.parent for folder in folders):
        report_run(run, notice)
    return written


def _attempt(write: Callable[[Path], Path], folder: Path, notice: Notice) -> str:
    try:
        return str(write(folder))
    # Any exception: a training of hours must not fail because its report could not be written.
    except Exception as error:
        notice(f"no report for {folder.name}: {type(error).__name__}: {error}")
        return ""
