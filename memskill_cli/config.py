"""Every setting, as dataclasses with a docstring under each field.

Order of precedence: defaults < preset < config file < environment < flags (the last two arrive together, as
``overrides``, because the command line reads both). The constants are those of the paper (see each section); a knob
exists or it doesn't, so nothing here is looked up by name with a fallback.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import tomllib
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import tomli_w

from memskill_cli.errors import UsageError

SpanMode = Literal["turn", "turn-pair", "full-session", "fixed-length", "paragraph"]
EMBEDDED = "embedded"


@dataclass(frozen=True)
class ModelsConfig:
    """Language models, by role. Names are litellm's, or ``embedded``, or ``embedded:/path/to/model.gguf``."""

    executor: str = EMBEDDED
    """Writes the memory."""
    answer: str = EMBEDDED
    """Answers queries from retrieved memories (in ALFWorld: acts)."""
    judge: str = EMBEDDED
    """Scores answers 0, 0.5 or 1."""
    designer: str = EMBEDDED
    """Evolves the skill bank."""
    api_base: str = ""
    """URL of an OpenAI-compatible server, for every role that is not embedded; "" is the provider's own."""
    temperature: float = 0.0
    """Sampling temperature of every role."""
    timeout: float = 120.0
    """Seconds one HTTP call may take."""
    retries: int = 4
    """How often litellm tries a failed call again, over all healthy keys, before the call has failed."""
    executor_max_tokens: int = 1024
    """Longest reply of the executor, in tokens."""
    answer_max_tokens: int = 32
    """Longest answer, in tokens (the paper: 32 on LoCoMo, 512 elsewhere)."""
    judge_max_tokens: int = 256
    """Longest verdict, in tokens."""
    designer_max_tokens: int = 4096
    """Longest reply of the designer, in tokens."""


@dataclass(frozen=True)
class EncodersConfig:
    """Text encoders: ``minilm``, ``contriever``, ``dpr``, ``dragon``, ``hashing``, a sentence-transformers name or
    folder, or ``litellm:<model>``."""

    state: str = "minilm"
    """Embeds spans, memories and skill descriptions for the controller."""
    retrieval: str = "minilm"
    """Embeds queries and memories when answering."""
    device: str = "auto"
    """``auto``, ``cpu`` or ``cuda``."""


@dataclass(frozen=True)
class MemoryConfig:
    """The memory bank of a trace."""

    top_k: int = 20
    """Memories shown to the executor for a span, and to the answering model for a query."""
    fuse: Literal["mean", "softmax"] = "mean"
    """How the embeddings of retrieved memories become the second half of the controller's state."""
    tau: float = 0.1
    """Temperature of ``fuse = "softmax"``."""
    max_chars: int = 2000
    """A longer memory text is rejected and counted."""
    max_actions: int = 32
    """Actions obeyed in one executor reply; the rest are rejected and counted."""
    server: str = ""
    """URL of a Chroma server (``http://host:8000``); "" keeps memory in the run directory."""


@dataclass(frozen=True)
class ControllerConfig:
    """The policy that picks skills (section 4 of the method)."""

    hidden: int = 256
    """Width of every hidden layer."""
    p_min: float = 0.30
    """Total probability that skills new to the bank are raised to."""
    new_skill_epochs: int = 50
    """Inner epochs over which that exploration fades to nothing."""
    noop_seed: bool = False
    """Whether the starting bank has the ``noop`` skill."""


@dataclass(frozen=True)
class RewardConfig:
    """What an episode is worth (section 5)."""

    kind: Literal["f1", "judge"] = "f1"
    """How a query is scored while training."""
    final_share: float = 0.60
    """Part of the episode reward that goes to the last step."""
    decay: float = 0.9
    """Weights of the rest fall by this factor a step, backwards from the last."""
    process_quality: float = 0.10
    """Process reward of an episode whose every step did what its skills are for."""
    process_failure: float = 0.05
    """Process penalty of an episode whose every action failed."""
    query_ratio: float = 1.0
    """Share of a trace's queries scored in one episode (stratified by category)."""


@dataclass(frozen=True)
class PPOConfig:
    """Proximal policy optimisation (section 6)."""

    gamma: float = 0.99
    """Discount."""
    lam: float = 0.95
    """GAE's lambda."""
    clip: float = 0.2
    """Clip range of the probability ratio."""
    value_weight: float = 0.5
    """Weight of the value loss."""
    entropy_weight: float = 0.01
    """Weight of the entropy bonus."""
    learning_rate: float = 1e-4
    """Adam's step size."""
    minibatch: int = 32
    """Steps in a minibatch."""
    epochs: int = 4
    """Passes over a batch."""
    max_grad_norm: float = 0.5
    """Gradients are clipped to this norm."""
    target_kl: float = 0.02
    """An epoch whose mean approximate KL exceeds this is the last one."""


