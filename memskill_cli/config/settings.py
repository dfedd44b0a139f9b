"""All settings, as dataclasses with a docstring under each field. Section numbers are those of docs/method.md."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from memskill_cli.config.model_parameters import Parameters

JudgePrompt = Literal["category", "general"]
"""Prompts of the judge: a category's own rule where there is one, or one prompt for all categories."""
SpanMode = Literal["turn", "turn-pair", "full-session", "fixed-length", "paragraph"]
EMBEDDED = "embedded"


@dataclass(frozen=True)
class ModelsConfig:
    """Language models, by role. Names are litellm's, or ``embedded``, or ``embedded:/path/to/model.gguf``."""

    executor: str = EMBEDDED
    """Writes the memory."""
    answer: str = EMBEDDED
    """Answers queries from retrieved memories (in ALFWorld: chooses the commands)."""
    judge: str = EMBEDDED
    """Scores answers 0, 0.5 or 1."""
    designer: str = EMBEDDED
    """Evolves the skill bank."""
    api_base: str = ""
    """URL of an OpenAI-compatible server for all roles that are not embedded; "" is the provider's own URL."""
    temperature: float = 0.0
    """Sampling temperature of all roles."""
    timeout: float = 120.0
    """Maximum duration of an HTTP call, in seconds."""
    retries: int = 4
    """How often litellm repeats a failed call, over all working keys."""
    executor_max_tokens: int = 2048
    """Maximum length of an executor reply, in tokens."""
    answer_max_tokens: int = 32
    """Maximum length of an answer, in tokens (paper: 32 on LoCoMo and for a command in ALFWorld, otherwise 512)."""
    judge_max_tokens: int = 1024
    """Maximum length of a judge's verdict, in tokens."""
    designer_max_tokens: int = 4096
    """Maximum length of a designer reply, in tokens."""
    parameters: Parameters = field(default_factory=dict)
    """Parameters of requests by role (or ``all``): a table of values by name (config/model_parameters.py)."""
    prices: dict[str, list[float]] = field(default_factory=dict)
    """By model: US dollars per million tokens of prompts and of replies. They replace those of litellm's list."""


@dataclass(frozen=True)
class EncodersConfig:
    """Text encoders: ``minilm``, ``contriever``, ``dpr``, ``dragon``, ``hashing``, a sentence-transformers name or
    folder, or ``litellm:<model>``. With the suffix ``@bfloat16``, a transformer computes in bfloat16."""

    state: str = "minilm"
    """Embeds spans and memories for the controller."""
    skill: str = ""
    """Embeds skill descriptions for the controller; its dimension may differ. "" is the state encoder."""
    retrieval: str = "minilm"
    """Embeds queries and memories to retrieve memories for a query."""
    device: str = "auto"
    """``auto``, ``cpu`` or ``cuda``."""


@dataclass(frozen=True)
class MemoryConfig:
    """The memory bank of a trace."""

    num_memories: int = 20
    """Memories shown to the executor for a span, and to the answering model for a query."""
    pooling: Literal["mean", "softmax"] = "mean"
    """How the embeddings of retrieved memories become the second half of the controller's state."""
    retriever: str = "hybrid"
    """How memories and sources are ranked: ``dense`` (cosine similarity of embeddings), ``lexical`` (BM25), ``hybrid``
    (both), or a retriever of a plug-in (for the memories of a query)."""
    reranker: str = ""
    """A cross-encoder that ranks the best 50 again: a name on the Hugging Face Hub or a folder; "" for none."""
    language: str = "english"
    """Language of the texts, for stems and stop words of BM25: one of Snowball's, or ``none``."""
    sources: bool = True
    """Whether the turns that were read are kept beside the memories. Both are searched for a query, and memories are
    shown with the date and the speakers of their span."""
    context_tokens: int = 1000
    """Tokens (cl100k_base) of memories and sources in an answer prompt, at most, and at most ``num_memories`` of
    each; 0 is no limit in tokens."""
    memory_share: float = 0.4
    """Share of ``context_tokens`` that memories may take, from 0 to 1; the sources get what they leave."""
    resolve_dates: bool = True
    """Whether relative dates in English turns ("yesterday") are shown with the date that they mean."""
    tau: float = 1.0
    """Temperature of ``pooling = "softmax"``."""
    parallel_spans: int = 1
    """Spans of a trace that are read in parallel, each with the memory before all of them; results are merged in order.
    More is faster but lowers quality, because these spans do not see each other's memories."""
    max_chars: int = 2000
    """Maximum length of a memory text, in characters; longer texts are rejected and counted."""
    max_actions: int = 32
    """Maximum number of actions in an executor reply; further actions are rejected and counted."""
    protect: bool = True
    """Whether careless changes are stopped: an update to a text about something else is inserted, a deletion without
    support from the span is refused, and what a memory says already is not written again. All are counted."""
    server: str = ""
    """URL of a Chroma server (``http://host:8000``); "" stores memories in the run directory."""


