"""Map the settings of a checkpoint of the published code (release_names.py) to settings of memskill."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from memskill_cli.config import Config, load, to_dict
from memskill_cli.datasets.registry import DATASETS, get
from memskill_cli.errors import CheckpointError, UsageError
from memskill_cli.runs.release_names import DIRECT, DIRECT_ALFWORLD, FIXED, READ, RENAMED

Values = Mapping[str, Any]
"""Settings of the published code by name."""
Group = dict[str, Any]
"""memskill settings by dotted name that are set together."""

QWEN = "Qwen/Qwen3-Embedding-0.6B"
RETRIEVERS = {
    "contriever": "contriever",
    "dpr": "dpr",
    "dragon": "dragon",
    "qwen3-embedding-0.6b": QWEN,
    "qwen/qwen3-embedding-0.6b": QWEN,
    "facebook/contriever": "contriever",
    "facebook/dragon-plus-query-encoder": "dragon",
    "facebook/dragon-plus-context-encoder": "dragon",
    "facebook/dpr-question_encoder-single-nq-base": "dpr",
    "facebook/dpr-ctx_encoder-single-nq-base": "dpr",
}
"""Retrievers of the published code, in lower case, to the names in memskill."""

STATE_ENCODERS = {
    "qwen/qwen3-embedding-0.6b": QWEN,
    "qwen/qwen3-embedding-4b": "Qwen/Qwen3-Embedding-4B",
    "qwen/qwen3-embedding-8b": "Qwen/Qwen3-Embedding-8B",
    "sentence-transformers/all-minilm-l6-v2": "minilm",
    "sentence-transformers/all-minilm-l12-v2": "sentence-transformers/all-MiniLM-L12-v2",
    "sentence-transformers/all-mpnet-base-v2": "sentence-transformers/all-mpnet-base-v2",
    "sentence-transformers/all-distilroberta-v1": "sentence-transformers/all-distilroberta-v1",
}
"""State encoders, in lower case, whose vectors have unit length in the published code too.

