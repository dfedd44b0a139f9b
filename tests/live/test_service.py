"""What is added, read, found and changed. The model is a function; files, spans and the executor are real."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from memskill_cli.errors import DataError, MemoryBankError, ModelError, UsageError
from memskill_cli.live import users
from memskill_cli.live.records import AddResult, Change
from memskill_cli.live.service import MemoryService
from memskill_cli.memory.encoder_cache import NoCache
from memskill_cli.memory.encoder_specs import EncoderPlan
from memskill_cli.memory.encoders import CachedEncoder

from .harness import Model, bytes_of, insert_lines, memory, within

ANNA, BO = "u-anna", "u-bo"


def texts(found: Any) -> list[str]:
    return [one.text for one in found]


def talk(*lines: str, speaker: str = "Anna") -> list[dict[str, Any]]:
    return [{"role": "user", "name": speaker, "content": line} for line in lines]


def test_a_span_is_read_when_it_is_complete(tmp_path: Path) -> None:
    async def work(service: MemoryService) -> None:
        assert await service.add(talk("I moved to Leeds."), ANNA) == AddResult([], 1)
        assert await service.search("Leeds", ANNA) == []
        result = await service.add(talk("I have a cat.", "It sleeps."), ANNA)
        assert result.changes == [
            Change("m1-1", "insert", "I moved to Leeds."),
            Change("m1-2", "insert", "I have a cat."),
        ]
        assert result.pending == 1
        assert await service.flush(ANNA) == AddResult([Change("m1-3", "insert", "It sleeps.")], 0)
        assert await service.flush(ANNA) == AddResult([], 0)

    within(tmp_path, work, mode="turn-pair")


def test_another_session_ends_the_one_before(tmp_path: Path) -> None:
    async def work(service: MemoryService) -> None:
        assert (await service.add(talk("One."), ANNA, "s1")).pending == 1
        assert (await service.add(talk("Two."), ANNA, "s1")).pending == 2
        assert (await service.add(talk("Else."), BO, "s2")) == AddResult([], 1)  # another user ends nothing
        result = await service.add(talk("Three."), ANNA, "s2")
        assert texts(result.changes) == ["One.", "Two."]
        assert result.pending == 1

    within(tmp_path, work, mode="full-session")


def test_a_memory_knows_where_it_is_from(tmp_path: Path) -> None:
    said = {"role": "user", "name": "Anna", "content": "I moved.", "timestamp": "2025-03-04T09:00:00+00:00", "id": "x7"}

    async def work(service: MemoryService) -> None:
        await service.add([said], ANNA, "s9", {"app": "phone"})
        (found,) = await service.search("moved", ANNA)
        assert (found.id, found.session_id, found.metadata) == ("m1-1", "s9", {"app": "phone"})
        assert found == await service.get("m1-1")
        assert found.created_at == found.updated_at
        (source,) = found.sources
        assert (source.id, source.session_id, source.speaker, source.text) == ("x7", "s9", "Anna", "I moved.")
        assert source.said_at.isoformat() == "2025-03-04T09:00:00+00:00"
        (version,) = await service.history("m1-1")
        assert (version.event, version.text, version.by) == ("insert", "I moved.", "reader")
        assert "insert" in version.skills

    within(tmp_path, work)


def test_the_reader_is_shown_the_date_and_what_is_known(tmp_path: Path) -> None:
    said = {"role": "user", "content": "I moved yesterday.", "timestamp": "2025-03-04T09:05:00Z"}
    model = Model()

    async def work(service: MemoryService) -> None:
        await service.add(said, ANNA)
        await service.add(said | {"content": "I moved again."}, ANNA)

    within(tmp_path, work, model, resolve_dates=True)
    assert "[09:05 on 4 March 2025]\nUser: I moved yesterday (3 March 2025)." in model.prompts[0]
    assert "[0] [4 March 2025; User] I moved yesterday (3 March 2025)." in model.prompts[1]


def test_a_message_with_an_id_is_added_once(tmp_path: Path) -> None:
    async def work(service: MemoryService) -> None:
        for _ in range(2):
            await service.add({"role": "user", "content": "Hello.", "id": "1"}, ANNA)
        await service.add({"role": "user", "content": "Hello there.", "id": "1"}, ANNA, "another")
        assert texts(await service.get_all(ANNA)) == ["Hello.", "Hello there."]

    within(tmp_path, work)


def test_an_update_and_a_delete_of_the_model_are_kept_in_the_history(tmp_path: Path) -> None:
    replies = iter(
        [
            "ACTION: INSERT\nMEMORY: Anna lives in Leeds.",
            "ACTION: UPDATE\nINDEX: 0\nMEMORY: Anna lives in York.",
            "ACTION: DELETE\nINDEX: 0",
        ]
    )

    async def work(service: MemoryService) -> None:
        events = [
            (change.event, change.text)
            for line in ("Leeds.", "Now York.", "Forget it.")
            for change in (await service.add(line, ANNA)).changes
        ]
        assert events == [
            ("insert", "Anna lives in Leeds."),
            ("update", "Anna lives in York."),
            ("delete", "Anna lives in York."),
        ]
        assert await service.get_all(ANNA) == []
        assert await service.search("Anna", ANNA) == []
        assert await service.get("m1-1") is None
        history = await service.history("m1-1")
        assert [version.event for version in history] == ["insert", "update", "delete"]

    within(tmp_path, work, Model(lambda prompt: next(replies)), protect=False)
    assert within(tmp_path, lambda service: service.search("Anna", ANNA)) == []


def test_what_a_memory_says_already_is_no_change(tmp_path: Path) -> None:
    async def work(service: MemoryService) -> None:
        await service.add("I like tea.", ANNA)
        assert (await service.add("I like tea.", ANNA)).changes == []
        (found,) = await service.get_all(ANNA)
        assert len(found.sources) == 2

    within(tmp_path, work)


def test_a_memory_changed_by_hand_is_found_by_its_new_text(tmp_path: Path) -> None:
    async def work(service: MemoryService) -> None:
        await service.add(talk("I like tea.", "I have a cat."), ANNA, metadata={"a": 1})
        found = await service.update("m1-1", "Anna plays the violin.", {"b": 2})
        assert (found.text, found.metadata) == ("Anna plays the violin.", {"a": 1, "b": 2})
        assert found.updated_at > found.created_at
        assert texts(await service.search("violin", ANNA, 1)) == ["Anna plays the violin."]
        assert [version.by for version in await service.history("m1-1")] == ["reader", "hand"]
        with pytest.raises(UsageError, match="text is empty"):
            await service.update("m1-1", "  ")

    within(tmp_path, work)
    again = within(tmp_path, lambda service: service.search("violin", ANNA, 1))
    assert texts(again) == ["Anna plays the violin."]


def test_a_memory_that_is_opened_again_finds_the_same(tmp_path: Path) -> None:
    async def fill(service: MemoryService) -> Any:
        lines = [f"Thing {number} is {word}." for number, word in enumerate(("red", "blue", "old", "new", "green"))]
        await service.add(talk(*lines), ANNA)
        await service.add(talk("Is the red thing old?"), ANNA, "s2")
        await service.delete("m1-2")
        return await answers(service)

    async def answers(service: MemoryService) -> Any:
        return [
            (await service.search(query, ANNA, 3), await service.context(query, ANNA))
            for query in ("red", "Which thing is old?", "")
        ]

    assert within(tmp_path, fill) == within(tmp_path, answers)


class Letters:
    """An encoder with 26 dimensions: how often each letter occurs."""

    dim = 26
    batch_chars = 10_000

    def encode(self, texts: Any, side: str = "context") -> Any:
        counts = [[1e-3 + text.lower().count(chr(97 + i)) for i in range(26)] for text in texts]
        return np.array(counts, np.float32)


def test_two_encoders_are_kept_apart(tmp_path: Path) -> None:
    def letters() -> CachedEncoder:
        return CachedEncoder(EncoderPlan("letters", False, Letters), NoCache())

    async def fill(service: MemoryService) -> Any:
        await service.add(talk("zzz zoo.", "I like tea.", "I have a cat."), ANNA)
        await service.update("m1-2", "qqq qqqq.")
        return await look(service)

    async def look(service: MemoryService) -> Any:
        found = [texts(await service.search(query, ANNA, 1)) for query in ("zz", "q", "cat")]
        assert found == [["zzz zoo."], ["qqq qqqq."], ["I have a cat."]]
        return await service.search("q", ANNA), await service.context("zz", ANNA)

    options: Any = {"retriever": "dense"}
    first = within(tmp_path, fill, retrieval=letters(), **options)
    assert within(tmp_path, look, retrieval=letters(), **options) == first
    with pytest.raises(MemoryBankError, match=r"made by the encoder hashing.* \| letters, not by hashing"):
        within(tmp_path, look, **options)


def test_context_finds_what_waits_and_keeps_to_its_tokens(tmp_path: Path) -> None:
    from memskill_cli.utils.tokens import count_tokens

    async def work(service: MemoryService) -> None:
        await service.add(talk(*(f"Fact number {number} is about boats." for number in range(30))), ANNA)
        await service.flush(ANNA)
        await service.add(talk("The newest fact is about a harbour."), ANNA, "s2")
        text = await service.context("harbour", ANNA, 200)
        assert text.startswith("What is known about the user:\n- ")
        assert "What was said earlier:" in text
        assert "The newest fact is about a harbour." in text
        for tokens in (1, 5, 20, 50, 200, 2000):
            assert count_tokens(await service.context("harbour boats", ANNA, tokens)) <= tokens
        assert await service.context("harbour", "nobody") == ""

    within(tmp_path, work, mode="full-session")


def test_without_sources_messages_are_not_kept(tmp_path: Path) -> None:
    async def work(service: MemoryService) -> None:
        await service.add(talk("zebra-4711 likes tea."), ANNA)
        await service.flush(ANNA)
        assert (await service.stats(ANNA))["messages"] == 0
        assert (await service.get_all(ANNA))[0].sources == []
        assert "tea" in await service.context("tea", ANNA)

    within(tmp_path, work, Model(lambda prompt: "ACTION: INSERT\nMEMORY: Anna likes tea."), sources=False)


def test_when_the_model_fails_the_messages_wait(tmp_path: Path) -> None:
    def fail(prompt: str) -> str:
        raise ModelError("the server is down", hint="start it")

    async def refused(service: MemoryService) -> None:
        with pytest.raises(ModelError, match="the server is down") as failed:
            await service.add(talk("I moved."), ANNA)
        assert "do not add them again" in failed.value.hint
        assert (await service.stats(ANNA))["pending"] == 1
        assert [str(error) for error in await service.flush_all()] == ["the server is down"]

    within(tmp_path, refused, Model(fail))
    assert within(tmp_path, lambda service: service.flush_all()) == []
    assert texts(within(tmp_path, lambda service: service.get_all(ANNA))) == ["I moved."]


def test_a_span_that_is_refused_can_be_left_out(tmp_path: Path) -> None:
    def refuse(prompt: str) -> str:
        if "zebra" in prompt.rpartition("<span>")[2]:
            raise ModelError("refused")
        return insert_lines(prompt)

    async def work(service: MemoryService) -> None:
        for line in ("zebra.", "horse."):
            with pytest.raises(ModelError):
                await service.add(talk(line), ANNA)
        result = await service.flush(ANNA, skip=True)
        assert (texts(result.changes), result.pending) == (["horse."], 0)
        assert (await service.stats(ANNA))["spans"] == {"read": 1, "refused": 1}
        assert "zebra" in await service.context("zebra", ANNA)

    within(tmp_path, work, Model(refuse))


def test_a_reply_that_cannot_be_read_changes_nothing_and_is_counted(tmp_path: Path) -> None:
    from memskill_cli.errors import UnreadableReplyError

    def garble(prompt: str) -> str:
        raise UnreadableReplyError("no action")

    async def work(service: MemoryService) -> None:
        assert await service.add(talk("I moved."), ANNA) == AddResult([], 0)
        assert (await service.stats(ANNA))["spans"] == {"unreadable": 1}

    within(tmp_path, work, Model(garble))


def test_readers_do_not_wait_for_the_model(tmp_path: Path) -> None:
    async def work() -> None:
        model = Model()
        async with memory(tmp_path, model) as service:
            await service.add(talk("I like tea."), ANNA)
            model.hold = asyncio.Event()
            reading = asyncio.create_task(service.add(talk("I like coffee."), ANNA))
            second = asyncio.create_task(service.add(talk("I like milk."), ANNA))
            await model.asked(2)
            assert texts(await service.search("tea", ANNA)) == ["I like tea."]
            assert "coffee" in await service.context("coffee", ANNA)  # the message is there already
            assert (await service.get("m1-1")) is not None
            assert len(model.prompts) == 2, "one writer a user"
            model.hold.set()
            # The first of the calls that wait reads what is there; the messages of both are stored.
            read = (await reading).changes + (await second).changes
            assert sorted(texts(read)) == ["I like coffee.", "I like milk."]

    asyncio.run(work())


def test_feedback_is_kept(tmp_path: Path) -> None:
    async def work(service: MemoryService) -> None:
        await service.add(talk("I moved."), ANNA)
        await service.feedback("m1-1", 1)
        await service.feedback("m1-1", -0.5)
        assert [row["score"] for row in (await service.export(ANNA))["feedback"]] == [1.0, -0.5]
        for wrong in (2, float("nan"), True, "1", None):
            with pytest.raises(UsageError, match="score must be a number"):
                await service.feedback("m1-1", wrong)  # type: ignore[arg-type]

    within(tmp_path, work)


@pytest.mark.parametrize(
    "wrong", ["", "m1", "m1-2", "m2-1", "m01-1", "1-1", "m1-1 ", "m1-99999999999999999999", None, 7]
)
def test_an_unknown_id_is_said_to_be_unknown(tmp_path: Path, wrong: Any) -> None:
    async def work(service: MemoryService) -> None:
        await service.add(talk("I moved."), ANNA)
        assert await service.get(wrong) is None
        for call in (
            service.history(wrong),
            service.delete(wrong),
            service.feedback(wrong, 1),
            service.update(wrong, "x"),
        ):
            with pytest.raises(MemoryBankError, match="there is no memory"):
                await call

    within(tmp_path, work)


@pytest.mark.parametrize("limit", [0, -1, 1001, True, "5", 2.0])
def test_limits_are_checked(tmp_path: Path, limit: Any) -> None:
    with pytest.raises(UsageError, match="limit must be"):
        within(tmp_path, lambda service: service.search("x", ANNA, limit))


def test_an_export_can_be_imported(tmp_path: Path) -> None:
    async def make(service: MemoryService) -> Any:
        await service.add(talk("I moved to Leeds.", "I have a cat."), ANNA, "s1", {"a": [1]})
        await service.update("m1-1", "Anna lives in York.")
        await service.feedback("m1-2", 1)
        await service.add(talk("One more."), ANNA, "s2")
        return await service.export(ANNA), await service.search("cat", ANNA), await service.context("cat", ANNA)

    exported, found, context = within(tmp_path / "a", make)

    async def load(service: MemoryService) -> None:
        assert await service.import_user(exported, BO) == 3
        assert [(one.text, one.metadata, one.sources) for one in await service.search("cat", BO)] == [
            (one.text, one.metadata, one.sources) for one in found
        ]
        assert await service.context("cat", BO) == context
        assert {**await service.export(BO), "user_id": ANNA} == exported
        assert (await service.add(talk("New."), BO)).changes[0].id == "m1-4"
        with pytest.raises(UsageError, match="the user has memories"):
            await service.import_user(exported, BO)

    within(tmp_path / "b", load)


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: None,
        lambda data: [],
        lambda data: {**data, "format": 9},
        lambda data: {**data, "turns": None},
        lambda data: {**data, "memories": [{"number": 1}]},
        lambda data: {**data, "memories": [{**data["memories"][0], "number": "1"}]},
        lambda data: {**data, "memories": [{**data["memories"][0], "number": 2**70}]},
        lambda data: {**data, "memories": [{**data["memories"][0], "created": "soon"}]},
        lambda data: {**data, "memories": data["memories"] * 2},
        lambda data: {**data, "versions": [{**data["versions"][0], "action": "explode"}]},
        lambda data: {**data, "versions": [{**data["versions"][0], "memory": 99}]},
        lambda data: {**data, "versions": [{**data["versions"][0], "text": "\ud800"}]},
        lambda data: {**data, "versions": [{**data["versions"][0], "skills": [1]}]},
    ],
)
def test_a_damaged_export_is_refused_and_changes_nothing(tmp_path: Path, damage: Any) -> None:
    async def work(service: MemoryService) -> None:
        await service.add(talk("I moved."), ANNA)
        data = await service.export(ANNA)
        with pytest.raises((MemoryBankError, DataError), match=r"export|contradict"):
            await service.import_user(damage(data), BO)
        assert await service.get_all(BO) == []

    within(tmp_path, work)


def test_few_users_stay_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(users, "MOST_USERS", 3)

    async def work(service: MemoryService) -> None:
        names = [f"u{number}" for number in range(8)]
        await asyncio.gather(*(service.add(talk(f"I am {name}."), name) for name in names))
        for name in names:
            assert texts(await service.search("who", name)) == [f"I am {name}."]
        assert len(service._users._open) <= 3
        assert await service.users() == names

    within(tmp_path, work)


def test_nothing_of_a_user_is_in_the_file_of_all(tmp_path: Path) -> None:
    within(tmp_path, lambda service: service.add(talk("zebra-4711"), ANNA, "horse-4712", {"key": "ibex-4713"}))
    for canary in (b"zebra-4711", b"horse-4712", b"ibex-4713"):
        assert canary in bytes_of(tmp_path / "users")
        assert canary not in (tmp_path / "store.sqlite").read_bytes()
