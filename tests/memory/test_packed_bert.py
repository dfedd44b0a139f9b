"""Several texts in one pass: to the last bit what each would be alone. The models are random, of MiniLM's width."""

from __future__ import annotations

import copy
import itertools
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st

from memskill_cli.errors import EncoderError
from memskill_cli.memory import batching
from memskill_cli.memory.batching import _BYTES_PER_TOKEN, BatchScheduler, _split_into_passes
from memskill_cli.memory.encoders import load_encoder
from memskill_cli.memory.packed_bert import PackedBert

from . import berts

WORDS = [f"w{number}" for number in range(200)]
SHAPE = {"vocab_size": 205, "hidden_size": 384, "num_hidden_layers": 2, "num_attention_heads": 12}
SHAPE |= {"intermediate_size": 1536, "max_position_embeddings": 128}


@pytest.fixture(scope="module")
def model() -> Iterator[transformers.BertModel]:
    torch.manual_seed(3)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield transformers.BertModel(transformers.BertConfig(**SHAPE)).eval()
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory) -> Path:
    return berts.save(model, tmp_path_factory.mktemp("wide") / "bert", WORDS)


def some_texts(rng: np.random.Generator, count: int, most: int = 90) -> list[list[int]]:
    """Token ids; most texts are short, as memories are."""
    sizes = np.where(rng.random(count) < 0.8, rng.integers(2, 30, count), rng.integers(2, most, count))
    return [[2, *rng.integers(5, 205, size - 2).tolist(), 3] for size in sizes]


@pytest.mark.parametrize("mean", [True, False], ids=["mean", "first"])
@pytest.mark.parametrize("scripted", [True, False], ids=["TorchScript", "Python"])
def test_a_pass_is_what_transformers_makes_of_each_text(model, monkeypatch, mean, scripted):
    if not scripted:
        monkeypatch.delattr(torch.jit, "script")
    texts = some_texts(np.random.default_rng(0), 12)
    with torch.no_grad():
        tokens = [model(torch.tensor([ids])).last_hidden_state[0].numpy() for ids in texts]
    expected = np.stack([rows.mean(axis=0) if mean else rows[0] for rows in tokens])
    packed = PackedBert(model, mean)
    assert isinstance(packed._pass, torch.jit.ScriptModule) == scripted
    assert packed(texts).numpy() == pytest.approx(expected, abs=2e-5)


@pytest.mark.parametrize(("dtype", "most"), [(torch.float32, 12), (torch.bfloat16, 3)])
def test_no_bit_of_a_text_depends_on_its_company_or_its_place(model, dtype, most):
    rng, packed = np.random.default_rng(1), PackedBert(copy.deepcopy(model).to(dtype), mean=True)
    if dtype == torch.bfloat16 and not packed.is_batch_invariant():
        pytest.skip("on this processor texts go one by one in bfloat16")
    assert packed.is_batch_invariant()
    texts = some_texts(rng, 120)
    alone = [packed([ids])[0] for ids in texts]

    def in_company(order: np.ndarray) -> list[int]:
        """Texts that came out another way, of one random arrangement into passes of 1 to ``most`` texts."""
        changed, start = [], 0
        for size in 1 + order % most:
            part = order[start : start + size]
            start += size
            rows = packed([texts[index] for index in part]) if len(part) else []
            changed += [index for index, row in zip(part, rows, strict=True) if not torch.equal(row, alone[index])]
        return changed

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(in_company, [rng.permutation(len(texts)) for _ in range(6)])) == [[]] * 6


@given(
    lengths=st.lists(st.integers(1, 512), min_size=1, max_size=60),
    batch_tokens=st.sampled_from([0, 100, 320]),
    cores=st.integers(1, 16),
)
def test_passes_are_equally_long_on_each_core_and_none_is_too_long(lengths, batch_tokens, cores):
    order = sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True)
    passes = _split_into_passes(order, lengths, batch_tokens, cores)
    assert sorted(itertools.chain.from_iterable(passes)) == list(range(len(lengths)))
    sizes = [sum(lengths[index] for index in part) for part in passes]
    assert all(size <= batch_tokens or len(part) == 1 for size, part in zip(sizes, passes, strict=True))
    assert len(passes) >= min(cores, len(lengths)), "no core is idle"
    if len(passes) % cores == 0:  # without its shortest text none would be longer than another
        assert all(size - lengths[part[-1]] <= min(sizes) for size, part in zip(sizes, passes, strict=True))


@pytest.mark.parametrize(
    ("lengths", "sizes"),
    [
        ([45] * 8, [180, 180]),
        ([30] * 2, [30, 30]),
        ([45] * 16, [180, 180, 180, 180]),
        ([300, 20, 20, 20], [300, 60]),
        ([400, 10], [400, 10]),
    ],
)
def test_two_cores_have_much_the_same_to_do(lengths, sizes):
    order = sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True)
    passes = _split_into_passes(order, lengths, batch_tokens=320, workers=2)
    assert [sum(lengths[index] for index in part) for part in passes] == sizes