@dataclass(frozen=True)
class TrainConfig:
    """The closed loop: how traces are read and how often."""

    outer_epochs: int = 3
    """Stages: each is many inner epochs with the bank fixed."""
    inner_epochs: int = 20
    """Inner epochs (one batch of episodes and one PPO update) in a stage."""
    batch_size: int = 4
    """Episodes in an inner epoch."""
    span_mode: SpanMode = "full-session"
    """How a trace is cut into spans while training."""
    chunk_size: int = 512
    """Tokens (cl100k_base) of a fixed-length span."""
    chunk_overlap: int = 64
    """Tokens a fixed-length span shares with the one before."""
    top_k: int = 3
    """Skills the controller picks for a span."""
    max_spans: int = 0
    """Read only so many spans of a trace (0: all). For demonstrations; said in every result that it was used."""
    evolve: bool = True
    """Whether the designer evolves the bank between stages."""
    keep_checkpoints: int = 3
    """Newest checkpoints kept, beside the best."""


@dataclass(frozen=True)
class DesignerConfig:
    """How the skill bank evolves from hard cases (section 7)."""

    max_changes: int = 1
    """Changes of one designer cycle at most (2 or 3 in the published runs)."""
    rounds: int = 3
    """Analysis and the reflections that improve it, together."""
    tries: int = 3
    """How often a cycle that applies nothing is tried, each time told what was wrong."""
    max_cycles: int = 20
    """Designer cycles of a run at most."""
    patience: int = 5
    """Cycles in a row without a better stage before the run stops."""
    f1_threshold: float = 0.5
    """A query scored below this is a hard case (with a judge: below 1)."""
    window: int = 100
    """Inner epochs after which a hard case is forgotten."""
    pool: int = 2000
    """Hard cases kept at most: the most recent, then the most failed."""
    clusters: int = 5
    """Clusters of questions that cases are chosen from."""
    per_cluster: int = 3
    """Cases chosen in each cluster."""
    cases: int = 15
    """Cases shown to the designer at most."""
    retrieved: int = 20
    """Retrieved memories shown with a case at most."""


@dataclass(frozen=True)
class EvalConfig:
    """How a split is read and asked."""

    span_mode: SpanMode = "fixed-length"
    """How a trace is cut into spans while evaluating."""
    chunk_size: int = 512
    """Tokens (cl100k_base) of a fixed-length span."""
    chunk_overlap: int = 64
    """Tokens a fixed-length span shares with the one before."""
    top_k: int = 7
    """Skills the controller picks for a span."""
    judge: bool = True
    """Whether the judge model scores answers beside F1."""
    max_spans: int = 0
    """Read only so many spans of a trace (0: all). For demonstrations; said in every result that it was used."""
    bootstrap: int = 2000
    """Resamples of the 95 % confidence intervals."""


@dataclass(frozen=True)
class LimitsConfig:
    """What a run may use."""

    concurrency: int = 16
    """Language model calls in flight."""
    max_cost: float = 0.0
    """US dollars this run (or this evaluation) may spend in all; 0 is no limit."""


