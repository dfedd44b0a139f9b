"""Writing reports where work is done. A report is a courtesy: what goes wrong with it is told, and stops nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

Notice = Callable[[str], None]


def report_run(run: Path, notice: Notice) -> str:
    """Write the run's ``report.html``; its path, "" if that failed (``notice`` is told why)."""
    from memskill_cli.reports.run_report import write_run_report

    return _attempt(write_run_report, run, notice)


def report_evaluations(folders: Sequence[Path], notice: Notice) -> list[str]:
    """Write each evaluation's ``report.html`` and then, since that links to them, their run's; the paths of the
    former as :func:`report_run` gives them."""
    from memskill_cli.reports.eval_report import write_eval_report

    written = [_attempt(write_eval_report, folder, notice) for folder in folders]
    for run in dict.fromkeys(folder.parent.parent for folder in folders):
        report_run(run, notice)
    return written


def _attempt(write: Callable[[Path], Path], folder: Path, notice: Notice) -> str:
    try:
        return str(write(folder))
    # Whatever it is: hours of training must not end in an error because a page about them could not be made.
    except Exception as error:
        notice(f"no report for {folder.name}: {type(error).__name__}: {error}")
        return ""
