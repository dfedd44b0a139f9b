"""Every setting, as dataclasses with a docstring under each field.

The constants are those of the paper (see each section); a knob exists or it doesn't, so nothing here is looked up by
name with a fallback.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

JudgePrompt = Literal["category", "general"]
"""What the judge goes by: a category's own rule where it has one, or one prompt for all."""
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
    executor_max_tokens: int = 2048
    """Longest reply of the executor, in tokens."""
    answer_max_tokens: int = 32
    """Longest answer, in tokens (the paper: 32 on LoCoMo and for a command in ALFWorld, 512 elsewhere)."""
    judge_max_tokens: int = 1024
    """Longest verdict, in tokens."""
    designer_max_tokens: int = 4096
    """Longest reply of the designer, in tokens."""


@dataclass(frozen=True)
class EncodersConfig:
    """Text encoders: ``minilm``, ``contriever``, ``dpr``, ``dragon``, ``hashing``, a sentence-transformers name or
    folder, or ``litellm:<model>``; with ``@bfloat16`` behind it a transformer computes in half the bits."""

    state: str = "minilm"
    """Embeds spans and memories for the controller."""
    skill: str = ""
    """Embeds skill descriptions for the controller, perhaps in another width; "" is the state encoder."""
    retrieval: str = "minilm"
    """Embeds queries and memories when answering."""
    device: str = "auto"
    """``auto``, ``cpu`` or ``cuda``."""


@dataclass(frozen=True)
class MemoryConfig:
    """The memory bank of a trace."""

    num_memories: int = 20
    """Memories shown to the executor for a span, and to the answering model for a query."""
    pooling: Literal["mean", "softmax"] = "mean"
    """How the embeddings of retrieved memories become the second half of the controller's state."""
    retriever: str = "dense"
    """How the memories for a query are ranked: ``dense`` (cosine of embeddings), or one of a plug-in."""
    tau: float = 1.0
    """Temperature of ``fuse = "softmax"``."""
    parallel_spans: int = 1
    """Spans of a trace read at the same time, each from the memory before all of them, and merged in order. More is
    faster and costs quality: a span does not see what the others beside it have written."""
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
    new_skill_min_prob: float = 0.30
    """Total probability that skills new to the bank are raised to."""
    new_skill_epochs: int = 50
    """Inner epochs over which that exploration fades to nothing."""
    include_noop: bool = True
    """Whether the starting bank has the ``noop`` skill beside insert, update and delete."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where PPO updates it. On CUDA the last bits may differ from run to run. (Skills are always chosen on the CPU.)"""


@dataclass(frozen=True)
class RewardConfig:
    """What an episode is worth (section 5)."""

    kind: str = "f1"
    """How a query is scored while training: ``f1``, ``judge``, or a reward of a plug-in."""
    credit: str = "final-decay"
    """How an episode's reward is shared over its steps: ``final-decay`` (see the next two), or one of a plug-in."""
    final_share: float = 0.60
    """Part of the episode reward that goes to the last step."""
    decay: float = 0.9
    """Weights of the rest fall by this factor a step, backwards from the last."""
    process_reward_scale: float = 0.10
    """Process reward of an episode whose every step did what its skills are for."""
    process_penalty_scale: float = 0.05
    """Process penalty of an episode whose every action failed."""
    query_ratio: float = 1.0
    """Share of a trace's queries scored in one episode (stratified by category)."""


@dataclass(frozen=True)
class PPOConfig:
    """Proximal policy optimisation (section 6)."""

    gamma: float = 0.99
    """Discount."""
    gae_lambda: float = 0.95
    """GAE's lambda."""
    clip_coef: float = 0.2
    """Clip range of the probability ratio."""
    vf_coef: float = 0.5
    """Weight of the value loss."""
    ent_coef: float = 0.01
    """Weight of the entropy bonus."""
    learning_rate: float = 1e-4
    """Adam's step size."""
    clip_vloss: bool = False
    """Whether the value loss is clipped around the old values, by the same range."""
    minibatch_size: int = 32
    """Steps in a minibatch; 0 is the whole batch."""
    update_epochs: int = 4
    """Passes over a batch."""
    max_grad_norm: float = 0.5
    """Gradients are clipped to this norm."""
    target_kl: float = 0.02
    """An epoch whose mean approximate KL exceeds this is the last one; 0 never stops early."""


