"""``prepare --check`` and ``prepare --remove``: look at conversations of one's own, and erase them."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from memskill_cli.app.estimate import TraceSize, estimate_evaluation, estimate_training
from memskill_cli.app.options import settings_of
from memskill_cli.app.runtime import ProviderAccess, own_cache
from memskill_cli.config import Config, for_evaluation
from memskill_cli.datasets.base import SPLITS, prepare_command
from memskill_cli.datasets.own.options import ReadOptions, check_name
from memskill_cli.datasets.own.source import QUESTIONS, USAGE, Gathered, SourceFiles, find_files, gather
from memskill_cli.datasets.own.splits import UNASKED
from memskill_cli.datasets.prepare import reader_of
from memskill_cli.datasets.registry import DATASETS, find_own, is_own
from memskill_cli.datasets.samples import sample_path
from memskill_cli.datasets.writer import erase
from memskill_cli.errors import DataError, UsageError
from memskill_cli.utils.locks import locked
from memskill_cli.utils.tokens import count_tokens

BINS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
"""Lower limits of the histogram of session lengths, in messages."""
MEASURED = 200
"""Sessions whose tokens are counted; the others are estimated from their characters."""
LONG = 8000
"""Tokens of a session from which on a span should be a part of it."""


@dataclass(frozen=True)
class CheckResult:
    """What a source has. Nothing is written."""

    facts: dict[str, Any]
    notes: list[str]


def check_dataset(
    dataset: str,
    source: str | None,
    sample: bool,
    options: ReadOptions,
    model: str | None,
    data_dir: Path,
    warn: Callable[[str], None],
    progress: Callable[[int], None] = lambda sessions: None,
) -> CheckResult:
    """:func:`check_source` with the default settings of a training with ``model``.

    Raises UsageError for a benchmark, or without a source.
    """
    find_own(data_dir)
    if not (source or sample):
        raise UsageError("--check needs --source", hint=prepare_command(dataset, None, "--source", "FILE", "--check"))
    reader = reader_of(dataset, options, new=True)
    if not is_own(dataset):
        raise UsageError(f"--check is for conversations of your own, and {dataset} is a benchmark", hint="leave it out")
    path = sample_path(reader.sample_name) if sample else Path(source or "").expanduser().absolute()
    settings = settings_of({"dataset": dataset, "model": model}, "train", warn)
    return check_source(dataset, path, options, settings, progress)


def check_source(
    dataset: str,
    source: Path,
    options: ReadOptions,
    settings: Config,
    progress: Callable[[int], None] = lambda sessions: None,
) -> CheckResult:
    """Read everything as ``prepare`` does, and describe it. ``settings`` are those of the training to estimate.

    Raises DataError with file, line and field.
    """
    files = find_files(source, options)
    with gather(source, files, options, progress) as gathered:
        tokens_a_char = _tokens_a_char(gathered)
        traces = _trace_sizes(gathered, tokens_a_char)
        facts = _facts(dataset, source, files, gathered, tokens_a_char)
        facts["estimate"] = _estimates(settings, traces)
        notes = [*files.notes(), *gathered.notes(), *_warnings(facts)]
        return CheckResult(facts | {"notes": notes}, notes)


def _facts(dataset: str, source: Path, files: SourceFiles, gathered: Gathered, tokens_a_char: float) -> dict[str, Any]:
    sizes = list(gathered.store.sizes())
    questions = [question for those in gathered.questions.values() for question in those]
    splits = Counter(gathered.splits.splits.values())
    chars = sum(size.chars for size in sizes)
    return {
        "dataset": dataset,
        "source": str(source),
        "format": files.found.importer.NAME,
        "files": len(files.found.files),
        "users": len({size.user for size in sizes}),
        "sessions": len(sizes),
        "messages": sum(size.turns for size in sizes),
        "tokens": round(chars * tokens_a_char),
        "longest_session_tokens": round(max((size.chars for size in sizes), default=0) * tokens_a_char),
        "questions": len(questions),
        "questions_with_evidence": sum(bool(question.evidence) for question in questions),
        "categories": dict(sorted(Counter(question.category for question in questions).items())),
        "splits": {split: splits[split] for split in SPLITS if splits[split]},
        "session_lengths": _histogram([size.turns for size in sizes]),
        "skipped": dict(sorted((+gathered.skipped).items())),
        "irregular": dict(sorted((+gathered.odd).items())),
        "redacted": dict(sorted(gathered.redacted.items())),
    }


def _histogram(turns: Sequence[int]) -> list[dict[str, Any]]:
    """How many sessions have how many messages, without the empty bins at the end."""
    upper = [*(limit - 1 for limit in BINS[1:]), None]
    counts = Counter(max(place for place, limit in enumerate(BINS) if limit <= number) for number in turns)
    last = max(counts, default=-1)
    names = [
        str(low) if low == high else f"{low}+" if high is None else f"{low}-{high}"
        for low, high in zip(BINS, upper, strict=True)
    ]
    return [{"messages": name, "sessions": counts[place]} for place, name in enumerate(names[: last + 1])]


def _tokens_a_char(gathered: Gathered) -> float:
    """Tokens a character, measured on the first sessions."""
    texts = list(gathered.store.texts(MEASURED))
    chars = sum(map(len, texts))
    return sum(map(count_tokens, texts)) / chars if chars else 0.25


def _trace_sizes(gathered: Gathered, tokens_a_char: float) -> dict[str, list[TraceSize]]:
    """The traces of each split, as ``prepare`` would write them (but with all sessions for a split by time)."""
    found: dict[str, list[TraceSize]] = {}
    for user, sessions in _by_user(gathered):
        lengths = [chars * tokens_a_char for _, chars in sessions]
        turns = [number for number, _ in sessions]
        asked: dict[str, Counter[str]] = {}
        for place, question in enumerate(gathered.questions.get(user, ())):
            asked.setdefault(gathered.splits.splits[user, place], Counter())[question.category] += 1
        for split, categories in (asked or {UNASKED: Counter[str]()}).items():
            found.setdefault(split, []).append(TraceSize(lengths, turns, categories))
    return found


def _by_user(gathered: Gathered) -> Iterator[tuple[str, list[tuple[int, int]]]]:
    sessions: dict[str, list[tuple[int, int]]] = {}
    for size in gathered.store.sizes():
        sessions.setdefault(size.user, []).append((size.turns, size.chars))
    yield from sessions.items()


def _estimates(settings: Config, traces: Mapping[str, list[TraceSize]]) -> dict[str, Any]:
    training = estimate_training(settings, traces.get("train", []), traces.get("val", []))
    evaluation = estimate_evaluation(for_evaluation(settings), traces.get("test", []))
    models = settings.models
    return {
        "model": models.executor,
        "concurrency": settings.limits.concurrency,
        "training": training.to_dict(settings),
        "evaluation": evaluation.to_dict(settings),
    }


def _warnings(facts: Mapping[str, Any]) -> list[str]:
    notes = []
    if facts["longest_session_tokens"] > LONG:
        notes.append(
            f"the longest session has about {facts['longest_session_tokens']:,} tokens, and training reads whole "
            "sessions: train with --span-mode fixed-length --chunk-size 2048"
        )
    if not facts["questions"]:
        notes.append("there are no questions: they are needed for training and evaluation (--questions FILE)")
    return notes


@dataclass(frozen=True)
class RemoveResult:
    """What was erased, and which runs still have text of the dataset."""

    erased: list[Path]
    runs: list[Path]


def remove(dataset: str, data_dir: Path, runs_dir: Path, access: ProviderAccess) -> RemoveResult:
    """Erase the prepared data of one's own conversations, and the replies and embeddings that are cached for them.

    Runs are not erased. Raises UsageError for a benchmark, DataError if there is no such dataset.
    """
    check_name(dataset)
    known = find_own(data_dir)
    cache = own_cache(access.cache, dataset)
    if dataset in DATASETS.names() and not is_own(dataset):
        raise UsageError(f"{dataset} is a benchmark, not conversations of your own", hint=f"rm -r {data_dir / dataset}")
    folder = data_dir / dataset
    made = dataset in known or any(folder.glob(".traces-*"))  # the latter: left by a prepare that was killed
    if not made and not cache.is_dir():
        there = f"there are {', '.join(known)}" if known else "there are none"
        raise DataError(f"no conversations called {dataset} are prepared in {data_dir}; {there}", hint="see --data-dir")
    erased = []
    if made:  # never another folder
        written = (USAGE, QUESTIONS) if dataset in known and not _has_source(folder) else (USAGE,)
        with locked(folder, str(folder)):
            erase(folder, *written)
        erased.append(folder)
    if cache.is_dir():
        shutil.rmtree(cache)
        erased.append(cache)
    return RemoveResult(erased, [*_runs_of(dataset, runs_dir)])


def _has_source(folder: Path) -> bool:
    """Whether the files from which it was prepared are in the folder itself. They are the user's."""
    source = orjson.loads((folder / "manifest.json").read_bytes()).get("source")
    return folder.resolve() in [*Path(str(source)).resolve().parents, Path(str(source)).resolve()]


def _runs_of(dataset: str, runs_dir: Path) -> Iterator[Path]:
    """The runs that were trained or evaluated on the dataset."""
    for file in sorted(runs_dir.glob("*/run.json")):
        try:
            trained = orjson.loads(file.read_bytes()).get("dataset") == dataset
        except (OSError, orjson.JSONDecodeError, AttributeError):
            trained = False
        if trained or any(file.parent.glob(f"evals/{dataset}-*")):
            yield file.parent
