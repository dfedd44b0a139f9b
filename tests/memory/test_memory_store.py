"""Banks on disk: what comes back is what was saved, to the last bit, and never half of it."""

from __future__ import annotations

import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from memskill_cli.errors import MemoryBankError
from memskill_cli.memory.bank import MemoryBank
from memskill_cli.memory.store import MemoryStore
from memskill_cli.types import Provenance, Vector

STATE_DIM, RETRIEVAL_DIM = 24, 8


def unit(rng: np.random.Generator, dim: int) -> Vector:
    vector = rng.standard_normal(dim)
    return (vector / np.linalg.norm(vector)).astype(np.float32)


def filled(bank_id: str, store: MemoryStore | None, *, items: int = 40, seed: int = 0) -> MemoryBank:
    """A bank with updates, deletions and awkward texts."""
    rng = np.random.default_rng(seed)
    bank = MemoryBank(bank_id, store=store)
    for step in range(items):
        origin = Provenance("conv-1", step, ("keep-facts", "note-dates"), step)
        bank.insert(
            f"fact {step}: café \U0001f600 \x00 \ud83d\n", unit(rng, STATE_DIM), unit(rng, RETRIEVAL_DIM), origin
        )
        if step % 7 == 3:
            item_id = bank.items[step // 3].item_id
            bank.update(item_id, f"changed {step}", unit(rng, STATE_DIM), unit(rng, RETRIEVAL_DIM), origin)
        if step % 11 == 5:
            bank.delete(bank.items[1].item_id, origin)
    return bank


def assert_same(bank: MemoryBank | None, other: MemoryBank) -> None:
    assert bank is not None
    assert bank.items == other.items
    assert bank.deleted == other.deleted
    rng = np.random.default_rng(99)
    for space, dim in (("state", STATE_DIM), ("retrieval", RETRIEVAL_DIM)):
        ids = [item.item_id for item in bank.items]
        assert np.array_equal(bank.vectors(ids, space), other.vectors(ids, space))
        for _ in range(5):
            query = unit(rng, dim)
            assert bank.retrieve(query, 20, space) == other.retrieve(query, 20, space)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[MemoryStore]:
    with MemoryStore(tmp_path / "memory") as opened:
        yield opened


def test_a_saved_bank_comes_back_whole(store):
    bank = filled("conv/1 – ü", store)
    assert bank.deleted
    assert bank.metadata is None
    bank.save({"checkpoint": "000010"})
    again = MemoryBank.open("conv/1 – ü", store)
    assert_same(again, bank)
    assert again.metadata == bank.metadata == {"checkpoint": "000010"}


def test_an_opened_bank_goes_on_where_it_stopped(store):
    bank = filled("a", store)
    bank.save()
    again = MemoryBank.open("a", store)
    origin = Provenance("conv-1", 99, (), 99)
    rng = np.random.default_rng(5)
    vectors = unit(rng, STATE_DIM), unit(rng, RETRIEVAL_DIM)
    assert again.insert("later", *vectors, origin) == bank.insert("later", *vectors, origin)
    again.delete(again.items[0].item_id, origin)
    again.save()
    assert_same(MemoryBank.open("a", store), again)


def test_saving_replaces_what_was_there(store):
    filled("a", store, seed=1, items=30).save({"checkpoint": "old"})
    newer = filled("a", store, seed=2, items=9)
    newer.save({"checkpoint": "new"})
    again = MemoryBank.open("a", store)
    assert_same(again, newer)
    assert again.metadata == {"checkpoint": "new"}


def test_banks_of_one_store_do_not_mix(store):
    banks = [filled(f"trace {number}", store, seed=number, items=5 + number) for number in range(4)]
    threads = [threading.Thread(target=bank.save) for bank in banks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for bank in banks:
        assert_same(MemoryBank.open(bank.bank_id, store), bank)
    assert MemoryBank.open("trace 9", store) is None


def test_an_empty_bank_is_saved_too(store):
    MemoryBank("empty", store=store).save({"why": "nothing was worth keeping"})
    again = MemoryBank.open("empty", store)
    assert again is not None
    assert len(again) == 0
    assert again.metadata == {"why": "nothing was worth keeping"}


def test_more_items_than_chroma_takes_at_once_keep_their_order(store, monkeypatch):
    monkeypatch.setattr(type(store._client), "get_max_batch_size", lambda self: 7)
    bank = filled("a", store)
    bank.save()
    assert_same(MemoryBank.open("a", store), bank)


CRASH = """
    import os, sys
    sys.path.insert(0, {tests!r})
    from test_memory_store import filled
    from memskill_cli.memory.store import MemoryStore
    store = MemoryStore({folder!r})
    filled("whole", store, seed=3).save({{"checkpoint": "1"}})
    bank = filled("half", store, seed=4)
    {before}
    fill, calls = MemoryStore._fill, []
    def die(self, collection, items, vectors):
        calls.append(collection)
        if len(calls) == 2:
            os._exit(9)
        fill(self, collection, items, vectors)
    MemoryStore._fill = die
    bank.save()
"""


@pytest.mark.parametrize("before", ["pass", "bank.save()"], ids=["never saved before", "saved before"])
def test_a_bank_whose_saving_was_cut_short_is_not_opened_and_others_survive(tmp_path, before):
    code = textwrap.dedent(CRASH).format(tests=str(Path(__file__).parent), folder=str(tmp_path), before=before)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 9, done.stderr
    with MemoryStore(tmp_path) as store:
        assert MemoryBank.open("half", store) is None
        assert_same(MemoryBank.open("whole", store), filled("whole", None, seed=3))
        again = filled("half", store, seed=4)
        again.save()
        assert_same(MemoryBank.open("half", store), again)


def _collection(store: MemoryStore, part: str) -> Any:
    name = next(c.name for c in store._client.list_collections() if c.name.endswith(f"-{part}"))
    return store._client.get_collection(name, embedding_function=None)


def _an_item_less(store: MemoryStore) -> None:
    _collection(store, "retrieval").delete(ids=["m000001"])


def _another_text(store: MemoryStore) -> None:
    vectors = filled("a", None).vectors(["m000001"], "state").tolist()  # Chroma sometimes does not find them at first
    _collection(store, "state").update(ids=["m000001"], documents=["what nobody said"], embeddings=vectors)


def _another_vector(store: MemoryStore) -> None:
    _collection(store, "retrieval").update(ids=["m000001"], embeddings=[[1.0] + [0.0] * (RETRIEVAL_DIM - 1)])


def _another_history(store: MemoryStore) -> None:
    _collection(store, "state").update(ids=["m000001"], metadatas=[{"history": "[]"}])


def _no_history(store: MemoryStore) -> None:
    _collection(store, "state").update(ids=["m000001"], metadatas=[{"history": "{"}])


def _a_part_less(store: MemoryStore) -> None:
    store._client.delete_collection(_collection(store, "deleted").name)


@pytest.mark.parametrize(
    "damage", [_an_item_less, _another_text, _another_vector, _another_history, _no_history, _a_part_less]
)
def test_a_damaged_bank_is_told_of_and_made_anew(tmp_path, damage):
    told: list[str] = []
    with MemoryStore(tmp_path / "memory", told.append) as store:
        bank = filled("a", store)
        bank.save()
        assert_same(MemoryBank.open("a", store), bank)
        damage(store)
        assert MemoryBank.open("a", store) is None, "nothing wrong is taken for memory"
        (notice,) = told
        assert "memory bank a in" in notice
        assert "damaged" in notice
        assert "\n" not in notice
        bank.save()
        assert_same(MemoryBank.open("a", store), bank)


def _cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def _smear(file: Path) -> None:
    content = bytearray(file.read_bytes())
    for place in range(4096, len(content), 4096):
        content[place : place + 100] = b"?" * 100
    file.write_bytes(content)


@pytest.mark.parametrize("damage", [_cut, _smear, lambda file: file.write_bytes(b"no database" * 1000)])
def test_a_damaged_folder_is_set_aside(tmp_path, damage):
    folder, told = tmp_path / "memory", list[str]()
    with MemoryStore(folder) as store:
        filled("a", store).save()
    damage(folder / "chroma.sqlite3")
    with MemoryStore(folder, told.append) as store:
        assert MemoryBank.open("a", store) is None
        bank = filled("a", store)
        bank.save()
        assert_same(MemoryBank.open("a", store), bank)
    (notice,) = told
    assert f"it was renamed to {folder}.damaged-1" in notice
    assert (tmp_path / "memory.damaged-1" / "chroma.sqlite3").exists()


def test_chroma_alone_can_read_a_bank(store):
    filled("a", store).save()
    collection = next(c for c in store._client.list_collections() if c.name.endswith("-state"))
    found = collection.get(where={"span_index": 20})
    assert len(found["ids"]) == 1
    assert found["metadatas"][0]["skills"] == "keep-facts, note-dates"
    assert found["metadatas"][0]["trace_id"] == "conv-1"
    assert collection.metadata["bank_id"] == "a"


@pytest.mark.parametrize("kind", ["file", "nobody"])
def test_a_place_that_cannot_be_used_is_an_error_with_a_hint(tmp_path, kind):
    location: Path | str = tmp_path / "memory"
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))  # taken, so that nobody else can listen there
        if kind == "file":
            location.write_text("a file")
        else:
            location = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(MemoryBankError, match=str(location)) as caught:
            MemoryStore(location)
    assert "\n" not in caught.value.message
    assert caught.value.hint


