"""Maps litellm's errors to memskill errors: what happened, at which server, for which role, and what to do next."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator

from memskill_cli.errors import (
    AuthError,
    MemskillError,
    ModelError,
    RejectedPromptError,
    RejectedRequestError,
    UnknownModelError,
)
from memskill_cli.llm import load_litellm, rejections
from memskill_cli.llm.keys import Deployment
from memskill_cli.utils.redaction import redact_patterns
from memskill_cli.utils.resource_limits import limit_reached

_MAX_DETAIL = 300


def explain(error: BaseException, role: str, deployment: Deployment, redact: Callable[[str], str]) -> MemskillError:
    """The memskill error for ``error``, without keys. A memskill error that litellm wrapped is unwrapped."""
    litellm = load_litellm()
    for cause in _chain(error):
        if isinstance(cause, MemskillError):
            # litellm appends its attempts to the message; the first argument is the original
            return type(cause)(redact_patterns(redact(str(cause))), hint=redact_patterns(redact(cause.hint)))
    if limit := limit_reached(error):
        return limit
    where = f"{deployment.model} at {deployment.api_base}" if deployment.api_base else deployment.model
    detail = _detail(error, lambda text: redact_patterns(redact(text)))[:_MAX_DETAIL]
    if rejections.is_filtered(error):
        return RejectedPromptError(
            f"role {role}: {where} refused the prompt: {detail}",
            hint="it is left out; another model may accept it",
        )
    if rejections.is_too_long(error):
        long = RejectedPromptError(
            f"role {role}: the prompt is too long for {where}: {detail}",
            hint="use a model with a longer context, or smaller spans: --span-mode fixed-length --chunk-size 512",
        )
        long.too_long = True
        return long
    if isinstance(error, litellm.NotFoundError) or _is_unknown_model(error):
        return UnknownModelError(
            f"role {role}: unknown model {where}: {detail}",
            hint=f"check the name ({_option(role)}) and the address (--api-base)",
        )
    if isinstance(error, (litellm.BadRequestError, litellm.UnprocessableEntityError)):
        return RejectedRequestError(f"role {role}: {where} rejected the request: {detail}", hint="see the server's log")
    if isinstance(error, litellm.AuthenticationError):
        hint = "check the provider's credentials"
        return AuthError(f"role {role}: authentication failed for {where}: {detail}", hint=hint)
    return ModelError(
        f"role {role}: no reply from {where}: {detail}",
        hint="check that the server is running and the address is right (--api-base); then continue with --resume",
    )


def _option(role: str) -> str:
    return "--encoder, --retriever" if role == "embedding" else f"--model, or --set models.{role}=NAME"


def _is_unknown_model(error: BaseException) -> bool:
    """Whether a 400 means that the server does not have the model. "not supported by this model" is no such message:
    it is about something else in the request."""
    text = str(error)
    return isinstance(error, load_litellm().BadRequestError) and bool(
        re.search(
            r"\bmodel[ :'\"`]+[^\s'\"`]*[ '\"`]*(is |was |does |could |has )*(not |un)(found|exist|known|a valid)",
            text,
            re.I,
        )
        or re.search(r"\b(unknown|invalid|no such) model\b|not a valid model|model_not_found", text, re.I)
        or re.search(r"\bmodel\b\W+\S+\W+(is )?not supported", text, re.I)
    )


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _detail(error: BaseException, redact: Callable[[str], str]) -> str:
    """The server's message: the first paragraph, without litellm's prefixes, on one line.

    Keys are redacted before the text is cut or joined, because then a key could no longer be recognized.
    """
    trailer = r"\n\nLiteLLM: |\s*Traceback \(most recent| ?\bmodel=\S+ context_window_fallbacks="
    text = re.split(trailer, redact(str(error)))[0]
    text = re.sub(r"^(?:(?:(?:litellm\.)?[A-Z]\w*(?:Error|Exception|Timeout)\b:?|LiteLLM:)[ -]*)+", "", text)
    return " ".join(_message(text).split()) or type(error).__name__


def _message(text: str) -> str:
    """The message in the server's JSON; ``text`` if it is not such JSON."""
    try:
        body = json.loads(text)
    except (ValueError, RecursionError):
        return text
    error = body.get("error", body) if isinstance(body, dict) else body
    message = error.get("message") if isinstance(error, dict) else error
    return message if isinstance(message, str) else text
