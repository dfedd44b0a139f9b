"""The executor: what one reply does to a memory bank, asked of a scripted server."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pytest

from memskill_cli.agent.executor import Executor
from memskill_cli.config import MemoryConfig
from memskill_cli.errors import ModelError
from memskill_cli.memory.bank import MemoryBank
from memskill_cli.memory.encoder_pair import EncoderPair
from memskill_cli.memory.encoders import load_encoder
from memskill_cli.skills.seeds import seed_bank
from memskill_cli.testing.replies import CutReply, Script
from memskill_cli.testing.server import Fault, MockLLMServer
from memskill_cli.types import Action, ActionStatus, ExecutorResult, Provenance, Span

from ..factories import llm_client

SPAN = Span("talk", 3, "Date: 1 May 2025\nAna: I moved to Porto, and Miso the cat came along.")
SEEDS = {skill.name: skill for skill in seed_bank(noop=True).skills}
OLD = ("Ana lives in Lisbon.", "Ana has a dog.", "Ana likes tea.", "Ben plays the oboe.")


@dataclass
class Desk:
    """A bank of four memories, and what an executor does to it."""

    bank: MemoryBank = field(default_factory=lambda: MemoryBank("talk"))
    prompts: list[str] = field(default_factory=list)

    def run(
        self,
        reply: Script,
        skills: Sequence[str] = ("insert", "update", "delete"),
        span: str = SPAN.text,
        **memory: int,
    ) -> ExecutorResult:
        """Execute once; memories are shown in the reverse of the bank's order, so that places are not ids. Actions are
        applied as in the paper, unless ``protect`` is given."""
        with MockLLMServer({"executor": reply}) as server:
            done = asyncio.run(
                self._execute(
                    server.url,
                    skills,
                    dataclasses.replace(SPAN, text=span),
                    MemoryConfig(**{"protect": False, **memory}),
                )
            )
        self.prompts = [request.text for request in server.requests]
        return done

    async def _execute(self, url: str, skills: Sequence[str], span: Span, memory: MemoryConfig) -> ExecutorResult:
        encoder = load_encoder("hashing", cache_dir=None)
        llm = llm_client(url)
        try:
            state, _ = await EncoderPair(encoder, encoder).embed(OLD)
            for text, vector in zip(OLD, state, strict=True):
                self.bank.insert(text, vector, vector, Provenance("talk", 0, ("insert",), 0))
            shown = self.bank.retrieve(np.zeros(encoder.dim, np.float32), 4, "state")[::-1]
            executor = Executor(llm, EncoderPair(encoder, encoder), memory)
            return await executor.execute(self.bank, span, shown, [SEEDS[name] for name in skills])
        finally:
            await llm.aclose()
            encoder.close()

    @property
    def texts(self) -> list[str]:
        return [item.text for item in self.bank.items]


def test_an_index_means_the_memory_shown_there() -> None:
    callbacks = Desk()
    done = callbacks.run("ACTION: DELETE\nINDEX: 0\n\nACTION: UPDATE\nINDEX: 3\nMEMORY: Ana lives in Porto.")
    assert callbacks.texts == ["Ana lives in Porto.", OLD[1], OLD[2]]
    assert [item.item_id for item in callbacks.bank.items] == ["m000001", "m000002", "m000003"]
    assert [item.text for item in callbacks.bank.deleted] == [OLD[3]]
    assert "[0] Ben plays the oboe." in callbacks.prompts[0]
    assert not done.rejected


def test_deleting_first_moves_nobody() -> None:
    callbacks = Desk()
    callbacks.run(
        "\n\n".join(f"ACTION: DELETE\nINDEX: {i}" for i in (0, 1)) + "\n\nACTION: UPDATE\nINDEX: 2\nMEMORY: New."
    )
    assert callbacks.texts == [OLD[0], "New."]


def test_delete_beats_update_and_a_second_delete_takes_no_neighbour() -> None:
    callbacks = Desk()
    blocks = ["ACTION: UPDATE\nINDEX: 1\nMEMORY: Ana likes coffee.", *["ACTION: DELETE\nINDEX: 1"] * 2]
    done = callbacks.run("\n\n".join(blocks))
    assert callbacks.texts == [OLD[0], OLD[1], OLD[3]]
    assert [action.action for action in done.applied] == [Action.DELETE]
    assert done.rejected == {ActionStatus.DUPLICATE: 2}


def test_what_is_rejected_is_counted_and_the_rest_applies() -> None:
    reply = """{"actions": [
        {"action": "insert", "memory": "Ana has a cat called Miso."},
        {"action": "insert", "memory": ""},
        {"action": "update", "index": 9, "memory": "Nobody."},
        {"action": "update", "index": -1, "memory": "Nobody."},
        {"action": "delete", "index": 0},
        {"action": "forget", "index": 0},
        {"action": "insert", "memory": "LONG"},
        {"action": "insert", "memory": "Ana moved in May."},
        {"action": "insert", "memory": "One too many."}]}""".replace("LONG", "x" * 61)
    callbacks = Desk()
    done = callbacks.run(reply, skills=["insert", "update"], max_chars=60, max_actions=2)
    assert callbacks.texts == [*OLD, "Ana has a cat called Miso.", "Ana moved in May."]
    wanted = {
        ActionStatus.EMPTY_TEXT: 1,
        ActionStatus.BAD_INDEX: 2,
        ActionStatus.NOT_ALLOWED: 1,
        ActionStatus.UNKNOWN_ACTION: 1,
        ActionStatus.TOO_LONG: 1,
        ActionStatus.TOO_MANY: 1,
    }
    assert done.rejected == wanted
    assert done.attempted == 9
    assert not done.unreadable


def test_an_unreadable_reply_is_asked_again_with_the_error_shown() -> None:
    callbacks = Desk()
    done = callbacks.run(["I would remember the cat!", "ACTION: INSERT\nMEMORY: Ana has a cat called Miso."])
    assert callbacks.texts[-1] == "Ana has a cat called Miso."
    assert not done.unreadable
    first, second = callbacks.prompts
    assert "could not be read" not in first
    assert "I would remember the cat!" in second
    assert "could not be read: no memory action found" in second


def test_a_reply_that_stays_unreadable_changes_nothing_and_says_so() -> None:
    callbacks = Desk()
    done = callbacks.run("I would remember the cat!")
    assert done == ExecutorResult((), {}, unreadable=True)
    assert callbacks.texts == list(OLD)
    assert len(callbacks.prompts) == 2, "asked once more, not for ever"


def test_a_call_that_fails_is_no_empty_memory() -> None:
    with pytest.raises(ModelError, match="executor"):
        Desk().run(Fault.server_error())


@pytest.mark.parametrize("skills", [["noop", "insert"], ["insert"]])
def test_noop_is_an_action_whatever_the_skills(skills: list[str]) -> None:
    """So that doing nothing with skills that are for something earns what another type of action would."""
    done = Desk().run("ACTION: NOOP", skills=skills)
    assert [action.action for action in done.applied] == [Action.NOOP]
    assert done.rejected == {}


def test_of_a_reply_that_was_cut_the_last_action_is_rejected() -> None:
    callbacks = Desk()
    done = callbacks.run(CutReply("ACTION: INSERT\nMEMORY: Miso is a cat.\n\nACTION: INSERT\nMEMORY: Ana lives in Po"))
    assert [action.text for action in done.applied] == ["Miso is a cat."]
    assert (done.cut, done.rejected) == (True, {ActionStatus.CUT: 1})
    assert callbacks.texts == [*OLD, "Miso is a cat."]


def test_a_reply_that_ends_inside_its_reasoning_is_unreadable() -> None:
    callbacks = Desk()
    done = callbacks.run("<think>\nACTION: INSERT\nMEMORY: a draft")
    assert (done.unreadable, done.applied) == (True, ())
    assert callbacks.texts == list(OLD)


def test_every_change_says_where_it_comes_from() -> None:
    callbacks = Desk()
    callbacks.run("ACTION: INSERT\nMEMORY: Miso is a cat.\n\nACTION: UPDATE\nINDEX: 3\nMEMORY: Ana lives in Porto.")
    wanted = Provenance("talk", 3, ("insert", "update", "delete"), 3)
    new, changed = callbacks.bank.items[-1], callbacks.bank.items[0]
    assert [(v.action, v.provenance) for v in new.history] == [(Action.INSERT, wanted)]
    assert [(v.action, v.text) for v in changed.history] == [(Action.INSERT, OLD[0]), (Action.UPDATE, changed.text)]
    assert changed.history[-1].provenance == wanted


def test_the_prompt_has_the_chosen_skills_in_order_the_memories_and_the_span() -> None:
    callbacks = Desk()
    callbacks.run("ACTION: NOOP", skills=["update", "insert"])
    text = callbacks.prompts[0]
    assert text.index("### update") < text.index("### insert") < text.index(OLD[0]) < text.index("Miso the cat")
    assert "### delete" not in text


def test_a_careless_reply_loses_no_memory() -> None:
    """Hashed words: the cosine of texts without a common word is near 0."""
    reply = """{"actions": [
        {"action": "update", "index": 0, "memory": "Miso is a cat."},
        {"action": "update", "index": 3, "memory": "Ana lives in Porto."},
        {"action": "delete", "index": 1},
        {"action": "insert", "memory": "ana has a dog"},
        {"action": "insert", "memory": "Miso is a cat!"}]}"""
    desk = Desk()
    done = desk.run(reply, protect=True)
    assert desk.texts == ["Ana lives in Porto.", *OLD[1:], "Miso is a cat."]
    assert done.protected == {
        ActionStatus.UPDATE_TO_INSERT: 1,
        ActionStatus.UNSUPPORTED_DELETE: 1,
        ActionStatus.SEEN_AGAIN: 2,
    }
    assert done.rejected == {ActionStatus.UNSUPPORTED_DELETE: 1}
    assert [action.action for action in done.applied] == [Action.INSERT, Action.UPDATE, Action.INSERT, Action.INSERT]
    assert done.attempted == 5
    assert [(change.item_id, change.text, change.before) for change in done.changes] == [
        ("m000005", "Miso is a cat.", ""),
        ("m000001", "Ana lives in Porto.", OLD[0]),
        ("m000002", OLD[1], OLD[1]),
        ("", "Miso is a cat!", "Miso is a cat!"),
    ]


def test_a_memory_seen_again_derives_from_both_spans() -> None:
    desk = Desk()
    desk.run("ACTION: INSERT\nMEMORY: Ana has a dog.\n\nACTION: INSERT\nMEMORY: ana has a dog", protect=True)
    seen = desk.bank.items[1]
    assert [(version.action, version.text) for version in seen.history] == [
        (Action.INSERT, OLD[1]),
        (Action.UPDATE, OLD[1]),
    ], "noted once for a span"
    assert [version.provenance.span_index for version in seen.history] == [0, SPAN.index]


def test_a_supported_delete_is_applied() -> None:
    desk = Desk()
    done = desk.run("ACTION: DELETE\nINDEX: 1", protect=True, span="Ana: I do not like tea any more.")
    assert desk.texts == [OLD[0], OLD[1], OLD[3]]
    assert not done.protected
