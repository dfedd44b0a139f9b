"""The sample that ships with memskill is what it claims to be."""

from __future__ import annotations

import json
import re
from collections import Counter
from datetime import datetime, timedelta

import pytest
import snowballstemmer

from memskill_cli.datasets.base import ReaderCallbacks, SourceFile
from memskill_cli.datasets.registry import get
from memskill_cli.datasets.samples import sample_path
from memskill_cli.errors import DataError

RECORDS = json.loads(sample_path("locomo").read_text("utf-8"))
QUESTIONS = [(record, item) for record in RECORDS for item in record["qa"]]
STEM = snowballstemmer.stemmer("porter")
SMALL_WORDS = {"a", "an", "the", "and", "in", "at", "of"}


def ids(items):
    return [f"{record['sample_id']}: {item['question']}" for record, item in items]


def evidence(record, item) -> str:
    """The text of the turns that a question points to, captions included."""
    turns = {t["dia_id"]: t for key, s in record["conversation"].items() if isinstance(s, list) for t in s}
    return " ".join(turns[name]["text"] + " " + turns[name].get("blip_caption", "") for name in item["evidence"])


def words(text: str) -> set[str]:
    return {STEM.stemWord(word) for word in re.findall(r"\w+", text.lower())} - SMALL_WORDS


def days(record, item) -> list[datetime]:
    """The days on which the evidence was said."""
    talk = record["conversation"]
    said = [talk[f"session_{name[1 : name.index(':')]}_date_time"] for name in item["evidence"]]
    return [datetime.strptime(text.split(" on ")[1], "%d %B, %Y") for text in said]


def test_it_is_small_and_reads_without_a_complaint():
    path = sample_path("locomo")
    notes: list[str] = []
    traces = list(get("locomo").read(SourceFile(str(path), path), ReaderCallbacks(notes.append)))
    assert path.stat().st_size <= 60_000
    assert [trace.split for trace in traces] == ["train"] * 3 + ["val", "test"]
    assert len(notes) == 2  # that there are five conversations, not ten, and which questions are not scored
    for trace in traces:
        assert 3 <= len(trace.sessions) <= 4
        assert all(8 <= len(session.turns) <= 14 for session in trace.sessions)
        assert len({turn.speaker for session in trace.sessions for turn in session.turns}) == 2
        assert set(Counter(query.category for query in trace.queries)) == {
            "multi-hop", "temporal", "open-domain", "single-hop", "adversarial"
        }  # fmt: skip
        assert any("[shares a photo" in turn.text for session in trace.sessions for turn in session.turns)


STATED = [(record, item) for record, item in QUESTIONS if item["category"] in (1, 4)]


@pytest.mark.parametrize(("record", "item"), STATED, ids=ids(STATED))
def test_an_answer_is_said_in_the_turns_it_points_to(record, item):
    answer = str(item["answer"])
    assert words(answer) <= words(evidence(record, item))


DATED = [(record, item) for record, item in QUESTIONS if item["category"] == 2]
AGO = {"yesterday": -1, "last night": -1, "in two days": 2}


@pytest.mark.parametrize(("record", "item"), DATED, ids=ids(DATED))
def test_a_date_follows_from_what_was_said_and_when(record, item):
    """Either the text names it, or it is so many days from the session, or the named weekday before or after it."""
    text, said = evidence(record, item), days(record, item)
    answer = item["answer"]
    if before := re.fullmatch(r"The (\w+) before (.*)", answer):
        assert before[1] in text
        assert datetime.strptime(before[2], "%d %B %Y") in said
    elif re.fullmatch(r"\w+ \d{4}", answer):
        assert answer in text
    else:
        day = datetime.strptime(answer, "%d %B %Y")
        named = [said[0] + timedelta(shift) for phrase, shift in AGO.items() if phrase in text]
        near = abs(day - said[-1]) <= timedelta(7) and day.strftime("%A") in text
        assert day in named or near


def test_sessions_are_in_order_of_time():
    for record in RECORDS:
        talk = record["conversation"]
        dates = [datetime.strptime(v, "%I:%M %p on %d %B, %Y") for k, v in talk.items() if k.endswith("date_time")]
        assert dates == sorted(dates)


def test_a_dataset_without_a_sample_is_said_so():
    with pytest.raises(DataError, match="the sample of squad"):
        sample_path("squad")