@dataclass(frozen=True)
class ControllerConfig:
    """The policy that selects skills (section 4)."""

    hidden: int = 256
    """Width of every hidden layer."""
    new_skill_min_prob: float = 0.30
    """Minimum total probability of skills that are new in the bank, directly after they were added."""
    new_skill_epochs: int = 50
    """Inner epochs over which that minimum decreases to 0."""
    include_noop: bool = True
    """Whether the first bank has the skill ``noop`` besides insert, update and delete."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device of PPO updates. On CUDA the last bits may differ between runs. Skills are always selected on the CPU."""


@dataclass(frozen=True)
class RewardConfig:
    """The reward of an episode (section 5)."""

    kind: str = "f1"
    """How a query is scored in training: ``f1``, ``judge``, or a reward of a plug-in."""
    credit: str = "final-decay"
    """How the reward of an episode is distributed over its steps: ``final-decay`` (with the next two settings),
    ``evidence`` (a query's score goes to the steps that wrote the memories retrieved for it), or a credit assignment of
    a plug-in."""
    final_share: float = 0.60
    """Share of the episode reward that the last step gets."""
    decay: float = 0.9
    """The weights of the other shares decrease by this factor for each step, backwards from the last."""
    process_reward_scale: float = 0.10
    """Process reward of an episode in which the actions of every step match its skills."""
    process_penalty_scale: float = 0.05
    """Process penalty of an episode in which every action failed."""
    query_ratio: float = 1.0
    """Share of a trace's queries that an episode answers (stratified by category)."""


@dataclass(frozen=True)
class PPOConfig:
    """Proximal policy optimisation (section 6)."""

    gamma: float = 0.99
    """Discount factor."""
    gae_lambda: float = 0.95
    """Lambda of generalised advantage estimation."""
    clip_coef: float = 0.2
    """Clip range of the probability ratio."""
    vf_coef: float = 0.5
    """Weight of the value loss."""
    ent_coef: float = 0.01
    """Weight of the entropy bonus."""
    learning_rate: float = 1e-4
    """Learning rate of Adam."""
    clip_vloss: bool = False
    """Whether the value loss is clipped around the old values, with the same clip range."""
    minibatch_size: int = 32
    """Steps in a minibatch; 0 is the whole batch."""
    update_epochs: int = 4
    """Passes over a batch in one update."""
    max_grad_norm: float = 0.5
    """Maximum norm of the gradients; larger ones are clipped."""
    target_kl: float = 0.02
    """An update stops after the pass whose mean approximate KL exceeds this; 0 never stops early."""


@dataclass(frozen=True)
class TrainConfig:
    """The training loop: how traces are read, and how often."""

    outer_epochs: int = 3
    """Number of outer epochs. The bank is fixed during an outer epoch."""
    inner_epochs: int = 20
    """Inner epochs in an outer epoch; each is one batch of episodes and one PPO update."""
    algorithm: str = "ppo"
    """How a batch of episodes updates the controller: ``ppo``, ``grpo`` (no critic, advantages within a group of
    episodes; clipping, entropy and optimizer settings are those of ``ppo``), or an algorithm of a plug-in."""
    batch_size: int = 4
    """Episodes in an inner epoch."""
    group_size: int = 4
    """Only for ``grpo``: episodes that read the same trace and are asked the same queries, with other random choices of
    skills. ``batch_size`` must be a multiple of it. 1: a batch has different traces and is one group."""
    curriculum: int = 0
    """Inner epochs, from the start of the run, in which the number of spans that an episode reads grows from a quarter
    of the trace to all; 0: all spans from the start."""
    span_mode: SpanMode = "full-session"
    """How a trace is divided into spans in training."""
    chunk_size: int = 512
    """Tokens (cl100k_base) of a fixed-length span."""
    chunk_overlap: int = 64
    """Tokens that a fixed-length span shares with the one before."""
    num_skills: int = 3
    """Number of skills that the controller selects for a span."""
    max_spans: int = 0
    """Read only this many spans of a trace (0: all). For demonstrations; every result says so."""
    evolve: bool = True
    """Whether the designer changes the bank between stages."""
    keep_checkpoints: int = 3
    """How many of the newest checkpoints are kept, besides the best one."""


