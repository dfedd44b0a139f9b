"""The parts of ``memskill prepare`` for conversations of one's own."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from memskill_cli.cli.console import Console, escape_markup
from memskill_cli.cli.estimate_table import estimate_table
from memskill_cli.cli.options import access_of, option
from memskill_cli.cli.resume_command import current_command

if TYPE_CHECKING:
    from rich.console import RenderableType

    from memskill_cli.datasets.manifest import DatasetManifest
    from memskill_cli.datasets.own.options import ReadOptions
    from memskill_cli.datasets.prepare import PrepareProgress

OWN = "Conversations of your own"
Format = Annotated[
    str,
    option(
        "--format",
        panel=OWN,
        help="auto, messages, sharegpt, chatgpt, claude, claude-code, codex, langsmith, langfuse, locomo.",
    ),
]
Questions = Annotated[
    Path | None,
    option("--questions", panel=OWN, help="A JSON Lines file of questions; default: questions.jsonl in the folder."),
]
Roles = Annotated[
    list[str] | None,
    option("--roles", panel=OWN, help="The roles to keep, such as user,assistant,tool; default: user,assistant."),
]
SplitBy = Annotated[
    str,
    option("--split-by", panel=OWN, help="user, question or time; default: user, or question below five users."),
]
Redact = Annotated[
    bool,
    option("--redact", panel=OWN, help="Replace e-mail addresses, phone numbers, card numbers and keys."),
]
Check = Annotated[
    bool,
    option(
        "--check", panel=OWN, help="Read everything and write nothing: counts, oddities, and the cost of a training."
    ),
]
WriteQuestions = Annotated[
    int,
    option(
        "--write-questions",
        panel=OWN,
        help="Let the designer model write N questions for each user, for you to read and edit (0: none).",
    ),
]
Remove = Annotated[
    str | None,
    typer.Option(  # not from the environment, because it erases
        "--remove",
        rich_help_panel=OWN,
        help="Erase the prepared data of this name, and its cached replies and embeddings.",
    ),
]
BAR = 30
"""Characters of the longest bar of a histogram."""


def read_options(
    format: str, questions: Path | None, roles: list[str] | None, split_by: str, redact: bool
) -> ReadOptions:
    """The options of the command line. UsageError for invalid ones."""
    from memskill_cli.datasets.own.options import DEFAULT_ROLES, ReadOptions

    named = tuple(dict.fromkeys(role.strip() for text in roles or () for role in text.split(",") if role.strip()))
    return ReadOptions(
        format,
        questions.expanduser().absolute() if questions else None,
        named if roles else DEFAULT_ROLES,
        split_by,
        redact,
    )


def check_dataset(
    out: Console,
    dataset: str,
    source: str | None,
    sample: bool,
    options: ReadOptions,
    model: str | None,
    data_dir: Path,
    report: PrepareProgress,
) -> None:
    """Show what a source has, and what a training on it would cost."""
    from memskill_cli.app.own_data import check_dataset

    found = check_dataset(
        *(dataset, source, sample, options, model, data_dir, out.warn), lambda sessions: report("read", sessions, None)
    )
    out.result(found.facts, *_shown(found.facts))
    for note in found.notes:
        out.notice(note)
    out.notice("nothing was written")


def check_writing(dataset: str, data_dir: Path, number: int, force: bool) -> None:
    """Raise what can be known before anything is prepared or paid."""
    from memskill_cli.app.write_questions import check_writing

    check_writing(dataset, data_dir, number, force)


def write_questions(out: Console, ctx: typer.Context, dataset: str, data_dir: Path, manifest: DatasetManifest) -> None:
    """Let a model write questions about prepared conversations, and show how many were kept."""
    from memskill_cli.app.options import settings_of
    from memskill_cli.app.write_questions import write_questions
    from memskill_cli.datasets.base import prepare_command, source_flags
    from memskill_cli.utils import signals

    settings = settings_of(ctx.params, "train", out.warn)
    access, number = access_of(ctx.params, out.warn), ctx.params["write_questions"]
    out.set_resume_command(current_command())
    with out.progress("writing", None, "questions") as advance:
        work = write_questions(dataset, data_dir, number, settings, access, out.notice, advance)
        made = signals.run(work, out.notice)
    kept = made.kinds.total()
    facts = {"dataset": dataset, "path": str(made.path), "users": made.users, "questions": kept}
    out.result(
        facts | {"categories": dict(made.kinds), "dropped": dict(made.dropped)},
        f"{kept} questions about {made.users} users: [bold]{escape_markup(str(made.path))}[/bold]",
        f"kinds: {', '.join(f'{kind} {count}' for kind, count in made.kinds.most_common()) or 'none'}",
        f"not kept: {', '.join(f'{why} {count}' for why, count in made.dropped.most_common()) or 'none'}",
    )
    out.notice("read and edit them; what a later session says may contradict an answer")
    known = manifest.reading.get("flags", [])
    flags = [*source_flags(manifest.source), *known[2 if known[:1] == ["--questions"] else 0 :]]
    out.next_command(prepare_command(dataset, data_dir, *flags, "--questions", str(made.path), "--force"))


def remove_dataset(out: Console, name: str, data_dir: Path, runs_dir: Path, cache_dir: Path | None) -> None:
    """Erase a dataset, and say what is left of it."""
    from memskill_cli.app.own_data import remove
    from memskill_cli.app.runtime import ProviderAccess

    found = remove(name, data_dir, runs_dir, ProviderAccess(cache_dir=cache_dir))
    facts = {"removed": name, "erased": list(map(str, found.erased)), "runs": list(map(str, found.runs))}
    out.result(facts, *(f"erased: [bold]{escape_markup(str(path))}[/bold]" for path in found.erased))
    if found.runs:
        out.warn(f"runs with text of {name} are kept: {', '.join(path.name for path in found.runs)}")
        names = [path.name for path in found.runs]
        out.next_command(shlex.join(["memskill", "runs", "delete", *names, "--runs-dir", str(runs_dir)]))


def _shown(facts: dict[str, Any]) -> list[RenderableType]:
    from rich.text import Text

    title = (
        f"{facts['dataset']}: {facts['users']} users, {facts['sessions']} sessions, {facts['messages']} messages, "
        f"about {facts['tokens']:,} tokens; {facts['questions']} questions "
        f"({facts['questions_with_evidence']} with evidence)"
    )
    parts: list[RenderableType] = [Text(title, overflow="fold"), _histogram(facts["session_lengths"])]
    if facts["questions"]:
        parts.append(_counts(facts))
    return [*parts, estimate_table(facts["estimate"])]


def _histogram(rows: list[dict[str, Any]]) -> RenderableType:
    from rich.table import Table

    table = Table(title="length of sessions", title_justify="left")
    table.add_column("messages")
    table.add_column("sessions", justify="right")
    table.add_column("")
    most = max((row["sessions"] for row in rows), default=1) or 1
    for row in rows:
        table.add_row(row["messages"], str(row["sessions"]), "█" * -(-BAR * row["sessions"] // most))
    return table


def _counts(facts: dict[str, Any]) -> RenderableType:
    from rich.table import Table

    table = Table(title="questions", title_justify="left")
    table.add_column("split or category")
    table.add_column("questions", justify="right")
    for name, count in [*facts["splits"].items(), *facts["categories"].items()]:
        table.add_row(escape_markup(name), str(count))
    return table
