"""``report.html`` of a run: how the controller learned, how the skill bank evolved, and what it all cost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

from markupsafe import Markup

from memskill_cli.errors import MemskillError
from memskill_cli.reports import charts, costs, downsampling, page, run_charts, svg
from memskill_cli.reports.charts import Node
from memskill_cli.reports.downsampling import Bucket, Rows
from memskill_cli.reports.run_files import Files, count, counts, inner, number, words
from memskill_cli.runs.run_dir import UNTRAINED, true_status
from memskill_cli.skills import stages
from memskill_cli.skills.bank import SkillBank
from memskill_cli.skills.diff import SkillChange, diff_banks
from memskill_cli.skills.skill import Skill
from memskill_cli.skills.stages import Stage

NOT_YET = ("metrics.jsonl is not there", "usage.jsonl is not there")
"""Nothing to worry about in a run that has only begun."""


@dataclass(frozen=True)
class StageView:
    """One stage as the lineage tells it."""

    stage: Stage
    outcome: str
    epochs: int
    summary: str
    changes: list[SkillChange]


def write_run_report(run: Path) -> Path:
    """Write ``report.html`` into the run's folder from the files there. Raises OSError if it cannot be written."""
    files = Files(run)
    rows, settings = list(files.rows("metrics.jsonl")), files.settings()
    manifest, known = files.table("run.json"), _stages(files)
    status = true_status(run, words(manifest, "status"))
    lineage = [_view(stage, known, rows) for stage in known]
    facts = {
        "run": run.name,
        "manifest": manifest | ({"status": status} if status else {}),
        "config": files.text("config.toml"),
        "earned": _earned(words(manifest, "dataset"), settings),
        "rows": rows,
        "planned": _planned(settings),
        "headline": _headline(rows, lineage, status),
        "curves": run_charts.drawn(rows, [view.stage for view in lineage], settings),
        "bank": _bank(files),
        "lineage": lineage,
        "tree": _tree(lineage),
        "champion": next((view for view in reversed(lineage) if view.stage.is_best), None),
        "unjudged": any(not view.stage.judged for view in lineage),
        "rejected": _rejected(rows),
        "costs": _costs(costs.added_up(files.rows("usage.jsonl"))),
        "evaluations": _evaluations(run / "evals"),
        "seconds": sum(number(row, "seconds") or 0.0 for row in rows),
    }
    begun = words(manifest, "status") in ("new", "running", UNTRAINED)
    notes = [note for note in files.notes if not (begun and note in NOT_YET)]
    return page.write(run / "report.html", "run.html.j2", notes=notes, **facts)


def _earned(dataset: str, settings: dict[str, Any]) -> str:
    """What an episode's reward is."""
    if dataset == "alfworld":
        return "What share of the games played after each episode was won"
    judged = words(inner(settings, "reward"), "kind") == "judge"
    return (
        f"What the questions asked after each episode earned ({'the verdict of the judge' if judged else 'token F1'})"
    )


def _planned(settings: dict[str, Any]) -> str:
    train = inner(settings, "train")
    planned = count(train, "outer_epochs") * count(train, "inner_epochs")
    return f"of {planned:,} planned" if planned else ""


def _bank(files: Files) -> tuple[Skill, ...]:
    """The run's skills, none if the file is missing or damaged."""
    if not (text := files.text("skill_bank.json")):
        return ()
    try:
        return SkillBank.from_json(text, "skill_bank.json").skills
    except MemskillError:
        files.notes.append("skill_bank.json is damaged and cannot be read")
        return ()


def _stages(files: Files) -> list[Stage]:
    found = []
    for file in sorted((files.folder / "stages").glob("stage-*.json")):
        try:
            found.append(stages.read(file))
        except MemskillError:
            files.notes.append(f"stages/{file.name} is damaged and left out")
    return found


def _view(stage: Stage, known: Sequence[Stage], rows: Rows) -> StageView:
    parent = next((other for other in known if other.number == stage.parent), None)
    return StageView(
        stage,
        stage.outcome,
        sum(downsampling.stage_of(row) == stage.number for row in rows),
        words(stage.change, "summary"),
        diff_banks(parent.bank, stage.bank) if parent else [],
    )


def _headline(rows: Rows, lineage: Sequence[StageView], status: str) -> str:
    """What came of it, in a sentence or two."""
    if status == UNTRAINED:
        return "Nothing is trained here: this run holds evaluations that needed no training."
    rewards = [value for row in rows if (value := number(row, "episode_reward_mean")) is not None]
    if not rewards:
        return "No inner epoch has ended yet."
    if len(rewards) == 1:
        told = f"One inner epoch so far, with a reward of {page.score(rewards[0])}."
    else:
        first, last = page.score(rewards[0]), page.score(rewards[-1])
        told = f"Reward {first} in the first inner epoch, {last} in the last of {len(rewards):,}."
    best = next((view for view in reversed(lineage) if view.stage.is_best), None)
    if best is None:
        return f"{told} No stage has been judged yet."
    lost = sum(view.outcome == "rolled back" for view in lineage)
    back = f"; {lost} change{'s' * (lost > 1)} rolled back" if lost else ""
    return f"{told} The best stage is {best.stage.number}, with {page.score(best.stage.reward)}{back}."


def _rejected(rows: Rows) -> dict[str, Any]:
    """Actions of the executor that were not obeyed, by reason, of how many; replies that could not be read."""
    whole = Bucket(1, len(rows), rows)
    reasons = whole.summed("rejected")
    applied = sum(whole.summed("actions").values())
    return {
        "reasons": [(reason.replace("_", " "), int(n)) for reason, n in Counter(reasons).most_common()],
        "total": int(sum(reasons.values())),
        "attempted": int(applied + sum(reasons.values())),
        "unreadable": int(sum(whole.values("unreadable_replies"))),
        "replies": int(sum(whole.values("steps"))),
    }


def _tree(lineage: Sequence[StageView]) -> Markup | None:
    nodes = [Node(v.stage.number, v.stage.parent, v.stage.reward, v.outcome) for v in lineage]
    if not any(node.reward is not None for node in nodes):
        return None
    told = ", ".join(f"stage {n.number} {page.score(n.reward)} {n.outcome}" for n in nodes[:30])
    title = f"Stages and their rewards, each tied to the one it was made from: {told}"
    return svg.responsive(partial(charts.lineage, title, nodes, show=lambda value: f"{100 * value:g}"))


def _costs(bills: costs.Costs) -> dict[str, Any]:
    return {
        "total": costs.total(bills),
        "by_role": costs.grouped_by(bills, "role", "model", scope="train"),
        "by_key": {key: bill for key, bill in costs.grouped_by(bills, "key").items() if key != ("",)},
        "by_scope": costs.grouped_by(bills, "scope"),
    }


def _evaluations(folder: Path) -> list[dict[str, Any]]:
    """Every evaluation with a summary, and where its report would be, from the run's own."""
    found = []
    for file in sorted(folder.glob("*/summary.json")):
        summary, report = Files(file.parent).table(file.name), file.parent / "report.html"
        found.append(
            {
                "name": file.parent.name,
                "link": f"evals/{quote(file.parent.name)}/report.html" if report.exists() else "",
                "checkpoint": words(summary, "checkpoint"),
                "queries": count(summary, "queries"),
                "f1": number(summary, "f1"),
                "judge": number(summary, "judge"),
                "success": number(summary, "success_rate"),
                "errors": sum(counts(summary, "errors").values()),
            }
        )
    return found
