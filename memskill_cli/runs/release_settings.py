"""What the settings of a checkpoint of the published code are here.

The published code stores ``config`` (its settings) and ``args`` (its command line) with every checkpoint. Only the keys
named in this module are read from ``args``, because a fork may keep keys of providers there.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from memskill_cli.config import Config, load, to_dict
from memskill_cli.datasets.base import NAMES
from memskill_cli.errors import CheckpointError, UsageError

Values = Mapping[str, Any]
"""Settings of the published code by name."""
Group = dict[str, Any]
"""Settings of ours that are set together, by dotted name."""

DIRECT = {
    "mem_top_k": "memory.top_k",
    "mem_top_k_eval": "eval.num_memories",
    "inference_session_workers": "memory.parallel_spans",
    "state_fusion_tau": "memory.tau",
    "action_top_k": "train.top_k",
    "inner_epochs": "train.inner_epochs",
    "batch_size": "train.batch_size",
    "new_action_p_min": "controller.p_min",
    "new_action_bias_steps": "controller.new_skill_epochs",
    "final_reward_last_ratio": "reward.final_share",
    "reward_redistribution_decay": "reward.decay",
    "process_budget": "reward.process_quality",
    "failure_budget": "reward.process_failure",
    "locomo_train_query_sampling_ratio": "reward.query_ratio",
    "gamma": "ppo.gamma",
    "gae_lambda": "ppo.lam",
    "clip_epsilon": "ppo.clip",
    "value_coef": "ppo.value_weight",
    "entropy_coef": "ppo.entropy_weight",
    "controller_lr": "ppo.learning_rate",
    "minibatch_size": "ppo.minibatch",
    "ppo_epochs": "ppo.epochs",
    "max_grad_norm": "ppo.max_grad_norm",
    "target_kl": "ppo.target_kl",
    "max_ops": "designer.capacity",
    "designer_freq": "designer.every",
    "designer_max_changes": "designer.max_changes",
    "designer_refine_only": "designer.refine_only",
    "designer_new_skill_hint": "designer.prefer_new_skills",
    "stage_reward_fraction": "designer.judged_share",
    "designer_reflection_cycles": "designer.rounds",
    "op_evolution_trials": "designer.tries",
    "max_designer_evolves": "designer.max_cycles",
    "designer_early_stop_patience": "designer.patience",
    "designer_f1_threshold": "designer.f1_threshold",
    "designer_failure_window_epochs": "designer.window",
    "designer_failure_pool_size": "designer.pool",
    "designer_num_clusters": "designer.clusters",
    "designer_samples_per_cluster": "designer.per_cluster",
    "max_new_tokens": "models.executor_max_tokens",
    "temperature": "models.temperature",
    "seed": "seed",
}
"""Settings whose value means the same here."""

RENAMED: dict[str, tuple[str, dict[Any, Any]]] = {
    "state_fusion": ("memory.fuse", {"mean": "mean", "sim_weighted": "softmax"}),
    "reward_metric": ("reward.kind", {"f1": "f1", "llm_judge": "judge"}),
    "skip_noop": ("controller.noop_seed", {True: False, False: True}),
    "enable_designer": ("train.evolve", {True: True, False: False}),
}
"""Settings whose values have other names here."""

PLAYED = {
    "alfworld_action_max_tokens": "models.answer_max_tokens",
    "alfworld_action_temperature": "alfworld.temperature",
    "alfworld_action_top_p": "alfworld.top_p",
    "alfworld_pair_same_type_prob": "alfworld.same_type",
    "alfworld_pair_max_steps": "alfworld.steps",
}
"""As ``DIRECT``, for ALFWorld only."""

FIXED: dict[str, Any] = {
    "ema_alpha": 0.1,
    "noop_match_scale": 0.2,
    "shaping_scale": 1.0,
    "redistribute_reward": True,
    "stage_reward_use_moving_avg": False,
}
"""Settings of the published code that are constants here: another value cannot be taken over."""

WITHOUT_MEANING = frozenset(
    (
        # read in another way: from the weights, the skills or the encoders
        *("controller_hidden_dim", "state_dim", "op_embedding_dim", "initial_ops", "outer_epochs", "dataset"),
        *("state_encoder", "op_encoder", "retriever", "model", "designer_model", "llm_judge_model"),
        # of the machine, of files, or unused by the published code itself
        *("use_flash_attn", "encode_batch_size", "device", "memory_cache_suffix", "alfworld_pair_b_workers"),
        "inference_workers",
        *("hotpotqa_eval_file", "alfworld_eval_file", "alfworld_offline_data"),
        *("skip_load_operation_bank", "skip_load_snapshot_manager", "stage_reward_window"),
        *("collect_epochs_before_designer", "min_op_usage", "low_reward_threshold"),
        # follows from new_action_p_min
        "new_action_delta_max",
    )
)
"""Settings that no result depends on, or that are read elsewhere."""

_GROUPED = (
    *("vf_clip", "session_mode", "chunk_size", "chunk_overlap", "alfworld_pair_chunk_size"),
    *("alfworld_pair_a_min", "alfworld_pair_a_max", "alfworld_pair_b_size", "alfworld_eval_query_source"),
    "alfworld_include_inventory",
)
READ = frozenset((*DIRECT, *RENAMED, *PLAYED, *FIXED, *WITHOUT_MEANING, *_GROUPED))
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
"""Retrievers of the published code, in small letters, and what they are called here."""

STATE_ENCODERS = {
    "qwen/qwen3-embedding-0.6b": QWEN,
    "qwen/qwen3-embedding-4b": "Qwen/Qwen3-Embedding-4B",
    "qwen/qwen3-embedding-8b": "Qwen/Qwen3-Embedding-8B",
    "sentence-transformers/all-minilm-l6-v2": "minilm",
    "sentence-transformers/all-minilm-l12-v2": "sentence-transformers/all-MiniLM-L12-v2",
    "sentence-transformers/all-mpnet-base-v2": "sentence-transformers/all-mpnet-base-v2",
    "sentence-transformers/all-distilroberta-v1": "sentence-transformers/all-distilroberta-v1",
}
"""State encoders, in small letters, whose vectors have unit length in the published code too.

