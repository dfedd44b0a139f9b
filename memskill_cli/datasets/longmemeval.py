"""LongMemEval-S (Wu et al., 2025): 500 questions, each about the chat sessions of one user with an assistant.

The file is ``[{question_id, question_type, question, question_date, answer, haystack_session_ids, haystack_dates,
haystack_sessions: [[{role, content}]], …}]``, about 270 MB, and is read record by record. Evidence (``has_answer``,
``answer_session_ids``) is not used.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import orjson

from memskill_cli.datasets.base import (
    ABSTENTION,
    SPAN_SETTINGS,
    SPLITS,
    Dataset,
    PrepareOptions,
    ReaderCallbacks,
    SourceFile,
    local_file,
    prepare_command,
    reject_unsupported,
)
from memskill_cli.datasets.json_records import Record, stream
from memskill_cli.datasets.paper import LLAMA, QWEN, PaperResults, other_row, paper_row
from memskill_cli.datasets.samples import sample_path, shipped
from memskill_cli.datasets.spans import unique_labels
from memskill_cli.errors import DataError, UsageError
from memskill_cli.types import Query, Session, Trace, Turn

FILE = "longmemeval_s_cleaned.json"
URL = f"hf://datasets/xiaowu0162/longmemeval-cleaned/{FILE}"
JUDGE_PROMPTS = {
    "temporal-reasoning": "judge_temporal",
    "knowledge-update": "judge_update",
    "single-session-preference": "judge_preference",
}
"""Templates of the judge's rules by category."""
SETTINGS = {**SPAN_SETTINGS, "eval.num_skills": 5, "models.answer_max_tokens": 512}
PAPER = PaperResults(
    results=(
        paper_row("test", LLAMA, 5, f1=31.65, judge=59.41),
        paper_row("test", QWEN, 5, f1=23.75, judge=59.90),
        other_row("CoN, the best other system", "test", judge=56.93),
    ),
    scored={"test": 101},
    trained_on="locomo",
    judge_setting={
        "eval.judge_prompt": (
            "general",
            "the judge has one prompt per category, the paper's judge has one prompt for all",
        )
    },
)

SplitOf = Callable[[int, str], str]
"""(position, question id) -> split."""


class LongMemEval(Dataset):
    """``longmemeval_s_cleaned.json`` and files in its format. Ids of abstention questions end in ``_abs``."""

    name = "longmemeval"
    trains = False
    settings = SETTINGS
    answer_prompt = "answer_dated"
    has_abstention = True
    excluded_queries = "abstention; --include-abstention asks them and reports them separately"
    training_notice = (
        "training on LongMemEval: the paper trains on LoCoMo and only evaluates here, so results will differ"
    )
    paper_results = PAPER

    def judge_prompt(self, category: str) -> str:
        """See :class:`~.base.Dataset`."""
        return JUDGE_PROMPTS.get(category) or super().judge_prompt(category)

    def parts(self, source: Path | str | None, ask: PrepareOptions) -> list[SourceFile]:
        """The one file. If a split is requested, the whole file is that split. See :class:`~.base.Dataset`."""
        reject_unsupported(self.name, ask, splits=SPLITS)
        if len(ask.splits) > 1 or (ask.splits and source is None):
            raise UsageError(
                "the official file has published splits; --split is only for a file of your own",
                hint=prepare_command(self.name, None, "--source", "FILE", "--split", ask.splits[0]),
            )
        split = ask.splits[0] if ask.splits else ""
        if isinstance(source, Path):
            if source == sample_path(self.name):
                split = split or "test"
            return [SourceFile(str(source), local_file(source, FILE), split=split)]
        return [SourceFile(source or URL, url=source or URL, file_name=FILE, split=split)]

    def read(self, part: SourceFile, watch: ReaderCallbacks) -> Iterator[Trace]:
        """See :class:`~.base.Dataset`. The file is read twice: first its ids, then its records."""
        assert part.path is not None
        ids = [str(found) for found in stream(part.path, "question_id")]
        split_of = _split_of(part, ids, watch)
        odd: Counter[str] = Counter()
        seen: set[str] = set()
        for index, record in enumerate(stream(part.path)):
            reader = _Question(part.path.name, index, record, odd)
            if reader.trace_id in seen:
                reader.fail(f"question_id {reader.trace_id} occurs twice")
            seen.add(reader.trace_id)
            split = split_of(index, reader.trace_id)
            yield Trace(reader.trace_id, self.name, split, reader.sessions(), (reader.query(),))
            watch.progress(index + 1, len(ids))
        for text, count in sorted((+odd).items()):
            watch.note(f"{text}: {count}")


DATASET = LongMemEval()


