"""Evidence recall and the stage at which a wrong answer lost its evidence."""

from __future__ import annotations

import pytest

from memskill_cli.scoring.evidence import EvidenceMap
from memskill_cli.types import Action, MemoryItem, MemoryVersion, Provenance, Retrieved, Source, Span

SPANS = [
    Span("t", i, "", tuple(Source(f"s{i}:{turn}", "", "Ivo", "text") for turn in range(2))) for i in range(3)
]  # s0:0 s0:1 | s1:0 s1:1 | s2:0 s2:1


def item(name: str, *versions: tuple[int, str], action: Action = Action.INSERT) -> MemoryItem:
    history = tuple(MemoryVersion(action, text, Provenance("t", span, (), span)) for span, text in versions)
    return MemoryItem(name, versions[-1][1], history)


def shown(*items: MemoryItem) -> list[Retrieved]:
    return [Retrieved(one, 1.0) for one in items]


def turn(ref: str) -> MemoryItem:
    return MemoryItem(ref, "text", ())


def test_recall_is_the_share_of_the_evidence_among_the_first_k():
    known = EvidenceMap(SPANS, sources_kept=True)
    ranked = shown(turn("s2:1"), turn("s0:0"), turn("s1:1"))
    evidence = ["s0:0", "s1:1", "s1:0"]
    assert [known.recall(evidence, ranked, k) for k in (1, 2, 3, 9)] == pytest.approx([0, 1 / 3, 2 / 3, 2 / 3])


def test_a_memory_derives_from_all_turns_of_its_span():
    known = EvidenceMap(SPANS, [item("m1", (1, "Ivo paints"))])
    assert known.recall(["s1:0", "s1:1", "s0:0"], shown(*known.items), 1) == pytest.approx(2 / 3)


def test_a_session_is_found_by_any_of_its_turns_and_a_turn_by_any_of_its_parts():
    known = EvidenceMap(SPANS, sources_kept=True)
    assert known.recall(["s1"], shown(turn("s1:1")), 1) == 1.0
    assert known.recall(["s1"], shown(turn("s11:1")), 1) == 0.0
    assert known.recall(["s1:1"], shown(turn("s1:1.4")), 1) == 1.0
    assert known.recall(["s1:1"], shown(turn("s1:11")), 1) == 0.0
    assert known.recall(["a"], shown(turn("a.b:0")), 1) == 0.0, "another session"
    assert known.recall(["a:1"], shown(turn("a:1:0")), 1) == 1.0, "a turn of the session a:1"
    assert known.recall(["a:1"], shown(turn("a:1.x")), 1) == 0.0


def test_the_stages():
    kept, gone = item("m1", (0, "Ivo paints")), item("m2", (1, "Ivo has a cat"))
    known = EvidenceMap(SPANS, [kept], [gone])
    assert known.failure(["s2:0"], shown(kept)) == "not_stored"
    assert known.failure(["s1:0"], shown(kept)) == "lost"
    assert known.failure(["s0:1"], shown()) == "not_retrieved"
    assert known.failure(["s0:1"], shown(kept)) == "not_used"


def test_the_first_stage_counts_if_parts_fail_at_several():
    kept, gone = item("m1", (0, "Ivo paints")), item("m2", (1, "Ivo has a cat"))
    known = EvidenceMap(SPANS, [kept], [gone])
    assert known.failure(["s0:0", "s1:0"], shown(kept)) == "lost"
    assert known.failure(["s1:0", "s2:0"], shown(kept)) == "not_stored"


def test_an_update_that_says_something_else_loses_what_was_said_before():
    overwritten = item("m1", (0, "Ivo has a cat called Bento"), (1, "Mara moved to Porto"))
    merged = item("m2", (0, "Ivo has a cat called Bento"), (1, "Ivo has an old cat called Bento and a dog"))
    assert EvidenceMap(SPANS, [overwritten]).failure(["s0:0"], shown(overwritten)) == "lost"
    assert EvidenceMap(SPANS, [merged]).failure(["s0:0"], shown(merged)) == "not_used"


def test_with_sources_kept_nothing_that_was_read_is_lost():
    known = EvidenceMap(SPANS[:2], [], [item("m1", (0, "Ivo paints"))], sources_kept=True)
    assert known.failure(["s0:0"], shown()) == "not_retrieved"
    assert known.failure(["s2:0"], shown()) == "not_stored"  # its span was not read
