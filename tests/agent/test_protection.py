"""The rules of ``memory.protect``, with vectors made by hand. A text's place on the unit circle sets its cosines."""

from __future__ import annotations

import math

import numpy as np
import pytest

from memskill_cli.agent.protection import DELETES_PER_REPLY, Decision, Protection, is_other, is_repetition, is_supported
from memskill_cli.memory.bank import MemoryBank
from memskill_cli.memory.lexical import analyzer
from memskill_cli.types import Action, ActionStatus, MemoryAction, MemoryItem, MemoryVersion, Provenance, Vector

ENGLISH = analyzer("english")
LISBON, DOG, TEA, OBOE = "Ana lives in Lisbon.", "Ana has a dog.", "Ana likes tea.", "Ben plays the oboe."
SEEN, TURNED = ActionStatus.SEEN_AGAIN, ActionStatus.UPDATE_TO_INSERT


def at(degrees: float) -> Vector:
    return np.array([math.cos(math.radians(degrees)), math.sin(math.radians(degrees))], np.float32)


ANGLES = {LISBON: 0, DOG: 90, TEA: 180, OBOE: 270}


def rules(span: str = "", degrees: float = 45, **written: float) -> Protection:
    """A bank of four memories at right angles; ``written`` has the angles of new texts, "_" for a space."""
    bank = MemoryBank("talk")
    for text, angle in ANGLES.items():
        bank.insert(text, at(angle), at(angle), Provenance("talk", 0, ("insert",), 0))
    vectors = {text.replace("_", " "): at(angle) for text, angle in written.items()}
    return Protection(bank, ENGLISH, vectors, span, at(degrees))


def insert(text: str) -> MemoryAction:
    return MemoryAction(Action.INSERT, text)


def update(text: str, index: int) -> MemoryAction:
    return MemoryAction(Action.UPDATE, text, index)


def delete(index: int) -> MemoryAction:
    return MemoryAction(Action.DELETE, index=index)


def targets(*actions: MemoryAction) -> list[str]:
    return ["" if action.index is None else f"m{action.index + 1:06d}" for action in actions]


@pytest.mark.parametrize(
    ("new", "cosine", "expected"),
    [
        ("Ana lives in Porto.", 0.2, False),  # 2 of 3 words: the same thing, however far in the embedding
        ("Ben plays the oboe.", 0.61, False),  # no common word, but near
        ("Ben plays the oboe.", 0.59, True),
        ("Ana plays the oboe.", 0.59, True),  # 1 of 3 words: the name alone is not enough
        ("Ana moved.", 0.2, False),  # 1 of the 2 words of the shorter text
        ("Ana lives in Lisbon. Ben plays the oboe.", 0.2, False),  # adds something
    ],
)
def test_an_update_is_about_something_else_if_words_and_vector_say_so(new: str, cosine: float, expected: bool) -> None:
    assert is_other(LISBON, new, cosine, ENGLISH) is expected


@pytest.mark.parametrize(
    ("span", "cosine", "expected"),
    [
        ("Ana: I no longer live in the centre.", 0.1, True),  # 2 of 3 words
        ("Ana: I sold the car.", 0.1, False),  # 1 of 3 words
        ("Ana: I sold the car.", 0.56, True),
        ("Ana: I sold the car.", 0.54, False),
        ("", 0.0, False),
    ],
)
def test_a_delete_needs_a_span_about_the_memory(span: str, cosine: float, expected: bool) -> None:
    assert is_supported(LISBON, span, cosine, ENGLISH) is expected


MEMORY = "On Monday Ana gave Ben a green book about the history of Porto."


