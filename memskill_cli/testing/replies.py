"""Requests, faults and scripts of the mock LLM server."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import orjson

from memskill_cli.types import ROLES, Role

_ROLE_IN_PROMPT: tuple[tuple[str, Role], ...] = (
    ("executor", "executor"),
    ("judge", "judge"),
    ("designer", "designer"),
    ("answer", "answer"),
)
_OTHER_SYSTEMS = ("you are a personal information organizer", "you are a smart memory manager", "you act by calling")
"""First words of the prompts of Mem0 and LangMem (our wording of its tool calls). They use the executor's model."""


@dataclass(frozen=True)
class Request:
    """A request that the server received.

    ``key`` is the bearer token (or the header ``api-key`` or ``x-api-key``), "" if there is none. ``time`` is seconds
    since the server started, ``index`` the number of the request from 0 in order of arrival. For ``path``
    …/embeddings, ``messages`` is empty and ``role`` has no meaning.
    """

    role: Role
    model: str
    key: str
    messages: list[dict[str, Any]]
    body: dict[str, Any]
    path: str
    time: float
    index: int

    @property
    def text(self) -> str:
        """The contents of all messages, joined by line breaks."""
        return "\n".join(str(message.get("content") or "") for message in self.messages)


@dataclass(frozen=True)
class Fault:
    """A failure instead of a valid reply.

    ``kind``: ``status`` answers with ``status``, ``headers`` and ``body``; ``hang`` never answers (or closes the
    connection after ``seconds``); ``drip`` sends one space every ``seconds`` forever; ``flood`` sends spaces forever at
    full speed; ``cut`` stops in the middle of a valid reply; ``empty`` answers 200 without a body; ``refuse`` resets
    the connection. ``{key}`` in ``body`` is replaced by the key of the request, as some servers do.
    """

    status: int = 0
    body: str | bytes = ""
    headers: Mapping[str, str] = field(default_factory=dict)
    kind: Literal["status", "hang", "drip", "flood", "cut", "empty", "refuse"] = "status"
    seconds: float = 0.0

    @classmethod
    def error(
        cls, status: int, message: str, *, code: str = "error", headers: Mapping[str, str] | None = None
    ) -> Fault:
        """An error in OpenAI's format."""
        return cls(status, error_body(message, code), headers or {})

    @classmethod
    def rate_limit(cls, retry_after: float | str | None = 1, message: str = "Rate limit reached.") -> Fault:
        """429; ``retry_after`` in seconds, or an HTTP date as text, or None for no Retry-After header."""
        headers = {} if retry_after is None else {"Retry-After": str(retry_after)}
        return cls.error(429, message, code="rate_limit_exceeded", headers=headers)

    @classmethod
    def unauthorized(cls, echo_key: bool = True, status: int = 401) -> Fault:
        """401 (or another ``status``), by default with the key in the message."""
        shown = ": {key}" if echo_key else ""
        return cls.error(status, f"Incorrect API key provided{shown}.", code="invalid_api_key")

    @classmethod
    def unknown_model(cls, message: str = "The model does not exist.") -> Fault:
        return cls.error(404, message, code="model_not_found")

    @classmethod
    def server_error(cls, status: int = 500, message: str = "The server had an error.") -> Fault:
        return cls.error(status, message, code="server_error")

    @classmethod
    def error_in_200(cls, message: str = "Upstream failed.") -> Fault:
        """Status 200 with an error in the body."""
        return cls.error(200, message, code="upstream_error")

    @classmethod
    def hang(cls, seconds: float = 0.0) -> Fault:
        return cls(kind="hang", seconds=seconds)

    @classmethod
    def drip(cls, seconds: float = 0.05) -> Fault:
        return cls(kind="drip", seconds=seconds)

    @classmethod
    def flood(cls) -> Fault:
        return cls(kind="flood")

    @classmethod
    def redirect(cls, location: str, status: int = 307) -> Fault:
        return cls(status, headers={"Location": location})

    @classmethod
    def cut(cls) -> Fault:
        return cls(kind="cut")

    @classmethod
    def empty(cls) -> Fault:
        return cls(kind="empty")

    @classmethod
    def refuse(cls) -> Fault:
        return cls(kind="refuse")


class CutReply(str):
    """A reply that was cut by the token limit: its ``finish_reason`` is ``length``."""

    __slots__ = ()


Reply = str | Fault
Script = Reply | Sequence[Reply] | Callable[[Request], Reply]
"""One reply for all requests; or a sequence of replies, whose last one repeats; or a function of the request."""


def error_body(message: str, code: str) -> str:
    return orjson.dumps({"error": {"message": message, "type": code, "code": code, "param": None}}).decode()


def role_of(model: str, messages: Sequence[Mapping[str, Any]]) -> Role:
    """The role of a call: from the model's name, else from the first words of the first message, else ``answer``."""
    for role in ROLES:
        if role in model.lower():
            return role
    first_line = str(messages[0].get("content") or "").lstrip().partition("\n")[0].lower() if messages else ""
    for mark, role in _ROLE_IN_PROMPT:
        if first_line.startswith(f"you are the {mark}"):
            return role
    return "executor" if first_line.startswith(_OTHER_SYSTEMS) else "answer"