It normalises nothing itself: models of sentence-transformers that end in a normalising layer give unit vectors, all
others (among them every model that it pools by itself) do not.
"""

_DIMS = {"minilm": 384, "hashing": 512, "contriever": 768, "dpr": 768, "dragon": 768, QWEN: 1024}
"""Lengths of vectors that are known without loading a model."""


@dataclasses.dataclass(frozen=True)
class Taken:
    """``settings`` after what could be taken over: ``taken`` (ours by name), and the names of what could not be."""

    settings: Config
    taken: dict[str, Any]
    left: tuple[str, ...]


def state_encoder(values: Values) -> str:
    """The spec of the encoder of states that the controller was trained on.

    Raises CheckpointError if the checkpoint does not say, or if its vectors were not of unit length.
    """
    found = values.get("state_encoder")
    if not isinstance(found, str) or not found:
        hint = f"name it: --encoder {QWEN}, if it was trained with the published scripts"
        raise CheckpointError("the checkpoint does not say with which encoder it was trained", hint=hint)
    return _encoder(found, "states", "--encoder minilm")


def skill_encoder(values: Values) -> str:
    """The spec of the encoder of skills; "" if it is that of states. CheckpointError as for :func:`state_encoder`."""
    states, skills = (str(values.get(name) or "") for name in ("state_encoder", "op_encoder"))
    if skills.lower() in ("", states.lower()):
        return ""
    return _encoder(skills, "skills", "--set encoders.skill=minilm")


def _encoder(name: str, what: str, instead: str) -> str:
    spec = STATE_ENCODERS.get(name.lower())
    if spec is None:
        raise CheckpointError(
            f"the encoder of {what}, {name}, gives vectors that are not of unit length, and here all are: "
            "the controller would be shown other numbers than it was trained on",
            hint=f"name an encoder to use in its place, for example: {instead}",
        )
    return spec


def check_width(spec: str, width: int, what: str) -> None:
    """Raise UsageError if the vectors of ``spec`` are known not to have ``width`` numbers."""
    known = _DIMS.get(spec.partition("@")[0].partition(":")[0])
    if known not in (None, width):
        raise UsageError(
            f"the controller takes {width}-d embeddings of {what}, but encoder {spec} gives {known}-d ones",
            hint="name the encoder that the checkpoint was trained with: --encoder NAME",
        )


def dataset_of(values: Values) -> str:
    """The benchmark that the checkpoint was trained on; ``locomo`` if it does not say."""
    found = values.get("dataset")
    return found if found in NAMES else "locomo"


def take_over(values: Values, names: frozenset[str], dataset: str, hidden: int) -> Taken:
    """The preset ``paper`` on ``dataset`` with the settings of the checkpoint; models stay those of this program.

    ``names`` are all names that the checkpoint's ``config`` has. A value that is out of range here is left.
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
    """The values of settings by their dotted names, in order of these."""
    table = to_dict(settings)
    parts = {name: name.partition(".") for name in sorted(names)}
    return {name: table[section][inner] if inner else table[name] for name, (section, _, inner) in parts.items()}