@dataclass(frozen=True)
class TrainConfig:
    """The closed loop: how traces are read and how often."""

    outer_epochs: int = 3
    """Stages: each is many inner epochs with the bank fixed."""
    inner_epochs: int = 20
    """Inner epochs (one batch of episodes and one PPO update) in a stage."""
    algorithm: str = "ppo"
    """How a batch of episodes updates the controller: ``ppo``, ``group-relative`` (no critic; its clipping, entropy and
    optimizer settings are those of ``ppo``), or an algorithm of a plug-in."""
    batch_size: int = 4
    """Episodes in an inner epoch."""
    span_mode: SpanMode = "full-session"
    """How a trace is cut into spans while training."""
    chunk_size: int = 512
    """Tokens (cl100k_base) of a fixed-length span."""
    chunk_overlap: int = 64
    """Tokens a fixed-length span shares with the one before."""
    num_skills: int = 3
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
    every: int = 1
    """Outer epochs from one designer cycle to the next: the length of a stage."""
    capacity: int = 30
    """Skills that the bank holds at most."""
    refine_only: bool = False
    """Whether the designer may only reword skills and never add one."""
    prefer_new_skills: bool = False
    """Whether analysis and reflection are told that a missing ability is better met by a new skill."""
    judged_share: float = 0.25
    """Last part of a stage's inner epochs whose mean reward judges it."""
    reflection_rounds: int = 3
    """Analysis and the reflections that improve it, together."""
    max_attempts: int = 3
    """How often a cycle that applies nothing is tried, each time told what was wrong."""
    max_cycles: int = 20
    """Designer cycles of a run at most."""
    patience: int = 5
    """Cycles in a row without a better stage before the run stops."""
    f1_threshold: float = 0.5
    """A query scored below this is a hard case (with a judge: below 1)."""
    case_max_age: int = 100
    """Inner epochs after which a hard case is forgotten."""
    case_capacity: int = 2000
    """Hard cases kept at most: the most recent, then the most failed."""
    clusters: int = 5
    """Clusters of questions that cases are chosen from."""
    per_cluster: int = 3
    """Cases chosen in each cluster."""
    max_cases: int = 15
    """Cases shown to the designer at most."""
    memories_per_case: int = 20
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
    num_skills: int = 7
    """Skills the controller picks for a span."""
    num_memories: int = 0
    """Memories retrieved while evaluating; 0 is as many as while training (``memory.num_memories``)."""
    judge: bool = True
    """Whether the judge model scores answers beside F1."""
    judge_prompt: JudgePrompt = "category"
    """``category``: the judge is told a category's own rule where there is one; ``general``: one prompt for all."""
    max_spans: int = 0
    """Read only so many spans of a trace (0: all). For demonstrations; said in every result that it was used."""
    context_tokens: int = 0
    """The answering model's window, prompt and reply together, for methods that fill it (0: as litellm knows it)."""
    bootstrap: int = 2000
    """Resamples of the 95 % confidence intervals."""


@dataclass(frozen=True)
class AlfworldConfig:
    """ALFWorld: what is read and how tasks are played (section 2 of the method); other datasets leave it alone.

    A span holds as many whole trajectories as fit ``train.chunk_size`` (``eval.chunk_size``) tokens.
    """

    trajectories_min: int = 40
    """Fewest expert trajectories of an episode (Batch A)."""
    trajectories_max: int = 60
    """Most of them; an evaluation reads so many for each task type."""
    tasks_min: int = 5
    """Fewest tasks played from the memory they left (Batch B)."""
    tasks_max: int = 8
    """Most of them (5 in the published runs)."""
    same_type: float = 1.0
    """Probability that A and B are of one task type (0.8 is the other published setting)."""
    memory: Literal["by-type", "all"] = "by-type"
    """What an evaluation reads: up to ``trajectories_max`` training trajectories for each task type into a memory of
    its own, or ``all`` of them into one memory (as published)."""
    temperature: float = 0.0
    """Sampling temperature of the acting model."""
    top_p: float = 1.0
    """Nucleus sampling of the acting model: the share of probability that it draws from."""
    inventory: bool = True
    """Whether the acting model is shown what it carries."""
    retrieval_query: Literal["goal", "observation"] = "goal"
    """What memory is asked with, once a task: its goal, or the first observation."""
    steps: int = 50
    """Commands a task may take."""
    workers: int = 8
    """Environment processes: as many tasks are played at once."""
    step_timeout: float = 60.0
    """Seconds an environment may take for one command before its process is replaced."""


@dataclass(frozen=True)
class LimitsConfig:
    """What a run may use."""

    concurrency: int = 16
    """Language model calls in flight."""
    max_cost: float = 0.0
    """US dollars this run (or this evaluation) may spend in all; 0 is no limit."""


@dataclass(frozen=True)
class RayConfig:
    """``engine = "ray"``: the cluster, and what is asked of it. Nothing here changes a result."""

    address: str = ""
    """Of a cluster (``HOST:PORT``, or ``auto`` for the one on this machine); "" is RAY_ADDRESS, or one started here."""
    workers: int = 0
    """Processes that read and ask traces, each many at a time; 0 is one for each of the cluster's CPUs."""
    encoders: int = 0
    """Processes that encode texts; 0 is one for each GPU, or for each node where there is none."""


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
    """Where episodes run: in this process, or on a Ray cluster with the same results."""
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
    alfworld: AlfworldConfig = field(default_factory=AlfworldConfig)
    limits: LimitsConfig = field(default_factory=LimitsConfig)
    ray: RayConfig = field(default_factory=RayConfig)
