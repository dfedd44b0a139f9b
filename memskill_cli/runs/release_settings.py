"""Map the settings of a checkpoint of the published code to settings of memskill.

The published code stores ``config`` (its settings) and ``args`` (its command line) in every checkpoint. From ``args``
only the names in this module are read, because a fork may store API keys there.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from memskill_cli.config import Config, load, to_dict
from memskill_cli.datasets.registry import DATASETS, get
from memskill_cli.errors import CheckpointError, UsageError

Values = Mapping[str, Any]
"""Settings of the published code by name."""
Group = dict[str, Any]
"""memskill settings by dotted name that are set together."""

DIRECT = {
    "mem_top_k": "memory.num_memories",
    "mem_top_k_eval": "eval.num_memories",
    "inference_session_workers": "memory.parallel_spans",
    "state_fusion_tau": "memory.tau",
    "action_top_k": "train.num_skills",
    "inner_epochs": "train.inner_epochs",
    "batch_size": "train.batch_size",
    "new_action_p_min": "controller.new_skill_min_prob",
    "new_action_bias_steps": "controller.new_skill_epochs",
    "final_reward_last_ratio": "reward.final_share",
    "reward_redistribution_decay": "reward.decay",
    "process_budget": "reward.process_reward_scale",
    "failure_budget": "reward.process_penalty_scale",
    "locomo_train_query_sampling_ratio": "reward.query_ratio",
    "gamma": "ppo.gamma",
    "gae_lambda": "ppo.gae_lambda",
    "clip_epsilon": "ppo.clip_coef",
    "value_coef": "ppo.vf_coef",
    "entropy_coef": "ppo.ent_coef",
    "controller_lr": "ppo.learning_rate",
    "minibatch_size": "ppo.minibatch_size",
    "ppo_epochs": "ppo.update_epochs",
    "max_grad_norm": "ppo.max_grad_norm",
    "target_kl": "ppo.target_kl",
    "max_ops": "designer.capacity",
    "designer_freq": "designer.every",
    "designer_max_changes": "designer.max_changes",
    "designer_refine_only": "designer.refine_only",
    "designer_new_skill_hint": "designer.prefer_new_skills",
    "stage_reward_fraction": "designer.judged_share",
    "designer_reflection_cycles": "designer.reflection_rounds",
    "op_evolution_trials": "designer.max_attempts",
    "max_designer_evolves": "designer.max_cycles",
    "designer_early_stop_patience": "designer.patience",
    "designer_f1_threshold": "designer.f1_threshold",
    "designer_failure_window_epochs": "designer.case_max_age",
    "designer_failure_pool_size": "designer.case_capacity",
    "designer_num_clusters": "designer.clusters",
    "designer_samples_per_cluster": "designer.per_cluster",
    "max_new_tokens": "models.executor_max_tokens",
    "temperature": "models.temperature",
    "seed": "seed",
}
"""Settings with the same meaning in memskill."""

RENAMED: dict[str, tuple[str, dict[Any, Any]]] = {
    "state_fusion": ("memory.pooling", {"mean": "mean", "sim_weighted": "softmax"}),
    "reward_metric": ("reward.kind", {"f1": "f1", "llm_judge": "judge"}),
    "skip_noop": ("controller.include_noop", {True: False, False: True}),
    "enable_designer": ("train.evolve", {True: True, False: False}),
}
"""Settings whose values have other names in memskill."""

DIRECT_ALFWORLD = {
    "alfworld_action_max_tokens": "models.answer_max_tokens",
    "alfworld_action_temperature": "alfworld.temperature",
    "alfworld_action_top_p": "alfworld.top_p",
    "alfworld_pair_same_type_prob": "alfworld.same_type",
    "alfworld_pair_max_steps": "alfworld.steps",
}
"""Like ``DIRECT``, for ALFWorld only."""

FIXED: dict[str, Any] = {
    "ema_alpha": 0.1,
    "noop_match_scale": 0.2,
    "shaping_scale": 1.0,
    "redistribute_reward": True,
    "stage_reward_use_moving_avg": False,
}
"""Settings of the published code that are constants in memskill; other values cannot be imported."""

IRRELEVANT = frozenset(
    (
        # read from the weights, the skills or the encoders instead
        *("controller_hidden_dim", "state_dim", "op_embedding_dim", "initial_ops", "outer_epochs", "dataset"),
        *("state_encoder", "op_encoder", "retriever", "model", "designer_model", "llm_judge_model"),
        # about the machine or files, or unused in the published code
        *("use_flash_attn", "encode_batch_size", "device", "memory_cache_suffix", "alfworld_pair_b_workers"),
        "inference_workers",
        *("hotpotqa_eval_file", "alfworld_eval_file", "alfworld_offline_data"),
        *("skip_load_operation_bank", "skip_load_snapshot_manager", "stage_reward_window"),
        *("collect_epochs_before_designer", "min_op_usage", "low_reward_threshold"),
        # follows from new_action_p_min
        "new_action_delta_max",
    )
)
"""Settings that do not affect results, or that are read elsewhere."""

_GROUPED = (
    *("vf_clip", "session_mode", "chunk_size", "chunk_overlap", "alfworld_pair_chunk_size"),
    *("alfworld_pair_a_min", "alfworld_pair_a_max", "alfworld_pair_b_size", "alfworld_eval_query_source"),
    "alfworld_include_inventory",
)
READ = frozenset((*DIRECT, *RENAMED, *DIRECT_ALFWORLD, *FIXED, *IRRELEVANT, *_GROUPED))
"""Names whose values are read from ``config`` and ``args``."""

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
        yield sizes, {"alfworld.trajectories_min": low, "alfworld.trajectories_max": high}
    tasks = values.get("alfworld_pair_b_size") or values.get("batch_size")  # 0: as many as the batch has episodes
    if "alfworld_pair_b_size" in values and _is_scalar(tasks):
        yield ("alfworld_pair_b_size",), {"alfworld.tasks_min": tasks, "alfworld.tasks_max": tasks}
    if (shown := values.get("alfworld_include_inventory")) in (True, False):  # 1 and 0 on the command line
        yield ("alfworld_include_inventory",), {"alfworld.inventory": bool(shown)}
    query = {"objective": "goal", "first_observation": "observation"}.get(str(values.get("alfworld_eval_query_source")))
    if query is not None:
        yield ("alfworld_eval_query_source",), {"alfworld.retrieval_query": query}


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
