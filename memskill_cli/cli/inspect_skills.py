"""``memskill inspect-skills``: show the bank, one skill, all stages or a diff, or export the bank as SKILL.md files."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from memskill_cli.cli import options
from memskill_cli.cli.console import Console, Debug, Json, Quiet, console, escape_markup, percent
from memskill_cli.cli.resume_command import next_command, repeated
from memskill_cli.errors import RunError, UsageError
from memskill_cli.utils.registry import load_plugins

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.text import Text

    from memskill_cli.skills.bank import SkillBank
    from memskill_cli.skills.diff import SkillChange
    from memskill_cli.skills.skill import Skill
    from memskill_cli.skills.stages import Stage

VIEW = "What to show"


def inspect_skills(
    ctx: typer.Context,
    name: Annotated[str | None, typer.Argument(help="Show this skill in full.", show_default=False)] = None,
    run: options.Run = None,
    stage: Annotated[int | None, options.option("--stage", panel=VIEW, help="Show the bank of this stage.")] = None,
    history: Annotated[
        bool, options.option("--history", panel=VIEW, help="Show all stages, with the reward of each.")
    ] = False,
    diff: Annotated[
        tuple[int, int] | None, options.option("--diff", panel=VIEW, help="Show what changed between two stages.")
    ] = None,
    export: Annotated[
        Path | None, options.option("--export", panel=VIEW, help="Write the skills as SKILL.md files into this folder.")
    ] = None,
    runs_dir: options.RunsDir = Path("runs"),
    plugin: options.Plugin = None,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Show the skill bank of a run: the skills, how often each was used, and how they changed."""
    with console(json, quiet, debug) as out:
        load_plugins(plugin, out.notice)
        from memskill_cli.app.bundles import run_of
        from memskill_cli.runs.run_dir import find_run

        if sum((name is not None, history, diff is not None, export is not None)) > 1:
            raise UsageError("only one of a skill's name, --history, --diff and --export can be given")
        if stage is not None and (history or diff):
            raise UsageError("--stage cannot be combined with --history or --diff")
        found = find_run(runs_dir, run_of(runs_dir, run, Path("data"), out.notice) if run else None)
        if history or diff:
            folder = _needed(found, runs_dir)
            _show_history(out, folder) if diff is None else _show_diff(out, folder, *diff)
            return
        shown = _load(out, found, runs_dir, stage)
        if export is not None:
            _export(out, shown, export)
        elif name is not None:
            _show_skill(out, shown, shown.bank[name])
        else:
            _show_bank(out, shown, ctx)


class _Shown(NamedTuple):
    bank: SkillBank
    run: str | None
    status: str | None = None

    def facts(self) -> dict[str, Any]:
        return {"run": self.run, "status": self.status, "source": "run" if self.run else "seeds"}


def _needed(run: Path | None, runs_dir: Path) -> Path:
    if run is None:
        raise RunError(f"there is no run in {runs_dir} yet, so no stages", hint="memskill train --dataset locomo")
    return run


def _load(out: Console, run: Path | None, runs_dir: Path, stage: int | None) -> _Shown:
    from memskill_cli.skills.bank import SkillBank
    from memskill_cli.skills.seeds import seed_bank

    if stage is not None:
        folder = _needed(run, runs_dir)
        return _Shown(_stages(folder, stage)[0].bank, folder.name, _status(folder))
    if run is None:
        out.notice(f"there is no run in {runs_dir} yet: showing the seed skills, which training starts from")
        return _Shown(seed_bank(), None)
    return _Shown(SkillBank.load(run / "skill_bank.json"), run.name, _status(run))


def _status(run: Path) -> str | None:
    """The run's status; None if its manifest is damaged, because its skills can be shown even so."""
    from memskill_cli.runs.run_dir import RunDir

    with suppress(RunError):
        return RunDir(run).status
    return None


def _stages(run: Path, *numbers: int) -> list[Stage]:
    """The stages with these numbers; all stages if no number is given. RunError for a number without a stage."""
    from memskill_cli.skills.stages import read_all

    stages = {stage.number: stage for stage in read_all(run / "stages")}
    for number in numbers:
        if number not in stages:
            known = ", ".join(map(str, stages)) or "none yet"
            raise RunError(f"run {run.name} has no stage {number}", hint=f"its stages: {known}")
    return [stages[number] for number in numbers] if numbers else list(stages.values())


def _lineage(stages: list[Stage]) -> list[tuple[Stage, dict[str, list[str]]]]:
    """Each stage with the names of the skills that it added, refined and removed, compared with its parent."""
    from memskill_cli.skills.diff import changes_by_kind

    banks = {stage.number: stage.bank for stage in stages}
    parents = [stage.number if stage.parent is None else stage.parent for stage in stages]
    return [
        (stage, changes_by_kind(banks.get(parent, stage.bank), stage.bank))
        for stage, parent in zip(stages, parents, strict=True)
    ]


def _summary(stage: Stage) -> str:
    return str(stage.change.get("summary", ""))


def _text(text: str, style: str = "") -> Text:
    """Text from a model or a file; markup and escape codes in it are shown and have no effect."""
    from rich.text import Text

    return Text.from_markup(escape_markup(text), emoji=False, style=style)