def _groups(values: Values, dataset: str) -> Iterator[tuple[tuple[str, ...], Group]]:
    """(names in the checkpoint, settings here): what is set together is checked together."""
    direct = {**DIRECT, **PLAYED} if dataset == "alfworld" else DIRECT
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
    yield from _spans(values, dataset)
    if dataset == "alfworld":
        yield from _pairs(values)


def _spans(values: Values, dataset: str) -> Iterator[tuple[tuple[str, ...], Group]]:
    if dataset == "alfworld":
        if _is_scalar(size := values.get("alfworld_pair_chunk_size")):
            yield ("alfworld_pair_chunk_size",), {"train.chunk_size": size}
        return
    mode = "fixed-length" if dataset == "hotpotqa" else values.get("session_mode")
    if isinstance(mode, str):
        yield ("session_mode",), {"train.span_mode": mode}
    sizes = ("chunk_size", "chunk_overlap")
    if mode == "fixed-length" and all(_is_scalar(values.get(name)) for name in sizes):
        yield sizes, {f"train.{name}": values[name] for name in sizes}


def _pairs(values: Values) -> Iterator[tuple[tuple[str, ...], Group]]:
    sizes = ("alfworld_pair_a_min", "alfworld_pair_a_max")
    if all(_is_scalar(values.get(name)) for name in sizes):
        least, most = (values[name] for name in sizes)
        yield sizes, {"alfworld.trajectories_min": least, "alfworld.trajectories_max": most}
    tasks = values.get("alfworld_pair_b_size") or values.get("batch_size")  # 0: as many as the batch has episodes
    if "alfworld_pair_b_size" in values and _is_scalar(tasks):
        yield ("alfworld_pair_b_size",), {"alfworld.tasks_min": tasks, "alfworld.tasks_max": tasks}
    if (shown := values.get("alfworld_include_inventory")) in (True, False):  # 1 and 0 on the command line
        yield ("alfworld_include_inventory",), {"alfworld.inventory": bool(shown)}
    query = {"objective": "goal", "first_observation": "observation"}.get(str(values.get("alfworld_eval_query_source")))
    if query is not None:
        yield ("alfworld_eval_query_source",), {"alfworld.query": query}


def _without_equivalent(values: Values, names: frozenset[str]) -> Iterator[str]:
    """Names of settings that may change a result and that nothing here stands for."""
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
