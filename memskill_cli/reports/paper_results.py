"""What the MemSkill paper (arXiv 2602.02474) reports, and whether an evaluation may be held against it.

Figures are facts of the paper's tables. They stand beside ours only where data, models and settings are the same; where
they are not, what differs is said in plain words.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from memskill_cli.reports.run_files import count, inner, number, words

LLAMA = "Llama-3.3-70B-Instruct"
QWEN = "Qwen3-Next-80B-A3B-Instruct"
JUDGE = "gpt-oss-120b"
STATE, RETRIEVAL = "Qwen3-Embedding-0.6B", "contriever"
CHUNK, OVERLAP = 512, 64
"""Tokens of the fixed-length spans that evaluations read, and those shared with the span before."""
MEMORIES = 20
EPOCHS = 1000
"""Inner epochs of the paper's training: 10 stages of 100."""
SCORED = {
    ("locomo", "test"): 314,
    ("longmemeval", "test"): 101,
    ("hotpotqa", "test-50"): 128,
    ("hotpotqa", "test-100"): 128,
    ("hotpotqa", "test-200"): 128,
    ("alfworld", "valid_seen"): 140,
    ("alfworld", "valid_unseen"): 134,
}
"""Queries of each published split that are scored."""
DATA = {("locomo", "test"): "f7078789f1bf"}
"""Digest of the published data of a split, as :mod:`memskill_cli.datasets` normalises them; of the others none was at
hand to take it from."""
TRAINED_ON = {"locomo": "locomo", "longmemeval": "locomo", "hotpotqa": "locomo", "alfworld": "alfworld"}
"""Where the paper's skills for a benchmark were learned."""


@dataclass(frozen=True)
class Figure:
    """One row of the paper. Scores are 0 to 1, ``steps`` a mean; ``executor`` "" where the table names none."""

    system: str
    dataset: str
    split: str
    executor: str
    top_k: int
    scores: Mapping[str, float]
    chunk: int = CHUNK

    @property
    def spans(self) -> tuple[str, ...]:
        """How the trace was cut into spans: mode, size and overlap."""
        return "fixed-length", str(self.chunk), str(OVERLAP)


def _memskill(dataset: str, split: str, executor: str, top_k: int, *, chunk: int = CHUNK, **percent: float) -> Figure:
    scores = {name: value if name == "steps" else value / 100 for name, value in percent.items()}
    return Figure("MemSkill", dataset, split, executor, top_k, scores, chunk)


def _other(system: str, dataset: str, split: str, **percent: float) -> Figure:
    executor = "" if dataset == "hotpotqa" else LLAMA
    return Figure(system, dataset, split, executor, 0, {name: value / 100 for name, value in percent.items()})


FIGURES = (
    _memskill("locomo", "test", LLAMA, 7, f1=38.78, judge=50.96),
    _memskill("locomo", "test", QWEN, 7, chunk=256, f1=39.28, judge=52.07),
    _memskill("longmemeval", "test", LLAMA, 5, f1=31.65, judge=59.41),
    _memskill("longmemeval", "test", QWEN, 5, f1=23.75, judge=59.90),
    *(
        _memskill("hotpotqa", f"test-{size}", "", top_k, judge=value)
        for top_k, row in ((7, (66.80, 70.70, 65.62)), (5, (61.33, 67.58, 62.89)), (3, (58.20, 67.97, 62.50)))
        for size, value in zip((200, 100, 50), row, strict=True)
    ),
    _memskill("alfworld", "valid_seen", LLAMA, 5, success_rate=47.86, steps=30.88),
    _memskill("alfworld", "valid_seen", QWEN, 5, success_rate=60.00, steps=24.54),
    _memskill("alfworld", "valid_unseen", LLAMA, 5, success_rate=47.01, steps=30.43),
    _memskill("alfworld", "valid_unseen", QWEN, 5, success_rate=64.18, steps=23.57),
    _other("A-MEM, the best other system", "locomo", "test", judge=46.34),
    _other("CoN, the best other system", "longmemeval", "test", judge=56.93),
    _other("A-MEM, the best other system", "hotpotqa", "test-200", judge=61.14),
    _other("A-MEM, the best other system", "hotpotqa", "test-100", judge=65.48),
    _other("A-MEM, the best other system", "hotpotqa", "test-50", judge=64.18),
    _other("CoN, the best other system", "alfworld", "valid_seen", success_rate=40.71),
    _other("ReadAgent, the best other system", "alfworld", "valid_unseen", success_rate=38.06),
)


@dataclass(frozen=True)
class Setup:
    """What an evaluation was: its summary, its settings, and the data its run was trained on."""

    summary: Mapping[str, Any]
    settings: Mapping[str, Any]
    trained_on: str

    def setting(self, section: str, name: str) -> str:
        return words(inner(self.settings, section), name)


@dataclass(frozen=True)
class Beside:
    """A published figure, and what speaks against holding the evaluation against it (nothing: it may be)."""

    figure: Figure
    differs: tuple[str, ...]