@dataclass(frozen=True)
class DesignerConfig:
    """How the designer changes the skill bank, based on hard cases (section 7)."""

    max_changes: int = 1
    """Maximum number of changes in a designer cycle (2 or 3 in the published runs)."""
    every: int = 1
    """Outer epochs between designer cycles: the length of a stage."""
    capacity: int = 30
    """Maximum number of skills in the bank."""
    refine_only: bool = False
    """Whether the designer may only change skills and not add any."""
    prefer_new_skills: bool = False
    """Whether the prompts of analysis and reflection recommend a new skill for a missing ability."""
    judged_share: float = 0.25
    """The reward of a stage is the mean over this last share of its inner epochs."""
    gate: Literal["val", "rewards"] = "val"
    """What decides whether a change is kept: ``val``, the same questions of the val split, answered with and without
    the change; ``rewards``, the stage rewards of training, as published (also for a dataset without such questions)."""
    gate_queries: int = 60
    """Questions of ``gate = "val"``, stratified by category; 0 is all."""
    gate_margin: float = 0.05
    """The 95 % interval of the difference must exclude a loss of this size (with ``gate = "val"``)."""
    evidence: bool = True
    """Whether the designer is told where the evidence of a failed question was lost, if the data name evidence."""
    reflection_rounds: int = 3
    """Number of analysis calls: the first analysis and the reflections that improve it."""
    max_attempts: int = 3
    """Attempts in a cycle until a change is valid; each later attempt is told what was wrong."""
    max_cycles: int = 20
    """Maximum number of designer cycles in a run."""
    patience: int = 5
    """The run stops after this many cycles in a row without a better stage."""
    f1_threshold: float = 0.5
    """A query scored below this is a hard case (with a judge: below 1)."""
    case_max_age: int = 100
    """Inner epochs after which a hard case is removed."""
    case_capacity: int = 2000
    """Maximum number of hard cases that are kept: the most recent, then those with the most failures."""
    clusters: int = 5
    """Number of clusters of questions from which cases are selected."""
    per_cluster: int = 3
    """Cases selected from each cluster."""
    max_cases: int = 15
    """Maximum number of cases that the designer sees."""
    memories_per_case: int = 20
    """Maximum number of retrieved memories shown with a case."""


@dataclass(frozen=True)
class EvalConfig:
    """How an evaluation reads traces and scores answers."""

    span_mode: SpanMode = "fixed-length"
    """How a trace is divided into spans in an evaluation."""
    chunk_size: int = 512
    """Tokens (cl100k_base) of a fixed-length span."""
    chunk_overlap: int = 64
    """Tokens that a fixed-length span shares with the one before."""
    num_skills: int = 7
    """Number of skills that the controller selects for a span."""
    num_memories: int = 0
    """Memories retrieved in an evaluation; 0 is the number in training (``memory.num_memories``)."""
    judge: bool = True
    """Whether the judge model also scores answers, besides F1."""
    judge_prompt: JudgePrompt = "category"
    """``category``: the judge is told a category's own rule where there is one; ``general``: one prompt for all."""
    max_spans: int = 0
    """Read only this many spans of a trace (0: all). For demonstrations; every result says so."""
    context_tokens: int = 0
    """Context window of the answering model in tokens, prompt and reply together, for methods that fill it (0: the
    value in litellm)."""
    bootstrap: int = 2000
    """Resamples of the 95 % confidence intervals."""


