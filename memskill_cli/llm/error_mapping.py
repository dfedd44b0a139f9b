"""litellm's many errors as ours: what happened, at which server, for which role, and what to do next."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator

from memskill_cli.errors import AuthError, MemskillError, ModelError, UnknownModelError
from memskill_cli.llm import load_litellm
from memskill_cli.llm.keys import Deployment
from memskill_cli.utils.redaction import without_shapes

_LONGEST = 300


def explain(error: BaseException, role: str, deployment: Deployment, scrub: Callable[[str], str]) -> MemskillError:
    """The error to show for ``error``, without a key in it. One of ours that litellm carried along is restored."""
    litellm = load_litellm()
    for cause in _chain(error):
        if isinstance(cause, MemskillError):
            # litellm appends to an error's message what it tried; the first argument is as it was raised
            return type(cause)(without_shapes(scrub(str(cause))), hint=without_shapes(scrub(cause.hint)))
    where = f"{deployment.model} at {deployment.api_base}" if deployment.api_base else deployment.model
    detail = _detail(error, lambda text: without_shapes(scrub(text)))[:_LONGEST]
    if isinstance(error, litellm.ContextWindowExceededError):
        return ModelError(
            f"role {role}: the prompt is too long for {where}: {detail}",
            hint="take a model with a longer context, or smaller spans: --span-mode fixed-length --chunk-size 512",
        )
    if isinstance(error, litellm.NotFoundError) or _unknown_model(error):
        return UnknownModelError(
            f"role {role}: {where} is not known there: {detail}",
            hint=f"check the name ({_option(role)}) and the address (--api-base)",
        )
    if isinstance(error, (litellm.BadRequestError, litellm.UnprocessableEntityError)):
        return ModelError(f"role {role}: {where} refuses the request: {detail}", hint="see the server's own log")
    if isinstance(error, litellm.AuthenticationError):
        return AuthError(f"role {role}: {where} lets us not in: {detail}", hint="check the provider's credentials")
    return ModelError(
        f"role {role}: no reply from {where}: {detail}",
        hint="see whether the server is up and the address right (--api-base); then go on with --resume",
    )


def _option(role: str) -> str:
    return "--encoder, --retriever" if role == "embedding" else f"--model, or --set models.{role}=NAME"


def _unknown_model(error: BaseException) -> bool:
    """Some servers say 400 where they mean that they have no such model."""
    return isinstance(error, load_litellm().BadRequestError) and bool(
        re.search(r"model\b.*\b(not (found|exist|supported|a valid)|does not exist|unknown|invalid)", str(error), re.I)
        or re.search(r"\b(unknown|invalid|no such) model\b|not a valid model", str(error), re.I)
    )


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _detail(error: BaseException, clean: Callable[[str], str]) -> str:
    """The server's own words: the first paragraph without litellm's prefixes, on one line.

    They are cleaned before anything is cut or joined: a key in pieces is a key, too.
    """
    after = r"\n\nLiteLLM: |\s*Traceback \(most recent| ?\bmodel=\S+ context_window_fallbacks="
    text = re.split(after, clean(str(error)))[0]
    text = re.sub(r"^(?:(?:(?:litellm\.)?[A-Z]\w*(?:Error|Exception|Timeout)\b:?|LiteLLM:)[ -]*)+", "", text)
    return " ".join(_message(text).split()) or type(error).__name__


def _message(text: str) -> str:
    """The message in a server's JSON, if that is what its words are."""
    try:
        body = json.loads(text)
    except (ValueError, RecursionError):
        return text
    told = body.get("error", body) if isinstance(body, dict) else body
    message = told.get("message") if isinstance(told, dict) else told
    return message if isinstance(message, str) else text
