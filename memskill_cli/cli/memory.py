"""``memskill memory``: the memory of an agent, by hand."""

from __future__ import annotations

import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from memskill_cli.cli import options as o
from memskill_cli.cli.console import Console, Debug, Json, Quiet, console
from memskill_cli.errors import DataError, UsageError
from memskill_cli.utils.registry import load_plugins

if TYPE_CHECKING:
    from memskill_cli.app.memory_service import MemoryRequest
    from memskill_cli.live.service import MemoryService

T = TypeVar("T")
WHAT = "What"
Folder = Annotated[Path, o.option("--memory", panel=WHAT, help="The folder of the memory.")]
User = Annotated[str, o.option("--user", "-u", panel=WHAT, help="Whose memory.")]
AnyUser = Annotated[str | None, o.option("--user", "-u", panel=WHAT, help="Whose memory; default: all users.")]
Id = Annotated[str, typer.Argument(help="The id of a memory, as list and search show it.", show_default=False)]
Skills = Annotated[
    str | None,
    o.option(
        "--skills", panel=o.METHOD, help="A run (its folder or name), a bundle, hf://OWNER/NAME, or the word seeds."
    ),
]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do it: it cannot be undone.", rich_help_panel=WHAT)]

memory = typer.Typer(
    help="The memory of your own agent, by hand: add, search, edit, erase.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


@memory.command()
def add(
    ctx: typer.Context,
    memory: Folder,
    user: User,
    text: Annotated[str | None, typer.Argument(help="What the user said.", show_default=False)] = None,
    messages: Annotated[
        Path | None, o.option("--messages", panel=WHAT, help="A JSON file with a list of messages; - is stdin.")
    ] = None,
    session: Annotated[str | None, o.option("--session", panel=WHAT, help="The session of the messages.")] = None,
    wait: Annotated[
        bool, typer.Option("--wait", help="Only store the messages; do not read them yet.", rich_help_panel=WHAT)
    ] = False,
    skills: Skills = None,
    runs_dir: o.RunsDir = Path("runs"),
    model: o.Model = None,
    api_base: o.ApiBase = None,
    api_key: o.ApiKey = None,
    keys: o.Keys = None,
    encoder: o.Encoder = None,
    retriever: o.Retriever = None,
    cache_dir: o.CacheDir = None,
    max_cost: o.MaxCost = None,
    set_: o.Set = None,
    plugin: o.Plugin = None,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Add a text or messages, read them, and show which memories changed. Creates the memory if there is none.

    Skills, model and encoders are remembered: later commands need not name them.
    """
    with console(json, quiet, debug) as out:
        given = _given(text, messages)

        async def work(service: MemoryService) -> dict[str, Any]:
            result = await service.add(given, user, session)
            rest = result if wait else await service.flush(user)
            changes = result.changes if wait else result.changes + rest.changes
            return {"user": user, "changes": changes, "pending": rest.pending}

        found = _run(out, ctx, work, create=True)
        _show_changes(out, found)


@memory.command()
def flush(
    ctx: typer.Context,
    memory: Folder,
    user: User,
    skip: Annotated[
        bool,
        typer.Option("--skip", help="Leave out spans for which the model's call fails.", rich_help_panel=WHAT),
    ] = False,
    skills: Skills = None,
    runs_dir: o.RunsDir = Path("runs"),
    model: o.Model = None,
    api_base: o.ApiBase = None,
    api_key: o.ApiKey = None,
    keys: o.Keys = None,
    cache_dir: o.CacheDir = None,
    max_cost: o.MaxCost = None,
    plugin: o.Plugin = None,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Read the messages of a user that wait."""
    with console(json, quiet, debug) as out:

        async def work(service: MemoryService) -> dict[str, Any]:
            result = await service.flush(user, skip)
            return {"user": user, "changes": result.changes, "pending": result.pending}

        _show_changes(out, _run(out, ctx, work))


@memory.command("list")
def list_(
    ctx: typer.Context,
    memory: Folder,
    user: AnyUser = None,
    plugin: o.Plugin = None,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """List the memories of a user; without --user, the users."""
    with console(json, quiet, debug) as out:
        from memskill_cli.cli import memory_tables as tables

        if user is None:
            users = _run(out, ctx, lambda service: service.users())
            out.result({"users": users}, tables.users(users))
            return
        found = _run(out, ctx, lambda service: service.get_all(user))
        out.result({"user": user, "memories": found}, tables.memories(found))


@memory.command()
def search(
    ctx: typer.Context,
    query: Annotated[str, typer.Argument(help="What to search for.", show_default=False)],
    memory: Folder,
    user: User,
    limit: Annotated[int, o.option("--limit", panel=WHAT, help="Most memories to show.")] = 5,
    api_base: o.ApiBase = None,
    api_key: o.ApiKey = None,
    keys: o.Keys = None,
    cache_dir: o.CacheDir = None,
    plugin: o.Plugin = None,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Show the memories of a user that fit a query best."""
    with console(json, quiet, debug) as out:
        from memskill_cli.cli import memory_tables as tables

        found = _run(out, ctx, lambda service: service.search(query, user, limit))
        out.result({"user": user, "query": query, "memories": found}, tables.memories(found, scores=True))


@memory.command()
def show(
    ctx: typer.Context,
    memory_id: Id,
    memory: Folder,
    user: AnyUser = None,
    plugin: o.Plugin = None,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Show a memory with its history and the messages it was written from."""
    with console(json, quiet, debug) as out:
        from memskill_cli.cli import memory_tables as tables

        async def work(service: MemoryService) -> dict[str, Any]:
            history = await service.history(memory_id, user)
            return {"memory": await service.get(memory_id, user), "history": history}

        found = _run(out, ctx, work)
        out.result(found, *tables.one(memory_id, found["memory"], found["history"]))


@memory.command()
def edit(
    ctx: typer.Context,
    memory_id: Id,
    text: Annotated[str, typer.Argument(help="The new text.", show_default=False)],
    memory: Folder,
    user: User,
    api_base: o.ApiBase = None,
    api_key: o.ApiKey = None,
    keys: o.Keys = None,
    cache_dir: o.CacheDir = None,
    plugin: o.Plugin = None,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Replace the text of a memory. The old text stays in its history."""
    with console(json, quiet, debug) as out:
        from memskill_cli.cli import memory_tables as tables

        found = _run(out, ctx, lambda service: service.update(memory_id, text, None, user))
        out.result({"memory": found}, tables.memories([found]))


@memory.command()
def delete(
    ctx: typer.Context,
    memory: Folder,
    user: User,
    memory_ids: Annotated[list[str] | None, typer.Argument(help="Ids of memories.", show_default=False)] = None,
    all_: Annotated[
        bool, typer.Option("--all", help="All memories and messages of the user; needs --yes.", rich_help_panel=WHAT)
    ] = False,
    yes: Yes = False,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Erase memories, their history and the messages they were written from."""
    with console(json, quiet, debug) as out:
        ids = memory_ids or []
        if bool(ids) == all_:
            raise UsageError("give ids of memories, or --all", hint="memskill memory list shows ids")
        if all_:
            _check_yes(yes, f"erase all memories of {user}")

        async def work(service: MemoryService) -> int:
            if all_:
                return await service.delete_all(user)
            for memory_id in ids:
                await service.delete(memory_id, user)
            return len(ids)

        count = _run(out, ctx, work)
        out.result({"user": user, "erased": count}, f"{count} memories erased")


@memory.command()
def export(
    ctx: typer.Context,
    memory: Folder,
    user: User,
    file: Annotated[Path | None, typer.Argument(help="The file to write; default: stdout.", show_default=False)] = None,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Write all that is stored about a user, except vectors, as JSON."""
    with console(json, quiet, debug) as out:
        from memskill_cli.utils import files

        found = _run(out, ctx, lambda service: service.export(user))
        if file is None:
            out.json = True
            out.result(found)
            return
        files.write_json(file, found)
        count = len(found["memories"])
        out.result(
            {"user": user, "file": str(file), "memories": count}, _plain(f"{count} memories of {user} are in {file}")
        )


@memory.command("import")
def import_(
    ctx: typer.Context,
    file: Annotated[Path, typer.Argument(help="An export.", show_default=False)],
    memory: Folder,
    user: Annotated[
        str | None, o.option("--user", "-u", panel=WHAT, help="A user who has nothing yet; default: as in the file.")
    ] = None,
    encoder: o.Encoder = None,
    retriever: o.Retriever = None,
    api_base: o.ApiBase = None,
    api_key: o.ApiKey = None,
    keys: o.Keys = None,
    cache_dir: o.CacheDir = None,
    plugin: o.Plugin = None,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Store the export of a user, for the same user or for another one."""
    with console(json, quiet, debug) as out:
        data = _read_json(file)
        count = _run(out, ctx, lambda service: service.import_user(data, user), create=True)
        out.result({"memories": count}, f"{count} memories imported")


@memory.command()
def forget(
    ctx: typer.Context,
    memory: Folder,
    user: User,
    yes: Yes = False,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Erase everything about a user, also the id. Needs --yes."""
    with console(json, quiet, debug) as out:
        _check_yes(yes, f"erase everything about {user}")
        done = _run(out, ctx, lambda service: service.forget(user))
        out.result({"user": user, "forgotten": done}, _plain(f"{user} is forgotten" if done else f"no user {user}"))


@memory.command()
def stats(
    ctx: typer.Context,
    memory: Folder,
    user: AnyUser = None,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Count memories, messages, spans and bytes of a user; without --user: users, bytes and model calls."""
    with console(json, quiet, debug) as out:
        from memskill_cli.cli import memory_tables as tables

        found = _run(out, ctx, lambda service: service.stats(user))
        out.result(found, *tables.stats(found))


@memory.command()
def reindex(
    ctx: typer.Context,
    memory: Folder,
    encoder: o.Encoder = None,
    retriever: o.Retriever = None,
    api_base: o.ApiBase = None,
    api_key: o.ApiKey = None,
    keys: o.Keys = None,
    cache_dir: o.CacheDir = None,
    max_cost: o.MaxCost = None,
    plugin: o.Plugin = None,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Make all vectors anew with other encoders. Run it again if it was interrupted."""
    with console(json, quiet, debug) as out:
        load_plugins(plugin, out.notice)
        from memskill_cli.app.memory_service import reindex_store
        from memskill_cli.utils import signals

        with out.progress("encoding", None, "users") as advance:
            request = _request(ctx.params, out, create=False)
            work = reindex_store(request, lambda done, users: advance(total=users), out.notice)
            count = signals.run(work, out.notice)
        out.result({"memories": count}, f"{count} memories encoded")


def _run(
    out: Console, ctx: typer.Context, work: Callable[[MemoryService], Coroutine[Any, Any, T]], create: bool = False
) -> T:
    """Open the memory that the options name, and do ``work``. Messages that wait are not read at the end."""
    load_plugins(ctx.params.get("plugin"), out.notice)
    from memskill_cli.app.memory_service import open_service
    from memskill_cli.utils import signals

    request = _request(ctx.params, out, create)

    async def whole() -> T:
        async with open_service(request, out.notice, out.notice) as service:
            return await work(service)

    return signals.run(whole(), out.notice)


def _request(flags: dict[str, Any], out: Console, create: bool) -> MemoryRequest:
    from memskill_cli.app.memory_service import MemoryRequest

    every = {"api_key": None, "keys": None, "cache_dir": None, **flags}
    options = {name: value for name, value in flags.items() if name in _SETTINGS}
    runs = flags.get("runs_dir", Path("runs"))
    return MemoryRequest(flags["memory"], options, o.access_of(every, out.warn), flags.get("skills"), runs, create)


_SETTINGS = ("model", "api_base", "encoder", "retriever", "max_cost", "set_")


def _given(text: str | None, messages: Path | None) -> object:
    if (text is None) == (messages is None):
        raise UsageError("give a text, or --messages FILE")
    return text if messages is None else _read_json(messages)


def _read_json(file: Path) -> object:
    import orjson

    try:
        data = sys.stdin.buffer.read() if str(file) == "-" else file.read_bytes()
        return orjson.loads(data)
    except OSError as error:
        raise DataError(f"{file}: {error.strerror}") from None
    except orjson.JSONDecodeError as error:
        raise DataError(f"{file}:{error.lineno}: not JSON: {error.msg}") from None


def _check_yes(yes: bool, what: str) -> None:
    if not yes:
        raise UsageError(f"this would {what}", hint="add --yes if that is what you want; it cannot be undone")


def _show_changes(out: Console, found: dict[str, Any]) -> None:
    from memskill_cli.cli import memory_tables as tables

    out.result(found, *tables.changes(found["changes"], found["pending"]))


def _plain(text: str) -> str:
    from memskill_cli.cli.console import escape_markup

    return escape_markup(text)
