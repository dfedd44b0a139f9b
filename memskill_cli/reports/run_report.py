"""``report.html`` of a run: training metrics, evolution of the skill bank, evaluations and costs."""

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
from memskill_cli.evaluation.kinds import kind_for_report
from memskill_cli.reports import charts, costs, downsampling, page, run_charts, svg
from memskill_cli.reports.charts import Node
from memskill_cli.reports.downsampling import Bucket, Rows
from memskill_cli.reports.run_files import Files, count, counts, get_dict, get_str, number
from memskill_cli.runs.run_dir import UNTRAINED, true_status
from memskill_cli.skills import stages
from memskill_cli.skills.bank import SkillBank
from memskill_cli.skills.diff import SkillChange, diff_banks
from memskill_cli.skills.skill import Skill
from memskill_cli.skills.stages import Stage

NOT_YET = ("metrics.jsonl is missing", "usage.jsonl is missing")
"""Notes that are normal for a new run, so they are not shown."""


@dataclass(frozen=True)
class StageView:
    """A stage in the lineage. ``epochs``: number of its inner epochs."""

    stage: Stage
    outcome: str
    epochs: int
    summary: str
    changes: list[SkillChange]


def write_run_report(run: Path) -> Path:
    """Write ``report.html`` to the run's folder, from the files there. Returns its path.

    Raises OSError if it cannot be written.
    """
    files = Files(run)
    rows, settings = list(files.rows("metrics.jsonl")), files.settings()
    manifest, known = files.table("run.json"), _stages(files)
    status = true_status(run, get_str(manifest, "status"))
    lineage = [_view(stage, known, rows) for stage in known]
    facts = {
        "run": run.name,
        "manifest": manifest | ({"status": status} if status else {}),
        "config": files.text("config.toml"),
        "earned": _reward_text(get_str(manifest, "dataset"), settings),
        "rows": rows,
        "planned": _planned(settings),
        "headline": _headline(rows, lineage, status),
        "curves": run_charts.draw_run_charts(rows, [view.stage for view in lineage], settings),
        "bank": _bank(files),
        "lineage": lineage,
        "tree": _tree(lineage),
        "champion": next((view for view in reversed(lineage) if view.stage.is_best), None),
        "unjudged": any(not view.stage.judged for view in lineage),
        "rejected": _rejected(rows),
        "costs": _costs(costs.sum_costs(files.rows("usage.jsonl"))),
        "evaluations": _evaluations(run / "evals"),
        "seconds": sum(number(row, "seconds") or 0.0 for row in rows),
    }
    begun = get_str(manifest, "status") in ("new", "running", UNTRAINED)
    notes = [note for note in files.notes if not (begun and note in NOT_YET)]
    return page.write(run / "report.html", "run.html.j2", notes=notes, **facts)


def _reward_text(dataset: str, settings: dict[str, Any]) -> str:
    """The definition of an episode's reward, for display."""
    return kind_for_report(dataset).describe_reward(get_str(get_dict(settings, "reward"), "kind") or "f1")


def _planned(settings: dict[str, Any]) -> str:
    train = get_dict(settings, "train")
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
        get_str(stage.change, "summary"),
        diff_banks(parent.bank, stage.bank) if parent else [],
    )


def _headline(rows: Rows, lineage: Sequence[StageView], status: str) -> str:
    """A summary of the run in one or two sentences."""
    if status == UNTRAINED:
        return "This run has no training: it contains evaluations without a trained run."
    rewards = [value for row in rows if (value := number(row, "episode_reward_mean")) is not None]
    if not rewards:
        return "No inner epoch is complete yet."
    if len(rewards) == 1:
        text = f"One inner epoch so far, with a reward of {page.score(rewards[0])}."
    else:
        first, last = page.score(rewards[0]), page.score(rewards[-1])
        text = f"Reward {first} in the first inner epoch, {last} in the last of {len(rewards):,}."
    best = next((view for view in reversed(lineage) if view.stage.is_best), None)
    if best is None:
        return f"{text} No stage has been judged yet."
    reverted = sum(view.outcome == "rolled back" for view in lineage)
    back = f"; {reverted} change{'s' * (reverted > 1)} rolled back" if reverted else ""
    return f"{text} The best stage is {best.stage.number}, with {page.score(best.stage.reward)}{back}."


def _rejected(rows: Rows) -> dict[str, Any]:
    """Numbers of the executor's actions and of the rejected ones by reason, and of unreadable replies."""
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
    values = ", ".join(f"stage {n.number} {page.score(n.reward)} {n.outcome}" for n in nodes[:30])
    title = f"Stages and their rewards, each connected to its parent stage: {values}"
    return svg.responsive(partial(charts.lineage, title, nodes, show=lambda value: f"{100 * value:g}"))


def _costs(bills: costs.Costs) -> dict[str, Any]:
    return {
        "total": costs.total(bills),
        "by_role": costs.grouped_by(bills, "role", "model", scope="train"),
        "by_key": {key: bill for key, bill in costs.grouped_by(bills, "key").items() if key != ("",)},
        "by_scope": costs.grouped_by(bills, "scope"),
    }


def _evaluations(folder: Path) -> list[dict[str, Any]]:
    """Every evaluation with a summary, and the relative link to its report ("" if there is none)."""
    found = []
    for file in sorted(folder.glob("*/summary.json")):
        summary, report = Files(file.parent).table(file.name), file.parent / "report.html"
        found.append(
            {
                "name": file.parent.name,
                "link": f"evals/{quote(file.parent.name)}/report.html" if report.exists() else "",
                "checkpoint": get_str(summary, "checkpoint"),
                "queries": count(summary, "queries"),
                "f1": number(summary, "f1"),
                "judge": number(summary, "judge"),
                "success": number(summary, "success_rate"),
                "errors": sum(counts(summary, "errors").values()),
            }
        )
    return found