def _split_of(part: SourceFile, ids: list[str], watch: ReaderCallbacks) -> SplitOf:
    """How the file is split: as requested, by question id if all ids are published ones, or by position.

    Positions are used only for a file with as many records as the full file, because the published lists are positions
    in the full file. Raises DataError for a smaller file with unknown ids.
    """
    if part.split:
        watch.note(f"all {len(ids)} records are taken as {part.split}")
        return lambda index, question_id: part.split
    positions: dict[str, list[int]] = orjson.loads(shipped("longmemeval_s_splits.json").read_bytes())
    by_position = {index: split for split in SPLITS for index in positions[split]}
    known = shipped("longmemeval_s_ids.txt").read_text("utf-8").split()
    by_id = {question_id: by_position[index] for index, question_id in enumerate(known)}
    unknown = [question_id for question_id in ids if question_id not in by_id]
    if not unknown:
        if len(ids) != len(known):
            counts = Counter(by_id[question_id] for question_id in ids)
            sizes = ", ".join(f"{counts[split]} {split}" for split in SPLITS)
            watch.note(f"{len(ids)} of the {len(known)} published records, split by question id: {sizes}")
        return lambda index, question_id: by_id[question_id]
    if len(ids) == len(known):
        watch.note(f"{len(unknown)} question ids are not the published ones: split by position, as published")
        return lambda index, question_id: by_position[index]
    assert part.path is not None
    raise DataError(
        f"{part.path.name}: {len(unknown)} of its {len(ids)} question ids are not published ones (first {unknown[0]}), "
        f"so their splits are not known",
        hint="name the split of the file: "
        + prepare_command("longmemeval", None, "--source", part.source, "--split", "test"),
    )


class _Question(Record):
    """One record of the file: a question with its history. Irregularities are counted in ``odd``."""

    def __init__(self, file: str, index: int, record: Any, odd: Counter[str]) -> None:
        hint = "see the format: https://github.com/xiaowu0162/LongMemEval"
        super().__init__(f"{file}: record {index}", record, hint)
        self._odd = odd
        self._evidence: list[str] = []  # turns that are marked as having the answer
        self._labels: list[str] = []  # of the sessions that are kept
        self._marked: set[str] = set()  # labels of those with a marked turn
        self.trace_id = self.text(self.record, "question_id")
        self.where = f"{file}: record {index} ({self.trace_id})"

    def sessions(self) -> tuple[Session, ...]:
        """Sessions in the file's order, each with its id and date; empty ones are left out."""
        histories = self.field(self.record, "haystack_sessions", list)
        dates = self._beside(histories, "haystack_dates")
        labels = self._beside(histories, "haystack_session_ids")
        unsorted = "records whose sessions are not in chronological order (the order of the file is kept)"
        self._odd[unsorted] += dates != sorted(dates)
        read = [self._session(history, i, labels[i], dates[i]) for i, history in enumerate(histories)]
        kept = tuple(session for session in read if session.turns)
        self._odd["empty sessions, left out"] += len(read) - len(kept)
        return kept or self.fail("haystack_sessions has no session with turns")

    def _beside(self, histories: list[Any], name: str) -> list[str]:
        """A list of texts, one for each session."""
        texts = self.field(self.record, name, list)
        if len(texts) != len(histories):
            self.fail(f"{name} has {len(texts)} entries for {len(histories)} sessions")
        return [self.expect(text, str, f"{name}[{i}]").strip() for i, text in enumerate(texts)]

    def _session(self, history: Any, index: int, label: str, date: str) -> Session:
        place = f"haystack_sessions[{index}]"
        turns = [self._turn(turn, f"{place}[{i}]") for i, turn in enumerate(self.expect(history, list, place))]
        said = tuple(turn for turn in turns if turn.text)
        if said:
            self._labels.append(label)
        kept = [raw for raw, turn in zip(history, turns, strict=True) if turn.text]
        name = unique_labels(self._labels)[-1] if said else label  # as in the refs of its sources
        found = [f"{name}:{i}" for i, raw in enumerate(kept) if raw.get("has_answer") is True]
        self._evidence += found
        self._marked |= {label} if found else set()
        self._odd["turns without text, left out"] += len(turns) - len(said)
        return Session(label, date, said)

    def _turn(self, turn: Any, place: str) -> Turn:
        self.expect(turn, dict, place)
        return Turn(self.text(turn, "role", f"{place}."), self.field(turn, "content", str, f"{place}.").strip())

    def query(self) -> Query:
        abstention = self.trace_id.endswith("_abs")
        if abstention:
            self._odd["abstention questions (asked only by eval --include-abstention)"] += 1
        if "answer" not in self.record:
            self.fail("answer is missing")
        return Query(
            query_id=self.trace_id,
            trace_id=self.trace_id,
            category=ABSTENTION if abstention else self.text(self.record, "question_type"),
            question=self.text(self.record, "question"),
            gold_answers=(self.answer(self.record["answer"], "answer"),),
            date=self.field(self.record, "question_date", str).strip(),
            scored=not abstention,
            evidence=self._all_evidence(),
        )

    def _all_evidence(self) -> tuple[str, ...]:
        """The marked turns, and the answer sessions in which no turn is marked. Call it after :meth:`sessions`."""
        named = self.record.get("answer_session_ids")
        whole = [label for label in named if label in self._labels] if isinstance(named, list) else []
        return (*self._evidence, *dict.fromkeys(label for label in whole if label not in self._marked))