@pytest.mark.parametrize(
    ("text", "cosine", "expected"),
    [
        ("on monday, Ana gave Ben the green book about the history of Porto", 0.0, True),  # equal words
        ("On Monday, Ana gave Ben green books about the histories of Porto!", 0.96, True),
        ("On Monday, Ana gave Ben green books about the histories of Porto!", 0.94, False),
        ("On Monday Ana gave Ben a book about the history of Porto.", 0.96, True),  # 7 of 8 content words
        ("On Monday Ana gave Ben a book.", 0.99, False),  # 5 of 8
        ("On Monday Ben gave Ana a green book about the history of Porto.", 0.99, False),  # other roles
        ("On Monday Ana gave Ben a red book about the history of Porto.", 0.99, False),
        ("On Monday Ana gave Ben a large green book about the history of Porto.", 0.99, False),  # adds a word
        ("On Tuesday Ana gave Ben a green book about the history of Porto.", 0.99, False),
        ("Ana gave Ben a green book about the history of Porto.", 0.99, False),  # 7 of 8, but the day is missing
        ("On Monday Ana will have given Ben a green book about the history of Porto.", 0.99, False),
        ("", 0.99, False),
    ],
)
def test_a_repetition_says_nothing_new(text: str, cosine: float, expected: bool) -> None:
    assert is_repetition(MEMORY, text, cosine, ENGLISH) is expected


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Ana pays 3.5 euros.", "Ana pays 35 euros."),  # equal without punctuation
        ("Ana has two cats.", "Ana has three cats."),
        ("Ana likes tea.", "Ana does not like tea."),  # equal without stop words
        ("Ana doesn't smoke.", "Ana does smoke."),
        ("Ana moved from Porto to Lisbon.", "Ana moved to Porto from Lisbon."),
        ("Ana is ill.", "Ana was ill."),
        ("He was there.", "She was there."),  # no content word at all
        ("Ana voted for the plan.", "Ana voted against the plan."),
        ("The price went up.", "The price went down."),
        ("My sister lives in Porto.", "Your sister lives in Porto."),
        ("Ana writes C++.", "Ana writes C#."),
        ("Ben got grade A.", "Ben got grade A+."),
        ("Ben got a B-.", "Ben got a B+."),
        ("It was -5 degrees.", "It was 5 degrees."),
        ("Ana pays 10%.", "Ana pays $10."),
        ("x < y holds", "x > y holds"),
        ("Ana has blood type A.", "Ana has blood type."),
        ("Ana sent \U0001f389", "Ana sent \U0001f622"),
    ],
)
def test_small_words_and_numbers_make_another_fact(one: str, other: str) -> None:
    assert not is_repetition(one, other, 0.999, ENGLISH)
    assert not is_repetition(other, one, 0.999, ENGLISH)


def test_the_rules_of_a_reply() -> None:
    """One update is turned; the other, the delete and the insert are applied as they are, in the same order."""
    reply = [update("Ben sings", 0), update("Ana likes coffee", 2), delete(1), insert("Ana drives")]
    found = rules("Ana: my dog died", Ben_sings=60, Ana_likes_coffee=60, Ana_drives=30).decide(reply, targets(*reply))
    assert found.decisions == (
        Decision(insert("Ben sings")),
        Decision(update("Ana likes coffee", 2), "m000003"),
        Decision(delete(1), "m000002"),
        Decision(insert("Ana drives")),
    )
    assert found.counts == {TURNED: 1}


def test_only_supported_deletes_count_for_the_limit() -> None:
    reply = [delete(index) for index in (3, 0, 1, 2)]
    found = rules("Ana lives with her dog in Lisbon and likes tea.").decide(reply, targets(*reply))
    assert [decision.item_id for decision in found.decisions] == ["m000001", "m000002"]
    assert DELETES_PER_REPLY == 2
    assert found.counts == {ActionStatus.UNSUPPORTED_DELETE: 1, ActionStatus.TOO_MANY_DELETES: 1}


def test_a_delete_is_supported_by_a_vector_near_its_memory() -> None:
    reply = [delete(0), delete(1)]
    found = rules("unknown words", degrees=50).decide(reply, targets(*reply))  # cosines 0.64 and 0.77
    assert len(found.decisions) == 2
    found = rules("unknown words", degrees=60).decide(reply, targets(*reply))  # cosines 0.5 and 0.87
    assert [decision.item_id for decision in found.decisions] == ["m000002"]


