"""HotpotQA (Yang et al., 2018), repackaged for long contexts: questions, each with 50, 100 or 200 documents.

An evaluation file is ``[{context: "Document 1:\\nTitle\\ntext\\n\\nDocument 2:…", input, answers, num_docs}]``. Each
file is a *variant* with its own split ``test-<number of documents>``. The training file is Parquet, with the same
content in other fields (``prompt``, ``reward_model.ground_truth``).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from memskill_cli.datasets.base import (
    SPAN_SETTINGS,
    Dataset,
    PrepareOptions,
    ReaderCallbacks,
    SourceFile,
    prepare_command,
)
from memskill_cli.datasets.json_records import Record, stream
from memskill_cli.datasets.paper import PaperResult, PaperResults, other_row, paper_row
from memskill_cli.errors import DataError, UsageError
from memskill_cli.types import Query, Session, Trace, Turn

HUB = "hf://datasets/BytedTsinghua-SIA/hotpotqa"
TRAIN_FILE = "hotpotqa_train_32k.parquet"
VARIANTS = ("50", "100", "200")
"""The variants that are prepared by default."""
SETTINGS = {**SPAN_SETTINGS, "eval.num_skills": 7, "models.answer_max_tokens": 512}
# The documents are one session, which is longer than the context of the embedded model.
PRESETS = {"demo": {"eval.span_mode": "fixed-length"}}
CATEGORY = "all"
"""The only category: the files do not tell bridge questions from comparison questions."""

_SPLIT = re.compile(r"train|test-[1-9][0-9]{0,4}")
_EVAL_FILE = re.compile(r"eval_([1-9][0-9]{0,4})\.json")
_DOCUMENT = re.compile(r"^(?=Document \d+:)", re.MULTILINE)
_ANSWER_TAG = re.compile(r"<answer>((?:(?!<answer>).)*?)</answer>", re.IGNORECASE | re.DOTALL)
_OPEN_TAG = re.compile(r"<answer>(.*)", re.IGNORECASE | re.DOTALL)
_ANSWER_LABEL = re.compile(r"\b(?:answer[*_`]*\s*:|the\s+answer\s+is\b:?)[*_`\s]*(.+)", re.IGNORECASE)


def _paper_rows() -> Iterator[PaperResult]:
    """Rows of the paper's tables, which name no executor for them."""
    table = {7: (66.80, 70.70, 65.62), 5: (61.33, 67.58, 62.89), 3: (58.20, 67.97, 62.50)}
    for top_k, row in table.items():
        for size, value in zip((200, 100, 50), row, strict=True):
            yield paper_row(f"test-{size}", "", top_k, judge=value)
    for size, value in ((200, 61.14), (100, 65.48), (50, 64.18)):
        yield other_row("A-MEM, the best other system", f"test-{size}", "", judge=value)


class HotpotQA(Dataset):
    """``eval_50.json`` and the files of the other variants."""

    name = "hotpotqa"
    trains = False
    variants = (*VARIANTS, "train")
    settings = SETTINGS
    presets = PRESETS
    answer_prompt = "answer_tagged"
    paper_results = PaperResults(
        results=tuple(_paper_rows()),
        scored=dict.fromkeys(("test-50", "test-100", "test-200"), 128),
        trained_on="locomo",
    )

    def scored_text(self, reply: str) -> str:
        """The answer that :func:`extract_answer` finds."""
        return extract_answer(reply)

    def parts(self, source: Path | str | None, ask: PrepareOptions) -> list[SourceFile]:
        """One part per variant. ``source`` may be a file, or a folder or URL with files of the official names."""
        if wrong := [split for split in ask.splits if not _SPLIT.fullmatch(split)]:
            raise UsageError(f"hotpotqa has no split {wrong[0]}", hint="--variant 50, 100, 200 or train")
        if isinstance(source, Path):
            return [SourceFile(str(path), path, split=split, limit=ask.limit) for split, path in _files(source, ask)]
        if source and urlsplit(source).path.endswith((".json", ".parquet")):
            split = _one(ask, source) or _named(Path(urlsplit(source).path).name)
            if not split:
                raise UsageError(
                    f"{source}: the name does not say which variant it is", hint="add --variant 50, 100, 200 or train"
                )
            return [_remote(source, split, ask.limit)]
        base = (source or HUB).rstrip("/")
        splits = ask.splits or tuple(f"test-{variant}" for variant in VARIANTS)
        return [_remote(f"{base}/{_file(split)}", split, ask.limit) for split in splits]

    def read(self, part: SourceFile, watch: ReaderCallbacks) -> Iterator[Trace]:
        """See :class:`~.base.Dataset`."""
        assert part.path is not None
        rows, total = _rows(part.path)
        if part.limit and part.limit < total:
            watch.note(f"the first {part.limit} of {total} questions")
            total = part.limit
        odd: Counter[str] = Counter()
        for index, record in enumerate(islice(rows, part.limit or None)):
            yield _Item(part, index, record, odd).trace()
            watch.progress(index + 1, total)
        for text, count in sorted((+odd).items()):
            watch.note(f"{text}: {count}")


DATASET = HotpotQA()


