"""The LLM judge: 1, 0.5 or 0 with an explanation (section 5 of the method)."""

from __future__ import annotations

from functools import partial

from memskill_cli.agent.prompts import messages, template
from memskill_cli.config import JudgePrompt
from memskill_cli.datasets.base import ABSTENTION, Dataset
from memskill_cli.llm.client import LLMClient
from memskill_cli.llm.grammars import judge_grammar
from memskill_cli.llm.reasoning import ReplyText
from memskill_cli.scoring.plugin_errors import plugin_errors
from memskill_cli.scoring.verdict import SCORES, parse_verdict
from memskill_cli.types import Query

__all__ = ["SCORES", "judge", "parse_verdict"]


async def judge(
    llm: LLMClient,
    dataset: Dataset,
    query: Query,
    prediction: str,
    *,
    prompt: JudgePrompt,
    reuse_cached_error: bool = True,
) -> float:
    """How well ``prediction`` answers ``query``: 0, 0.5 or 1.

    ``prompt`` says whether a category's own rule is told to the judge ("category") or one prompt serves all
    ("general"). What is judged, and against which truth, is what F1 compares. An empty prediction is 0 without a call.
    Raises UnreadableReplyError or ModelError when there is no verdict. ``reuse_cached_error``: as in
    :meth:`LLMClient.ask`.
    """
    with plugin_errors(dataset, f"query {query.query_id}"):
        answer = dataset.scored_text(prediction)
        if not answer.strip():
            return 0.0
        rule = _rule(dataset, query.category, prompt)
        truth = " / ".join(dataset.gold_answers(query))
    asked = messages(
        "judge",
        rule=template(rule) if rule else "",
        question=query.question,
        truth=truth,
        answer=answer,
    )
    parse = partial(_parse, answer=answer)
    reply = await llm.ask("judge", asked, parse=parse, grammar=judge_grammar(), reuse_cached_error=reuse_cached_error)
    return reply.value


def _rule(dataset: Dataset, category: str, prompt: JudgePrompt) -> str:
    """The rule for answers of ``category``; "" for the judge's general rule.

    With the ``general`` prompt only abstention has a rule of its own. Its true answer is an explanation: the paper
    leaves those questions out.
    """
    return dataset.judge_prompt(category) if prompt == "category" or category == ABSTENTION else ""


def _parse(text: ReplyText, *, answer: str) -> float:
    return parse_verdict(text, cut=text.cut, answer=answer)