@dataclass(frozen=True)
class Config:
    """All settings of one run."""

    dataset: str = "locomo"
    """``locomo``, ``longmemeval``, ``hotpotqa`` or ``alfworld``."""
    seed: int = 42
    """Everything random comes from this."""
    preset: str = "default"
    """The preset the other settings started from."""
    engine: Literal["local", "ray"] = "local"
    """Where episodes run."""
    tracker: Literal["none", "tensorboard", "wandb"] = "none"
    """Where metrics go besides ``metrics.jsonl``."""
    models: ModelsConfig = field(default_factory=ModelsConfig)
    encoders: EncodersConfig = field(default_factory=EncodersConfig)
    memory: MemoryConfig = field(default_factory=MemoryConfig)
    controller: ControllerConfig = field(default_factory=ControllerConfig)
    reward: RewardConfig = field(default_factory=RewardConfig)
    ppo: PPOConfig = field(default_factory=PPOConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    designer: DesignerConfig = field(default_factory=DesignerConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    limits: LimitsConfig = field(default_factory=LimitsConfig)


PRESETS: dict[str, dict[str, Any]] = {
    "default": {},
    # Small enough for the embedded model on two cores: minutes from nothing to a scored evaluation. One skill a span,
    # so that the choice can be seen to matter, and larger PPO steps than the paper's, since there are only three.
    "demo": {
        "train.outer_epochs": 1,
        "train.inner_epochs": 3,
        "train.batch_size": 3,
        "train.max_spans": 2,
        "train.top_k": 1,
        "memory.top_k": 6,
        "memory.max_actions": 6,
        "reward.query_ratio": 0.3,
        "eval.span_mode": "full-session",
        "eval.top_k": 1,
        "eval.judge": False,
        "ppo.learning_rate": 3e-3,
        "ppo.minibatch": 4,
        "ppo.epochs": 8,
        "ppo.target_kl": 1.0,
        "models.executor_max_tokens": 240,
    },
    # Section 8 of the method: training on LoCoMo, and the settings of every published evaluation.
    "paper": {
        "models.executor": "openai/meta-llama/Llama-3.3-70B-Instruct",
        "models.answer": "openai/meta-llama/Llama-3.3-70B-Instruct",
        "models.designer": "openai/meta-llama/Llama-3.3-70B-Instruct",
        "models.judge": "openai/openai/gpt-oss-120b",
        "encoders.state": "Qwen/Qwen3-Embedding-0.6B",
        "encoders.retrieval": "contriever",
        "train.outer_epochs": 10,
        "train.inner_epochs": 100,
        "train.batch_size": 4,
        "controller.new_skill_epochs": 25,
        "designer.max_changes": 3,
        "ppo.epochs": 2,
    },
}


def _fields(cls: type) -> dict[str, dataclasses.Field[Any]]:
    return {f.name: f for f in dataclasses.fields(cls)}


def setting_names() -> list[str]:
    """All dotted names, as ``--set`` and config files know them."""
    names = []
    for name, item in _fields(Config).items():
        if dataclasses.is_dataclass(item.default_factory):
            names += [f"{name}.{inner}" for inner in _fields(item.default_factory)]
        else:
            names.append(name)
    return names


def _unknown(name: str, where: str) -> UsageError:
    near = difflib.get_close_matches(name, setting_names(), n=1, cutoff=0.5)
    hint = f"did you mean {near[0]}?" if near else "see the settings with: memskill train --help"
    return UsageError(f"{where}: no setting is called {name}", hint=hint)


def _convert(value: Any, kind: Any, name: str, where: str) -> Any:
    """``value`` (from TOML, or text from a flag) as ``kind``; UsageError says which setting is at fault."""
    wrong = UsageError(f"{where}: {name} = {value!r} is not {_describe(kind)}")
    if typing.get_origin(kind) is Literal:
        if value not in typing.get_args(kind):
            near = difflib.get_close_matches(str(value), typing.get_args(kind), n=1)
            raise UsageError(wrong.message, hint=f"did you mean {near[0]}?" if near else "")
        return value
    if kind is bool:
        table = {
            "true": True,
            "1": True,
            "yes": True,
            "on": True,
            "false": False,
            "0": False,
            "no": False,
            "off": False,
        }
        if isinstance(value, str) and value.lower() in table:
            return table[value.lower()]
        if isinstance(value, bool):
            return value
        raise wrong
    if isinstance(value, bool) or (kind is str and not isinstance(value, str)):
        raise wrong
    if kind is int and isinstance(value, float):
        raise wrong
    try:
        return kind(value)
    except (TypeError, ValueError):
        raise wrong from None


def _describe(kind: Any) -> str:
    if typing.get_origin(kind) is Literal:
        return "one of " + ", ".join(typing.get_args(kind))
    return {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}.get(kind, str(kind))


def _flatten(table: dict[str, Any], where: str) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in table.items():
        if isinstance(value, dict):
            flat |= {f"{name}.{inner}": v for inner, v in value.items()}
        else:
            flat[name] = value
    return flat


def _apply(config: Config, flat: dict[str, Any], where: str) -> Config:
    """A copy of ``config`` with the dotted settings of ``flat``; every name and type is checked."""
    hints = typing.get_type_hints(Config)
    sections: dict[str, dict[str, Any]] = {}
    top: dict[str, Any] = {}
    for name, value in flat.items():
        if name not in setting_names():
            raise _unknown(name, where)
        section, _, inner = name.partition(".")
        if inner:
            kind = typing.get_type_hints(hints[section])[inner]
            sections.setdefault(section, {})[inner] = _convert(value, kind, name, where)
        else:
            top[name] = _convert(value, hints[name], name, where)
    for section, values in sections.items():
        top[section] = dataclasses.replace(getattr(config, section), **values)
    return dataclasses.replace(config, **top)


def _check(config: Config) -> None:
    """Refuse what can never work, before anything is paid for."""
    for section in (config.train, config.eval):
        if section.chunk_overlap >= section.chunk_size:
            raise UsageError(
                f"chunk overlap {section.chunk_overlap} must be smaller than chunk size {section.chunk_size}",
                hint="a window advances by size - overlap, so this would never end",
            )
    positive = {
        "train.outer_epochs": config.train.outer_epochs,
        "train.inner_epochs": config.train.inner_epochs,
        "train.batch_size": config.train.batch_size,
        "train.top_k": config.train.top_k,
        "train.chunk_size": config.train.chunk_size,
        "train.keep_checkpoints": config.train.keep_checkpoints,
        "eval.top_k": config.eval.top_k,
        "eval.chunk_size": config.eval.chunk_size,
        "memory.top_k": config.memory.top_k,
        "limits.concurrency": config.limits.concurrency,
        "ppo.minibatch": config.ppo.minibatch,
        "ppo.epochs": config.ppo.epochs,
        "controller.hidden": config.controller.hidden,
        "designer.max_changes": config.designer.max_changes,
        "designer.rounds": config.designer.rounds,
        "designer.tries": config.designer.tries,
        "designer.clusters": config.designer.clusters,
        "models.timeout": config.models.timeout,
        "memory.tau": config.memory.tau,
    }
    for name, value in positive.items():
        if value <= 0:
            raise UsageError(f"{name} must be above 0, not {value}")
    for name, value in {
        "train.chunk_overlap": config.train.chunk_overlap,
        "eval.chunk_overlap": config.eval.chunk_overlap,
        "limits.max_cost": config.limits.max_cost,
        "models.retries": config.models.retries,
        "models.temperature": config.models.temperature,
    }.items():
        if value < 0:
            raise UsageError(f"{name} must not be below 0, not {value}")
    if not 0 < config.reward.query_ratio <= 1:
        raise UsageError(f"reward.query_ratio must be above 0 and at most 1, not {config.reward.query_ratio}")


def load(
    *,
    preset: str = "default",
    file: Path | None = None,
    sets: typing.Sequence[str] = (),
    overrides: dict[str, Any] | None = None,
    base: Config | None = None,
) -> Config:
    """The settings of a command.

    ``sets`` are ``section.key=value`` texts, ``overrides`` dotted names with values (None: not given). ``base``
    replaces the defaults (a run's own settings, when it goes on). Raises UsageError with the nearest name on a typo.
    """
    if preset not in PRESETS:
        near = difflib.get_close_matches(preset, PRESETS, n=1)
        raise UsageError(
            f"no preset is called {preset}; there are {', '.join(PRESETS)}",
            hint=f"did you mean {near[0]}?" if near else "",
        )
    config = base or Config()
    if base is None or preset != "default":
        config = _apply(config, {**PRESETS[preset], "preset": preset}, f"preset {preset}")
    if file is not None:
        config = _apply(config, _flatten(read_toml(file), str(file)), str(file))
    chosen = {name: value for name, value in (overrides or {}).items() if value is not None}
    for text in sets:
        name, sign, value = text.partition("=")
        if not sign:
            raise UsageError(f"--set {text}: expected section.key=value", hint="for example: --set train.top_k=5")
        chosen[name.strip()] = value.strip()
    config = _apply(config, chosen, "command line")
    _check(config)
    return config


def read_toml(file: Path) -> dict[str, Any]:
    """A TOML file as a dict; UsageError names the line at fault."""
    try:
        return tomllib.loads(file.read_text("utf-8"))
    except FileNotFoundError:
        raise UsageError(f"{file}: no such file") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{file}: not TOML: {error}") from None


def to_dict(config: Config) -> dict[str, Any]:
    return dataclasses.asdict(config)


def from_dict(table: dict[str, Any], where: str = "config") -> Config:
    return _apply(Config(), _flatten(table, where), where)


def to_toml(config: Config) -> str:
    """Every setting, resolved. Keys are no settings, so no secret can be in it."""
    return tomli_w.dumps(to_dict(config))


def digest(table: typing.Any) -> str:
    """12 hex digits that name a JSON-able value (sorted keys, no blanks)."""
    import orjson

    return hashlib.sha256(orjson.dumps(table, option=orjson.OPT_SORT_KEYS)).hexdigest()[:12]
