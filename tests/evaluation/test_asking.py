"""How a benchmark's questions are put, and what its judge is told, as the models see it."""

from __future__ import annotations

from pathlib import Path

import pytest

from memskill_cli.agent.prompts import template
from memskill_cli.evaluation.asking import answer_prompt, judge_rubric
from memskill_cli.evaluation.task import Task
from memskill_cli.records import Query, Session, Trace, Turn
from memskill_cli.testing import rules
from memskill_cli.testing.server import Request

from .rig import Rig

SAID = (Session("s1", "2023/05/01 (Mon) 10:00", (Turn("user", "I adopted a parrot called Juno today."),)),)


def rig(folder: Path, dataset: str, category: str, truths: tuple[str, ...] = ("Juno",)) -> Rig:
    query = Query("q", "t", category, "Who is the parrot?", truths, date="2023/05/30 (Tue) 23:40")
    return Rig(folder, traces=[Trace("t", dataset, "test", SAID, (query,))], dataset=dataset)


@pytest.mark.parametrize("dataset", ["locomo", "longmemeval", "hotpotqa"])
def test_the_prompt_the_date_and_the_longest_answer_are_the_datasets(tmp_path: Path, dataset: str) -> None:
    made = rig(tmp_path, dataset, "all")
    made.method("rag")
    (request,) = (request for request in made.requests if request.role == "answer")
    assert request.messages[0]["content"] == template(answer_prompt(dataset))
    assert ("<answer>" in template(answer_prompt(dataset))) == (dataset == "hotpotqa")
    assert "<asked>\n2023/05/30 (Tue) 23:40\n</asked>" in request.text
    assert "[0] [2023/05/01 (Mon) 10:00]\nuser: I adopted" in request.text
    assert request.body["max_tokens"] == (32 if dataset == "locomo" else 512)


@pytest.mark.parametrize(
    ("category", "said"),
    [
        ("temporal-reasoning", "off by one"),
        ("knowledge-update", "latest state"),
        ("single-session-preference", "recalls and uses"),
        ("multi-session", ""),
        ("single-hop", ""),
    ],
)
def test_the_judge_is_told_the_rule_of_a_kind_of_question(tmp_path: Path, category: str, said: str) -> None:
    made = rig(tmp_path, "longmemeval", category)
    made.method("rag")
    (prompt,) = made.prompts("judge")
    assert ("<rule>" in prompt) == bool(said) == bool(judge_rubric(category))
    assert said in prompt


def test_of_a_reply_with_a_tag_only_the_answer_is_judged_and_scored(tmp_path: Path) -> None:
    made = rig(tmp_path, "hotpotqa", "all", ("Juno", "the parrot Juno"))

    def thinks(request: Request) -> str:
        if request.role == "answer":
            return "The parrot was adopted in May, so it is Bo.\n<answer>Juno</answer>"
        return rules.reply(request)

    made.evaluate(thinks, Task("hotpotqa", "test", "rag", "data"))
    (request,) = (request for request in made.requests if request.role == "judge")
    assert rules.part(request, "answer") == "Juno"
    assert rules.part(request, "truth") == "Juno / the parrot Juno"
    (row,) = made.rows()
    assert row["f1"] == 1.0
    assert row["prediction"].startswith("The parrot was adopted"), "kept as it came"