The published code does not normalise. Only sentence-transformers models with a final normalisation layer give unit
vectors; all other models (including every model that it pools itself) do not.
"""

_DIMS = {"minilm": 384, "hashing": 512, "contriever": 768, "dpr": 768, "dragon": 768, QWEN: 1024}
"""Dimensions of encoders that are known without loading a model."""


@dataclasses.dataclass(frozen=True)
class Taken:
    """The imported settings. ``taken``: memskill settings by dotted name that came from the checkpoint.

    ``left``: names of the checkpoint's settings that could not be imported.
    """

    settings: Config
    taken: dict[str, Any]
    left: tuple[str, ...]


def state_encoder(values: Values) -> str:
    """The spec of the state encoder that the controller was trained with.

    Raises CheckpointError if the checkpoint does not say, or if its vectors did not have unit length.
    """
    found = values.get("state_encoder")
    if not isinstance(found, str) or not found:
        hint = f"name it: --encoder {QWEN}, if it was trained with the published scripts"
        raise CheckpointError("the checkpoint does not say with which encoder it was trained", hint=hint)
    return _encoder(found, "states", "--encoder minilm")


def skill_encoder(values: Values) -> str:
    """The spec of the skill encoder; "" if it is the state encoder. CheckpointError as for :func:`state_encoder`."""
    states, skills = (str(values.get(name) or "") for name in ("state_encoder", "op_encoder"))
    if skills.lower() in ("", states.lower()):
        return ""
    return _encoder(skills, "skills", "--set encoders.skill=minilm")


def _encoder(name: str, what: str, instead: str) -> str:
    spec = STATE_ENCODERS.get(name.lower())
    if spec is None:
        raise CheckpointError(
            f"the encoder of {what}, {name}, gives vectors that are not of unit length, and memskill normalises all: "
            "the controller's inputs would differ from those in training",
            hint=f"name another encoder, for example: {instead}",
        )
    return spec


def check_width(spec: str, width: int, what: str) -> None:
    """Raise UsageError if the encoder ``spec`` is known not to have ``width`` dimensions."""
    known = _DIMS.get(spec.partition("@")[0].partition(":")[0])
    if known not in (None, width):
        raise UsageError(
            f"the controller needs {width}-d embeddings of {what}, but encoder {spec} gives {known}-d ones",
            hint="name the encoder that the checkpoint was trained with: --encoder NAME",
        )


def dataset_of(values: Values) -> str:
    """The dataset that the checkpoint was trained on; ``locomo`` if it does not say."""
    found = values.get("dataset")
    return found if isinstance(found, str) and found in DATASETS.names() else "locomo"


def take_over(values: Values, names: frozenset[str], dataset: str, hidden: int) -> Taken:
    """The preset ``paper`` for ``dataset``, changed by the settings of the checkpoint; models are memskill's defaults.

    ``names`` are all names in the checkpoint's ``config``. Values that are out of range in memskill are not imported.
    """
    plain = load(overrides={"dataset": dataset})
    settings = dataclasses.replace(load(preset="paper", overrides={"dataset": dataset}), models=plain.models)
    settings = load(base=settings, overrides={"controller.hidden": hidden})
    taken: dict[str, Any] = {}
    left = set(_without_equivalent(values, names))
    for sources, group in _groups(values, dataset):
        try:
            settings = load(base=settings, overrides=group)
            taken |= group
        except UsageError:
            left |= set(sources)
    return Taken(settings, taken, tuple(sorted(left)))


def values_of(settings: Config, names: Iterable[str]) -> dict[str, Any]:
    """The values of the settings with these dotted names, sorted by name."""
    table = to_dict(settings)
    parts = {name: name.partition(".") for name in sorted(names)}
    return {name: table[section][inner] if inner else table[name] for name, (section, _, inner) in parts.items()}


def _groups(values: Values, dataset: str) -> Iterator[tuple[tuple[str, ...], Group]]:
    """Groups of (names in the checkpoint, memskill settings). Each group is validated as a whole."""
    tasks = get(dataset).kind == "env"
    direct = {**DIRECT, **DIRECT_ALFWORLD} if tasks else DIRECT
    for name, setting in direct.items():
        if _is_scalar(values.get(name)):
            yield (name,), {setting: values[name]}
    for name, (setting, table) in RENAMED.items():
        if name in values and _is_scalar(values[name]) and values[name] in table:
            yield (name,), {setting: table[values[name]]}
    if (retriever := RETRIEVERS.get(str(values.get("retriever")).lower())) is not None:
        yield ("retriever",), {"encoders.retrieval": retriever}
    if "vf_clip" in values and values["vf_clip"] in (0, values.get("clip_epsilon")):
        yield ("vf_clip",), {"ppo.clip_vloss": bool(values["vf_clip"])}
    if tasks:
        yield from _alfworld_groups(values)
    else:
        yield from _span_groups(values, dataset)


def _span_groups(values: Values, dataset: str) -> Iterator[tuple[tuple[str, ...], Group]]:
    mode = "fixed-length" if dataset == "hotpotqa" else values.get("session_mode")
    if isinstance(mode, str):
        yield ("session_mode",), {"train.span_mode": mode}
    sizes = ("chunk_size", "chunk_overlap")
    if mode == "fixed-length" and all(_is_scalar(values.get(name)) for name in sizes):
        yield sizes, {f"train.{name}": values[name] for name in sizes}


def _alfworld_groups(values: Values) -> Iterator[tuple[tuple[str, ...], Group]]:
    if _is_scalar(size := values.get("alfworld_pair_chunk_size")):
        yield ("alfworld_pair_chunk_size",), {"train.chunk_size": size}
    sizes = ("alfworld_pair_a_min", "alfworld_pair_a_max")
    if all(_is_scalar(values.get(name)) for name in sizes):
        low, high = (values[name] for name in sizes)
        yield sizes, {"env.trajectories_min": low, "env.trajectories_max": high}
    tasks = values.get("alfworld_pair_b_size") or values.get("batch_size")  # 0: as many as the batch has episodes
    if "alfworld_pair_b_size" in values and _is_scalar(tasks):
        yield ("alfworld_pair_b_size",), {"env.tasks_min": tasks, "env.tasks_max": tasks}
    if (shown := values.get("alfworld_include_inventory")) in (True, False):  # 1 and 0 on the command line
        yield ("alfworld_include_inventory",), {"env.inventory": bool(shown)}
    query = {"objective": "goal", "first_observation": "observation"}.get(str(values.get("alfworld_eval_query_source")))
    if query is not None:
        yield ("alfworld_eval_query_source",), {"env.retrieval_query": query}


def _without_equivalent(values: Values, names: frozenset[str]) -> Iterator[str]:
    """Names of settings that may affect results and have no equivalent in memskill."""
    for name in names | values.keys():
        if name in FIXED:
            if values.get(name, FIXED[name]) != FIXED[name]:
                yield name
        elif name not in READ:
            yield name
    if values.get("vf_clip") not in (None, 0, values.get("clip_epsilon")):
        yield "vf_clip"
    if "retriever" in values and str(values["retriever"]).lower() not in RETRIEVERS:
        yield "retriever"
    for name, (_, table) in RENAMED.items():
        if name in values and (not _is_scalar(values[name]) or values[name] not in table):
            yield name


def _is_scalar(value: Any) -> bool:
    return isinstance(value, str | int | float)
