"""What a failed call means, from its status and the server's message: a prompt, a key, or a request that is refused.

litellm's exception classes differ between providers for the same refusal, so the server's own words are read too.
"""

from __future__ import annotations

import re
from typing import Any

from memskill_cli.llm import import_litellm

litellm = import_litellm()

_FILTERED = re.compile(
    r"content[_ -]?(filter|policy|management policy|moderation)|ResponsibleAI|\bflagged\b|requires moderation"
    r"|data_inspection_failed|inappropriate content|prohibited_content|(?-i:\bSAFETY\b|PROHIBITED_CONTENT)"
    r"|violat\w+ .{0,40}(usage polic|content polic|terms|safety)",
    re.IGNORECASE,
)
_TOO_LONG = re.compile(
    r"context[_ ](length|window)|maximum context|prompt is too long|input is too long|too many (input )?tokens"
    r"|(input|prompt) .{0,60}(exceed|longer than|larger than).{0,60}(token|context|length)"
    r"|(input|prompt|request) (tokens?|length|size).{0,40}exceed|exceeds? the (available context|model'?s maximum)",
    re.IGNORECASE,
)
_NO_CREDIT = re.compile(
    r"insufficient[_ ](quota|balance|credit|fund)|credit balance|out of credits|payment required|billing_hard_limit",
    re.IGNORECASE,
)
_INVALID_KEY = re.compile(r"api[_ ]?key[_ ](not valid|invalid|expired)|(invalid|incorrect) api[_ ]?key", re.IGNORECASE)
_OF_A_PROMPT = (200, 400, 403, 413, 422, 451)


def status_of(error: Any) -> int:
    """The HTTP status of a litellm error; 0 if it has none."""
    status = getattr(error, "status_code", 0)
    return status if isinstance(status, int) else 0


def concerns_prompt(error: BaseException) -> bool:
    """Whether the provider refuses this prompt (a content filter, or a prompt that is too long), and not the caller.

    No other key and no retry helps. A 403 of this kind says nothing about the key.
    """
    return is_filtered(error) or is_too_long(error)


def is_filtered(error: BaseException) -> bool:
    """Whether a content filter has refused the prompt."""
    if isinstance(error, litellm.ContentPolicyViolationError):
        return True
    return status_of(error) in _OF_A_PROMPT and bool(_FILTERED.search(text_of(error)))


def is_too_long(error: BaseException) -> bool:
    """Whether the prompt does not fit into the context of the model, or the request into the limit of the server."""
    if isinstance(error, litellm.ContextWindowExceededError) or status_of(error) == 413:
        return True
    return status_of(error) in (400, 422) and bool(_TOO_LONG.search(text_of(error)))


def key_problem(error: BaseException, status: int = 0) -> str:
    """Why the key can't be used any more, in words or as the status; "" if it still can.

    ``status`` is the HTTP status that was received. litellm's own may be another one.
    """
    status, text = status or status_of(error), text_of(error)
    if status == 429 and "insufficient_quota" in text:
        return "no quota left"
    if status == 402 or (status in (400, 403, 429) and _NO_CREDIT.search(text)):
        return "no credit left"
    if status == 400 and _INVALID_KEY.search(text):
        return "not valid"
    return str(status) if status in (401, 403) else ""


def text_of(error: BaseException) -> str:
    """The message of an error with the body of the reply, if it is known."""
    return f"{error} {getattr(error, 'body', None) or ''}"
