"""``memskill export``, ``push`` and ``pull``: share what a run has learned."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from memskill_cli.cli import options as o
from memskill_cli.cli.console import Console, Debug, Json, Quiet, console, escape_markup
from memskill_cli.cli.resume_command import next_command
from memskill_cli.errors import RunError, UsageError
from memskill_cli.utils.registry import load_plugins

Target = Annotated[Path, typer.Argument(help="A new folder, or a new file that ends in .zip.", show_default=False)]
Folder = Annotated[Path, typer.Argument(help="The bundle's folder.", show_default=False)]
Repository = Annotated[str, typer.Argument(help="hf://OWNER/NAME on the Hugging Face Hub.", show_default=False)]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Upload without asking.")]


def export(
    ctx: typer.Context,
    target: Target,
    run: o.Run = None,
    runs_dir: o.RunsDir = Path("runs"),
    plugin: o.Plugin = None,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Write a bundle of a run's best stage: its skills, its controller, its settings and its scores.

    A bundle can be given to --run of eval and inspect-skills, and to --init-from of train. It has no optimizer, no hard
    cases and no conversations. A skill that a designer model wrote may repeat text of a conversation: read the skills.
    """
    with console(json, quiet, debug) as out:
        load_plugins(plugin, out.notice)
        from memskill_cli.app.bundles import bundle_of
        from memskill_cli.runs import bundle
        from memskill_cli.runs.run_dir import RunDir, find_run

        path = find_run(runs_dir, run, trained=True)
        if path is None:
            raise RunError(f"there is no trained run in {runs_dir}", hint="memskill train --dataset locomo")
        opened = RunDir.open(path)
        made = bundle_of(opened, out.notice)
        bundle.write(target, made)
        written = bundle.read(target)
        facts = {"bundle": str(target), "run": opened.name, "digest": written.digest, "files": sorted(made)}
        out.result(facts, *_shown(target, written.bank.names, written.digest))
        _show_designed(out, written)
        out.next_command(next_command(ctx, "eval", "--dataset", written.record["dataset"], "--run", str(target)))


def push(
    folder: Folder,
    repository: Repository,
    yes: Yes = False,
    plugin: o.Plugin = None,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Upload a bundle to the Hugging Face Hub. A repository that does not exist is made, as a private one.

    Skills that a designer model wrote are shown first, because they may repeat text of a conversation.
    """
    with console(json, quiet, debug) as out:
        load_plugins(plugin, out.notice)
        from memskill_cli.app.bundles import push
        from memskill_cli.runs import bundle

        found = bundle.read(folder)
        _show_designed(out, found)
        if not yes:
            if not sys.stdin.isatty():
                raise UsageError("push asks before it uploads, and there is no terminal", hint="add --yes")
            typer.confirm(f"Upload these {len(found.bank)} skills to {repository}?", abort=True, err=True)
        address = push(folder, repository)
        out.result({"pushed": repository, "address": address}, f"uploaded: [bold]{escape_markup(address)}[/bold]")


def pull(
    ctx: typer.Context,
    repository: Repository,
    target: Target,
    plugin: o.Plugin = None,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Download a bundle from the Hugging Face Hub and check its digests."""
    with console(json, quiet, debug) as out:
        load_plugins(plugin, out.notice)
        from memskill_cli.app.bundles import pull

        found = pull(repository, target)
        facts = {"bundle": str(target), "digest": found.digest, "skills": found.bank.names}
        out.result(facts, *_shown(target, found.bank.names, found.digest))
        out.next_command(next_command(ctx, "inspect-skills", "--run", str(target)))


def _shown(target: Path, names: Sequence[str], digest: str) -> list[str]:
    return [
        f"bundle: [bold]{escape_markup(str(target))}[/bold], digest {digest}",
        f"skills: {escape_markup(', '.join(names))}",
    ]


def _show_designed(out: Console, found: Any) -> None:
    """Show the skills that a designer model wrote, in full: a person must see whether they repeat private text."""
    designed = [skill for skill in found.bank.skills if skill.origin == "designer"]
    for skill in designed:
        out.notice(f"{skill.name}, written by a designer model: {skill.description}\n{skill.body}")
    if designed:
        out.warn(f"{len(designed)} skills were written by a designer model: read them before you share the bundle")
