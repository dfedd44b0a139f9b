"""``report.html`` of an evaluation.

Scores with intervals, comparison with the paper and with other methods, the worst queries with their retrieved
memories, links to the pages of the traces (:mod:`.trace_pages`), and the cost per query.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

from markupsafe import Markup

from memskill_cli.datasets.base import ABSTENTION
from memskill_cli.reports import costs, page, score_charts, svg
from memskill_cli.reports.departures import DEPARTURES
from memskill_cli.reports.eval_notes import evidence_notes, executor_notes
from memskill_cli.reports.failure_examples import Scored, examples
from memskill_cli.reports.paper_results import Comparison, Setup, compare
from memskill_cli.reports.run_files import Files, Row, count, counts, get_dict, get_str, number, pair
from memskill_cli.reports.score_charts import IntervalRow
from memskill_cli.reports.trace_pages import write_trace_pages

MEASURES = (("f1", "token F1"), ("judge", "LLM judge"), ("success_rate", "success rate"))
"""Scores from 0 to 1: (name in ``summary.json``, title)."""


@dataclass(frozen=True)
class ScoreRow:
    """A row of the table of scores: a category, a task type, or all."""

    label: str
    row: Row
    strong: bool = False

    def value(self, name: str) -> float | None:
        return number(self.row, name)

    def interval(self, name: str) -> tuple[float, float] | None:
        return pair(get_dict(self.row, "ci95"), name)

    def between(self, name: str) -> str:
        ends = self.interval(name)
        return f"{page.score(ends[0])} to {page.score(ends[1])}" if ends else ""

    @property
    def queries(self) -> int:
        return count(self.row, "queries")


@dataclass(frozen=True)
class ComparedEval:
    """An evaluation to compare with, and the link to its report ("" for this one)."""

    line: ScoreRow
    link: str

    @property
    def errors(self) -> float:
        return sum(counts(self.line.row, "errors").values())

    @property
    def memories(self) -> float | None:
        return number(self.line.row, "memories")


@dataclass(frozen=True)
class Scores:
    """The table of scores, its measures, and a chart per measure."""

    lines: list[ScoreRow]
    measures: list[tuple[str, str]]
    charts: list[tuple[str, Markup]]
    steps: bool
    """Whether the rows have numbers of steps, as games do."""


def write_eval_report(folder: Path) -> Path:
    """Write ``report.html`` and ``traces/`` to an evaluation's folder, from its files and those of its run.

    Returns the path of the report.

    Raises OSError if it cannot be written.
    """
    files, run = Files(folder), Files(folder.parent.parent)
    summary = files.table("summary.json")
    settings = _settings(files, run)
    setup = Setup(summary, settings, get_str(run.table("run.json"), "dataset"))
    scored = [Scored.of(at, row) for at, row in enumerate(files.rows("results.jsonl"))]
    comparison = compare(setup)
    chosen = examples(files, scored)
    neighbours = _neighbours(folder, summary)
    heading = _heading(summary) or folder.name
    facts = {
        "id": folder.name,
        "run": run.folder.name,
        "system": get_str(summary, "system"),
        "heading": heading,
        "caveats": _caveats(summary),
        "evidence": [_sentence(line) for line in evidence_notes(summary)],
        "summary": summary,
        "scores": _scores(summary, comparison),
        "abstention": ScoreRow(ABSTENTION, get_dict(summary, ABSTENTION)) if get_dict(summary, ABSTENTION) else None,
        "comparison": comparison,
        "departures": DEPARTURES,
        "executor": setup.setting("models", "executor"),
        "num_skills": setup.setting("eval", "num_skills"),
        "neighbours": neighbours,
        "neighbour_charts": _neighbour_charts(neighbours),
        "distributions": _distributions([row for row in scored if row.category != ABSTENTION]),
        "examples": chosen,
        "traces": write_trace_pages(files, heading, settings),
        "held": sum(example.rank > 0 for example in chosen.worst),
        "costs": _costs(run, folder.name, len(scored)),
        "answered": len(scored),
        "memories": number(summary, "memories"),
        "config": files.text("config.toml") or run.text("config.toml"),
    }
    return page.write(folder / "report.html", "eval.html.j2", notes=files.notes + run.notes, **facts)


def _heading(summary: Row) -> str:
    """locomo test, memskill, checkpoint 000012"""
    checkpoint = get_str(summary, "checkpoint")
    named = f"checkpoint {checkpoint}" if checkpoint.isdigit() else checkpoint
    where = f"{get_str(summary, 'dataset')} {get_str(summary, 'split')}".strip()
    return ", ".join(part for part in (where, get_str(summary, "method"), named) if part and part != "none")


def _caveats(summary: Row) -> list[str]:
    """Limitations of the scores, shown at the top of the report."""
    found = []
    if failed := counts(summary, "errors"):
        kinds = ", ".join(f"{number:g} {kind}" for kind, number in failed.items())
        found.append(f"Without a score and excluded from averages: {kinds}.")
    found += map(_sentence, executor_notes(summary))
    if spans := count(summary, "max_spans"):
        found.append(f"Only the first {spans} spans of each trace were read (eval.max_spans).")
    if limit := count(summary, "limit"):
        found.append(f"Only the first {limit} queries were asked (--limit).")
    if cut := get_dict(summary, "cut"):
        tokens = page.grouped(number(cut, "mean_tokens"))
        found.append(
            f"The context of {count(cut, 'queries')} queries did not fit the model's window and was truncated "
            f"by {tokens} tokens on average."
        )
    shown, skills = count(summary, "skills_shown"), count(summary, "skills")
    if shown < skills:
        found.append(f"Only {shown} of the {skills} skills fit the executor's context window.")
    return found


def _sentence(line: str) -> str:
    return f"{line[0].upper()}{line[1:]}."


def _settings(files: Files, run: Files) -> dict[str, Any]:
    """The evaluation's settings; if it has no ``config.toml``, those of its run, which may differ."""
    if (files.folder / "config.toml").exists():
        return files.settings()
    return run.settings()


