"""The parameters of one request: those of the role and the keys file, without those that the server has refused."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from memskill_cli.config.model_parameters import OFF

_LIMIT, _NEW_LIMIT = "max_tokens", "max_completion_tokens"
_DROPPED_IF_NAMED = (
    "temperature",
    "top_p",
    "seed",
    "reasoning_effort",
    "num_ctx",
    "stream_options",
    "encoding_format",
)
_NEEDS_STREAM = re.compile(
    r"only supports? (the )?stream|stream(ing)? (mode )?(only|is required|must be)|non-?streaming calls?"
    r"|(enable|set) (the )?[`'\"]?stream",
    re.IGNORECASE,
)
_UNSUPPORTED = re.compile(
    r"(un|not )support|unknown|unrecogni[sz]ed|unexpected|not (allowed|permitted)|extra inputs?|deprecated",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Adaptation:
    """What a server was found to need: parameters that are not sent, the name of the token limit, a stream."""

    dropped: frozenset[str] = frozenset()
    """Names of parameters; those in ``extra_body`` as ``extra_body.NAME``."""
    new_limit: bool | None = None
    """Whether the limit is ``max_completion_tokens`` (True) or ``max_tokens`` (False); None: as set."""
    stream: bool = False

    def learn(self, text: str, sent: Mapping[str, Any]) -> tuple[Adaptation, str] | None:
        """The adaptation after a 400 that says ``text`` to a request with the parameters ``sent``, and what it changes
        in words. None if the text names no parameter: the request can't be helped."""
        if _NEEDS_STREAM.search(text) and not sent.get("stream"):
            return replace(self, stream=True), "answers only in a stream: calls ask for one"
        if _LIMIT in sent and (_NEW_LIMIT in text or (_names(_LIMIT, text) and _UNSUPPORTED.search(text))):
            return replace(self, new_limit=True), f"does not take {_LIMIT}: calls send {_NEW_LIMIT}"
        if _NEW_LIMIT in sent and self.new_limit is None and _names(_NEW_LIMIT, text) and _UNSUPPORTED.search(text):
            return replace(self, new_limit=False), f"does not take {_NEW_LIMIT}: calls send {_LIMIT}"
        extra = (f"extra_body.{key}" for key in sent.get("extra_body") or ())
        for name in (*(name for name in _DROPPED_IF_NAMED if name in sent), *extra):
            if _names(name.removeprefix("extra_body."), text):
                changed = replace(self, dropped=self.dropped | {name})
                return changed, f"does not take {name.removeprefix('extra_body.')} as it was sent: calls go without it"
        return None


def apply(given: Mapping[str, Any], adaptation: Adaptation, call: dict[str, Any]) -> None:
    """Change the arguments of a litellm call: add the parameters ``given`` for its role, leave out what is refused."""
    limit = call.pop(_LIMIT, None)
    for name, value in given.items():
        if value == OFF:
            call.pop(name, None)
        elif name == "headers":
            call["extra_headers"] = dict(value)
        elif name not in (_NEW_LIMIT, "thinking_tokens", "stream"):
            call[name] = value
    if limit is not None:
        call[_limit_name(given, adaptation)] = token_limit(given, limit)
    if limit is not None and (given.get("stream") or adaptation.stream):
        call |= {"stream": True, "stream_options": {"include_usage": True}}
    call["extra_body"] = {
        name: value
        for name, value in (call.get("extra_body") or {}).items()
        if f"extra_body.{name}" not in adaptation.dropped
    }
    if not call["extra_body"]:
        del call["extra_body"]
    for name in adaptation.dropped:
        call.pop(name, None)
    # litellm leaves out what it does not expect of a model's name, which says little behind a server of one's own
    if forced := [
        name for name in ("reasoning_effort", "seed", "top_p", "temperature") if name in given and name in call
    ]:
        call["allowed_openai_params"] = forced


def _limit_name(given: Mapping[str, Any], adaptation: Adaptation) -> str:
    new = adaptation.new_limit if adaptation.new_limit is not None else bool(given.get(_NEW_LIMIT))
    return _NEW_LIMIT if new else _LIMIT


def token_limit(given: Mapping[str, Any], limit: int) -> int:
    """The limit that is sent for a reply of ``limit`` tokens: with the room that the role's model has for thinking."""
    asked = given.get(_NEW_LIMIT)
    return (limit if asked is None or isinstance(asked, bool) else int(asked)) + int(given.get("thinking_tokens", 0))


def _names(name: str, text: str) -> bool:
    return bool(re.search(rf"(?<![\w-]){re.escape(name)}(?![\w-])", text))
