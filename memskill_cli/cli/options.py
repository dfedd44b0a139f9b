"""Options that several commands share, each declared once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from memskill_cli.app.runtime import ProviderAccess

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
Plugin = Annotated[
    list[Path] | None,
    option("--plugin", panel=WHERE, help="A Python file that adds datasets, methods, rewards…; it is run. Repeatable."),
]
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
    option("--encoder", "--state-encoder", panel=MODEL, help="State encoder: minilm, a sentence-transformers name…"),
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
TopK = Annotated[int | None, option("--top-k", "--num-skills", panel=METHOD, help="Skills picked for a span.")]
MemTopK = Annotated[int | None, option("--mem-top-k", "--num-memories", panel=METHOD, help="Memories retrieved.")]
Seed = Annotated[int | None, option("--seed", panel=METHOD, help="Everything random comes from this.")]
Concurrency = Annotated[int | None, option("--concurrency", panel=LIMITS, help="Model calls in flight.")]
MaxCost = Annotated[float | None, option("--max-cost", panel=LIMITS, help="US dollars to spend at most; then exit 3.")]
Engine = Annotated[
    str | None, option("--engine", panel=LIMITS, help="Where episodes run: local, or ray with the same results.")
]
RayAddress = Annotated[
    str | None, option("--ray-address", panel=LIMITS, help="A Ray cluster, HOST:PORT or auto; else one is started.")
]
Reward = Annotated[
    str | None,
    option("--reward", panel=METHOD, help="Score of a query while training: f1, judge, or one of a plug-in."),
]
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


def is_given(ctx: typer.Context, flag: str) -> bool:
    """Whether a flag was typed or stands in the environment."""
    source = ctx.get_parameter_source(flag)
    return source is not None and source.name != "DEFAULT"


def access_of(flags: dict[str, Any], warn: Callable[[str], None]) -> ProviderAccess:
    """Keys and caches from the parsed flags. ``warn`` is told of keys that others can see."""
    from memskill_cli.app.runtime import ProviderAccess
    from memskill_cli.llm.keys import key_file_warning
    from memskill_cli.utils.redaction import NO_KEY

    given = tuple(flags["api_key"] or ())
    if set(given) - {NO_KEY}:
        warn(
            "a key on the command line stays in the shell's history and in what ps shows; "
            "better: MEMSKILL_API_KEYS or --keys FILE.toml"
        )
    if flags["keys"] and (seen := key_file_warning(flags["keys"])):
        warn(seen)
    return ProviderAccess(given, flags["keys"], flags["cache_dir"])