def lines_of(summary: Row) -> list[ScoreRow]:
    """One row per category or task type, then a row for all."""
    groups = get_dict(summary, "by_category") or get_dict(summary, "by_task_type")
    groups = {} if list(groups) == ["all"] else groups  # a dataset without categories
    lines = [ScoreRow(name.replace("_", " "), get_dict(groups, name)) for name in groups]
    return [*lines, ScoreRow("all", summary, strong=True)] if summary else []


def _scores(summary: Row, comparison: Comparison) -> Scores:
    lines = lines_of(summary)
    measures = [(name, title) for name, title in MEASURES if number(summary, name) is not None]
    width = svg.WIDE if len(measures) == 1 else svg.HALF
    drawn = [
        (title, svg.responsive(partial(_score_chart, lines, name, title, comparison.mark(name)), width))
        for name, title in measures
    ]
    return Scores(lines, measures, drawn, any(line.value("steps") is not None for line in lines))


def _score_chart(lines: Sequence[ScoreRow], name: str, title: str, mark: float | None, width: int) -> Markup:
    rows = [
        IntervalRow(line.label, line.value(name), line.interval(name), mark if line.strong else None, line.strong)
        for line in lines
    ]
    values = ", ".join(f"{row.label} {page.score(row.value)}" for row in rows)
    paper = f"; the paper: {page.score(mark)}" if mark is not None else ""
    return score_charts.interval_chart(
        f"{title} by category: {values}{paper}", rows, width, mark=f"the paper: {page.score(mark)}"
    )


def _neighbours(folder: Path, summary: Row) -> list[ComparedEval]:
    """Evaluations of the same run, data, split and number of queries, this one first; none if there is no other."""
    same = ("dataset", "split", "data_digest", "limit", "include_abstention")
    found = []
    for file in sorted(folder.parent.glob("*/summary.json"), key=lambda file: (file.parent != folder, file)):
        other = Files(file.parent).table(file.name)
        if other and summary and all(other.get(name) == summary.get(name) for name in same):
            this = file.parent == folder
            link = "" if this else f"../{quote(file.parent.name)}/report.html"
            found.append(ComparedEval(ScoreRow(_label(other), other, this), link))
    return found if len(found) > 1 else []


def _label(summary: Row) -> str:
    method, checkpoint = get_str(summary, "method"), get_str(summary, "checkpoint")
    return f"{method} @ {checkpoint}" if checkpoint.isdigit() else method


def _neighbour_charts(neighbours: Sequence[ComparedEval]) -> list[tuple[str, Markup]]:
    lines = [row.line for row in neighbours]
    return [
        (title, svg.responsive(partial(_method_chart, lines, name, title), svg.HALF))
        for name, title in MEASURES
        if any(line.value(name) is not None for line in lines)
    ]


def _method_chart(lines: Sequence[ScoreRow], name: str, title: str, width: int) -> Markup:
    rows = [IntervalRow(line.label, line.value(name), line.interval(name), strong=line.strong) for line in lines]
    values = ", ".join(f"{row.label} {page.score(row.value)}" for row in rows)
    return score_charts.interval_chart(f"{title} of each method: {values}", rows, width)


def _distributions(scored: Sequence[Scored]) -> list[tuple[str, Markup]]:
    """Histograms of the scores; for games only of the outcome."""
    games = any(row.success is not None for row in scored)
    measures = (
        (("success", "Tasks by outcome"),)
        if games
        else (("f1", "Queries by token F1"), ("judge", "Queries by verdict"))
    )
    found = []
    for name, title in measures:
        values = [value for row in scored if (value := getattr(row, name)) is not None]
        if values:
            found.append((title, _histogram(title, _bins(name, values), "token F1 × 100" if name == "f1" else "")))
    return found


def _histogram(title: str, bins: Sequence[tuple[str, int]], axis: str) -> Markup:
    full_title = f"{title}: {', '.join(f'{label}: {n}' for label, n in bins)}"
    return svg.responsive(lambda width: score_charts.bars(full_title, bins, width, name=axis), svg.HALF)


def _bins(name: str, values: Sequence[float]) -> list[tuple[str, int]]:
    """(label, count) per column. For F1, exactly 0 and exactly 1 have their own columns."""
    if name == "success":
        return [("failed", sum(v <= 0 for v in values)), ("succeeded", sum(v > 0 for v in values))]
    if name == "judge":
        return [(f"{level:g}", sum(v == level for v in values)) for level in (0.0, 0.5, 1.0)]
    inside = [
        (f"{low}–" if low else ">0", sum(low <= 100 * v < low + 10 and v > 0 for v in values))
        for low in range(0, 100, 10)
    ]
    return [("0", sum(v <= 0 for v in values)), *inside, ("100", sum(v >= 1 for v in values))]


def _costs(run: Files, scope: str, queries: int) -> dict[str, Any]:
    bills = costs.sum_costs(row for row in run.rows("usage.jsonl") if row.get("scope") == scope)
    return {
        "by_role": costs.grouped_by(bills, "role", "model"),
        "total": costs.total(bills),
        "queries": max(queries, 1),
    }
