"""``memskill import``: make a run from a checkpoint of the published code."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from memskill_cli.cli import options as o
from memskill_cli.cli.console import Console, Debug, Json, Quiet, console, escape_markup
from memskill_cli.cli.resume_command import next_command
from memskill_cli.utils.registry import load_plugins

if TYPE_CHECKING:
    from memskill_cli.config import Config
    from memskill_cli.runs.release_checkpoint import ReleaseCheckpoint
    from memskill_cli.runs.release_settings import Taken
    from memskill_cli.runs.run_dir import RunDir
    from memskill_cli.skills.bank import SkillBank

IMPORT = "What to import"
File = Annotated[Path, typer.Argument(help="The checkpoint, a .pt file.", show_default=False)]
Run = Annotated[str, o.option("--run", panel=o.WHERE, help="The name of the new run.")]
Skills = Annotated[
    str | None,
    o.option(
        "--skills",
        panel=IMPORT,
        help="Use these skills, not the file's: a folder of Markdown files, a skill bank (JSON), or the word seeds.",
    ),
]
Dataset = Annotated[
    str | None, o.option("--dataset", "-d", panel=IMPORT, help="The dataset of the run; default: the checkpoint's.")
]


def import_(
    ctx: typer.Context,
    file: File,
    run: Run,
    skills: Skills = None,
    dataset: Dataset = None,
    set_: o.Set = None,
    plugin: o.Plugin = None,
    runs_dir: o.RunsDir = Path("runs"),
    data_dir: o.DataDir = Path("data"),
    model: o.Model = None,
    judge_model: o.JudgeModel = None,
    designer_model: o.DesignerModel = None,
    api_base: o.ApiBase = None,
    encoder: o.Encoder = None,
    retriever: o.Retriever = None,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Make a run from a checkpoint of the published code (MemSkill, arXiv 2602.02474). It can be evaluated at once.

    The controller, its optimizer, the skills with their statistics and the settings are imported. Code in the file is
    never executed: a separate process reads it and accepts only numbers, texts and collections of them.

    The language models are memskill's defaults, unless --model is given here or to memskill eval.
    """
    with console(json, quiet, debug) as out:
        load_plugins(plugin, out.notice)
        from memskill_cli.app.import_run import make_run, skills_of
        from memskill_cli.runs import release_checkpoint, release_settings

        found = release_checkpoint.read(file, out.notice)
        base = release_settings.take_over(
            found.values, found.names, dataset or release_settings.dataset_of(found.values), found.hidden
        )
        settings = _settings(ctx.params, found, base, out.notice)
        bank = skills_of(found, skills, settings, out.notice)
        made = make_run(runs_dir, run, found, bank, settings, data_dir, measured=skills is None)
        _tell(out, found, base)
        _show(out, made, found, bank, settings, base)
        named = [] if model else ["--model", "MODEL"]
        out.next_command(next_command(ctx, "eval", "--run", made.name, *named))


def _settings(flags: dict[str, Any], found: ReleaseCheckpoint, base: Taken, notice: Callable[[str], None]) -> Config:
    """The settings of the run: those of the checkpoint, changed by the options of the command."""
    from memskill_cli.app.import_run import with_trained_epochs
    from memskill_cli.app.options import settings_of
    from memskill_cli.memory.encoder_specs import resolve_encoder
    from memskill_cli.runs import release_settings

    sets = list(flags["set_"] or ())
    asked = {**flags, "preset": "default", "config": None, "dataset": base.settings.dataset}
    if not asked["encoder"]:
        asked["encoder"] = release_settings.state_encoder(found.values)
    elif (trained := found.values.get("state_encoder")) is not None:
        notice(f"the controller was trained with the encoder {trained}; {asked['encoder']} is used instead")
    if not any(text.startswith("encoders.skill=") for text in sets):
        sets.append(f"encoders.skill={release_settings.skill_encoder(found.values)}")
    settings = with_trained_epochs(found, base, settings_of({**asked, "set_": sets}, "eval", notice, base.settings))
    encoders = settings.encoders
    for spec in filter(None, (encoders.state, encoders.skill, encoders.retrieval)):
        resolve_encoder(spec, encoders.device, _never_called)
    release_settings.check_width(encoders.state, found.state_dim // 2, "states")
    release_settings.check_width(encoders.skill or encoders.state, found.skill_dim, "skills")
    return settings


def _never_called(model: str, texts: Any) -> Any:
    raise AssertionError("encoders are only checked here, not used")


def _tell(out: Console, found: ReleaseCheckpoint, base: Taken) -> None:
    """Notices about the checkpoint that matter for the results of the run."""
    if found.snapshot is not None and not found.snapshot["best"]:
        out.notice("the skills in the file are not those with the highest reward in its training")
    if trained := found.values.get("model"):
        out.notice(f"the checkpoint was trained with the model {trained}; choose a model with --model")
    if base.left:
        out.notice(f"settings that were not imported, because memskill does not have them: {', '.join(base.left)}")


def _show(out: Console, run: RunDir, found: ReleaseCheckpoint, bank: SkillBank, settings: Config, base: Taken) -> None:
    from rich.table import Table

    from memskill_cli.runs.release_settings import values_of

    taken = values_of(settings, base.taken)
    done = settings.train.outer_epochs * settings.train.inner_epochs
    facts = {
        "run": run.name,
        "folder": str(run.path),
        "file": str(found.file),
        "sha256": found.sha256,
        "dataset": settings.dataset,
        "checkpoint": str(run.checkpoints / f"{done:06d}"),
        "inner_epochs": done,
        "embedding_dim": found.state_dim // 2,
        "skill_dim": found.skill_dim,
        "hidden": found.hidden,
        "optimizer": bool(found.optimizer),
        "encoder": settings.encoders.state,
        "skill_encoder": settings.encoders.skill or settings.encoders.state,
        "retriever": settings.encoders.retrieval,
        "skills": list(bank.names),
        "new": sorted(bank.new),
        "taken_over": taken,
        "not_taken_over": list(base.left),
    }
    table = Table(title=f"run {escape_markup(run.name)}: imported settings", title_justify="left")
    for header in ("setting", "value"):
        table.add_column(header)
    for name, value in taken.items():
        table.add_row(name, escape_markup(str(value)))
    out.result(
        facts,
        table,
        f"{len(bank)} skills: {escape_markup(', '.join(bank.names))}",
        f"controller for {found.state_dim // 2}-d embeddings, checkpoint {done:06d}; "
        f"everything is in [bold]{escape_markup(str(run.path))}[/bold]",
    )
