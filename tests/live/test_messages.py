"""What can be added, and what is refused before anything is stored."""

from __future__ import annotations

from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memskill_cli.errors import UsageError
from memskill_cli.live import messages
from memskill_cli.live.messages import read_messages, read_time


def user(content: Any, **more: Any) -> dict[str, Any]:
    return {"role": "user", "content": content, **more}


def test_a_text_is_a_message_of_the_user() -> None:
    (turn,) = read_messages("I moved to Leeds.", {"channel": "phone"})
    assert (turn.speaker, turn.text, turn.metadata) == ("User", "I moved to Leeds.", {"channel": "phone"})
    assert abs((datetime.now(UTC) - turn.said).total_seconds()) < 60


def test_names_times_ids_and_metadata_are_taken() -> None:
    given = user("Hi", name="Anna  B", timestamp="2025-03-04T09:34:00Z", id="x1", metadata={"a": 2})
    (turn,) = read_messages(given, {"a": 1, "b": 1})
    assert turn == ("Anna B", "Hi", datetime(2025, 3, 4, 9, 34, tzinfo=UTC), "x1", {"a": 2, "b": 1})


def test_a_message_without_a_time_has_that_of_the_one_before() -> None:
    given = [user("a"), user("b", timestamp=0), user(None, timestamp=9), user("c")]
    first, second, third = (turn.said for turn in read_messages(given))
    assert first.year >= 2026
    assert second == third == datetime(1970, 1, 1, tzinfo=UTC)


def test_what_says_nothing_is_left_out() -> None:
    roles = ("system", "developer", "tool", "function")
    silent = [{"role": role, "content": "no"} for role in roles]
    silent += [user(None), user("  "), user([]), {"role": "assistant", "content": None, "tool_calls": [{"id": 1}]}]
    assert [turn.text for turn in read_messages([*silent, user("yes")])] == ["yes"]


def test_parts_are_joined_and_pictures_named() -> None:
    parts = [
        "a",
        {"type": "text", "text": "b"},
        {"type": "image_url", "image_url": {}},
        {"type": "input_audio"},
        {"type": "x"},
    ]
    assert read_messages([user(parts)])[0].text == "a\nb\n[image]\n[audio]\n[attachment]"


@pytest.mark.parametrize(
    ("given", "where"),
    [
        (None, "messages must be a text or a list"),
        (7, "messages must be a text or a list"),
        (["text"], r"messages\[0\] must be an object"),
        ([{"content": "x"}], r"messages\[0\].role"),
        ([user("x"), {"role": "boss", "content": "x"}], r"messages\[1\].role"),
        ([user(7)], r"messages\[0\].content"),
        ([user([7])], r"messages\[0\].content\[0\]"),
        ([user("x", name=7)], r"messages\[0\].name"),
        ([user("x", name="")], r"messages\[0\].name"),
        ([user("x", id=7)], r"messages\[0\].id"),
        ([user("x", timestamp="soon")], r"messages\[0\].timestamp"),
        ([user("x", metadata=[1])], r"messages\[0\].metadata"),
        ([user("x", metadata={"a": object()})], r"messages\[0\].metadata is not JSON"),
        ([user("x" * (messages.MAX_MESSAGE + 1))], r"messages\[0\].content has 100001 characters; at most 100000"),
        ([user("x")] * (messages.MAX_MESSAGES + 1), "1001 messages in one call"),
        ([user("x" * messages.MAX_MESSAGE)] * 11, "1100000 characters in one call"),
        ([user("x", metadata={"a": "x" * messages.MAX_METADATA})], r"messages\[0\].metadata has"),
    ],
)
def test_what_is_not_valid_is_named(given: Any, where: str) -> None:
    with pytest.raises(UsageError, match=where):
        read_messages(given)


def test_an_unknown_field_names_the_nearest_one() -> None:
    with pytest.raises(UsageError) as wrong:
        read_messages([user("x", timestmp=1)])
    assert wrong.value.hint == "did you mean timestamp?"


@pytest.mark.parametrize("value", ["", "yesterday", True, None, float("nan"), float("inf"), 1e300, [], "2025-13-01"])
def test_what_is_no_time_is_refused(value: Any) -> None:
    with pytest.raises(UsageError, match="is no time"):
        read_time(value, "timestamp")


def test_times_are_aware() -> None:
    assert read_time(0, "") == datetime(1970, 1, 1, tzinfo=UTC)
    assert read_time("2025-03-04", "") == datetime(2025, 3, 4, tzinfo=UTC)
    assert read_time("2025-03-04T10:00+02:00", "").isoformat() == "2025-03-04T10:00:00+02:00"


@pytest.mark.parametrize("value", [None, 7, "", "   ", "x" * 257, "\ud800"])
def test_names_of_users_are_checked(value: Any) -> None:
    with pytest.raises(UsageError, match="user_id"):
        messages.check_name(value, "user_id")


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from([*messages._KEYS, "x"]), inner, max_size=4)
    ),
    max_leaves=12,
)


@given(JSON | st.text(alphabet=st.characters(categories=["Cs", "Cc", "Ll"])))
def test_whatever_is_given_is_read_or_refused(value: Any) -> None:
    with suppress(UsageError):
        for turn in read_messages(value):
            assert turn.text.strip()
            turn.text.encode()
            turn.speaker.encode()
