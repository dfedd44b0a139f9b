"""Results of the MemSkill paper (arXiv 2602.02474) on a dataset, from its tables."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

LLAMA = "Llama-3.3-70B-Instruct"
QWEN = "Qwen3-Next-80B-A3B-Instruct"
CHUNK, OVERLAP = 512, 64
"""Tokens of a fixed-length span in evaluations, and tokens that it shares with the previous span."""


@dataclass(frozen=True)
class PaperResult:
    """One row of a table. Scores are in [0, 1], but ``steps`` is a mean number of steps.

    ``executor`` is "" if the table names none. ``top_k`` is 0 for other systems.
    """

    system: str
    split: str
    executor: str
    top_k: int
    scores: Mapping[str, float]
    chunk: int = CHUNK

    @property
    def spans(self) -> tuple[str, str, str]:
        """How the trace was cut into spans: mode, size and overlap."""
        return "fixed-length", str(self.chunk), str(OVERLAP)


@dataclass(frozen=True)
class PaperResults:
    """All rows of one dataset, and what must be equal for a comparison with them."""

    results: tuple[PaperResult, ...] = ()
    scored: Mapping[str, int] = field(default_factory=dict)
    """Queries that are scored, by split."""
    digests: Mapping[str, str] = field(default_factory=dict)
    """Digest of the published, normalised data by split. Splits without a known digest are left out."""
    trained_on: str = ""
    """The dataset on which the paper's skills were learned."""
    training_epochs: int = 0
    """Inner epochs of the paper's training on this dataset; 0: unknown."""
    setting: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    """By dotted name of a setting: the paper's value, and the sentence that reports any other value."""
    judge_setting: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    """As ``setting``, for settings that affect only the judge's score."""


def paper_row(split: str, executor: str, top_k: int, *, chunk: int = CHUNK, **percent: float) -> PaperResult:
    """A row of MemSkill. Scores are in per cent, except ``steps``."""
    scores = {name: value if name == "steps" else value / 100 for name, value in percent.items()}
    return PaperResult("MemSkill", split, executor, top_k, scores, chunk)


def other_row(system: str, split: str, executor: str = LLAMA, **percent: float) -> PaperResult:
    """A row of another system."""
    return PaperResult(system, split, executor, 0, {name: value / 100 for name, value in percent.items()})
