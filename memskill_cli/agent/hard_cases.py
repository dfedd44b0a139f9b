"""Hard cases: badly answered queries, pooled and selected for the designer (section 7 of docs/method.md)."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from memskill_cli.config import DesignerConfig
from memskill_cli.errors import RunError
from memskill_cli.types import Matrix, QueryResult
from memskill_cli.utils.rows import COUNT, NUMBER, TEXT, fault, list_of

N_INIT = 10
"""Random starts of k-means; the best result is used."""
ScoreFn = Callable[[QueryResult], float | None]
"""The score of an answer; None if it has no score."""
_ROW_NAMES = {"gold_answers": "truths", "fail_count": "fails"}
"""Fields with another name in ``hard_cases.jsonl``."""
_FIELDS = {row: field for field, row in _ROW_NAMES.items()}
_KINDS = {
    **dict.fromkeys(("query_id", "trace_id", "category", "question", "prediction"), TEXT),
    **dict.fromkeys(("gold_answers", "retrieved"), list_of(TEXT)),
    **dict.fromkeys(("fail_count", "epoch"), COUNT),
    "score": NUMBER,
    "stage": TEXT._replace(required=False),
}


@dataclass(frozen=True, slots=True)
class HardCase:
    """A query that failed ``fail_count`` times in a row; prediction, memories and score are from the last failure.

    ``epoch`` is the inner epoch of the last failure.
    """

    query_id: str
    trace_id: str
    category: str
    question: str
    gold_answers: tuple[str, ...]
    prediction: str
    retrieved: tuple[str, ...]  # memory texts, nearest first
    score: float
    fail_count: int
    epoch: int
    stage: str = ""
    """Where the evidence was lost, one of ``scoring.evidence.FAILURES``; "" if it is not known."""

    @property
    def priority(self) -> float:
        """Rank of the case in the selection: (1 − score)·log(1 + fail_count)."""
        return (1 - self.score) * math.log1p(self.fail_count)

    def to_row(self) -> dict[str, Any]:
        """A row of ``hard_cases.jsonl``. The file keeps older names of two fields; an empty ``stage`` is left out."""
        lists = {"gold_answers": list(self.gold_answers), "retrieved": list(self.retrieved)}
        row = {**dataclasses.asdict(self), **lists}
        return {_ROW_NAMES.get(name, name): value for name, value in row.items() if name != "stage" or value}

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> HardCase:
        """Raises RunError for a row that :meth:`to_row` did not make."""
        if not isinstance(row, Mapping):
            raise RunError(f"not a hard case: {row!r:.60}")
        fields = {_FIELDS.get(name, name): value for name, value in row.items()}
        if problem := fault(fields, _KINDS):
            raise RunError(f"not a hard case: {problem}")
        texts = {name: tuple(fields[name]) for name in ("gold_answers", "retrieved")}
        try:
            return cls(**{**fields, **texts, "score": float(fields["score"])})
        except TypeError as error:
            raise RunError(f"not a hard case: {error}") from None


class HardCasePool:
    """Recent hard cases, at most one per query."""

    def __init__(self, config: DesignerConfig, cases: Iterable[HardCase] = ()) -> None:
        self._config = config
        self._cases = {case.query_id: case for case in cases}

    @classmethod
    def from_rows(cls, config: DesignerConfig, rows: Iterable[Mapping[str, Any]]) -> HardCasePool:
        """The pool from its :meth:`rows`. Raises RunError for an invalid row."""
        return cls(config, map(HardCase.from_row, rows))

    @property
    def cases(self) -> tuple[HardCase, ...]:
        """All cases, in the order of their query ids."""
        return tuple(self._cases[query_id] for query_id in sorted(self._cases))

    def __len__(self) -> int:
        return len(self._cases)

    def rows(self) -> list[dict[str, Any]]:
        return [case.to_row() for case in self.cases]

    def observe(self, answers: Sequence[QueryResult], epoch: int, score_of: ScoreFn, threshold: float) -> None:
        """Update the pool with the ``answers`` of inner epoch ``epoch``, in order.

        A query with a score below ``threshold`` enters, or its fail count grows; any other query leaves. Answers
        without a score (errors) and queries that are not scored are ignored.
        """
        for answer in answers:
            score = score_of(answer)
            if score is None or not answer.query.scored:
                continue
            if score < threshold:
                self._cases[answer.query.query_id] = self._failed(answer, score, epoch)
            else:
                self._cases.pop(answer.query.query_id, None)

    def prune(self, epoch: int) -> None:
        """Remove cases older than ``case_max_age`` inner epochs at ``epoch``, then those above ``case_capacity``.

        The most recent cases stay; ties are broken by the higher fail count, then by query id.
        """
        fresh = [case for case in self._cases.values() if epoch - case.epoch <= self._config.case_max_age]
        fresh.sort(key=lambda case: (-case.epoch, -case.fail_count, case.query_id))
        self._cases = {case.query_id: case for case in fresh[: self._config.case_capacity]}

    def _failed(self, answer: QueryResult, score: float, epoch: int) -> HardCase:
        query, before = answer.query, self._cases.get(answer.query.query_id)
        return HardCase(
            query.query_id,
            query.trace_id,
            query.category,
            query.question,
            query.gold_answers,
            answer.prediction,
            tuple(found.item.text for found in answer.retrieved[: self._config.memories_per_case]),
            score,
            before.fail_count + 1 if before else 1,
            epoch,
            answer.failure if self._config.evidence else "",
        )


def select(cases: Sequence[HardCase], vectors: Matrix, config: DesignerConfig, seed: int = 42) -> list[list[HardCase]]:
    """The cases for the designer, in clusters of similar questions.

    ``vectors`` (N, D) are the embeddings of the questions of the N ``cases``. Each cluster gives its ``per_cluster``
    cases of the highest priority, then the best of the rest follow, up to ``config.max_cases`` (the first of each
    cluster comes before any second). Equal questions are shown once. Clusters and their cases are ordered by priority,
    ties by query id. The result does not depend on the order of ``cases`` or on the number of processors.
    """
    order = _distinct(cases)
    labels = _clusters(vectors[order], config.clusters, seed)
    groups: dict[int, list[HardCase]] = {}
    for label, i in zip(labels, order, strict=True):
        groups.setdefault(label, []).append(cases[i])
    ranked = [
        (min(rank, config.per_cluster), -case.priority, case.query_id, label)
        for label, group in groups.items()
        for rank, case in enumerate(sorted(group, key=_by_priority))
    ]
    chosen = {query_id for _, _, query_id, _ in sorted(ranked)[: config.max_cases]}
    kept = [sorted((c for c in group if c.query_id in chosen), key=_by_priority) for group in groups.values()]
    return sorted(filter(None, kept), key=lambda group: _by_priority(group[0]))


def _distinct(cases: Sequence[HardCase]) -> list[int]:
    """Indices of ``cases`` in order of query id; of equal questions only the one with the highest priority."""
    best: dict[str, int] = {}
    for i in sorted(range(len(cases)), key=lambda i: _by_priority(cases[i])):
        best.setdefault(" ".join(cases[i].question.lower().split()), i)
    return sorted(best.values(), key=lambda i: cases[i].query_id)


def _by_priority(case: HardCase) -> tuple[float, str]:
    return -case.priority, case.query_id


def _clusters(vectors: Matrix, clusters: int, seed: int) -> list[int]:
    """A cluster label per row, shape (N,). With at most ``clusters`` rows, each row is its own cluster."""
    if len(vectors) <= clusters:
        return list(range(len(vectors)))
    import numpy as np
    from sklearn.cluster import KMeans
    from threadpoolctl import threadpool_limits

    distinct = len(np.unique(vectors, axis=0))  # k-means cannot find more clusters than distinct rows
    with threadpool_limits(1):  # with several threads the order of summation varies
        means = KMeans(min(clusters, distinct), random_state=seed, n_init=N_INIT)
        return [int(label) for label in means.fit_predict(vectors.astype(np.float64))]