def extract_answer(reply: str) -> str:
    """The text in <answer></answer>; else the rest of the line after "Answer:" or "The answer is"; else the reply.

    If there are several tags, the first one that is not empty counts. If a tag is not closed, because the reply reached
    the token limit, its text extends to the end of the reply.
    """
    tagged = _ANSWER_TAG.findall(reply)
    if filled := next((text.strip() for text in tagged if text.strip()), ""):
        return filled
    found = (None if tagged else _OPEN_TAG.search(reply)) or _ANSWER_LABEL.search(reply)
    return "" if tagged and not found else (found[1] if found else reply).strip()


def _file(split: str) -> str:
    return TRAIN_FILE if split == "train" else f"eval_{split.removeprefix('test-')}.json"


def _named(file: str) -> str:
    """The split of an official file name; "" for any other name."""
    found = _EVAL_FILE.fullmatch(file)
    return f"test-{found[1]}" if found else "train" if file == TRAIN_FILE else ""


def _remote(url: str, split: str, limit: int) -> SourceFile:
    return SourceFile(url, url=url, file_name=_file(split), split=split, limit=limit)


def _one(ask: PrepareOptions, source: object) -> str:
    if len(ask.splits) > 1:
        raise UsageError(
            f"{source} is one file, but {len(ask.splits)} variants are requested", hint="give one --variant"
        )
    return ask.splits[0] if ask.splits else ""


def _files(source: Path, ask: PrepareOptions) -> list[tuple[str, Path]]:
    """The files to read, with their splits."""
    if source.is_file():
        return [(_one(ask, source) or _named(source.name) or _counted(source), source)]
    if not source.is_dir():
        raise DataError(f"{source}: no such file or folder", hint="give eval_50.json, or its folder")
    found = {split: path for path in source.iterdir() if (split := _named(path.name))}
    wanted = ask.splits or tuple(sorted(found.keys() - {"train"}, key=lambda split: int(split.removeprefix("test-"))))
    if missing := [_file(split) for split in wanted or ("test-50",) if split not in found]:
        raise DataError(
            f"{source}: has no {missing[0]}", hint="give the path of the file, and --variant if its name differs"
        )
    return [(split, found[split]) for split in wanted]


def _counted(path: Path) -> str:
    """The split of a file, from the number of documents of its first question."""
    first = next(iter(_rows(path)[0]), None)
    count = first.get("num_docs") if isinstance(first, dict) else None
    if not isinstance(count, int) or isinstance(count, bool) or count < 1:
        raise DataError(
            f"{path.name}: neither its name nor num_docs says how many documents a question has",
            hint=prepare_command("hotpotqa", None, "--source", str(path), "--variant", "50"),
        )
    return f"test-{count}"


def _rows(path: Path) -> tuple[Iterator[Any], int]:
    """An iterator over the records of a file, with the field names of the evaluation files, and their number."""
    if path.suffix != ".parquet":
        return stream(path), sum(1 for _ in stream(path, "input"))
    import pyarrow as pa
    from pyarrow.parquet import ParquetFile

    try:
        table = ParquetFile(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"{path.name}: not Parquet: {str(error).splitlines()[0]}") from None
    rows = (row for batch in table.iter_batches(batch_size=16) for row in batch.to_pylist())
    return (_as_evaluation(row) for row in rows), table.metadata.num_rows


def _as_evaluation(row: dict[str, Any]) -> dict[str, Any]:
    """A row of the training file with the field names of the evaluation files. Missing fields are left out."""
    found = {"context": row.get("context")}
    if prompt := row.get("prompt"):
        found["input"] = prompt[-1].get("content")
    if reward := row.get("reward_model"):
        found["answers"] = reward.get("ground_truth")
    return {name: value for name, value in found.items() if value is not None}


class _Item(Record):
    """One record of the file: a question with its documents."""

    def __init__(self, part: SourceFile, index: int, record: Any, odd: Counter[str]) -> None:
        assert part.path is not None
        hint = "see the files: https://huggingface.co/datasets/BytedTsinghua-SIA/hotpotqa"
        super().__init__(f"{part.path.name}: record {index}", record, hint)
        self._split = part.split
        self._odd = odd
        self._variant = part.split.removeprefix("test-")
        self.trace_id = f"hotpotqa-{self._variant}-{index}"

    def trace(self) -> Trace:
        answers = self.field(self.record, "answers", list) or self.fail("answers is an empty list")
        query = Query(
            query_id=self.trace_id,
            trace_id=self.trace_id,
            category=CATEGORY,
            question=self.text(self.record, "input"),
            gold_answers=tuple(self.answer(answer, f"answers[{i}]") for i, answer in enumerate(answers)),
        )
        return Trace(self.trace_id, "hotpotqa", self._split, (Session("documents", "", self.documents()),), (query,))

    def documents(self) -> tuple[Turn, ...]:
        """One turn per document. Joined with line breaks, as in a span, the turns are exactly the context."""
        context = self.field(self.record, "context", str)
        pieces = [piece for piece in _DOCUMENT.split(context) if piece]
        count = sum(bool(_DOCUMENT.match(piece)) for piece in pieces)
        if not count:
            self.fail("context has no line that begins with Document 1:")
        self._check(count)
        return (*(Turn("", piece.removesuffix("\n")) for piece in pieces[:-1]), Turn("", pieces[-1]))

    def _check(self, count: int) -> None:
        """Reject a record of another variant."""
        said = self.record.get("num_docs", count)
        if self._variant.isdigit() and said != int(self._variant):
            self.fail(f"has {said} documents, but the requested variant has {self._variant}")
        self._odd["questions whose context has a different number of documents than num_docs"] += count != said
