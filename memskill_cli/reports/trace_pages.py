"""Pages of single traces of an evaluation: what each span wrote, and what each question got.

They are ``traces/<number>-<digest of the trace id>.html`` beside ``report.html``. Text of spans and changes of the
memory are from ``steps.jsonl``, questions from ``results.jsonl``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from memskill_cli.config import digest
from memskill_cli.reports import page
from memskill_cli.reports.failure_examples import Example, Scored, example_of
from memskill_cli.reports.run_files import Files, Row, count, counts, get_dict, get_dicts, get_str, number, texts
from memskill_cli.scoring.evidence import RECALL_AT, is_from

MOST = 20
"""Most traces that have a page."""
RETRIEVED = 12
"""Most retrieved memories shown per question."""
STAGES = {
    "not_stored": "not stored: no memory was made from it",
    "lost": "lost: it was stored, then overwritten or deleted",
    "not_retrieved": "not retrieved: it was stored, but not found for the question",
    "not_used": "not used: it was retrieved, but the answer is wrong",
}
"""Where a wrong answer lost its evidence, by ``evidence.stage`` of its row."""
DONE = {"insert": "inserted", "update": "changed", "delete": "deleted", "repeat": "seen again"}
"""Words for the kinds of changes. A "repeat" is an INSERT of what a memory says already."""
REPLIES = {
    "not_asked": "no call: no skill but noop was selected",
    "unreadable": "the reply could not be read",
    "refused": "the model refused the prompt",
    "cut": "the reply was cut by the token limit",
}


@dataclass(frozen=True)
class ShownChange:
    """One change of a memory. ``later``: the next change of the same memory, None if there is none."""

    span: int
    kind: str
    """A key of :data:`DONE`."""
    item_id: str
    text: str
    before: str
    by: str
    """Names of the skills that allow this action, joined by commas."""
    later: ShownChange | None = None

    @property
    def done(self) -> str:
        return DONE[self.kind]


@dataclass(frozen=True)
class ShownSpan:
    """A line of ``steps.jsonl`` with the changes in it."""

    row: Row
    changes: list[ShownChange]

    @property
    def index(self) -> int:
        return count(self.row, "span")

    @property
    def text(self) -> str:
        return get_str(self.row, "text")

    def number(self, name: str) -> float | None:
        return number(self.row, name)

    @property
    def skills(self) -> list[tuple[str, float | None]]:
        return [(get_str(skill, "name"), number(skill, "probability")) for skill in get_dicts(self.row, "skills")]

    @property
    def outcome(self) -> str:
        """2 inserted, 1 deleted"""
        numbers = {done: sum(change.done == done for change in self.changes) for done in DONE.values()}
        return ", ".join(f"{n} {done}" for done, n in numbers.items() if n) or "no change"

    @property
    def problem(self) -> str:
        return REPLIES.get(get_str(self.row, "reply"), "")

    def counted(self, name: str) -> str:
        """3 bad_index, 1 empty_text"""
        return ", ".join(f"{n:g} {reason}" for reason, n in counts(self.row, name).items())

    def holds(self, ref: str) -> bool:
        """Whether the span has a part of this evidence: a turn, or a session."""
        return any(is_from(own, ref) for own in texts(self.row, "sources"))


@dataclass(frozen=True)
class ShownQuestion:
    """A question with its evidence: the names, each with the spans it is in."""

    example: Example
    evidence: list[tuple[str, list[int]]]
    wrong: bool

    @property
    def recall(self) -> str:
        """Evidence recall: "0.50 in the first 5, 1.00 in the first 10"; "" if no evidence is named."""
        recall = get_dict(get_dict(self.example.row, "evidence"), "recall")
        found = ((k, number(recall, str(k))) for k in RECALL_AT)
        return ", ".join(f"{value:.2f} in the first {k}" for k, value in found if value is not None)

    @property
    def stage(self) -> str:
        """Where a wrong answer failed; "" for a right one, or if it is not known."""
        return get_str(get_dict(self.example.row, "evidence"), "stage") if self.wrong else ""

    @property
    def failed(self) -> str:
        return STAGES.get(self.stage, "")


@dataclass(frozen=True)
class TraceView:
    """All that is shown of one trace."""

    label: str
    spans: list[ShownSpan]
    questions: list[ShownQuestion]

    @property
    def memories(self) -> float | None:
        """The number of memories after the last span; None if the spans were not recorded."""
        return number(self.spans[-1].row, "memories_after") if self.spans else None

    def changed(self, kind: str) -> int:
        return sum(change.kind == kind for span in self.spans for change in span.changes)

    @cached_property
    def scores(self) -> dict[str, float]:
        """Means over the questions with a score."""
        scored = [question.example.scored for question in self.questions]
        named = {
            "f1": [row.f1 for row in scored if row.f1 is not None],
            "judge": [row.judge for row in scored if row.judge is not None],
            "success_rate": [row.success for row in scored if row.success is not None],
        }
        return {name: sum(values) / len(values) for name, values in named.items() if values}

    @property
    def failures(self) -> dict[str, int]:
        stages = [question.stage for question in self.questions]
        return {stage: stages.count(stage) for stage in STAGES if stage in stages}


@dataclass(frozen=True)
class TraceLinks:
    """The traces that have a page, each with the link to it, and the number of all traces."""

    links: list[tuple[str, TraceView]]
    total: int


def write_trace_pages(files: Files, heading: str, settings: Mapping[str, Any]) -> TraceLinks:
    """Write the pages of the first :data:`MOST` traces. ``heading`` is the title of the evaluation.

    Raises OSError if one cannot be written.
    """
    threshold = number(get_dict(settings, "designer"), "f1_threshold")
    answered, total = _rows_by_trace(files)
    steps = _steps_by_trace(files, answered)
    links = []
    for at, (trace_id, rows) in enumerate(answered.items(), 1):
        view = _view(trace_id, rows, steps[trace_id], 0.5 if threshold is None else threshold)
        name = f"{at:03d}-{digest(trace_id)}.html"  # no part of a path is text from data
        facts = {"view": view, "heading": heading, "at": at, "total": total}
        page.write(files.folder / "traces" / name, "trace.html.j2", notes=[], **facts)
        links.append((f"traces/{name}", view))
    return TraceLinks(links, total)


def _rows_by_trace(files: Files) -> tuple[dict[str, list[Row]], int]:
    """The rows of the first traces, and the number of all traces."""
    chosen: dict[str, list[Row]] = {}
    seen = set()
    for row in files.rows("results.jsonl"):
        trace_id = get_str(row, "trace_id")
        seen.add(trace_id)
        if len(seen) <= MOST or trace_id in chosen:
            chosen.setdefault(trace_id, []).append(row)
    return chosen, len(seen)


def _steps_by_trace(files: Files, wanted: Mapping[str, Any]) -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = {trace_id: [] for trace_id in wanted}
    # Methods that write no memory have no such file.
    if (files.folder / "steps.jsonl").exists():
        for row in files.rows("steps.jsonl"):
            if (trace_id := get_str(row, "trace_id")) in found:
                found[trace_id].append(row)
    return found


def _view(trace_id: str, rows: Sequence[Row], steps: Sequence[Row], threshold: float) -> TraceView:
    spans = _spans(sorted(steps, key=lambda row: count(row, "span")))
    return TraceView(trace_id, spans, [_question(at, row, spans, threshold) for at, row in enumerate(rows)])


def _spans(steps: Sequence[Row]) -> list[ShownSpan]:
    """From the last span to the first, so that each change knows the next one of the same memory."""
    later: dict[str, ShownChange] = {}
    found = []
    for row in reversed(steps):
        changes = []
        for action in reversed(get_dicts(row, "actions")):
            if get_str(action, "action") in DONE:  # not a NOOP
                change = _change(row, action, later)
                later |= {change.item_id: change} if change.item_id else {}
                changes.append(change)
        found.append(ShownSpan(row, changes[::-1]))
    return found[::-1]


def _change(row: Row, action: Row, later: Mapping[str, ShownChange]) -> ShownChange:
    kind, item_id = get_str(action, "action"), get_str(action, "id")
    skills = get_dicts(row, "skills")
    by = [get_str(skill, "name") for skill in skills if get_str(skill, "action") == kind]
    names = ", ".join(by or [get_str(skill, "name") for skill in skills])
    text, before = get_str(action, "text"), get_str(action, "before")
    if kind == "insert" and before:
        kind, before = "repeat", ""
    return ShownChange(count(row, "span"), kind, item_id, text, before, names, later.get(item_id))


def _question(at: int, row: Row, spans: Sequence[ShownSpan], threshold: float) -> ShownQuestion:
    scored = Scored.of(at, row)
    refs = texts(get_dict(row, "evidence"), "refs")
    evidence = [(ref, [span.index for span in spans if span.holds(ref)]) for ref in refs]
    return ShownQuestion(example_of(row, scored, RETRIEVED), evidence, _is_wrong(scored, threshold))


def _is_wrong(scored: Scored, threshold: float) -> bool:
    """As in ``evaluation/summary.py``: a judge score below 1; without one, an F1 below ``threshold``."""
    if scored.f1 is None:
        return False
    return scored.judge < 1 if scored.judge is not None else scored.f1 < threshold
