"""What a training would cost, before a run is made: ``memskill train --dry-run``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from memskill_cli.app.estimate import TraceSize, estimate_evaluation, estimate_training
from memskill_cli.app.options import settings_of
from memskill_cli.config import for_evaluation
from memskill_cli.datasets.prepared import load_manifest, load_split
from memskill_cli.datasets.registry import find_own, get
from memskill_cli.types import Session, Trace
from memskill_cli.utils.tokens import count_tokens

MEASURED = 200
"""Sessions whose tokens are counted. Those of the others follow from their characters."""


def dry_run(options: Mapping[str, Any], data_dir: Path, warn: Callable[[str], None]) -> dict[str, Any]:
    """Calls, tokens, dollars and minutes of a training, and of an evaluation on the dataset's default split.

    ``options`` are those of the training (:func:`~memskill_cli.app.options.settings_of`). Nothing is written or called.
    Raises DataError, with the command, if the dataset is not prepared.
    """
    find_own(data_dir)
    settings = settings_of(options, "train", warn)
    manifest, default = load_manifest(settings.dataset, data_dir), get(settings.dataset).default_split
    splits = {name: load_split(settings.dataset, data_dir, name) for name in manifest.splits}
    sizes = {name: trace_sizes(traces) for name, traces in splits.items() if name in ("train", "val", default)}
    training = estimate_training(settings, sizes.get("train", []), sizes.get("val", []))
    evaluation = estimate_evaluation(for_evaluation(settings), sizes.get(default, []))
    return {
        "dataset": settings.dataset,
        "model": settings.models.executor,
        "concurrency": settings.limits.concurrency,
        "training": training.to_dict(settings),
        "evaluation": {"split": default, **evaluation.to_dict(settings)},
    }


def trace_sizes(traces: Sequence[Trace]) -> list[TraceSize]:
    """The sizes of traces. Their tokens are exact for the first :data:`MEASURED` sessions, else estimated."""
    first = list(islice((session for trace in traces for session in trace.sessions), MEASURED))
    chars = sum(map(_chars, first))
    share = sum(count_tokens(_text(session)) for session in first) / chars if chars else 0.25
    return [
        TraceSize(
            [share * _chars(session) for session in trace.sessions],
            [len(session.turns) for session in trace.sessions],
            Counter(query.category for query in trace.queries if query.scored),
        )
        for trace in traces
    ]


def _text(session: Session) -> str:
    return "\n".join(_lines(session))


def _lines(session: Session) -> Iterable[str]:
    return (f"{turn.speaker}: {turn.text}" for turn in session.turns)


def _chars(session: Session) -> int:
    return sum(map(len, _lines(session)))
