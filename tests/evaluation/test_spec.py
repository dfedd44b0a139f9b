"""The name of an evaluation for each method; the splits, methods and queries that a command selects."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from memskill_cli.config import load, setting_names
from memskill_cli.datasets.manifest import DatasetManifest, SplitSize
from memskill_cli.errors import UsageError
from memskill_cli.evaluation import methods
from memskill_cli.evaluation.policy import EvaluatedPolicy
from memskill_cli.evaluation.spec import (
    EvalSpec,
    check_abstention,
    evaluation_id,
    method_names,
    plan,
    settings_digest,
    splits_of,
)
from memskill_cli.skills.bank import SkillBank
from memskill_cli.skills.skill import Skill
from memskill_cli.types import Action, Query, Session, Trace, Turn

TASK = EvalSpec("hotpotqa", "test-50", "memskill", "data")
READING = {"models.executor": "openai/other", "memory.max_actions": 3, "encoders.state": "other", "eval.num_skills": 2}
SPANS = {"eval.chunk_size": 300, "eval.max_spans": 2}
RETRIEVAL = {"encoders.retrieval": "other", "memory.num_memories": 3}
WINDOW = {"eval.context_tokens": 4096}
ASKING = {"models.answer": "openai/other", "models.judge": "openai/other", "eval.judge": False, "seed": 7}
OTHER = {"limits.concurrency": 3, "models.timeout": 9.0, "ppo.gamma": 0.5, "models.designer": "openai/other"}
COUNTS: dict[str, list[dict[str, Any]]] = {
    "memskill": [READING, SPANS, RETRIEVAL, ASKING],
    "seed-skills": [READING, SPANS, RETRIEVAL, ASKING],
    "random-skills": [READING, SPANS, RETRIEVAL, ASKING],
    "all-skills": [
        {name: value for name, value in READING.items() if name != "eval.num_skills"},
        SPANS,
        RETRIEVAL,
        ASKING,
    ],
    "rag": [SPANS, RETRIEVAL, WINDOW, ASKING],
    "full-context": [WINDOW, ASKING],
    "no-memory": [ASKING],
}


def changed(method: str) -> set[str]:
    """The settings of this file that change the name of an evaluation of ``method``."""
    groups = [READING, SPANS, RETRIEVAL, WINDOW, ASKING, OTHER]
    return {
        name
        for group in groups
        for name, value in group.items()
        if settings_digest(load(overrides={name: value}), method) != settings_digest(load(), method)
    }


@pytest.mark.parametrize("method", COUNTS)
def test_an_evaluation_is_named_by_what_its_method_depends_on_and_no_more(method: str) -> None:
    assert changed(method) == {name for group in COUNTS[method] for name in group}


@pytest.mark.parametrize("method", methods.METHODS.names())
def test_what_a_method_ignores_are_settings(method: str) -> None:
    assert methods.get(method).irrelevant_settings <= set(setting_names())


def test_every_method_has_a_name_of_its_own() -> None:
    policy = EvaluatedPolicy.nothing()
    names = {evaluation_id(replace(TASK, method=name), load(), policy) for name in methods.METHODS.names()}
    assert len(names) == len(methods.METHODS.names())
    assert all(name.startswith("hotpotqa-test-50-") for name in names)


def test_skills_are_named_by_what_they_say_not_by_their_checkpoint() -> None:
    one, other = (
        SkillBank([Skill("look", "When.", body, Action.INSERT, "designer")]) for body in ("Look.", "Look twice.")
    )
    settings = load()
    subjects = [
        replace(EvaluatedPolicy.of(None, settings), bank=bank, digest=name) for bank, name in [(one, "1"), (one, "2")]
    ]
    skills = [policy.skills_only() for policy in subjects]
    assert skills[0].digest == skills[1].digest != replace(subjects[0], bank=other).skills_only().digest
    assert {policy.checkpoint for policy in skills} == {"none"}


def test_abstention_names_another_evaluation() -> None:
    named = [
        evaluation_id(replace(TASK, include_abstention=asked), load(), EvaluatedPolicy.nothing())
        for asked in (True, False)
    ]
    assert named[0] != named[1]


@pytest.mark.parametrize(("split", "variant"), [("test-50", "50"), ("test", ""), ("valid_seen", "")])
def test_the_variant_is_what_follows_the_dash(split: str, variant: str) -> None:
    assert replace(TASK, split=split).variant == variant


def manifest(*splits: str) -> DatasetManifest:
    sizes = {name: SplitSize(1, 1) for name in splits}
    return DatasetManifest(2, "hotpotqa", "sample:x", "", "d", 1, 1, sizes, {}, [], "0", "now")


def test_test_means_all_its_variants_from_small_to_large() -> None:
    known = manifest("test-200", "test-50", "test-100", "train")
    assert splits_of(known, "test") == ["test-50", "test-100", "test-200"]
    assert splits_of(known, "test-100") == ["test-100"]
    assert splits_of(known, "train") == ["train"]
    with pytest.raises(UsageError, match=r"no split called test-7; there are test-200, test-50, test-100, train"):
        splits_of(known, "test-7")


@pytest.mark.parametrize(
    ("typed", "names"),
    [("memskill", ["memskill"]), ("rag, no-memory ,memskill", ["rag", "no-memory", "memskill"]), ("rag,", ["rag"])],
)
def test_methods_as_typed(typed: str, names: list[str]) -> None:
    assert method_names(typed) == names


@pytest.mark.parametrize("typed", ["", ",", "rag,rag"])
def test_no_method_or_one_twice(typed: str) -> None:
    with pytest.raises(UsageError, match="expected one method"):
        method_names(typed)


def test_a_method_that_does_not_exist() -> None:
    with pytest.raises(UsageError, match="no method is called ragg") as failure:
        method_names("memskill,ragg")
    assert failure.value.hint == "did you mean rag?"


def test_abstention_is_longmemevals() -> None:
    check_abstention("longmemeval", True)
    check_abstention("locomo", False)
    with pytest.raises(UsageError, match="locomo has no abstention questions"):
        check_abstention("locomo", True)


def test_a_plan_holds_places_and_queries_and_counts_what_is_left_out() -> None:
    def trace(name: str) -> Trace:
        known = Query(f"{name}-1", name, "multi-session", "How many?", ("2",))
        unknown = Query(f"{name}-2", name, "abstention", "Which?", ("Never said.",), scored=False)
        return Trace(name, "longmemeval", "test", (Session("s", "", (Turn("user", "x"),)),), (known, unknown))

    traces = [trace(name) for name in "abc"]
    task = EvalSpec("longmemeval", "test", "rag", "data")
    assert [(work.place, [q.query_id for q in work.queries]) for work in plan(traces, task).jobs] == [
        (0, ["a-1"]),
        (1, ["b-1"]),
        (2, ["c-1"]),
    ]
    assert plan(traces, task).excluded == 3
    apart = plan(traces, replace(task, include_abstention=True, limit=3))
    assert [q.query_id for q in apart.queries] == ["a-1", "a-2", "b-1"]
    assert [work.place for work in apart.jobs] == [0, 1]
    assert apart.excluded == 0
