"""How each benchmark's queries are put: the answering model's prompt, and what its judge goes by."""

from __future__ import annotations

from memskill_cli.config import JudgePrompt

ABSTENTION = "abstention"
"""Category of questions that cannot be answered: the right answer says so. Judged, never scored by F1."""

_ANSWER_PROMPTS = {"hotpotqa": "answer_tagged", "longmemeval": "answer_dated"}
_RUBRICS = {
    "temporal-reasoning": "judge_temporal",
    "knowledge-update": "judge_update",
    "single-session-preference": "judge_preference",
    ABSTENTION: "judge_abstention",
}


def answer_prompt(dataset: str) -> str:
    """The template of :mod:`memskill_cli.agent.prompts` that ``dataset``'s queries are answered with."""
    return _ANSWER_PROMPTS.get(dataset, "answer")


def judge_rubric(category: str, prompt: JudgePrompt) -> str:
    """The template that says how answers of ``category`` are judged; "" for the judge's general rule.

    With the ``general`` prompt no category has a rule of its own but abstention, whose true answer is an explanation:
    the paper leaves those questions out.
    """
    return _RUBRICS.get(category, "") if prompt == "category" or category == ABSTENTION else ""
