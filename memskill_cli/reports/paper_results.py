"""Compare an evaluation with the results of the MemSkill paper (arXiv 2602.02474).

The figures are from the paper's tables. An evaluation is comparable only if data, models and settings are the same;
otherwise the differences are listed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from memskill_cli.datasets.paper import LLAMA, QWEN, PaperResult, PaperResults
from memskill_cli.datasets.registry import find
from memskill_cli.reports.run_files import count, get_dict, get_str, number

JUDGE = "gpt-oss-120b"
STATE, RETRIEVAL = "Qwen3-Embedding-0.6B", "contriever"
MEMORIES = 20


@dataclass(frozen=True)
class Setup:
    """The setup of an evaluation: its summary, its settings, and the dataset its run was trained on."""

    summary: Mapping[str, Any]
    settings: Mapping[str, Any]
    trained_on: str

    @property
    def paper(self) -> PaperResults:
        """The paper's results on the dataset; empty if there are none, or if the dataset is unknown."""
        return _paper_of(get_str(self.summary, "dataset"))

    def setting(self, section: str, name: str) -> str:
        return get_str(get_dict(self.settings, section), name)


@dataclass(frozen=True)
class ComparisonRow:
    """A published result, and the differences that make the evaluation incomparable (none: comparable)."""

    result: PaperResult
    differs: tuple[str, ...]


@dataclass(frozen=True)
class Comparison:
    """Published results for the same dataset and split, with differences: from all results, in the judge, by row."""

    rows: tuple[ComparisonRow, ...] = ()
    general: tuple[str, ...] = ()
    judge: tuple[str, ...] = ()
    matching: PaperResult | None = None
    """The comparable result; its judge score is comparable only if ``judge`` is empty."""

    @property
    def against(self) -> str:
        """All differences: from every result, from the nearest result, and in the judge."""
        ours = [row.differs for row in self.rows if row.result.top_k]
        return "; ".join((*self.general, *min(ours, key=len, default=()), *self.judge))

    def mark(self, name: str) -> float | None:
        """The published score ``name`` if it is comparable, else None."""
        if self.matching is None or (name == "judge" and self.judge):
            return None
        return self.matching.scores.get(name)


def _paper_of(dataset: str) -> PaperResults:
    found = find(dataset)
    return found.paper_results if found else PaperResults()


def compare(setup: Setup) -> Comparison:
    """The paper's results for the evaluated dataset and split; no rows if there are none."""
    split = get_str(setup.summary, "split")
    figures = [figure for figure in setup.paper.results if figure.split == split]
    if not figures:
        return Comparison()
    general, judge = _general(setup), _judge(setup)
    rows = [ComparisonRow(figure, _by_figure(setup, figure)) for figure in figures]
    matching = next((row.result for row in rows if not (general or row.differs) and row.result.top_k), None)
    return Comparison(tuple(rows), general, judge, matching)


def _general(setup: Setup) -> tuple[str, ...]:
    """Differences from all published results of the split."""
    found = [*_data(setup), *_method(setup)]
    if (memories := setup.setting("memory", "num_memories")) not in ("", str(MEMORIES)):
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
    split = get_str(summary, "split")
    whole, digest = setup.paper.scored[split], setup.paper.digests.get(split)
    found = []
    if digest is None:
        found.append("the data cannot be checked: memskill has no digest of the published data")
    elif get_str(summary, "data_digest") != digest:
        found.append("the data differ from the published data")
    if (asked := count(summary, "queries")) != whole:
        found.append(f"{asked} queries were asked, the published split has {whole}")
    found += _other_settings(setup, setup.paper.setting)
    if failed := sum(count(get_dict(summary, "errors"), name) for name in get_dict(summary, "errors")):
        found.append(f"{failed} of them have no score")
    if spans := count(summary, "max_spans"):
        found.append(f"only the first {spans} spans of each trace were read")
    return found


def _method(setup: Setup) -> list[str]:
    method, checkpoint = (get_str(setup.summary, name) for name in ("method", "checkpoint"))
    if method != "memskill":
        return [f"the method is {method}, the paper's results are for MemSkill"]
    if not checkpoint.isdigit():
        return ["the controller is untrained and the skills are the seeds"]
    found = []
    train = get_dict(setup.settings, "train")
    planned = count(train, "outer_epochs") * count(train, "inner_epochs")
    if planned < (epochs := _paper_of(setup.trained_on).training_epochs):
        found.append(f"the training had {planned} inner epochs, the paper's {epochs:,}")
    theirs = setup.paper.trained_on
    if setup.trained_on and setup.trained_on != theirs:
        found.append(f"the skills were learned on {setup.trained_on}, the paper's on {theirs}")
    return found


def _judge(setup: Setup) -> tuple[str, ...]:
    if number(setup.summary, "judge") is None:
        return ()
    ours = setup.setting("models", "judge")
    found = [] if _same(ours, JUDGE) else [f"the judge is {ours or 'unknown'}, the paper's {JUDGE}"]
    return (*found, *_other_settings(setup, setup.paper.judge_setting))


def _other_settings(setup: Setup, wanted: Mapping[str, tuple[str, str]]) -> list[str]:
    """The sentence of each setting whose value differs from the paper's."""
    parts = ((name.partition("."), value, sentence) for name, (value, sentence) in wanted.items())
    return [sentence for (section, _, name), value, sentence in parts if setup.setting(section, name) != value]


def _by_figure(setup: Setup, figure: PaperResult) -> tuple[str, ...]:
    found = []
    executor = setup.setting("models", "executor")
    spans = _spans(*(setup.setting("eval", name) for name in ("span_mode", "chunk_size", "chunk_overlap")))
    if figure.top_k and setup.settings and spans != _spans(*figure.spans):
        found.append(f"spans are {spans}, the paper's {_spans(*figure.spans)}")
    if figure.executor:
        for role, what in (("executor", "executor"), ("answer", "answer model")):
            ours = setup.setting("models", role)
            if not _same(ours, figure.executor):
                found.append(f"the {what} is {ours or 'unknown'}, the paper's {figure.executor}")
                break
    elif not any(_same(executor, one) for one in (LLAMA, QWEN)):
        found.append(f"the executor is {executor or 'unknown'}; memskill does not know that of these results")
    if figure.top_k and (k := setup.setting("eval", "num_skills")) not in ("", str(figure.top_k)):
        found.append(f"{k} {'skill' if k == '1' else 'skills'} per span, in the paper {figure.top_k}")
    return tuple(found)


def _spans(mode: str, size: str, overlap: str) -> str:
    """The spans in words. Only spans of a fixed length have a size and an overlap, in tokens."""
    return f"{mode} {size}, overlap {overlap}" if mode == "fixed-length" else mode


def _same(ours: str, theirs: str) -> bool:
    """Whether a model is the paper's, from any provider: ``together_ai/meta-llama/Llama-3.3-70B-Instruct-Turbo``."""
    return ours.rpartition("/")[2].lower().startswith(theirs.lower())
