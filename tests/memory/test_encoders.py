"""Encoders as their callers see them: cached, gathered, lazy, and the same whatever was encoded beside."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence

import numpy as np
import pytest

from memskill_cli.errors import EncoderError
from memskill_cli.memory import encoders
from memskill_cli.memory.encoder_models import ApiEncoder
from memskill_cli.memory.encoders import CachedEncoder, load_encoder
from memskill_cli.types import Matrix

TEXTS = ["Ana adopted a cat called Miso.", "", "Ana moved to Porto in May.", "x" * 5000, "naïve café \U0001f600"]


class FakeApi:
    """An embedding API that records what it was asked."""

    def __init__(self) -> None:
        self.calls: list[list[str]] = []
        self.threads: set[int] = set()

    def __call__(self, model: str, texts: Sequence[str]) -> Matrix:
        self.calls.append(list(texts))
        self.threads.add(threading.get_ident())
        time.sleep(0.01)
        return np.array([[len(text), 1.0, text.count("a")] for text in texts], np.float32)

    @property
    def texts(self) -> list[str]:
        return [text for call in self.calls for text in call]


def api_encoder(api: FakeApi, cache_dir=None) -> CachedEncoder:
    return load_encoder("litellm:provider/model", cache_dir=cache_dir, embed=api)


def test_hashing_gives_unit_rows_of_512_and_tells_texts_apart():
    encoder = load_encoder("hashing", cache_dir=None)
    rows = encoder.encode(TEXTS)
    assert rows.shape == (5, 512)
    assert rows.dtype == np.float32
    lengths = np.linalg.norm(rows, axis=1)
    assert lengths[[0, 2, 3, 4]] == pytest.approx(1.0, abs=1e-6)
    assert lengths[1] == 0.0  # nothing to hash
    near, far = encoder.encode(["Ana adopted a cat", "Porto has bridges"]) @ rows[0]
    assert near > 0.5 > far
    assert encoder.dim == 512


def test_a_text_is_encoded_once_ever(tmp_path):
    api = FakeApi()
    encoder = api_encoder(api, tmp_path)
    first = encoder.encode(["a", "bb", "a", "ccc"])
    assert sorted(api.texts) == ["a", "bb", "ccc"]
    assert np.array_equal(first[0], first[2])
    assert np.array_equal(encoder.encode(["ccc", "a"]), first[[3, 0]])
    assert (encoder.encoded, encoder.hits) == (3, 3)
    later = api_encoder(api, tmp_path)
    assert later.dim == 3  # known from the cache
    assert np.array_equal(later.encode(["bb", "dddd"])[0], first[1])
    assert sorted(api.texts) == ["a", "bb", "ccc", "dddd"]
    assert (later.encoded, later.hits) == (1, 1)


def test_rows_are_made_unit_length():
    rows = api_encoder(FakeApi()).encode(["aaaa", "b"])
    assert rows[0] == pytest.approx(np.array([4, 1, 4]) / 33**0.5)
    assert rows[1] == pytest.approx(np.array([1, 1, 0]) / 2**0.5)


def test_an_empty_text_never_reaches_an_api_as_such():
    api = FakeApi()
    assert api_encoder(api).encode(["", "a"]).shape == (2, 3)
    assert "" not in api.texts


def test_half_a_surrogate_pair_is_encoded_like_any_text():
    assert load_encoder("hashing", cache_dir=None).encode(["broken \ud83d emoji"]).shape == (1, 512)


def test_no_texts_give_no_rows():
    encoder = load_encoder("hashing", cache_dir=None)
    assert encoder.encode([]).shape == (0, 512)
    assert asyncio.run(encoder.aencode([])).shape == (0, 512)


def test_what_coroutines_ask_for_at_once_is_gathered_and_encoded_once():
    api = FakeApi()
    encoder = api_encoder(api)

    async def ask(number: int) -> Matrix:
        return await encoder.aencode([f"text {number}", "asked by all", f"text {number // 2}"])

    async def ask_all() -> list[Matrix]:
        return await asyncio.gather(*(ask(number) for number in range(200)))

    answers = asyncio.run(ask_all())
    assert len(api.texts) == len(set(api.texts)) == 201
    assert len(api.calls) <= 6
    assert threading.get_ident() not in api.threads
    plain = api_encoder(FakeApi())
    for number in (0, 77, 199):
        assert np.array_equal(answers[number], plain.encode([f"text {number}", "asked by all", f"text {number // 2}"]))


def test_the_event_loop_goes_on_while_texts_are_encoded():
    started, released = threading.Event(), threading.Event()

    def slow(model: str, texts: Sequence[str]) -> Matrix:
        started.set()
        assert released.wait(20)
        return np.ones((len(texts), 2), np.float32)

    encoder = load_encoder("litellm:m", cache_dir=None, embed=slow)

    async def go() -> list[Matrix]:
        first = asyncio.create_task(encoder.aencode(["one"]))
        assert await asyncio.to_thread(started.wait, 20)
        late = asyncio.create_task(encoder.aencode(["two"]))  # comes while the worker is busy
        await asyncio.sleep(0.01)
        assert not first.done()
        released.set()
        return await asyncio.gather(first, late)

    assert [rows.shape for rows in asyncio.run(go())] == [(1, 2), (1, 2)]


def test_one_who_gives_up_waiting_does_not_disturb_the_others():
    encoder = api_encoder(FakeApi())

    async def go() -> Matrix:
        quitter = asyncio.create_task(encoder.aencode(["quit"]))
        stayer = asyncio.create_task(encoder.aencode(["stay"]))
        await asyncio.sleep(0)
        quitter.cancel()
        rows = await stayer
        assert quitter.cancelled()
        return rows

    assert asyncio.run(go()).shape == (1, 3)
    assert asyncio.run(encoder.aencode(["another loop"])).shape == (1, 3)


def test_sync_and_async_callers_share_one_model_and_cache():
    api = FakeApi()
    encoder = api_encoder(api)
    threads = [threading.Thread(target=encoder.encode, args=(["same", "text"],)) for _ in range(8)]
    for thread in threads:
        thread.start()
    asyncio.run(encoder.aencode(["text", "same"]))
    for thread in threads:
        thread.join()
    assert sorted(api.texts) == ["same", "text"]


@pytest.mark.parametrize(
    "reply",
    [np.ones((1, 3)), np.full((2, 3), np.nan), np.ones(2), ConnectionError("the wire is cut\nat the far end")],
    ids=["too few", "not a number", "flat", "down"],
)
def test_an_api_that_fails_is_an_error_for_everyone_waiting_and_nothing_is_kept(reply, tmp_path):
    healthy = False

    def embed(model: str, texts: Sequence[str]) -> Matrix:
        if healthy:
            return np.ones((len(texts), 3), np.float32)
        if isinstance(reply, Exception):
            raise reply
        return reply.astype(np.float32)

    encoder = load_encoder("litellm:m", cache_dir=tmp_path, embed=embed)

    async def go() -> list[Matrix | BaseException]:
        return await asyncio.gather(encoder.aencode(["a"]), encoder.aencode(["b"]), return_exceptions=True)

    outcomes = asyncio.run(go())
    assert all(isinstance(outcome, EncoderError) for outcome in outcomes)
    assert "litellm:m" in outcomes[0].message
    assert "\n" not in outcomes[0].message
    healthy = True
    assert asyncio.run(encoder.aencode(["a", "b"])).shape == (2, 3)


class Gate:
    """An embedding API whose calls wait until it is opened; ``calls`` are the texts of each."""

    def __init__(self) -> None:
        self.calls: list[list[str]] = []
        self.open = threading.Event()

    def __call__(self, model: str, texts: Sequence[str]) -> Matrix:
        self.calls.append(list(texts))
        assert self.open.wait(20)
        return np.array([[len(text), 1.0] for text in texts], np.float32)


async def until(condition: Callable[[], bool]) -> None:
    for _ in range(4000):
        if condition():
            return
        await asyncio.sleep(0.005)
    raise AssertionError("it never came to that")


async def idle(encoder: CachedEncoder) -> None:
    await until(lambda: encoder._queue_task is not None and encoder._queue_task.done())


def slow_model(api: Gate, monkeypatch: pytest.MonkeyPatch, at_once: int = 20) -> CachedEncoder:
    """An encoder that takes few characters at a time, as a model on a CPU does."""
    monkeypatch.setattr(ApiEncoder, "batch_chars", at_once)
    monkeypatch.setattr(encoders, "_LOOKUP_CHARS", at_once)
    return load_encoder("litellm:m", cache_dir=None, embed=api)


def test_what_is_waited_for_goes_before_what_is_expected(monkeypatch):
    api = Gate()
    encoder = slow_model(api, monkeypatch)

    async def go() -> None:
        encoder.prefetch([f"expected {place}" for place in range(8)])
        await until(lambda: len(api.calls) == 1)
        waiting = asyncio.create_task(encoder.aencode(["now"]))
        await asyncio.sleep(0)
        api.open.set()
        await waiting
        assert api.calls[:2] == [["expected 0"], ["now"]]  # one, because 10 characters are expected at a time
        await encoder.aencode(["expected 7"])  # soon, not in its turn
        await encoder.aencode([f"expected {place}" for place in range(8)])

    asyncio.run(go())
    texts = [text for call in api.calls for text in call]
    assert len(texts) == len(set(texts)) == 9
    assert encoder.encoded == 9


def test_of_what_is_expected_the_soonest_comes_first(monkeypatch):
    api = Gate()
    encoder = slow_model(api, monkeypatch)

    async def go() -> None:
        busy = asyncio.create_task(encoder.aencode(["busy"]))
        await until(lambda: len(api.calls) == 1)
        encoder.prefetch(["question one", "question two"], "query", after=3)
        encoder.prefetch(["trace A, 0", "trace A, 1", "trace A, 2"])
        encoder.prefetch(["trace B, 0", "trace B, 1"])
        api.open.set()
        await busy
        await idle(encoder)

    asyncio.run(go())
    assert [text for (text,) in api.calls[1:]] == [
        *("trace A, 0", "trace B, 0", "trace A, 1", "trace B, 1", "trace A, 2"),
        *("question one", "question two"),
    ]


def test_what_was_expected_is_at_hand_at_once():
    api = FakeApi()
    encoder = api_encoder(api)

    async def go() -> Matrix:
        encoder.prefetch(TEXTS)
        await idle(encoder)
        monitor = asyncio.create_task(asyncio.sleep(0))  # a loop that is not yielded to runs no other task
        rows = await encoder.aencode(TEXTS)
        assert not monitor.done()
        return rows

    assert np.array_equal(asyncio.run(go()), api_encoder(FakeApi()).encode(TEXTS))
    assert len(api.texts) == len(TEXTS)


@pytest.mark.parametrize(("characters", "together"), [(5, 8), (20, 2), (21, 1), (50, 1)])
def test_a_burst_is_answered_piece_by_piece(monkeypatch, characters, together):
    """Nobody is kept waiting by texts of others that are more than is best encoded together (here 40 characters)."""
    api = Gate()
    encoder = slow_model(api, monkeypatch, at_once=40)
    api.open.set()

    async def go() -> list[int]:
        seen = []

        async def ask(number: int) -> None:
            await encoder.aencode([f"{number:0{characters}}"])
            seen.append(len(api.calls))

        await asyncio.gather(*(ask(number) for number in range(16)))
        return seen

    seen = asyncio.run(go())
    assert [len(call) for call in api.calls] == [together] * (16 // together)
    assert seen[0] < len(api.calls)  # the first did not wait for the last


def test_who_gave_up_takes_no_room(monkeypatch):
    api = Gate()
    encoder = slow_model(api, monkeypatch, at_once=40)

    async def go() -> None:
        busy = asyncio.create_task(encoder.aencode(["busy"]))
        await until(lambda: len(api.calls) == 1)
        first, gone, second = (asyncio.create_task(encoder.aencode([text])) for text in ("first", "x" * 99, "second"))
        await asyncio.sleep(0)
        gone.cancel()
        await asyncio.sleep(0)
        api.open.set()
        await asyncio.gather(busy, first, second)

    asyncio.run(go())
    assert api.calls == [["busy"], ["first", "second"]]


def test_an_expectation_that_fails_is_told_to_who_asks_and_to_nobody_else(monkeypatch):
    broken = True

    def embed(model: str, texts: Sequence[str]) -> Matrix:
        calls.append(list(texts))
        if broken:
            raise ConnectionError("the wire is cut")
        return np.ones((len(texts), 2), np.float32)

    calls: list[list[str]] = []
    encoder = slow_model(embed, monkeypatch)

    async def go() -> None:
        nonlocal broken
        complaints: list[object] = []
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: complaints.append(context))
        encoder.prefetch([f"expected {place}" for place in range(50)])
        await idle(encoder)
        assert len(calls) == 1  # the other 49 would fail as well
        with pytest.raises(EncoderError, match="wire"):
            await encoder.aencode(["expected 0"])
        broken = False
        assert (await encoder.aencode(["expected 0"])).shape == (1, 2)
        gc.collect()
        assert not complaints

    asyncio.run(go())


def test_a_closed_encoder_forgets_what_was_expected(monkeypatch):
    api = Gate()
    encoder = slow_model(api, monkeypatch)

    async def go() -> None:
        encoder.prefetch([f"expected {place}" for place in range(50)])
        await until(lambda: len(api.calls) == 1)
        threading.Timer(0.05, api.open.set).start()
        encoder.close()
        await until(lambda: len(asyncio.all_tasks()) == 1)

    asyncio.run(go())
    assert api.calls == [["expected 0"]]


def test_at_hand_are_only_the_latest_vectors(monkeypatch):
    monkeypatch.setattr(encoders, "_RECENT", 3)
    api = FakeApi()
    encoder = api_encoder(api)
    texts = [f"text {number}" for number in range(10)]
    for text in texts:
        asyncio.run(encoder.aencode([text]))
    assert len(encoder._recent) == 3
    assert np.array_equal(asyncio.run(encoder.aencode(texts)), api_encoder(FakeApi()).encode(texts))
    assert api.texts == texts  # the others are in the cache


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("minlm", "minilm"),
        ("Contriver", "contriever"),
        ("", "minilm"),
        ("no such/folder/at all", "minilm"),
        ("hashing@bfloat16", "hashing"),
        ("litellm:m@bfloat16", "litellm:m"),
        ("minlm@bfloat16", "minilm"),
        ("litellm:", "litellm:"),
        ("litellm:m", "litellm:"),
        ("dpr:/tmp", "QUERY_FOLDER"),
        ("contriever:/no/such/folder", ""),
    ],
)
def test_a_spec_that_makes_no_sense_is_refused_with_a_hint(spec, said):
    with pytest.raises(EncoderError) as caught:
        load_encoder(spec, cache_dir=None)
    assert said in caught.value.hint


def test_an_unknown_device_is_refused():
    with pytest.raises(EncoderError, match="tpu"):
        load_encoder("minilm", cache_dir=None, device="tpu")


def test_a_folder_without_a_model_is_an_error_when_it_is_used(tmp_path):
    encoder = load_encoder(str(tmp_path), cache_dir=None, device="cpu")
    with pytest.raises(EncoderError, match="could not be loaded") as caught:
        encoder.encode(["a"])
    assert "minilm" in caught.value.hint


def test_nothing_heavy_is_imported_before_a_text_needs_it(tmp_path):
    code = """
import pathlib, sys
from memskill_cli.memory.encoder_cache import EncoderCache, content_key
from memskill_cli.memory import encoders
from memskill_cli.memory.encoder_models import ApiEncoder
from memskill_cli.memory.encoders import load_encoder
import numpy as np
folder = pathlib.Path(sys.argv[1])
encoder = load_encoder("minilm", cache_dir=folder)
vector = np.eye(1, 384, dtype=np.float32)[0]
EncoderCache(folder, print).put(encoder.name, {content_key(encoder.name, "", "kept"): vector})
assert encoder.dim == 384
assert (encoder.encode(["kept"], "query")[0] == vector).all() and encoder.hits == 1
heavy = {"torch", "transformers", "sentence_transformers", "sklearn", "chromadb", "litellm"} & set(sys.modules)
assert not heavy, heavy
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