def _show_bank(out: Console, shown: _Shown, ctx: typer.Context) -> None:
    from rich.table import Table

    bank = shown.bank
    title = f"{shown.run or 'seed skills'} · stage {bank.stage} · {len(bank)} of at most {bank.capacity} skills"
    title += f" · {shown.status}" if shown.status else ""
    table = Table(title=_text(title), title_justify="left", title_style="bold")
    for header in ("name", "action", "origin"):
        table.add_column(header, no_wrap=header == "action")
    table.add_column("uses", justify="right")
    table.add_column("mean reward", justify="right")
    table.add_column("description", ratio=1)
    for skill in bank.skills:
        label = _text(skill.name, "bold").append(" new" if skill.name in bank.new else "", "green")
        reward = percent(skill.stats.mean_reward if skill.stats.uses else None)
        table.add_row(label, skill.action.value, skill.origin, str(skill.stats.uses), reward, _text(skill.description))
    out.result({**shown.facts(), **bank.to_dict()}, table)
    first = max(bank.skills, key=lambda skill: (skill.stats.uses, skill.action.value == "insert"))
    out.next_command(next_command(ctx, "inspect-skills", first.name, *repeated(ctx, "run", "stage")))


def _show_skill(out: Console, shown: _Shown, skill: Skill) -> None:
    data = next(item for item in shown.bank.to_dict()["skills"] if item["name"] == skill.name)
    out.result({**shown.facts(), **data, "new": skill.name in shown.bank.new}, *_sheet(shown, skill))


def _sheet(shown: _Shown, skill: Skill) -> Iterator[RenderableType]:
    stats = skill.stats
    yield _text(skill.name, "bold").append(f"  {skill.action} · {skill.origin} · {shown.run or 'seed skills'}", "dim")
    yield _text(skill.description, "italic")
    yield _text(
        f"added in stage {skill.created_stage}, last changed in stage {skill.modified_stage} · used {stats.uses} times"
        f" · mean reward {percent(stats.mean_reward if stats.uses else None)} · recent usage {stats.usage_ema:.0%}",
        "dim",
    )
    yield ""
    for line in skill.body.splitlines():
        yield _text(line, "bold cyan" if line.startswith("#") else "")


def _export(out: Console, shown: _Shown, folder: Path) -> None:
    from memskill_cli.skills.markdown import export

    files = export(shown.bank, folder)
    out.result(
        {**shown.facts(), "exported": [str(file) for file in files]}, *(_text(f"wrote {file}") for file in files)
    )


def _show_history(out: Console, run: Path) -> None:
    """Show the stages as a tree: what changed in each, its reward, and whether it was kept."""
    from rich.tree import Tree

    rows = _lineage(_stages(run))
    root = Tree(_text(f"{run.name} · {len(rows)} stages", "bold"))
    branches: dict[int | None, Tree] = {}
    for stage, kinds in rows:
        parent = branches.get(stage.parent, root)
        branches[stage.number] = parent.add(_branch(stage, kinds))
    data = [{**_facts(stage), **kinds} for stage, kinds in rows]
    out.result({"run": run.name, "stages": data}, root)


def _branch(stage: Stage, kinds: dict[str, list[str]]) -> Text:
    label = _text(f"stage {stage.number}  {percent(stage.reward)}  ", "bold").append(*_outcome(stage))
    what = "; ".join(f"{kind} {', '.join(names)}" for kind, names in kinds.items() if names)
    gate = stage.gate.describe() if stage.gate else ""
    for line in filter(None, (what, gate, _summary(stage), stage.rationale)):
        label.append("\n").append_text(_text(line))
    return label


def _outcome(stage: Stage) -> tuple[str, str]:
    """The outcome of a stage, and the colour to show it in."""
    colours = {"best": "green", "not judged": "dim", "rolled back": "red"}
    return stage.outcome, colours.get(stage.outcome, "")


def _facts(stage: Stage) -> dict[str, Any]:
    return {
        "stage": stage.number,
        "parent": stage.parent,
        "reward": stage.reward,
        "is_best": stage.is_best,
        "kept": stage.kept,
        "gate": dataclasses.asdict(stage.gate) if stage.gate else None,
        "summary": _summary(stage),
        "rationale": stage.rationale,
        "skills": len(stage.bank),
    }


def _show_diff(out: Console, run: Path, old: int, new: int) -> None:
    from memskill_cli.skills.diff import diff_banks

    before, after = _stages(run, old, new)
    changes = diff_banks(before.bank, after.bank)
    data = [{"name": change.name, "change": change.kind, "diff": "\n".join(change.lines())} for change in changes]
    human = [part for change in changes for part in _diff(change)]
    nothing = _text(f"stages {old} and {new} of {run.name} have the same skills")
    out.result({"run": run.name, "from": old, "to": new, "changes": data}, *(human or [nothing]))


def _diff(change: SkillChange) -> Iterator[RenderableType]:
    yield _text(f"{change.name} ({change.kind})", "bold")
    for line in change.lines():
        style = {"+": "green", "-": "red", "@": "dim"}.get(line[:1], "")
        yield _text(f"  {line}", style)
    yield ""
