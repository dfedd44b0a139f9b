"""The content of a message as text, and times as they are written in files."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

_TEXTS = ("text", "input_text", "output_text", "refusal")
_LONGEST = 40
MAX_EPOCH = 10_000_000_000
"""Larger numbers are milliseconds: as seconds, they are after the year 2286."""


def content_text(content: Any) -> str:
    """Text, null or a list of parts as text: texts are joined by line breaks, other parts become ``[image]``.

    Raises ValueError, with the place in ``content``, for anything else.
    """
    if content is None:
        return ""
    if isinstance(content, str):
        return content.strip()
    if not isinstance(content, list):
        raise ValueError("is neither text nor null nor a list of parts")
    return "\n".join(text for place, part in enumerate(content) if (text := _part(part, place)))


def _part(part: Any, place: int) -> str:
    if isinstance(part, str):
        return part.strip()
    if not isinstance(part, dict):
        raise ValueError(f"[{place}] is neither text nor an object")
    kind = part.get("type", "text" if "text" in part else "file")
    if not isinstance(kind, str):
        raise ValueError(f"[{place}].type is not text")
    if kind in _TEXTS:
        text = part.get("refusal" if kind == "refusal" else "text")
        text = text.get("value") if isinstance(text, dict) else text  # parts of the Assistants API
        if not isinstance(text, str):
            raise ValueError(f"[{place}].text is not text")
        return text.strip()
    return placeholder(kind)


def placeholder(kind: str) -> str:
    """``[image]`` for ``image_url`` and ``input_image``, and so on."""
    name = kind.strip().lower().removeprefix("input_").removesuffix("_url").removesuffix("_asset_pointer")
    return f"[{name.replace('_', ' ')[:_LONGEST] or 'file'}]"


def parse_time(value: Any) -> datetime | None:
    """A time from ISO 8601 text or epoch seconds; None for null.

    A zone is kept; epoch seconds are in UTC. Raises ValueError with the problem.
    """
    if value is None:
        return None
    if isinstance(value, str):
        try:
            return datetime.fromisoformat(value.strip())
        except ValueError:
            raise ValueError(f"{value[:_LONGEST]!r} is not a time in ISO 8601, such as 2025-03-04T09:34:00Z") from None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError("is neither ISO 8601 text nor epoch seconds")
    if abs(value) >= MAX_EPOCH:
        raise ValueError(f"{value} is too large for epoch seconds (milliseconds must be divided by 1000)")
    return datetime.fromtimestamp(value, UTC)


def time_text(time: datetime | None) -> str:
    """A time for readers and models: ``2025-03-04 (Tue) 09:34 +01:00``; "" for None; without a clock at midnight."""
    if time is None:
        return ""
    day = f"{time:%Y-%m-%d} ({_DAYS[time.weekday()]})"
    if time.tzinfo is None and (time.hour, time.minute, time.second) == (0, 0, 0):
        return day
    offset = time.isoformat()[len("2025-03-04T09:34:00") :].lstrip(".0123456789")
    zone = "UTC" if offset == "+00:00" else offset
    return f"{day} {time:%H:%M} {zone}".rstrip()


_DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")  # not %a, which changes with the locale


def epoch(time: datetime) -> float:
    """Seconds since 1970, to compare times. A time without a zone is taken as UTC."""
    return (time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp()
