"""Reads what is added: a text, or messages as chat APIs have them. Everything is checked before it is stored."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

import orjson

from memskill_cli.errors import UsageError
from memskill_cli.live.records import Metadata

MAX_MESSAGE = 100_000
"""Most characters of a message."""
MAX_MESSAGES = 1_000
"""Most messages in one call."""
MAX_CALL = 1_000_000
"""Most characters of all messages in one call."""
MAX_METADATA = 16_384
"""Most bytes of the metadata of a message, as JSON."""
MAX_NAME = 256
"""Most characters of a user id, a session id, a name or an id of a message."""
MAX_QUERY = 10_000
"""Most characters of a query, and of a memory that is written by hand."""

_SPEAKERS = {"user": "User", "assistant": "Assistant"}
_LEFT_OUT = frozenset({"system", "developer", "tool", "function"})
_KEYS = ("role", "name", "content", "timestamp", "id", "metadata")
_OF_APIS = frozenset(
    {"tool_calls", "tool_call_id", "function_call", "refusal", "audio", "annotations", "type", "status"}
)
"""Keys of messages of chat APIs that say nothing to remember."""


class NewTurn(NamedTuple):
    """A message to store. ``said`` is its time; ``message_id`` is "" if the caller gave none."""

    speaker: str
    text: str
    said: datetime
    message_id: str
    metadata: Metadata


def read_messages(given: object, metadata: Metadata | None = None) -> list[NewTurn]:
    """The turns of a text, one message or several. System and tool messages and those without text are left out.

    ``metadata`` is that of the call; a message's own values take precedence. A message without a timestamp has the time
    of the one before it, the first one that of the call. UsageError names the message and field.
    """
    if isinstance(given, str):
        given = [{"role": "user", "content": given}]
    elif isinstance(given, Mapping):
        given = [given]
    if not isinstance(given, Sequence) or isinstance(given, bytes | bytearray):
        raise UsageError(f"messages must be a text or a list of messages, not {type(given).__name__}", hint=_FORM)
    if len(given) > MAX_MESSAGES:
        raise UsageError(f"{len(given)} messages in one call; at most {MAX_MESSAGES}", hint="add them in several calls")
    shared, said, turns = check_metadata(metadata, "metadata"), datetime.now(UTC), list[NewTurn]()
    for number, message in enumerate(given):
        if (turn := _turn(message, f"messages[{number}]", shared, said)) is not None:
            turns.append(turn)
            said = turn.said
    if (size := sum(len(turn.text) for turn in turns)) > MAX_CALL:
        raise UsageError(f"{size} characters in one call; at most {MAX_CALL}", hint="add them in several calls")
    return turns


_FORM = '{"role": "user", "content": "…"}; optional: name, timestamp, id, metadata'


def check_name(value: object, what: str) -> str:
    """``value`` as a user id or session id. UsageError if it is no text, or empty, or too long."""
    if not isinstance(value, str) or not value.strip():
        raise UsageError(f"{what} must be a text that is not empty")
    if len(value) > MAX_NAME:
        raise UsageError(f"{what} has {len(value)} characters; at most {MAX_NAME}")
    if not _is_unicode(value):
        raise UsageError(f"{what} is not valid Unicode")
    return value


def check_text(value: object, what: str, longest: int = MAX_QUERY) -> str:
    """``value`` as a query or a memory, with invalid Unicode replaced. UsageError if it is no text or too long."""
    if not isinstance(value, str):
        raise UsageError(f"{what} must be a text, not {type(value).__name__}")
    if len(value) > longest:
        raise UsageError(f"{what} has {len(value)} characters; at most {longest}", hint="shorten it")
    return _valid_unicode(value)


def check_metadata(value: object, what: str) -> Metadata:
    """``value`` as metadata. UsageError if it is no JSON object with text keys, or too large."""
    if value is None:
        return {}
    try:
        data = orjson.dumps(value)
    except TypeError as error:
        raise UsageError(f"{what} is not JSON: {error}") from None
    if not isinstance(value, Mapping):
        raise UsageError(f"{what} must be an object, not {type(value).__name__}")
    if len(data) > MAX_METADATA:
        raise UsageError(f"{what} has {len(data)} bytes as JSON; at most {MAX_METADATA}")
    return dict(orjson.loads(data))


def read_time(value: object, what: str) -> datetime:
    """A time from ISO 8601 or epoch seconds; without a zone it is UTC. UsageError for anything else."""
    try:
        if isinstance(value, datetime):
            found = value
        elif isinstance(value, str):
            found = datetime.fromisoformat(value.strip())
        elif isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            found = datetime.fromtimestamp(value, UTC)
        else:
            raise ValueError
        return found if found.tzinfo else found.replace(tzinfo=UTC)
    except (ValueError, OverflowError, OSError):
        raise UsageError(f"{what} is no time", hint="ISO 8601 (2025-03-04T09:34:00Z) or epoch seconds") from None


def _turn(message: object, where: str, shared: Metadata, said: datetime) -> NewTurn | None:
    if not isinstance(message, Mapping):
        raise UsageError(f"{where} must be an object, not {type(message).__name__}", hint=_FORM)
    _check_keys(message, where)
    role = message.get("role")
    if isinstance(role, str) and role in _LEFT_OUT:
        return None
    if not isinstance(role, str) or role not in _SPEAKERS:
        known = ", ".join((*_SPEAKERS, *sorted(_LEFT_OUT)))
        raise UsageError(f"{where}.role is missing or unknown", hint=f"one of {known}")
    text = check_text(_content(message.get("content"), where), f"{where}.content", MAX_MESSAGE).strip()
    if not text:
        return None
    name, own_id = message.get("name"), message.get("id")
    time = message.get("timestamp")
    return NewTurn(
        _SPEAKERS[role] if name is None else " ".join(check_name(name, f"{where}.name").split()),
        text,
        said if time is None else read_time(time, f"{where}.timestamp"),
        "" if own_id is None else check_name(own_id, f"{where}.id"),
        shared | check_metadata(message.get("metadata"), f"{where}.metadata"),
    )


def _check_keys(message: Mapping[Any, Any], where: str) -> None:
    for key in message:
        if key not in _KEYS and key not in _OF_APIS:
            near = difflib.get_close_matches(str(key), _KEYS, n=1)
            # The key may be a part of a text that was mistaken for a message: it is not repeated in full.
            raise UsageError(
                f"{where} has the unknown field {str(key)[:40]!r}",
                hint=f"did you mean {near[0]}?" if near else f"the fields are {', '.join(_KEYS)}",
            )


def _content(content: object, where: str) -> str:
    """The text of a message: a text, nothing, or a list of parts, of which those that are not text are named."""
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, Sequence) or isinstance(content, bytes | bytearray):
        raise UsageError(f"{where}.content must be a text, null or a list of parts, not {type(content).__name__}")
    return "\n".join(_part(part, f"{where}.content[{number}]") for number, part in enumerate(content))


def _part(part: object, where: str) -> str:
    if isinstance(part, str):
        return part
    if not isinstance(part, Mapping) or not isinstance(part.get("type"), str):
        raise UsageError(f"{where} must be a text or an object with a type", hint='{"type": "text", "text": "…"}')
    text = part.get("text")
    if isinstance(text, str):
        return text
    kinds = ("image", "audio", "video", "file")
    return f"[{next((kind for kind in kinds if kind in part['type']), 'attachment')}]"


def _is_unicode(text: str) -> bool:
    return text == _valid_unicode(text)


def _valid_unicode(text: str) -> str:
    """``text`` with lone surrogates (half an emoji in broken input) replaced: they cannot be stored."""
    return text.encode("utf-8", "replace").decode()