@dataclass(frozen=True)
class Comparison:
    """Published figures of the same benchmark and split, with what differs: in general, in the judge, by figure."""

    rows: tuple[Beside, ...] = ()
    general: tuple[str, ...] = ()
    judge: tuple[str, ...] = ()
    matching: Figure | None = None
    """The figure that all scores but the judge's may be held against."""

    @property
    def against(self) -> str:
        """What speaks against a comparison: what differs in general, from the nearest figure, and in the judge."""
        ours = [row.differs for row in self.rows if row.figure.top_k]
        return "; ".join((*self.general, *min(ours, key=len, default=()), *self.judge))

    def mark(self, name: str) -> float | None:
        """The published score ``name`` if it is comparable, else None."""
        if self.matching is None or (name == "judge" and self.judge):
            return None
        return self.matching.scores.get(name)


def compare(setup: Setup) -> Comparison:
    """The paper's figures for what was evaluated; no rows if it has none."""
    where = words(setup.summary, "dataset"), words(setup.summary, "split")
    figures = [figure for figure in FIGURES if (figure.dataset, figure.split) == where]
    if not figures:
        return Comparison()
    general, judge = _general(setup), _judge(setup)
    rows = [Beside(figure, _by_figure(setup, figure)) for figure in figures]
    matching = next((row.figure for row in rows if not (general or row.differs) and row.figure.top_k), None)
    return Comparison(tuple(rows), general, judge, matching)


def _general(setup: Setup) -> tuple[str, ...]:
    """What differs from every published evaluation of the split."""
    found = [*_data(setup), *_method(setup)]
    if (memories := setup.setting("memory", "top_k")) not in ("", str(MEMORIES)):
        found.append(f"{memories} memories are retrieved, in the paper {MEMORIES}")
    for name, theirs in (("state", STATE), ("retrieval", RETRIEVAL)):
        ours = setup.setting("encoders", name)
        if ours and not _same(ours, theirs):
            found.append(f"the {name} encoder is {ours}, the paper's {theirs}")
    if not setup.settings:
        found.append("its settings are not known")
    return tuple(found)


def _data(setup: Setup) -> list[str]:
    summary = setup.summary
    where = words(summary, "dataset"), words(summary, "split")
    whole, digest = SCORED[where], DATA.get(where)
    found = []
    if digest is None:
        found.append("the data cannot be told from others: the digest of the published ones is not recorded here")
    elif words(summary, "data_digest") != digest:
        found.append("the data are not the published ones")
    if (asked := count(summary, "queries")) != whole:
        found.append(f"{asked} queries were asked, the published split has {whole}")
    if where[0] == "alfworld" and setup.setting("alfworld", "memory") != "all":
        found.append("each task type has a memory of its own, in the paper all trajectories are in one")
    if lost := sum(count(inner(summary, "errors"), name) for name in inner(summary, "errors")):
        found.append(f"{lost} of them have no score")
    if spans := count(summary, "max_spans"):
        found.append(f"only the first {spans} spans of each trace were read")
    return found


def _method(setup: Setup) -> list[str]:
    method, checkpoint = (words(setup.summary, name) for name in ("method", "checkpoint"))
    if method != "memskill":
        return [f"the method is {method}, the figures are MemSkill's"]
    if not checkpoint.isdigit():
        return ["the controller is untrained and the skills are the seeds"]
    found = []
    train = inner(setup.settings, "train")
    planned = count(train, "outer_epochs") * count(train, "inner_epochs")
    if setup.trained_on == "locomo" and planned < EPOCHS:
        found.append(f"the training had {planned} inner epochs, the paper's {EPOCHS:,}")
    theirs = TRAINED_ON[words(setup.summary, "dataset")]
    if setup.trained_on and setup.trained_on != theirs:
        found.append(f"the skills were learned on {setup.trained_on}, the paper's on {theirs}")
    return found


def _judge(setup: Setup) -> tuple[str, ...]:
    if number(setup.summary, "judge") is None:
        return ()
    ours = setup.setting("models", "judge")
    found = [] if _same(ours, JUDGE) else [f"the judge is {ours or 'unknown'}, the paper's {JUDGE}"]
    if words(setup.summary, "dataset") == "longmemeval" and setup.setting("eval", "judge_prompt") != "general":
        found.append("the judge goes by a rule for each category, the paper's by one prompt for all")
    return tuple(found)


def _by_figure(setup: Setup, figure: Figure) -> tuple[str, ...]:
    found = []
    executor = setup.setting("models", "executor")
    spans = tuple(setup.setting("eval", name) for name in ("span_mode", "chunk_size", "chunk_overlap"))
    if figure.top_k and setup.settings and spans != figure.spans:
        found.append(f"spans are {' '.join(spans)}, the paper's {' '.join(figure.spans)}")
    if figure.executor:
        for role, what in (("executor", "executor"), ("answer", "answering model")):
            ours = setup.setting("models", role)
            if not _same(ours, figure.executor):
                found.append(f"the {what} is {ours or 'unknown'}, the paper's {figure.executor}")
                break
    elif not any(_same(executor, one) for one in (LLAMA, QWEN)):
        found.append(f"the executor is {executor or 'unknown'}; that of these figures is not recorded here")
    if figure.top_k and (k := setup.setting("eval", "top_k")) not in ("", str(figure.top_k)):
        found.append(f"{k} skills a span, in the paper {figure.top_k}")
    return tuple(found)


def _same(ours: str, theirs: str) -> bool:
    """Whether a model is the paper's, whoever serves it: ``together_ai/meta-llama/Llama-3.3-70B-Instruct-Turbo``."""
    return ours.rpartition("/")[2].lower().startswith(theirs.lower())
