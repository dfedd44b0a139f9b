"""The tables of ``memskill eval``: one evaluation by category, or several side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from memskill_cli.cli.console import escape_markup, percent
from memskill_cli.reports.eval_notes import evidence_notes, executor_notes

Summary = dict[str, Any]
_ANSWERED = {"f1": "F1", "judge": "judge"}
_PLAYED = {"success_rate": "success", "steps": "steps"}
_DIFFERENCES = {**_ANSWERED, "success": "success"}


def one(summary: Summary) -> list[Any]:
    """The scores by category, caveats, and some answers."""
    evidence = [escape_markup(line) for line in evidence_notes(summary)]
    return [_by_category(summary), *evidence, *_lines([summary]), _samples(summary), _where(summary)]


def several(summaries: Sequence[Summary], differences: Sequence[dict[str, Any]]) -> list[Any]:
    """Variants and methods side by side, then how each method differs from the first."""
    parts: list[Any] = [_side_by_side(summaries)]
    if differences:
        parts += [_differences(differences), *_conclusions(differences)]
    apart = [_apart(summary) for summary in summaries if "abstention" in summary]
    return [*parts, *apart, *_lines(summaries), *map(_where, summaries)]


def _by_category(summary: Summary) -> Table:
    title = f"{summary['dataset']} {summary['split']}, {summary['method']}, checkpoint {summary['checkpoint']}"
    table = _table(title)
    played = _is_played(summary)
    table.add_column("task type" if played else "category")
    for name in _headings(summary):
        table.add_column(name, justify="right")
    for category, row in summary["by_task_type" if played else "by_category"].items():
        table.add_row(escape_markup(category), *_cells(row))
    table.add_section()
    table.add_row("all", *_cells(summary), style="bold")
    if "abstention" in summary:
        table.add_section()
        table.add_row("abstention (not in all)", *_cells(summary["abstention"]))
    return table


def _side_by_side(summaries: Sequence[Summary]) -> Table:
    variants = any(summary["variant"] for summary in summaries)
    checkpoints = dict.fromkeys(s["checkpoint"] for s in summaries if s["checkpoint"] != "none")
    first = summaries[0]
    split = first["split"].removesuffix(f"-{first['variant']}") if variants else first["split"]
    used = f", checkpoint {', '.join(checkpoints)}" if checkpoints else ""
    table = _table(f"{first['dataset']} {split}{used}")
    table.caption = "95 % bootstrap intervals; items: memories stored (rag: spans; full-context: sessions)"
    for name in (*(("variant",) if variants else ()), "method"):
        table.add_column(name)
    k = "10"
    recall = [summary.get("evidence_recall", {}).get(k) for summary in summaries]
    evidence = any(share is not None for share in recall)
    for name in (*_headings(first), *([f"evidence @{k}"] if evidence else []), "items"):
        table.add_column(name, justify="right")
    last = first["split"]
    for summary, share in zip(summaries, recall, strict=True):
        if summary["split"] != last:
            table.add_section()
            last = summary["split"]
        names = [summary["variant"]] * variants + [summary["method"]]
        found = [percent(share)] if evidence else []
        table.add_row(*names, *_cells(summary), *found, str(summary["memories"]))
    return table


def _differences(differences: Sequence[dict[str, Any]]) -> Table:
    table = _table(f"difference to {differences[0]['first']}, on the same queries")
    table.caption = "paired bootstrap: 95 % interval; p is the share of resamples in which the method is no better"
    variants = any(entry["variant"] for entry in differences)
    for name in (*(("variant",) if variants else ()), "method", "score"):
        table.add_column(name)
    for name in ("queries", "difference", "p"):
        table.add_column(name, justify="right")
    for entry in differences:
        low, high = entry["ci95"]
        shown = f"{_signed(entry['difference'])} [dim]{_signed(low)} to {_signed(high)}[/dim]"
        names = [entry["variant"]] * variants + [entry["method"], _DIFFERENCES[entry["score"]]]
        table.add_row(*names, str(entry["queries"]), shown, f"{entry['p']:.3f}")
    return table


def _conclusions(differences: Sequence[dict[str, Any]]) -> list[str]:
    """For each score, which methods are better or worse than the first, and for which the data cannot tell."""
    groups: dict[tuple[str, str], list[str]] = {}
    for entry in differences:
        low, high = entry["ci95"]
        what = "better" if low > 0 else "worse" if high < 0 else "not distinguishable"
        name = f"{entry['method']} {entry['variant']}".strip()
        groups.setdefault((_DIFFERENCES[entry["score"]], what), []).append(name)
    first = differences[0]["first"]
    said = {"better": f"better than {first}", "worse": f"worse than {first}"}
    unknown = f"not distinguishable from {first} with these queries"
    return [
        f"{score}: {escape_markup(', '.join(names))} {said.get(what, unknown)}"
        for (score, what), names in groups.items()
    ]


def _table(title: str) -> Table:
    caption = "95 % bootstrap intervals"
    return Table(title=title, title_justify="left", caption=caption, caption_justify="left")


def _is_played(row: dict[str, Any]) -> bool:
    """Whether ``row`` is about tasks that were played (and not about questions that were answered)."""
    return "success_rate" in row


def _headings(row: dict[str, Any]) -> list[str]:
    return ["tasks", *_PLAYED.values(), "invalid actions"] if _is_played(row) else ["queries", *_ANSWERED.values()]


def _cells(row: dict[str, Any]) -> list[str]:
    if _is_played(row):
        return [str(row["queries"]), *(_score(row, name) for name in _PLAYED), str(row["invalid_actions"])]
    return [str(row["queries"]), *(_score(row, name) for name in _ANSWERED)]


def _score(row: dict[str, Any], name: str) -> str:
    interval = row["ci95"][name]
    if row[name] is None or interval is None:
        return "–"
    shown = "{:.1f}".format if name == "steps" else percent
    return f"{shown(row[name])} [dim]{shown(interval[0])}–{shown(interval[1])}[/dim]"


def _signed(value: float) -> str:
    return f"{100 * value:+.2f}"


def _apart(summary: Summary) -> str:
    asked = summary["abstention"]
    return f"{summary['method']}, abstention (separate): judge {_score(asked, 'judge')}, {asked['queries']} queries"


def _lines(summaries: Sequence[Summary]) -> list[str]:
    """The caveats of the evaluations. One that is not true of all of them starts with the names of its evaluations."""
    found: dict[str, list[str]] = {}
    for summary in summaries:
        for line in _caveats(summary):
            found.setdefault(line, []).append(f"{summary['method']} {summary['variant']}".strip())
    lines = [line if len(names) == len(summaries) else f"{', '.join(names)}: {line}" for line, names in found.items()]
    return [f"[bold]{escape_markup(line)}[/bold]" for line in lines]


def _caveats(summary: Summary) -> list[str]:
    lines = []
    if summary["errors"]:
        failed = ", ".join(f"{count} {what}" for what, count in summary["errors"].items())
        lines.append(f"without a score and excluded from averages: {failed}")
    if summary["errors"].get("unreadable"):
        lines.append(
            "unreadable answers ended inside the model's reasoning: "
            "increase models.answer_max_tokens, or switch reasoning off"
        )
    lines += executor_notes(summary)
    if cut := summary.get("cut"):
        lines.append(
            f"for {cut['queries']} of {summary['queries']} queries, the context was shortened to fit the model's "
            f"context window, by {cut['mean_tokens']:,.0f} tokens on average"
        )
    if summary["max_spans"]:
        lines.append(f"only the first {summary['max_spans']} spans of each trace were read (eval.max_spans)")
    if summary["limit"]:
        tasks = f"only {summary['limit']} tasks were played, taken from the task types in turn (--limit)"
        lines.append(
            tasks if _is_played(summary) else f"only the first {summary['limit']} queries were asked (--limit)"
        )
    return lines


def _where(summary: Summary) -> str:
    place = summary["report"] or f"{summary['folder']}/results.jsonl"
    return f"{'report' if summary['report'] else 'all answers'}: [bold]{escape_markup(place)}[/bold]"


def _samples(summary: Summary, count: int = 6) -> Table:
    """Some answers, spread evenly over the evaluation."""
    from memskill_cli.evaluation.results import read_results

    rows = list(read_results(Path(summary["folder"]) / "results.jsonl"))
    if _is_played(summary):
        return _games(rows[:: max(1, len(rows) // count)][:count])
    table = Table(title="some answers", title_justify="left", show_lines=False)
    for name in ("question", "true answer", "answer", "F1"):
        table.add_column(name, justify="right" if name == "F1" else "left", overflow="fold")
    for row in rows[:: max(1, len(rows) // count)][:count]:
        score = "–" if row["f1"] is None else percent(row["f1"])
        truth = " / ".join(row["truths"])
        table.add_row(
            escape_markup(row["question"]),
            escape_markup(truth),
            escape_markup(row["prediction"] or row["error"]),
            score,
        )
    return table


def _games(rows: Sequence[dict[str, Any]]) -> Table:
    table = Table(title="some tasks", title_justify="left", show_lines=False)
    for name in ("goal", "actions and outcome", "steps"):
        table.add_column(name, justify="right" if name == "steps" else "left", overflow="fold")
    for row in rows:
        steps = "–" if row["steps"] is None else str(row["steps"])
        table.add_row(escape_markup(row["question"]), escape_markup(row["prediction"] or row["error"]), steps)
    return table
