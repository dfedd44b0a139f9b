"""Hard cases: queries that memory failed, pooled over inner epochs and chosen for the designer (section 7)."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from memskill_cli.config import DesignerConfig
from memskill_cli.errors import RunError
from memskill_cli.types import Answer, Matrix

N_INIT = 10
"""Starts of k-means, of which the best is kept."""


@dataclass(frozen=True, slots=True)
class HardCase:
    """A query answered badly. ``fails`` counts how often; the rest is as of the last time, inner epoch ``epoch``."""

    query_id: str
    trace_id: str
    category: str
    question: str
    truths: tuple[str, ...]
    prediction: str
    retrieved: tuple[str, ...]  # memory texts, nearest first
    score: float
    fails: int
    epoch: int

    @property
    def priority(self) -> float:
        """How much the case deserves attention: (1 − score)·log(1 + fails)."""
        return (1 - self.score) * math.log1p(self.fails)

    def to_row(self) -> dict[str, Any]:
        """A line of ``hard_cases.jsonl``."""
        return {**dataclasses.asdict(self), "truths": list(self.truths), "retrieved": list(self.retrieved)}

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> HardCase:
        """Raises RunError for a row that :meth:`to_row` did not make."""
        try:
            case = cls(**{**row, "truths": tuple(row["truths"]), "retrieved": tuple(row["retrieved"])})
            return dataclasses.replace(case, score=float(case.score), fails=int(case.fails), epoch=int(case.epoch))
        except (KeyError, TypeError, ValueError) as error:
            raise RunError(f"not a hard case: {error!r}") from None


class HardCasePool:
    """The hard cases of late, one a query."""

    def __init__(self, config: DesignerConfig, cases: Iterable[HardCase] = ()) -> None:
        self._config = config
        self._cases = {case.query_id: case for case in cases}

    @classmethod
    def from_rows(cls, config: DesignerConfig, rows: Iterable[Mapping[str, Any]]) -> HardCasePool:
        """The pool whose :meth:`rows` these are. Raises RunError for a row that is none."""
        return cls(config, map(HardCase.from_row, rows))

    @property
    def cases(self) -> tuple[HardCase, ...]:
        """All cases, in the order of their query ids."""
        return tuple(self._cases[query_id] for query_id in sorted(self._cases))

    def __len__(self) -> int:
        return len(self._cases)

    def rows(self) -> list[dict[str, Any]]:
        return [case.to_row() for case in self.cases]

    def observe(self, answers: Sequence[Answer], epoch: int, kind: Literal["f1", "judge"]) -> None:
        """Take note of ``answers``, in order, as of inner epoch ``epoch``.

        One below the threshold (F1 below the setting, a judge score below 1) enters, or has failed once more; one
        above it leaves. An answer without a score (an error), or to a question that is not scored, says nothing.
        """
        for answer in answers:
            score = answer.judge if kind == "judge" else answer.f1
            if score is None or not answer.query.scored:
                continue
            if score < (1.0 if kind == "judge" else self._config.f1_threshold):
                self._cases[answer.query.query_id] = self._failed(answer, score, epoch)
            else:
                self._cases.pop(answer.query.query_id, None)

    def prune(self, epoch: int) -> None:
        """Forget cases last seen more than ``window`` inner epochs before ``epoch``, then those beyond capacity.

        The most recent stay, of these the most failed, of these the first by query id.
        """
        fresh = [case for case in self._cases.values() if epoch - case.epoch <= self._config.window]
        fresh.sort(key=lambda case: (-case.epoch, -case.fails, case.query_id))
        self._cases = {case.query_id: case for case in fresh[: self._config.pool]}

    def _failed(self, answer: Answer, score: float, epoch: int) -> HardCase:
        query, before = answer.query, self._cases.get(answer.query.query_id)
        return HardCase(
            query.query_id,
            query.trace_id,
            query.category,
            query.question,
            query.truths,
            answer.prediction,
            tuple(found.item.text for found in answer.retrieved[: self._config.retrieved]),
            score,
            before.fails + 1 if before else 1,
            epoch,
        )


def select(cases: Sequence[HardCase], vectors: Matrix, config: DesignerConfig, seed: int = 42) -> list[list[HardCase]]:
    """The cases to show the designer, in clusters of like questions.

    ``vectors`` (N, D) are the embeddings of the questions of ``cases`` (N). Of each cluster the ``per_cluster`` cases
    of the highest priority are chosen, then the best of the rest until there are ``config.cases`` (if that is too
    few for all, each cluster's first goes before any second). Of equal questions one is shown. Clusters and the cases
    in them are ordered by priority, ties by query id; the result depends on neither the order of ``cases`` nor the
    number of processors.
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
    chosen = {query_id for _, _, query_id, _ in sorted(ranked)[: config.cases]}
    kept = [sorted((c for c in group if c.query_id in chosen), key=_by_priority) for group in groups.values()]
    return sorted(filter(None, kept), key=lambda group: _by_priority(group[0]))


def _distinct(cases: Sequence[HardCase]) -> list[int]:
    """The places of ``cases`` in order of query id; of equal questions only the one with the highest priority."""
    best: dict[str, int] = {}
    for i in sorted(range(len(cases)), key=lambda i: _by_priority(cases[i])):
        best.setdefault(" ".join(cases[i].question.lower().split()), i)
    return sorted(best.values(), key=lambda i: cases[i].query_id)


def _by_priority(case: HardCase) -> tuple[float, str]:
    return -case.priority, case.query_id


def _clusters(vectors: Matrix, clusters: int, seed: int) -> list[int]:
    """A label a row; as many rows as clusters or fewer are a cluster each."""
    if len(vectors) <= clusters:
        return list(range(len(vectors)))
    import numpy as np
    from sklearn.cluster import KMeans
    from threadpoolctl import threadpool_limits

    distinct = len(np.unique(vectors, axis=0))  # no more clusters than that can be told apart
    with threadpool_limits(1):  # sums over several threads come out in any order
        means = KMeans(min(clusters, distinct), random_state=seed, n_init=N_INIT)
        return [int(label) for label in means.fit_predict(vectors.astype(np.float64))]