@dataclass(frozen=True)
class EnvConfig:
    """Tasks in a text environment, such as ALFWorld: what is read, and how tasks are played (section 2).

    Datasets of questions do not use these settings.

    A span has as many whole trajectories as fit into ``train.chunk_size`` (``eval.chunk_size``) tokens.
    """

    trajectories_min: int = 40
    """Minimum number of expert trajectories that an episode reads (Batch A)."""
    trajectories_max: int = 60
    """Maximum number of them; an evaluation reads this many for each task type."""
    tasks_min: int = 5
    """Minimum number of tasks that an episode plays with the resulting memory (Batch B)."""
    tasks_max: int = 8
    """Maximum number of them (5 in the published runs)."""
    same_type: float = 1.0
    """Probability that Batch A and Batch B have the same task type (0.8 is the other published setting)."""
    memory: Literal["by-type", "all"] = "by-type"
    """What an evaluation reads: ``by-type`` reads up to ``trajectories_max`` training trajectories of each task type
    into a separate memory; ``all`` reads all of them into one memory (as published)."""
    temperature: float = 0.0
    """Sampling temperature of the acting model."""
    top_p: float = 1.0
    """Nucleus sampling of the acting model: it samples from the most likely tokens with this total probability."""
    inventory: bool = True
    """Whether the prompt of the acting model has its inventory."""
    retrieval_query: Literal["goal", "observation"] = "goal"
    """The query for memories, which are retrieved once for each task: its goal, or the first observation."""
    steps: int = 50
    """Maximum number of commands in a task."""
    workers: int = 8
    """Number of environment processes; each plays one task at a time."""
    step_timeout: float = 60.0
    """Maximum duration of a command in seconds; after that the environment process is replaced."""


@dataclass(frozen=True)
class LimitsConfig:
    """Limits of a run."""

    concurrency: int = 16
    """Maximum number of parallel language model calls."""
    max_cost: float = 0.0
    """Maximum total cost of this run (or this evaluation) in US dollars; 0 is no limit."""
    max_skipped: float = 0.5
    """A training stops when a larger share of its spans and queries was refused by models: by content filters, or as
    too long. Up to this share it continues without them."""


@dataclass(frozen=True)
class RayConfig:
    """The cluster of ``engine = "ray"``. These settings do not change results."""

    address: str = ""
    """Address of a cluster: ``HOST:PORT``, or ``auto`` for the one on this machine. "" is RAY_ADDRESS; if that is not
    set, a cluster is started on this machine."""
    workers: int = 0
    """Number of processes that run episodes, each several at a time; 0 is one for each CPU of the cluster."""
    encoders: int = 0
    """Number of processes that encode texts; 0 is one for each GPU, or one for each node if there are no GPUs."""


