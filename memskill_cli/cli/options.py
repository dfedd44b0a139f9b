"""Options that several commands share, each declared once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

MODEL, METHOD, LIMITS, WHERE = "Models", "Method", "Limits and machine", "Settings and places"


def option(*names: str, panel: str, help: str, env: str | None = None) -> Any:
    """A typer option that also reads ``MEMSKILL_<OPTION>``."""
    env = env or "MEMSKILL_" + names[0].split("/")[0].lstrip("-").replace("-", "_").upper()
    return typer.Option(*names, envvar=env, help=help, rich_help_panel=panel, show_envvar=False)


Dataset = Annotated[str, option("--dataset", "-d", panel=WHERE, help="The benchmark; this version has locomo.")]
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
Engine = Annotated[str | None, option("--engine", panel=LIMITS, help="local (ray: later).")]


def model_overrides(
    model: str | None, judge_model: str | None, designer_model: str | None, api_base: str | None
) -> dict[str, Any]:
    """Settings from the model flags: ``--model`` is all four roles, the others one each."""
    roles = {f"models.{role}": model for role in ("executor", "answer", "judge", "designer")}
    if judge_model:
        roles["models.judge"] = judge_model
    if designer_model:
        roles["models.designer"] = designer_model
    return {**roles, "models.api_base": api_base}
