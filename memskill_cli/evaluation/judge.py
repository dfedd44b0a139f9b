"""The LLM judge: 1, 0.5 or 0 with an explanation (section 5 of the method)."""

from __future__ import annotations

import math

from memskill_cli.agent.prompts import messages, template
from memskill_cli.agent.reply_json import mended
from memskill_cli.errors import UnreadableReplyError
from memskill_cli.evaluation.asking import judge_rubric
from memskill_cli.evaluation.scoring import tagged_answer
from memskill_cli.llm.gateway import Gateway
from memskill_cli.llm.grammars import judge_grammar
from memskill_cli.records import Query

SCORES = (0.0, 0.5, 1.0)


def parse_verdict(text: str) -> float:
    """The score of a judge's reply.

    Raises UnreadableReplyError for anything that is not JSON with a score of 0, 0.5 or 1 (a 10, a NaN, a missing
    score): such a reply is asked again, and counted, and never taken for a 0.
    """
    start, end = text.find("{"), text.rfind("}")
    verdict = mended(text[start : end + 1]) if 0 <= start < end else None
    score = verdict.get("score") if isinstance(verdict, dict) else None
    try:
        value = float(score) if not isinstance(score, bool) else math.nan  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        value = math.nan
    if value not in SCORES:
        raise UnreadableReplyError(f'expected JSON with "score" 0, 0.5 or 1, not {text[:80]!r}')
    return value


async def judge(gateway: Gateway, query: Query, prediction: str, *, settled: bool = True) -> float:
    """How well ``prediction`` answers ``query``: 0, 0.5 or 1, by the rule for its category where there is one.

    Of a reply with an ``<answer>`` only that is judged. An empty prediction is 0 without a call. Raises
    UnreadableReplyError or ModelError when there is no verdict; ``settled``: as in :meth:`Gateway.ask`.
    """
    prediction = tagged_answer(prediction)
    if not prediction.strip():
        return 0.0
    rubric = judge_rubric(query.category)
    prompt = messages(
        "judge",
        rule=template(rubric) if rubric else "",
        question=query.question,
        truth=" / ".join(query.truths),
        answer=prediction,
    )
    return (await gateway.ask("judge", prompt, parse=parse_verdict, grammar=judge_grammar(), settled=settled)).value
