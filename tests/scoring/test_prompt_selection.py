"""The answer prompts and the judge prompts of each dataset, as the models get them."""

from __future__ import annotations

from pathlib import Path

import pytest

from memskill_cli.evaluation.spec import EvalSpec
from memskill_cli.testing import rules
from memskill_cli.testing.server import Request
from memskill_cli.types import Query, Session, Trace, Turn

from ..evaluation.harness import Rig

SAID = (Session("s1", "2023/05/01 (Mon) 10:00", (Turn("user", "I adopted a parrot called Juno today."),)),)


def rig(folder: Path, dataset: str, category: str, gold_answers: tuple[str, ...] = ("Juno",), **overrides: str) -> Rig:
    query = Query("q", "t", category, "Who is the parrot?", gold_answers, date="2023/05/30 (Tue) 23:40")
    return Rig(folder, traces=[Trace("t", dataset, "test", SAID, (query,))], dataset=dataset, **overrides)


ASKED_FOR = {
    "locomo": "several things separated by commas",  # its multi-hop answers are scored part by part
    "longmemeval": "day on which the question is asked",  # its questions are about the time that has passed
    "hotpotqa": "<answer>the answer alone</answer>",  # its replies may have reasoning before the answer
}
"""What of a prompt belongs to one benchmark alone."""


@pytest.mark.parametrize(("dataset", "longest"), [("locomo", 32), ("longmemeval", 512), ("hotpotqa", 512)])
def test_the_prompt_the_date_and_the_longest_answer_are_the_datasets(
    tmp_path: Path, dataset: str, longest: int
) -> None:
    made = rig(tmp_path, dataset, "all")
    made.method("rag")
    (request,) = (request for request in made.requests if request.role == "answer")
    system = request.messages[0]["content"]
    assert system.startswith("You are the answering part of a memory system.")
    assert [name for name, words in ASKED_FOR.items() if words in system] == [dataset]
    assert "<asked>\n2023/05/30 (Tue) 23:40\n</asked>" in request.text
    assert "[0] [2023/05/01 (Mon) 10:00]\nuser: I adopted" in request.text
    assert request.body["max_tokens"] == longest


RULES = {
    "temporal-reasoning": "off by one",
    "knowledge-update": "latest state",
    "single-session-preference": "recalls and uses",
    "abstention": "cannot be answered",
}
WITHOUT_RULE = ["multi-session", "single-session-user", "single-session-assistant", "single-hop", "temporal", "all"]


@pytest.mark.parametrize("category", [*RULES, *WITHOUT_RULE])
def test_the_judge_is_told_the_rule_of_a_kind_of_question(tmp_path: Path, category: str) -> None:
    made = rig(tmp_path, "longmemeval", category)
    made.method("rag")
    (prompt,) = made.prompts("judge")
    assert [name for name, said in RULES.items() if said in prompt] == [category] * (category in RULES)
    assert prompt.count("<rule>") == (category in RULES)


@pytest.mark.parametrize("category", RULES)
def test_with_the_general_prompt_only_abstention_has_a_rule(tmp_path: Path, category: str) -> None:
    """Its true answer is an explanation, to which the general rule does not apply."""
    made = rig(tmp_path, "longmemeval", category, eval__judge_prompt="general")
    made.method("rag")
    (prompt,) = made.prompts("judge")
    assert [name for name, said in RULES.items() if said in prompt] == ["abstention"] * (category == "abstention")


def test_of_a_reply_with_a_tag_only_the_answer_is_judged_and_scored(tmp_path: Path) -> None:
    made = rig(tmp_path, "hotpotqa", "all", ("Juno", "the parrot Juno"))

    def thinks(request: Request) -> str:
        if request.role == "answer":
            return "The parrot was adopted in May, so it is Bo.\n<answer>Juno</answer>"
        return rules.reply(request)

    made.evaluate(thinks, EvalSpec("hotpotqa", "test", "rag", "data"))
    (request,) = (request for request in made.requests if request.role == "judge")
    assert rules.part(request, "answer") == "Juno"
    assert rules.part(request, "truth") == "Juno / the parrot Juno"
    (row,) = made.rows()
    assert row["f1"] == 1.0
    assert row["prediction"].startswith("The parrot was adopted"), "not changed"
