"""Options that several commands share, each declared once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from memskill_cli.app.runtime import Access
    from memskill_cli.config import Config

MODEL, METHOD, LIMITS, WHERE = "Models", "Method", "Limits and machine", "Settings and places"


def option(*names: str, panel: str, help: str, env: str | None = None) -> Any:
    """A typer option that also reads ``MEMSKILL_<OPTION>``."""
    env = env or "MEMSKILL_" + names[0].split("/")[0].lstrip("-").replace("-", "_").upper()
    return typer.Option(*names, envvar=env, help=help, rich_help_panel=panel, show_envvar=False)


Dataset = Annotated[str, option("--dataset", "-d", panel=WHERE, help="locomo, longmemeval, hotpotqa or alfworld.")]
Run = Annotated[str | None, option("--run", panel=WHERE, help="A run's name under --runs-dir.")]
RunsDir = Annotated[Path, option("--runs-dir", panel=WHERE, help="Where runs live.")]
DataDir = Annotated[Path, option("--data-dir", panel=WHERE, help="Where prepared benchmarks live.")]
CacheDir = Annotated[
    Path | None, option("--cache-dir", panel=WHERE, help="Where replies, embeddings and models are kept for reuse.")
]
Preset = Annotated[str, option("--preset", panel=WHERE, help="default, demo or paper.")]
ConfigFile = Annotated[Path | None, option("--config", panel=WHERE, help="A TOML file of settings.")]
Set = Annotated[list[str] | None, option("--set", panel=WHERE, help="section.key=value, for any setting; repeatable.")]
Model = Annotated[
    str | None,
    option("--model", panel=MODEL, help="A litellm model name or [bold]embedded[/bold], for all four roles."),
]
JudgeModel = Annotated[str | None, option("--judge-model", panel=MODEL, help="Another model for the judge.")]
DesignerModel = Annotated[str | None, option("--designer-model", panel=MODEL, help="Another model for the designer.")]
ApiBase = Annotated[str | None, option("--api-base", panel=MODEL, help="URL of an OpenAI-compatible server.")]
ApiKey = Annotated[
    list[str] | None,
    typer.Option("--api-key", help="A key; repeatable. Better: MEMSKILL_API_KEYS or --keys.", rich_help_panel=MODEL),
]
Keys = Annotated[Path | None, option("--keys", panel=MODEL, help="TOML with keys, providers and limits per role.")]
Encoder = Annotated[
    str | None,
    option("--encoder", panel=MODEL, help="State encoder: minilm, a sentence-transformers name…"),
]
Retriever = Annotated[
    str | None, option("--retriever", panel=MODEL, help="Retrieval encoder; also contriever, dpr, dragon.")
]
SpanMode = Annotated[
    str | None,
    option("--span-mode", panel=METHOD, help="turn, turn-pair, full-session, fixed-length or paragraph."),
]
ChunkSize = Annotated[int | None, option("--chunk-size", panel=METHOD, help="Tokens of a fixed-length span.")]
ChunkOverlap = Annotated[int | None, option("--chunk-overlap", panel=METHOD, help="Tokens shared with the one before.")]
TopK = Annotated[int | None, option("--top-k", panel=METHOD, help="Skills picked for a span.")]
MemTopK = Annotated[int | None, option("--mem-top-k", panel=METHOD, help="Memories retrieved.")]
Seed = Annotated[int | None, option("--seed", panel=METHOD, help="Everything random comes from this.")]
Concurrency = Annotated[int | None, option("--concurrency", panel=LIMITS, help="Model calls in flight.")]
MaxCost = Annotated[float | None, option("--max-cost", panel=LIMITS, help="US dollars to spend at most; then exit 3.")]
Engine = Annotated[
    str | None, option("--engine", panel=LIMITS, help="Where episodes run: local, or ray with the same results.")
]
RayAddress = Annotated[
    str | None, option("--ray-address", panel=LIMITS, help="A Ray cluster, HOST:PORT or auto; else one is started.")
]
Reward = Annotated[str | None, option("--reward", panel=METHOD, help="Score of a query while training: f1 or judge.")]
Judge = Annotated[
    bool | None, option("--judge/--no-judge", panel=METHOD, help="Whether evaluation asks the judge beside F1.")
]
OuterEpochs = Annotated[int | None, option("--outer-epochs", panel=METHOD, help="Stages of the training.")]
InnerEpochs = Annotated[int | None, option("--inner-epochs", panel=METHOD, help="PPO updates in a stage.")]
BatchSize = Annotated[int | None, option("--batch-size", panel=METHOD, help="Episodes in an inner epoch.")]
Evolve = Annotated[bool | None, option("--evolve/--no-evolve", panel=METHOD, help="Whether the designer may act.")]
Tracker = Annotated[
    str | None, option("--tracker", panel=LIMITS, help="Metrics beside metrics.jsonl: none, tensorboard or wandb.")
]

SETTINGS = {
    "judge_model": "models.judge",
    "designer_model": "models.designer",
    "api_base": "models.api_base",
    "encoder": "encoders.state",
    "retriever": "encoders.retrieval",
    "span_mode": "{section}.span_mode",
    "chunk_size": "{section}.chunk_size",
    "chunk_overlap": "{section}.chunk_overlap",
    "top_k": "{section}.top_k",
    "mem_top_k": "{memories}",
    "reward": "reward.kind",
    "judge": "eval.judge",
    "outer_epochs": "train.outer_epochs",
    "inner_epochs": "train.inner_epochs",
    "batch_size": "train.batch_size",
    "evolve": "train.evolve",
    "seed": "seed",
    "concurrency": "limits.concurrency",
    "max_cost": "limits.max_cost",
    "engine": "engine",
    "ray_address": "ray.address",
    "tracker": "tracker",
    "dataset": "dataset",
}
"""Which setting each flag is; ``{section}`` is the command's own (train or eval), so is the number of memories."""
MEMORIES = {"train": "memory.top_k", "eval": "eval.num_memories"}


def settings_of(flags: dict[str, Any], section: str, base: Config | None = None) -> Config:
    """The settings of a command from its parsed flags (typer's ``ctx.params``); ``base`` are a run's own.

    Raises UsageError for anything that is no setting or makes no sense.
    """
    from memskill_cli.config import load

    roles = {f"models.{role}": flags["model"] for role in ("executor", "answer", "judge", "designer")}
    named = {
        setting.format(section=section, memories=MEMORIES[section]): flags[flag]
        for flag, setting in SETTINGS.items()
        if flags.get(flag) is not None
    }
    return load(
        preset=flags["preset"],
        file=flags["config"],
        sets=flags["set_"] or (),
        overrides={**roles, **named},
        base=base,
    )


def access_of(flags: dict[str, Any], warn: Callable[[str], None]) -> Access:
    """Keys and caches from the parsed flags. ``warn`` is told of keys that others can see."""
    from memskill_cli.app.runtime import Access
    from memskill_cli.llm.keys import exposure
    from memskill_cli.utils.redaction import NO_KEY

    given = tuple(flags["api_key"] or ())
    if set(given) - {NO_KEY}:
        warn(
            "a key on the command line stays in the shell's history and in what ps shows; "
            "better: MEMSKILL_API_KEYS or --keys FILE.toml"
        )
    if flags["keys"] and (seen := exposure(flags["keys"])):
        warn(seen)
    return Access(given, flags["keys"], flags["cache_dir"])
