"""The LLM judge: 1, 0.5 or 0 with an explanation (section 5 of the method)."""

from __future__ import annotations

from memskill_cli.agent.prompts import messages, template
from memskill_cli.config import JudgePrompt
from memskill_cli.llm.client import Gateway
from memskill_cli.llm.grammars import judge_grammar
from memskill_cli.llm.reasoning import ReplyText
from memskill_cli.scoring.prompt_selection import judge_rubric
from memskill_cli.scoring.token_f1 import scored_text, true_answers
from memskill_cli.scoring.verdict import SCORES, parse_verdict
from memskill_cli.types import Query

__all__ = ["SCORES", "judge", "parse_verdict"]


async def judge(
    gateway: Gateway, dataset: str, query: Query, prediction: str, *, prompt: JudgePrompt, settled: bool = True
) -> float:
    """How well ``prediction`` answers ``query``: 0, 0.5 or 1.

    ``prompt`` says whether a category's own rule is told to the judge ("category") or one prompt serves all
    ("general"). What is judged, and against which truth, is what F1 compares. An empty prediction is 0 without a call.
    Raises UnreadableReplyError or ModelError when there is no verdict; ``settled``: as in :meth:`Gateway.ask`.
    """
    answer = scored_text(dataset, prediction)
    if not answer.strip():
        return 0.0
    rubric = judge_rubric(query.category, prompt)
    asked = messages(
        "judge",
        rule=template(rubric) if rubric else "",
        question=query.question,
        truth=" / ".join(true_answers(dataset, query)),
        answer=answer,
    )
    return (await gateway.ask("judge", asked, parse=_parse, grammar=judge_grammar(), settled=settled)).value


def _parse(text: ReplyText) -> float:
    return parse_verdict(text, cut=text.cut)