@dataclass(frozen=True)
class Config:
    """All settings of one run."""

    dataset: str = "locomo"
    """``locomo``, ``longmemeval``, ``hotpotqa``, ``alfworld``, or a dataset of a plug-in."""
    seed: int = 42
    """The seed of all random choices."""
    preset: str = "default"
    """The preset that the other settings are based on."""
    engine: Literal["local", "ray"] = "local"
    """Where episodes run: in this process, or on a Ray cluster. The results are the same."""
    tracker: Literal["none", "tensorboard", "wandb"] = "none"
    """Where metrics are sent, besides ``metrics.jsonl``."""
    models: ModelsConfig = field(default_factory=ModelsConfig)
    encoders: EncodersConfig = field(default_factory=EncodersConfig)
    memory: MemoryConfig = field(default_factory=MemoryConfig)
    controller: ControllerConfig = field(default_factory=ControllerConfig)
    reward: RewardConfig = field(default_factory=RewardConfig)
    ppo: PPOConfig = field(default_factory=PPOConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    designer: DesignerConfig = field(default_factory=DesignerConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    env: EnvConfig = field(default_factory=EnvConfig)
    limits: LimitsConfig = field(default_factory=LimitsConfig)
    ray: RayConfig = field(default_factory=RayConfig)


class Range(NamedTuple):
    """The values that a number may have: from ``low`` to ``high``, without the ends that are ``open``."""

    low: float
    high: float
    open: Literal["none", "low", "both"] = "none"

    def __contains__(self, value: object) -> bool:
        if not isinstance(value, int | float):
            return False
        above = value > self.low if self.open != "none" else value >= self.low
        return above and (value < self.high if self.open == "both" else value <= self.high)

    def __str__(self) -> str:
        if self.open == "both":
            return f"between {self.low:g} and {self.high:g}"
        if self.open == "low":
            return f"above {self.low:g} and at most {self.high:,g}"
        return f"from {self.low:g} to 1" if self.high == 1 else f"{self.low:g} or above, and at most {self.high:,g}"


_MANY, _TOKENS = 1_000_000, 100_000_000
_COUNT, _COUNT_OR_0 = Range(0, _MANY, "low"), Range(0, _MANY)
_SHARE, _SHARE_ABOVE_0 = Range(0, 1), Range(0, 1, "low")
_SECONDS = Range(0, 1_000_000, "low")
RANGES = {
    "seed": Range(0, 2**63 - 1),
    "models.temperature": Range(0, 100),
    "models.timeout": _SECONDS,
    "models.retries": Range(0, 10_000),
    **{f"models.{role}_max_tokens": Range(0, _TOKENS, "low") for role in ("executor", "answer", "judge", "designer")},
    "memory.num_memories": _COUNT,
    "memory.context_tokens": Range(0, _TOKENS),
    "memory.memory_share": _SHARE,
    "memory.tau": Range(0, _MANY, "low"),
    "memory.parallel_spans": _COUNT,
    "memory.max_chars": Range(0, _TOKENS, "low"),
    "memory.max_actions": _COUNT,
    "controller.hidden": Range(0, 65_536, "low"),
    "controller.new_skill_min_prob": Range(0, 1, "both"),
    "controller.new_skill_epochs": _COUNT,
    "reward.final_share": _SHARE,
    "reward.decay": _SHARE_ABOVE_0,
    "reward.process_reward_scale": Range(0, _MANY),
    "reward.process_penalty_scale": Range(0, _MANY),
    "reward.query_ratio": _SHARE_ABOVE_0,
    "ppo.gamma": _SHARE,
    "ppo.gae_lambda": _SHARE,
    "ppo.clip_coef": Range(0, _MANY, "low"),
    "ppo.vf_coef": Range(0, _MANY),
    "ppo.ent_coef": Range(0, _MANY),
    "ppo.learning_rate": Range(0, 1000, "low"),
    "ppo.minibatch_size": _COUNT_OR_0,
    "ppo.update_epochs": Range(0, 10_000, "low"),
    "ppo.max_grad_norm": Range(0, 1e9, "low"),
    "ppo.target_kl": Range(0, 1e9),
    "train.outer_epochs": Range(0, 100_000, "low"),
    "train.inner_epochs": Range(0, 100_000, "low"),
    "train.batch_size": Range(0, 10_000, "low"),
    "train.group_size": Range(0, 10_000, "low"),
    "train.curriculum": _COUNT_OR_0,
    "train.num_skills": _COUNT,
    "train.keep_checkpoints": _COUNT,
    "designer.max_changes": _COUNT,
    "designer.every": _COUNT,
    "designer.capacity": _COUNT,
    "designer.judged_share": _SHARE_ABOVE_0,
    "designer.gate_queries": _COUNT_OR_0,
    "designer.gate_margin": _SHARE,
    "designer.reflection_rounds": Range(0, 1000, "low"),
    "designer.max_attempts": Range(0, 1000, "low"),
    "designer.max_cycles": _COUNT_OR_0,
    "designer.patience": _COUNT,
    "designer.f1_threshold": _SHARE,
    "designer.case_max_age": _COUNT_OR_0,
    "designer.case_capacity": _COUNT,
    "designer.clusters": _COUNT,
    "designer.per_cluster": _COUNT,
    "designer.max_cases": _COUNT,
    "designer.memories_per_case": _COUNT_OR_0,
    **{f"{part}.chunk_size": Range(0, _TOKENS, "low") for part in ("train", "eval")},
    **{f"{part}.chunk_overlap": Range(0, _TOKENS) for part in ("train", "eval")},
    **{f"{part}.max_spans": _COUNT_OR_0 for part in ("train", "eval")},
    "eval.num_skills": _COUNT,
    "eval.num_memories": _COUNT_OR_0,
    "eval.context_tokens": Range(0, _TOKENS),
    "eval.bootstrap": Range(0, _MANY, "low"),
    "limits.max_skipped": _SHARE,
    "env.trajectories_min": _COUNT,
    "env.trajectories_max": _COUNT,
    "env.tasks_min": _COUNT,
    "env.tasks_max": _COUNT,
    "env.same_type": _SHARE,
    "env.temperature": Range(0, 100),
    "env.top_p": _SHARE_ABOVE_0,
    "env.steps": _COUNT,
    "env.workers": Range(0, 1000, "low"),
    "env.step_timeout": _SECONDS,
    "limits.concurrency": Range(0, 100_000, "low"),
    "limits.max_cost": Range(0, 1e9),
    "ray.workers": Range(0, 100_000),
    "ray.encoders": Range(0, 100_000),
}
"""The range of every setting that is a number. Upper ends keep a typing error from using up the machine."""
