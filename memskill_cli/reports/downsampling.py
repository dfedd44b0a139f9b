"""Convert rows of ``metrics.jsonl`` to the data of the charts. A long run is downsampled, never truncated."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from memskill_cli.reports.charts import Layer, Point
from memskill_cli.reports.run_files import counts, number

MOST = 240
"""Most points in a chart, approximately."""
TONES = ("s0", "s1", "s2", "s3", "s4", "s5", "s6")
OTHER = "rest"
ACTION_TONES = {"insert": "s2", "update": "s0", "delete": "s5", "noop": OTHER}

Rows = Sequence[dict[str, Any]]


@dataclass(frozen=True)
class Bucket:
    """Inner epochs ``first`` to ``last``, numbered from 1 over the whole run, all of one stage."""

    first: int
    last: int
    rows: Rows

    def mean(self, name: str) -> float | None:
        known = self.values(name)
        return sum(known) / len(known) if known else None

    def values(self, name: str) -> list[float]:
        return [value for row in self.rows if (value := number(row, name)) is not None]

    def summed(self, name: str) -> Counter[str]:
        total: Counter[str] = Counter()
        for row in self.rows:
            for key, value in counts(row, name).items():
                total[key] += value  # type: ignore[assignment]  # a file may have floats
        return total


def stage_of(row: dict[str, Any]) -> int:
    """The stage of a row; its outer epoch in runs of versions without stages."""
    value = number(row, "stage")
    return int(value if value is not None else number(row, "outer") or 0)


def buckets(rows: Rows, most: int = MOST) -> list[Bucket]:
    """``rows`` in about ``most`` buckets of equal length; a bucket ends where its stage ends."""
    size = -(-len(rows) // most) if rows else 1
    found: list[Bucket] = []
    start = 0
    for at in range(1, len(rows) + 1):
        if at == len(rows) or at - start == size or stage_of(rows[at]) != stage_of(rows[at - 1]):
            found.append(Bucket(start + 1, at, rows[start:at]))
            start = at
    return found


def thinned(found: Sequence[Bucket]) -> int:
    """Inner epochs in the longest bucket; 1 if nothing was downsampled."""
    return max((bucket.last - bucket.first + 1 for bucket in found), default=1)


def points(found: Sequence[Bucket], name: str, deviation: str = "") -> list[Point]:
    """The curve of ``name``. Range of a point: that of its bucket, or ± ``deviation`` if a bucket is one epoch."""
    single = thinned(found) == 1
    return [_point(bucket, name, deviation if single else "") for bucket in found]


def _point(bucket: Bucket, name: str, deviation: str) -> Point:
    value, known = bucket.mean(name), bucket.values(name)
    if value is None or (len(known) == 1 and not deviation):
        return Point(bucket.first, bucket.last, value)
    spread = bucket.mean(deviation) if deviation else None
    low, high = (value - spread, value + spread) if spread is not None else (min(known), max(known))
    return Point(bucket.first, bucket.last, value, low, high)


def shares(found: Sequence[Bucket], name: str) -> list[Layer]:
    """The share of each name in the sum of ``name``; names that are used least over the run are one layer."""
    totals = sum((bucket.summed(name) for bucket in found), Counter())
    ranked = sorted(totals, key=lambda key: (-totals[key], key))
    top = ranked if len(ranked) <= len(TONES) else ranked[: len(TONES) - 1]
    tones = dict(zip(top, TONES, strict=False))
    columns = [(bucket.summed(name), sum(bucket.summed(name).values()) or 1) for bucket in found]
    layers = [Layer(key, [column[key] / whole for column, whole in columns], tones[key]) for key in top]
    if len(top) < len(ranked):
        rest = [sum(column[key] for key in ranked[len(top) :]) / whole for column, whole in columns]
        layers.append(Layer(f"{len(ranked) - len(top)} others", rest, OTHER))
    return layers


def per_step(found: Sequence[Bucket], name: str) -> list[Layer]:
    """The number per span of each key of ``name``."""
    names = sorted(sum((bucket.summed(name) for bucket in found), Counter()))
    spare = [tone for tone in TONES if tone not in ACTION_TONES.values()]
    known = [key for key in ACTION_TONES if key in names]
    order = [*known, *(key for key in names if key not in known)]
    tones = {key: ACTION_TONES.get(key) or spare[i % len(spare)] for i, key in enumerate(order)}
    columns = [(bucket.summed(name), sum(bucket.values("steps")) or 1) for bucket in found]
    return [Layer(key, [column[key] / steps for column, steps in columns], tones[key]) for key in order]