def test_texts_share_passes(folder, monkeypatch):
    monkeypatch.setattr(batching, "cores", lambda: 2)
    sizes = []
    whole = PackedBert.__call__
    monkeypatch.setattr(PackedBert, "__call__", lambda self, texts: sizes.append(len(texts)) or whole(self, texts))
    encoder = load_encoder(f"contriever:{folder}", cache_dir=None, device="cpu")
    encoder.encode(["w1"])
    sizes.clear()
    encoder.encode([f"w{number} w2 w3" for number in range(50)] + [" ".join(WORDS[:100])])
    assert len(sizes) == 2  # 352 tokens for two cores
    assert sum(sizes) == 51


@pytest.mark.parametrize("product", ["oneDNN", "torch"])
def test_where_a_machines_product_depends_on_company_texts_go_alone(folder, monkeypatch, product):
    if product == "torch":  # its product picks kernels by the number of rows
        monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    rng = np.random.default_rng(2)
    texts = [" ".join(rng.choice(WORDS, size)) for size in rng.integers(1, 40, 60)]
    encoder, one_by_one = (load_encoder(f"contriever:{folder}", cache_dir=None, device="cpu") for _ in range(2))
    together = encoder.encode(texts)
    assert np.array_equal(together, np.concatenate([one_by_one.encode([text]) for text in texts]))


def test_dpr_with_a_projection(tmp_path):
    torch.manual_seed(4)
    config = transformers.DPRConfig(**SHAPE, projection_dim=16)
    kinds = (transformers.DPRQuestionEncoder, transformers.DPRContextEncoder)
    models = [kind(config).eval() for kind in kinds]
    query, context = (
        berts.save(model, tmp_path / kind.__name__, WORDS) for kind, model in zip(kinds, models, strict=True)
    )
    encoder = load_encoder(f"dpr:{query},{context}", cache_dir=None, device="cpu")
    for side, model in zip(("query", "context"), models, strict=True):
        with torch.no_grad():
            expected = model(torch.tensor([[2, 6, 7, 3]])).pooler_output[0].numpy()
        assert encoder.encode(["w1 w2"], side)[0] == pytest.approx(expected / np.linalg.norm(expected), abs=1e-5)


def test_a_model_that_is_no_bert_goes_text_by_text(tmp_path):
    torch.manual_seed(5)
    config = transformers.DistilBertConfig(vocab_size=205, dim=32, n_layers=2, n_heads=2, hidden_dim=48)
    model = transformers.DistilBertModel(config).eval()
    spec = f"contriever:{berts.save(model, tmp_path / 'distil', WORDS)}"
    texts = ["w1 w2", " ".join(WORDS[:60]), "w3"]
    rows = load_encoder(spec, cache_dir=None, device="cpu").encode(texts)
    with torch.no_grad():
        expected = model(torch.tensor([[2, 6, 7, 3]])).last_hidden_state[0].mean(dim=0).numpy()
    assert rows[0] == pytest.approx(expected / np.linalg.norm(expected), abs=1e-5)
    alone = load_encoder(spec, cache_dir=None, device="cpu")
    assert np.array_equal(rows, np.concatenate([alone.encode([text]) for text in texts]))


class FakeGpu:
    """A forward pass that has room for ``room`` padded tokens, on a machine without a GPU."""

    def __init__(self, lengths: list[int], room: int) -> None:
        self.lengths, self.room = lengths, room
        self.tried: list[int] = []

    def __call__(self, part: list[int]) -> np.ndarray:
        padded = max(self.lengths[index] for index in part) * len(part)
        self.tried.append(padded)
        if padded > self.room:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return np.array([[index, self.lengths[index]] for index in part], np.float32)


@pytest.mark.parametrize("room", [200, 1000, 10**6])
def test_batches_on_a_gpu_are_halved_until_they_fit_and_stay_so(monkeypatch, room):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (2**31, 2**34))
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    lengths = np.random.default_rng(6).integers(1, 200, 500).tolist()
    gpu, spread = FakeGpu(lengths, room), BatchScheduler("cuda")
    rows = spread.run(gpu, lengths)
    assert rows.tolist() == [[index, length] for index, length in enumerate(lengths)]
    assert max(gpu.tried) <= 2**30 / _BYTES_PER_TOKEN  # of two GiB free, one is used
    gpu.tried.clear()
    spread.run(gpu, lengths)
    assert max(gpu.tried) <= room


def test_a_gpu_without_room_for_one_text_is_an_error_with_a_hint(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (2**31, 2**34))
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    with pytest.raises(EncoderError, match="one text") as caught:
        BatchScheduler("cuda").run(FakeGpu([300, 10], 200), [300, 10])
    assert "encoders.device=cpu" in caught.value.hint
