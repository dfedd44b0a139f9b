"""A report that cannot be written is told, and stops nothing."""

from __future__ import annotations

from memskill_cli.reports.hooks import report_evaluations, report_run

from .conftest import Made, Page, result


def test_an_evaluations_report_brings_its_runs_up_to_date(made: Made) -> None:
    folder = made.evaluated("locomo-test-memskill-ab", [result(0)])
    told: list[str] = []
    assert report_evaluations([folder], told.append) == [str(folder / "report.html")]
    assert told == []
    assert "../../report.html" in Page(folder / "report.html").links()
    assert "evals/locomo-test-memskill-ab/report.html" in Page(made.path / "report.html").links()


def test_what_is_in_the_way_is_told(made: Made) -> None:
    (made.path / "report.html").mkdir()
    (made.path / "report.html" / "occupied").touch()
    folder = made.evaluated("e", [result(0)])
    told: list[str] = []
    assert report_run(made.path, told.append) == ""
    assert len(told) == 1
    assert told[0].startswith("no report for a: IsADirectoryError")
    assert report_evaluations([folder], told.append) == [str(folder / "report.html")], "one does not hinder the other"
    assert [file for file in made.path.iterdir() if file.name.endswith(".tmp")] == []
