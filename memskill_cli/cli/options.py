"""Options that several commands have, each declared once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from memskill_cli.app.runtime import ProviderAccess

MODEL, METHOD, LIMITS, WHERE = "Models", "Method", "Limits and hardware", "Settings and folders"


def option(*names: str, panel: str, help: str, env: str | None = None) -> Any:
    """A typer option that is also read from the environment variable ``MEMSKILL_<OPTION>``."""
    env = env or "MEMSKILL_" + names[0].split("/")[0].lstrip("-").replace("-", "_").upper()
    return typer.Option(*names, envvar=env, help=help, rich_help_panel=panel, show_envvar=False)


Dataset = Annotated[
    str, option("--dataset", "-d", panel=WHERE, help="locomo, longmemeval, hotpotqa, alfworld, or one of a plug-in.")
]
Run = Annotated[str | None, option("--run", panel=WHERE, help="The name of a run in --runs-dir.")]
RunsDir = Annotated[Path, option("--runs-dir", panel=WHERE, help="The folder of runs.")]
DataDir = Annotated[Path, option("--data-dir", panel=WHERE, help="The folder of prepared datasets.")]
CacheDir = Annotated[
    Path | None, option("--cache-dir", panel=WHERE, help="The folder of cached replies, embeddings and models.")
]
Preset = Annotated[str, option("--preset", panel=WHERE, help="default, demo or paper.")]
ConfigFile = Annotated[Path | None, option("--config", panel=WHERE, help="A TOML file of settings.")]
Set = Annotated[list[str] | None, option("--set", panel=WHERE, help="section.key=value, for any setting; repeatable.")]
Plugin = Annotated[
    list[Path] | None,
    option(
        "--plugin", panel=WHERE, help="A Python file that adds datasets, methods, …; its code is executed. Repeatable."
    ),
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
    typer.Option(
        "--api-key", help="An API key; repeatable. MEMSKILL_API_KEYS and --keys are safer.", rich_help_panel=MODEL
    ),
]
Keys = Annotated[
    Path | None, option("--keys", panel=MODEL, help="A TOML file with keys, providers and limits for each role.")
]
Encoder = Annotated[
    str | None,
    option(
        "--encoder", "--state-encoder", panel=MODEL, help="State encoder: minilm, a name of sentence-transformers, …"
    ),
]
Retriever = Annotated[
    str | None, option("--retriever", panel=MODEL, help="Retrieval encoder: minilm, contriever, dpr, dragon, …")
]
SpanMode = Annotated[
    str | None,
    option("--span-mode", panel=METHOD, help="turn, turn-pair, full-session, fixed-length or paragraph."),
]
ChunkSize = Annotated[int | None, option("--chunk-size", panel=METHOD, help="Tokens of a fixed-length span.")]
ChunkOverlap = Annotated[
    int | None,
    option("--chunk-overlap", panel=METHOD, help="Tokens that a fixed-length span shares with the previous one."),
]
TopK = Annotated[int | None, option("--top-k", "--num-skills", panel=METHOD, help="Number of skills for each span.")]
MemTopK = Annotated[
    int | None, option("--mem-top-k", "--num-memories", panel=METHOD, help="Number of memories to retrieve.")
]
Retrieval = Annotated[
    str | None, option("--retrieval", panel=METHOD, help="Ranking of what is retrieved: dense, lexical or hybrid.")
]
Seed = Annotated[int | None, option("--seed", panel=METHOD, help="The seed of all random choices.")]
Concurrency = Annotated[
    int | None, option("--concurrency", panel=LIMITS, help="Maximum number of parallel model calls.")
]
MaxCost = Annotated[
    float | None, option("--max-cost", panel=LIMITS, help="Maximum cost in US dollars; then exit with code 3.")
]
Engine = Annotated[
    str | None, option("--engine", panel=LIMITS, help="Where episodes run: local or ray. The results are the same.")
]
RayAddress = Annotated[
    str | None,
    option("--ray-address", panel=LIMITS, help="A Ray cluster: HOST:PORT or auto. By default one is started here."),
]
Reward = Annotated[
    str | None,
    option("--reward", panel=METHOD, help="How a query is scored in training: f1, judge, or one of a plug-in."),
]
Judge = Annotated[
    bool | None, option("--judge/--no-judge", panel=METHOD, help="Whether the judge also scores evaluations.")
]
OuterEpochs = Annotated[int | None, option("--outer-epochs", panel=METHOD, help="Number of outer epochs.")]
InnerEpochs = Annotated[
    int | None, option("--inner-epochs", panel=METHOD, help="Number of PPO updates in an outer epoch.")
]
BatchSize = Annotated[int | None, option("--batch-size", panel=METHOD, help="Episodes in an inner epoch.")]
Evolve = Annotated[
    bool | None, option("--evolve/--no-evolve", panel=METHOD, help="Whether the designer changes the skills.")
]
Tracker = Annotated[
    str | None,
    option("--tracker", panel=LIMITS, help="Where metrics go besides metrics.jsonl: none, tensorboard or wandb."),
]


def is_given(ctx: typer.Context, flag: str) -> bool:
    """Whether an option was given on the command line or in the environment."""
    source = ctx.get_parameter_source(flag)
    return source is not None and source.name != "DEFAULT"


def access_of(flags: dict[str, Any], warn: Callable[[str], None]) -> ProviderAccess:
    """Keys and cache folder from the parsed options. ``warn`` is called for keys that other users can see."""
    from memskill_cli.app.runtime import ProviderAccess
    from memskill_cli.llm.keys import key_file_warning
    from memskill_cli.utils.redaction import NO_KEY

    given = tuple(flags["api_key"] or ())
    if set(given) - {NO_KEY}:
        warn(
            "an API key on the command line can be seen in the shell's history and in the output of ps; "
            "better use MEMSKILL_API_KEYS or --keys FILE.toml"
        )
    if flags["keys"] and (seen := key_file_warning(flags["keys"])):
        warn(seen)
    return ProviderAccess(given, flags["keys"], flags["cache_dir"])