def test_equal_words_are_found_wherever_their_vector_is() -> None:
    found = rules(ben_plays_an_oboe=90).decide([insert("ben plays an oboe")], [""])
    assert found.decisions == (Decision(insert("ben plays an oboe"), "m000004", repeated=True),)
    assert found.counts == {SEEN: 1}


def test_a_near_text_is_compared_by_its_cosine() -> None:
    near, far = (rules(Ben_played_oboe=angle).decide([insert("Ben played oboe")], [""]) for angle in (285, 290))
    assert near.decisions == (Decision(insert("Ben played oboe"), "m000004", repeated=True),)  # cosine 0.966
    assert far.decisions == (Decision(insert("Ben played oboe")),)  # 0.940


def test_one_text_is_written_once_in_a_reply() -> None:
    reply = [insert("Ana drives"), insert("ana drives!"), insert("Ben drives")]
    vectors = {"Ana drives": at(30), "ana drives!": at(30), "Ben drives": at(30)}
    protection = Protection(rules().bank, ENGLISH, vectors)
    found = protection.decide(reply, targets(*reply))
    assert [decision.repeated for decision in found.decisions] == [False, True, False]
    assert found.decisions[1].item_id == ""
    assert found.counts == {SEEN: 1}


def test_an_insert_is_no_repetition_of_what_the_reply_deletes_or_replaces() -> None:
    """Else a text that the reply moves would be lost: its memory is gone after the reply."""
    reply = [delete(1), insert(DOG), update("Ana lives in Porto", 0), insert(LISBON)]
    vectors = {DOG: at(90), LISBON: at(0), "Ana lives in Porto": at(20)}
    found = Protection(rules().bank, ENGLISH, vectors, "Ana gave her dog away", at(45)).decide(reply, targets(*reply))
    assert not any(decision.repeated for decision in found.decisions)
    assert found.counts == {}


def test_an_insert_repeats_what_an_update_of_the_reply_says() -> None:
    reply = [insert("Ana lives in Porto"), update("Ana lives in Porto", 0)]
    found = rules(Ana_lives_in_Porto=20).decide(reply, targets(*reply))
    assert [decision.repeated for decision in found.decisions] == [True, False]


def test_a_refused_delete_leaves_a_memory_that_can_be_seen_again() -> None:
    reply = [delete(3), insert(OBOE)]
    protection = Protection(rules().bank, ENGLISH, {OBOE: at(270)}, "Ana drives.", at(45))
    found = protection.decide(reply, targets(*reply))
    assert found.decisions == (Decision(insert(OBOE), "m000004", repeated=True),)
    assert found.counts == {ActionStatus.UNSUPPORTED_DELETE: 1, SEEN: 1}


def test_a_turned_update_that_repeats_another_memory_is_that_memory() -> None:
    reply = [update(OBOE, 0)]
    found = Protection(rules().bank, ENGLISH, {OBOE: at(270)}).decide(reply, targets(*reply))
    assert found.decisions == (Decision(insert(OBOE), "m000004", repeated=True),)
    assert found.counts == {TURNED: 1, SEEN: 1}


def test_without_a_memory_nothing_is_repeated() -> None:
    found = Protection(MemoryBank("talk"), ENGLISH, {"Ana drives": at(30)}).decide([insert("Ana drives")], [""])
    assert found.decisions == (Decision(insert("Ana drives")),)
    assert not found.counts


def test_a_memory_seen_again_has_the_date_on_which_it_was_first_said() -> None:
    said = [Provenance("talk", day, (), day, f"{day} May 2025", ("Ana",)) for day in (1, 2, 3, 4)]
    insert, update, again = Action.INSERT, Action.UPDATE, Action.UPDATE
    texts = [(insert, "Ana has a cat."), (update, DOG), (again, DOG), (again, DOG)]
    history = tuple(MemoryVersion(action, text, origin) for (action, text), origin in zip(texts, said, strict=True))
    assert MemoryItem("m000001", DOG, history).described == f"[2 May 2025; Ana] {DOG}"
    assert MemoryItem("m000001", DOG, history[:2]).described == f"[2 May 2025; Ana] {DOG}"
