"""Relative dates: each expression with the date that it means, worked out by hand with a calendar."""

from __future__ import annotations

import locale
from datetime import date, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memskill_cli.utils.relative_dates import parse_date, resolve_dates, short_date

SAID = "1:56 pm on 9 June, 2023"  # a Friday


@pytest.mark.parametrize(
    ("text", "meaning"),
    [
        ("yesterday", "8 June 2023"),
        ("Last night", "8 June 2023"),
        ("today", "9 June 2023"),
        ("tomorrow", "10 June 2023"),
        ("the day before yesterday", "7 June 2023"),
        ("three days ago", "6 June 2023"),
        ("last week", "the week before 9 June 2023"),
        ("this past weekend", "the weekend before 9 June 2023"),
        ("next weekend", "the weekend after 9 June 2023"),
        ("last Sunday", "the Sunday before 9 June 2023"),
        ("last Tues", "the Tuesday before 9 June 2023"),
        ("next Friday", "the Friday after 9 June 2023"),
        ("two weeks ago", "2 weeks before 9 June 2023"),
        ("a week ago", "the week before 9 June 2023"),
        ("last month", "May 2023"),
        ("next month", "July 2023"),
        ("six months ago", "December 2022"),
        ("a few months ago", "a few months before 9 June 2023"),
        ("last year", "2022"),
        ("10 years ago", "2013"),
        ("this year", "2023"),
    ],
)
def test_an_expression_is_followed_by_its_meaning(text: str, meaning: str):
    assert resolve_dates(f"I saw it {text}, Mel.", SAID) == f"I saw it {text} ({meaning}), Mel."


@pytest.mark.parametrize(
    "text",
    [
        *("last summer", "lastly", "may", "I sat", "agoweek", "we last sat down", "this sun is hot", "next wed them"),
        *("twenty-two years ago", "twenty two years ago", "1.5 years ago", "half a year ago", "1,000 days ago"),
        *(
            "a year and a half ago",
            "one and a year ago",
            "ton\u0131ght",
            "la\u017ft week",
            "ye\u017fterday",
            "\u0663 days ago",
        ),
    ],
)
def test_what_has_no_single_meaning_stays(text: str):
    assert resolve_dates(text, SAID) == text


def test_a_year_turns():
    assert resolve_dates("yesterday, last month", "2023-01-01T09:00:00Z") == (
        "yesterday (31 December 2022), last month (December 2022)"
    )


def test_what_is_resolved_stays_so():
    once = resolve_dates("I went yesterday and last week.", SAID)
    assert resolve_dates(once, SAID) == once


@pytest.mark.parametrize(
    "said",
    ["", "session 5", "Monday", "soon", "99999-99-99", "May 2023", "2023", "Session 2001", "8 May", "2023年5月8日"],
)
def test_without_a_date_nothing_changes(said: str):
    assert resolve_dates("I went yesterday.", said) == "I went yesterday."


@pytest.mark.parametrize(
    ("text", "day"),
    [
        ("1:56 pm on 8 May, 2023", date(2023, 5, 8)),
        ("2023/05/30 (Tue) 23:40", date(2023, 5, 30)),
        ("2025-03-04T09:34:00Z", date(2025, 3, 4)),
    ],
)
def test_dates_of_the_benchmarks_are_read(text: str, day: date):
    assert parse_date(text) == day


def test_a_short_date_is_a_day_or_the_text():
    assert short_date("2023/05/30 (Tue) 23:40") == "30 May 2023"
    assert short_date("spring") == "spring"


def test_months_do_not_depend_on_the_locale():
    before = locale.setlocale(locale.LC_TIME)
    try:
        for name in ("de_DE.UTF-8", "fr_FR.UTF-8", "C"):
            try:
                locale.setlocale(locale.LC_TIME, name)
            except locale.Error:
                continue
            assert short_date("2023-05-08") == "8 May 2023"
    finally:
        locale.setlocale(locale.LC_TIME, before)


@given(st.dates(date(1000, 1, 1), date(9999, 12, 31)), st.integers(0, 999))
def test_days_ago_is_what_the_calendar_says(day: date, count: int):
    found = resolve_dates(f"{count} days ago", day.isoformat())
    try:
        meant = day - timedelta(count)
    except OverflowError:
        return
    assert found == f"{count} days ago ({meant.day} {meant:%B} {meant.year})"
