"""Ranking again with a cross-encoder, against the same model run by hand. The model is tiny, random and made here."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import pytest
import torch
import transformers

from memskill_cli.errors import EncoderError
from memskill_cli.memory.reranker import CrossEncoderReranker, reranked
from memskill_cli.types import MemoryItem, Query, Retrieved

from . import berts

WORDS = ["who", "has", "a", "cat", "dog", "tea", "ana", "ben", "likes", "the", "met", "at", "noon"]
QUERY = Query("q", "t", "c", "who likes the cat", ("ana",))
FOUND = [
    Retrieved(MemoryItem(str(at), text, ()), 9.0 - at)
    for at, text in enumerate(("ana likes the cat", "ben likes tea", "the dog", "ben met ana at noon"))
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(5)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
    config = transformers.BertConfig(vocab_size=5 + len(WORDS), num_labels=1, initializer_range=0.8, **sizes)
    network = transformers.BertForSequenceClassification(config).eval()
    return berts.save(network, tmp_path_factory.mktemp("models") / "cross", WORDS)


def by_hand(folder: Path) -> dict[str, float]:
    """The logit of each text, one at a time."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    network = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    with torch.no_grad():
        return {
            one.item.item_id: float(network(**tokenizer(QUERY.question, one.item.text, return_tensors="pt")).logits)
            for one in FOUND
        }


def test_the_order_is_that_of_the_model(model: Path) -> None:
    logits = by_hand(model)
    ranked = CrossEncoderReranker(str(model)).rank(QUERY.question, FOUND)
    assert [one.item.item_id for one in ranked] == sorted(logits, key=lambda name: -logits[name])
    assert [one.item.item_id for one in ranked] != [one.item.item_id for one in FOUND], "the test says something"
    scores = [one.score for one in ranked]
    expected = [1 / (1 + pow(2.718281828, -logits[one.item.item_id])) for one in ranked]
    assert scores == pytest.approx(expected, abs=1e-4)


def test_the_best_of_all_that_was_found_are_returned(model: Path) -> None:
    async def find(query: Query) -> list[Retrieved]:
        return FOUND

    logits = by_hand(model)
    (best,) = asyncio.run(reranked(find, str(model), 1)(QUERY))
    assert best.item.item_id == max(logits, key=lambda name: logits[name])


def test_nothing_is_ranked_without_a_call(model: Path) -> None:
    assert CrossEncoderReranker(str(model)).rank(QUERY.question, []) == []


def test_a_folder_without_a_model_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(EncoderError, match="could not be loaded"):
        CrossEncoderReranker(str(tmp_path))
