"""Relative dates in English text ("yesterday", "last Friday", "two months ago") with the dates that they mean.

The date of what was said is known here; a reader of the text alone does not have it. Only the common expressions with
one meaning are resolved. Expressions of a week, a weekend or a weekday keep their unit ("the week before 9 June 2023"),
because the exact day was not said.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import date, datetime, timedelta
from functools import lru_cache

# Not calendar's names: they change with the locale of the process.
_MONTHS = (
    *("January", "February", "March", "April", "May", "June"),
    *("July", "August", "September", "October", "November", "December"),
)
_WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
_COUNTED = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_NUMBERS = {word: number for number, word in enumerate(_COUNTED, 1)}
_NUMBERS |= {"a": 1, "an": 1, "a couple of": 2}
_DAYS = {
    "today": 0, "tonight": 0, "this morning": 0, "this afternoon": 0, "this evening": 0,
    "yesterday": -1, "last night": -1, "tomorrow": 1, "the day before yesterday": -2, "the day after tomorrow": 2,
}  # fmt: skip
_UNITS = "week(?:end)?|month|year"  # not seasons: "last summer" in October is this year's for some, not for others
# Short names only where they are no other words: not "sat", "sun", "wed" and "mon".
_WEEKDAY = r"monday|tue(?:s|sday)?|wednesday|thu(?:rs|rsday)?|fri(?:day)?|saturday|sunday"
_COUNT = rf"\d{{1,3}}|{'|'.join(sorted(_NUMBERS, key=len, reverse=True))}|a few|few"
_LONGER = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety", "hundred", "half", "and")
_NOT_BEHIND = r"(?<![\w][-.,])" + "".join(rf"(?<!\b{word} )" for word in _LONGER)
"""The end of a longer number is no number: "1.5 years", "twenty-two years", "half a year"."""
# ASCII: otherwise a dotless i would match an i of "tonight", and its lower case would not be found.
_EXPRESSION = re.compile(
    rf"\b(?:(?P<day>{'|'.join(sorted(_DAYS, key=len, reverse=True))})"
    rf"|(?P<which>last|this past|past|this|next) (?:(?P<unit>{_UNITS})|(?P<weekday>{_WEEKDAY}))"
    rf"|{_NOT_BEHIND}(?P<count>{_COUNT}) (?P<ago>day|week|weekend|month|year)s? ago)\b(?! \()",
    re.IGNORECASE | re.ASCII,
)
_DEFAULTS = datetime(1904, 1, 1), datetime(1908, 2, 2)  # they differ in year, month and day
_OFFSETS = {"last": -1, "this past": -1, "past": -1, "this": 0, "next": 1}
_WORDS = {-1: "before", 0: "of", 1: "after"}


def resolve_dates(text: str, said: str) -> str:
    """``text`` with the meaning of each relative date in brackets behind it: "yesterday (7 May 2023)".

    ``said`` is the date of the text in any usual form. The text is returned unchanged if ``said`` is no date.
    """
    today = parse_date(said)
    if today is None:
        return text
    return _EXPRESSION.sub(lambda match: f"{match[0]} ({_meaning(match, today)})", text)


@lru_cache(maxsize=4096)
def parse_date(text: str) -> date | None:
    """The day that ``text`` names ("1:56 pm on 8 May, 2023", "2023/05/30 (Tue) 23:40", ISO 8601), or None."""
    from dateutil import parser

    try:
        # The library takes what is missing from a default. A date whose parts are all named does not depend on it.
        first, second = (parser.parse(text, default=default, fuzzy=True).date() for default in _DEFAULTS)
    except (ValueError, OverflowError):
        return None
    return first if first == second else None


def short_date(text: str) -> str:
    """The day that ``text`` names ("8 May 2023"), or ``text`` itself if it names none."""
    day = parse_date(text)
    return _format(day) if day else text


def _meaning(match: re.Match[str], today: date) -> str:
    if match["day"]:
        return _day(today, _DAYS[match["day"].lower()])
    if match["count"]:
        return _ago(match["count"].lower(), match["ago"].lower(), today)
    offset = _OFFSETS[match["which"].lower()]
    if match["weekday"]:
        name = next(day for day in _WEEKDAYS if day.lower().startswith(match["weekday"].lower()[:3]))
        return f"the {name} {_WORDS[offset] if offset else 'of the week of'} {_format(today)}"
    return _RELATIVE[match["unit"].lower()](match["unit"].lower(), offset, today)


def _ago(count: str, unit: str, today: date) -> str:
    if count.endswith("few"):
        return f"a few {unit}s before {_format(today)}"
    number = _NUMBERS.get(count) or int(count)
    if unit == "day":
        return _day(today, -number)
    if unit == "month":
        return _month(unit, -number, today)
    if unit == "year":
        return _year(unit, -number, today)
    return f"{f'the {unit}' if number == 1 else f'{number} {unit}s'} before {_format(today)}"


def _day(today: date, offset: int) -> str:
    try:
        return _format(today + timedelta(offset))
    except OverflowError:
        return _format(today)


def _format(day: date) -> str:
    return f"{day.day} {_MONTHS[day.month - 1]} {day.year}"


def _week(unit: str, offset: int, today: date) -> str:
    return f"the {unit} {_WORDS[offset]} {_format(today)}"


def _month(unit: str, offset: int, today: date) -> str:
    months = today.year * 12 + today.month - 1 + offset
    return f"{_MONTHS[months % 12]} {months // 12}"


def _year(unit: str, offset: int, today: date) -> str:
    return str(today.year + offset)


_RELATIVE: dict[str, Callable[[str, int, date], str]] = {
    "week": _week,
    "weekend": _week,
    "month": _month,
    "year": _year,
}
