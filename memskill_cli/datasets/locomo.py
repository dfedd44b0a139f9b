"""LoCoMo (Maharana et al., 2024): ten long conversations of two friends, with questions in five categories.

The file is ``[{sample_id, conversation, qa, …}]``; ``conversation`` has ``session_<n>`` (turns ``{speaker, dia_id,
text}``, optionally ``blip_caption``) and ``session_<n>_date_time``. Summaries are not used.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson

from memskill_cli.datasets.base import (
    SPAN_SETTINGS,
    SPLITS,
    Dataset,
    Note,
    PrepareOptions,
    ReaderCallbacks,
    SourceFile,
    local_file,
    reject_unsupported,
)
from memskill_cli.datasets.json_records import Record, kind
from memskill_cli.datasets.paper import LLAMA, QWEN, PaperResults, other_row, paper_row
from memskill_cli.errors import DataError
from memskill_cli.types import Query, Session, Trace, Turn
from memskill_cli.utils.text_metrics import token_f1

URL = "https://raw.githubusercontent.com/snap-research/locomo/main/data/locomo10.json"
FILE = "locomo10.json"
SHA256 = "79fa87e90f04081343b8c8debecb80a9a6842b76a7aa537dc9fdf651ea698ff4"
"""sha256 of the official file with which this version was tested."""
CATEGORIES = {1: "multi-hop", 2: "temporal", 3: "open-domain", 4: "single-hop", 5: "adversarial"}
MULTI_HOP, OPEN_DOMAIN = CATEGORIES[1], CATEGORIES[3]
"""Categories with their own scoring rules."""
UNSCORED = 5
PUBLISHED = {"train": 6, "val": 2, "test": 2}
"""Conversations of each split, by position."""
SETTINGS = {**SPAN_SETTINGS, "eval.num_skills": 7, "models.answer_max_tokens": 32}
PAPER = PaperResults(
    results=(
        paper_row("test", LLAMA, 7, f1=38.78, judge=50.96),
        paper_row("test", QWEN, 7, chunk=256, f1=39.28, judge=52.07),
        other_row("A-MEM, the best other system", "test", judge=46.34),
    ),
    scored={"test": 314},
    digests={"test": "f7078789f1bf"},
    trained_on="locomo",
    training_epochs=1000,  # 10 stages of 100
)

_SESSION = re.compile(r"session_([0-9]{1,6})")
_DATE = re.compile(r"session_([0-9]{1,6})_date_time")
_TURN_ID = re.compile(r"D:?([0-9]{1,6}):([0-9]{1,6})")  # "D8:6"; some are written "D:11:26", or several as one


class LoCoMo(Dataset):
    """``locomo10.json`` and files in its format."""

    name = "locomo"
    settings = SETTINGS
    excluded_queries = "LoCoMo's adversarial category 5"
    paper_results = PAPER

    def gold_answers(self, query: Query) -> tuple[str, ...]:
        """For open-domain questions, the text before the first ";", after which the annotator gives a reason."""
        return tuple(_without_reason(truth, query.category) for truth in query.gold_answers)

    def score(self, query: Query, prediction: str) -> float:
        """The maximum of :func:`locomo_f1` over the reference answers."""
        return max(locomo_f1(prediction, truth, query.category) for truth in query.gold_answers)

    def parts(self, source: Path | str | None, ask: PrepareOptions) -> list[SourceFile]:
        """The one file. See :class:`memskill_cli.datasets.base.Dataset`."""
        reject_unsupported(self.name, ask)
        if isinstance(source, Path):
            return [SourceFile(str(source), local_file(source, FILE))]
        return [SourceFile(source or URL, url=source or URL, file_name=FILE, expected_sha256="" if source else SHA256)]

    def read(self, part: SourceFile, watch: ReaderCallbacks) -> Iterator[Trace]:
        """See :class:`memskill_cli.datasets.base.Dataset`.

        One or two conversations cannot be split; then each is yielded once for every split.
        """
        assert part.path is not None
        records = _load(part.path)
        seen: set[str] = set()
        traces = []
        for index, record in enumerate(records):
            reader = _Conversation(part.path.name, index, record, watch.note)
            if reader.trace_id in seen:
                reader.fail(f"sample_id {reader.trace_id} occurs twice")
            seen.add(reader.trace_id)
            traces.append((reader.trace_id, reader.sessions(), reader.queries()))
            watch.progress(index + 1, len(records))
        for split, (trace_id, sessions, queries) in _split(traces, watch.note):
            yield Trace(trace_id, self.name, split, sessions, queries)
        unscored = sum(not query.scored for _, _, queries in traces for query in queries)
        if unscored:
            watch.note(f"{unscored} queries (adversarial) are kept but never scored, as in the paper")


DATASET = LoCoMo()


def locomo_f1(prediction: str, truth: str, category: str) -> float:
    """Token F1 with LoCoMo's rules for categories.

    Multi-hop: both texts are split at commas; the score is the mean, over the parts of ``truth``, of the maximum F1
    with a part of ``prediction``. Open-domain: only the text of ``truth`` before its first ";" counts.
    """
    if category == MULTI_HOP:
        predicted, true = _parts(prediction), _parts(truth)
        if not predicted or not true:
            return 0.0
        return math.fsum(max(token_f1(part, wanted) for part in predicted) for wanted in true) / len(true)
    return token_f1(prediction, _without_reason(truth, category))


def _without_reason(truth: str, category: str) -> str:
    return truth.split(";")[0] if category == OPEN_DOMAIN else truth


def _parts(text: str) -> list[str]:
    return [part for part in text.split(",") if part.strip()]


def _load(path: Path) -> list[Any]:
    try:
        records = orjson.loads(path.read_bytes())
    except orjson.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise DataError(f"{path.name}: not JSON: {error.msg.split(': line')[0]} ({where})") from None
    if not isinstance(records, list) or not records:
        raise DataError(f"{path.name}: expected a list of conversations, found {kind(records)}")
    return records


def _split(traces: list[Any], note: Note) -> Iterator[tuple[str, Any]]:
    """Each trace with its split: the published sizes for ten conversations, 60/20/20 for other numbers."""
    n = len(traces)
    if n < len(SPLITS):
        note(f"only {n} conversation(s): train, val and test are the same, so scores say nothing about new data")
        yield from ((split, trace) for split in SPLITS for trace in traces)
        return
    sizes = dict(PUBLISHED)
    if n != sum(PUBLISHED.values()):
        share = max(1, round(n / 5))
        sizes = {"train": n - 2 * share, "val": share, "test": share}
        counts = ", ".join(f"{size} {split}" for split, size in sizes.items())
        note(f"{n} conversations, not the published {sum(PUBLISHED.values())}: split by position into {counts}")
    names = [split for split, size in sizes.items() for _ in range(size)]
    yield from zip(names, traces, strict=True)


class _Conversation(Record):
    """One record of the file: a conversation."""

    def __init__(self, file: str, index: int, record: Any, note: Note) -> None:
        super().__init__(f"{file}: record {index}", record, "see the format: https://github.com/snap-research/locomo")
        self._note = note
        self._refs: dict[str, str] = {}  # of the turns that are kept, by their dia_id
        self.trace_id = self.text(self.record, "sample_id")
        self.where = f"{file}: record {index} ({self.trace_id})"

    def note(self, text: str) -> None:
        self._note(f"{self.trace_id}: {text}")

    def sessions(self) -> tuple[Session, ...]:
        """Sessions in the order of their numbers; empty ones are left out."""
        talk = self.field(self.record, "conversation", dict, "")
        numbers = sorted(int(m[1]) for key in talk if (m := _SESSION.fullmatch(key)))
        dates = sorted(int(m[1]) for key in talk if (m := _DATE.fullmatch(key)))
        if extra := [number for number in dates if number not in numbers]:
            self.note(f"{len(extra)} dates without a session, from session_{extra[0]} to {extra[-1]}, are ignored")
        sessions = [self._session(talk, number) for number in numbers]
        if empty := [session.label for session in sessions if not session.turns]:
            self.note(f"empty sessions are left out: {', '.join(empty)}")
        kept = tuple(session for session in sessions if session.turns)
        return kept or self.fail("conversation has no session with turns")

    def _session(self, talk: dict[str, Any], number: int) -> Session:
        label = f"session_{number}"
        turns = self.field(talk, label, list, "conversation.")
        date = talk.get(f"{label}_date_time", "")
        date = self.expect(date, str, f"conversation.{label}_date_time").strip()
        if turns and not date:
            self.note(f"{label} has no date")
        read = [self._turn(turn, f"conversation.{label}[{i}]") for i, turn in enumerate(turns)]
        if silent := sum(not turn.text for turn in read):
            self.note(f"{label}: {silent} turn(s) with neither text nor caption are left out")
        ids = [str(turn.get("dia_id", "")) for turn, kept in zip(turns, read, strict=True) if kept.text]
        self._refs |= {
            _turn_id(match): f"{label}:{i}" for i, dia_id in enumerate(ids) if (match := _TURN_ID.fullmatch(dia_id))
        }
        return Session(label, date, tuple(turn for turn in read if turn.text))

    def _turn(self, turn: Any, place: str) -> Turn:
        """A turn. A picture is represented by its caption, also if the file has no address of the picture."""
        self.expect(turn, dict, place)
        speaker = self.text(turn, "speaker", f"{place}.")
        caption = self.expect(turn.get("blip_caption", ""), str, f"{place}.blip_caption").strip()
        text = turn.get("text", "") if caption else self.field(turn, "text", str, f"{place}.")
        parts = [self.expect(text, str, f"{place}.text").strip(), _shared(caption)]
        return Turn(speaker, " ".join(part for part in parts if part))

    def queries(self) -> tuple[Query, ...]:
        """Queries in file order. An id contains the position, because some questions occur twice."""
        questions = self.field(self.record, "qa", list, "")
        queries = tuple(self._query(item, i) for i, item in enumerate(questions))
        if not any(query.scored for query in queries):
            self.fail("qa has no question of categories 1..4, so nothing could be scored")
        return queries

    def _query(self, item: Any, index: int) -> Query:
        place = f"qa[{index}]"
        self.expect(item, dict, place)
        question = self.text(item, "question", f"{place}.")
        category = self.field(item, "category", int, f"{place}.")
        if category not in CATEGORIES:
            self.fail(f"{place}.category is {category}, expected 1..5")
        truth = self._truth(item, category, place)
        named = [_turn_id(match) for match in _TURN_ID.finditer(str(item.get("evidence", "")))]
        return Query(
            query_id=f"{self.trace_id}:{index}",
            trace_id=self.trace_id,
            category=CATEGORIES[category],
            question=question,
            gold_answers=(truth,) if truth else (),
            scored=category != UNSCORED,
            evidence=tuple(dict.fromkeys(self._refs[name] for name in named if name in self._refs)),
        )

    def _truth(self, item: dict[str, Any], category: int, place: str) -> str:
        """The answer as text. For an adversarial question, it is the wrong answer that the question suggests; "" if it
        has none, because it is not scored."""
        name = "adversarial_answer" if category == UNSCORED and "adversarial_answer" in item else "answer"
        if name not in item and category == UNSCORED:
            return ""
        if name not in item:
            self.fail(f"{place} has no {name}")
        return self.answer(item[name], f"{place}.{name}")


def _turn_id(match: re.Match[str]) -> str:
    """A turn's id in one form: "D8:6", also for "D8:06" and "D:8:6"."""
    session, turn = match.groups()
    return f"D{int(session)}:{int(turn)}"


def _shared(caption: str) -> str:
    """The caption in brackets. Nearly all captions begin with "a photo of"."""
    if not caption:
        return ""
    return f"[shares {caption}]" if caption.lower().startswith("a photo") else f"[shares a photo: {caption}]"