def test_nothing_is_sent_home(store):
    assert store._client.get_settings().anonymized_telemetry is False


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    port = free_port()
    command = [
        Path(sys.executable).parent / "chroma",
        "run",
        "--path",
        tmp_path,
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
    ]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(300):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(timeout=20)


@pytest.mark.slow
def test_a_chroma_server_works_the_same(server):
    with MemoryStore(server) as store:
        assert MemoryBank.open("a", store) is None
        bank = filled("a", store, items=60)
        bank.save({"checkpoint": "7"})
        assert_same(MemoryBank.open("a", store), bank)
    with MemoryStore(server) as store:
        again = MemoryBank.open("a", store)
        assert_same(again, bank)
        assert again.metadata == {"checkpoint": "7"}


def test_an_index_that_chroma_does_not_find_at_first_is_found_by_a_client_opened_anew(
    store: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    from chromadb.errors import InternalError

    bank = filled("t", store)
    bank.save({})
    failures = iter([InternalError("Error creating hnsw segment reader: Nothing found on disk")])
    whole = MemoryStore._load

    def flaky(self: MemoryStore, *given: Any) -> Any:
        for failure in failures:
            raise failure
        return whole(self, *given)

    monkeypatch.setattr(MemoryStore, "_load", flaky)
    before = store._client
    assert_same(MemoryBank.open("t", store), bank)
    assert store._client is not before
