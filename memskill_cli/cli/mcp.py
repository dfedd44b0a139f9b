"""``memskill mcp``: the memory of a user as an MCP server."""

from __future__ import annotations

import sys
from importlib import util
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from memskill_cli.cli import options as o
from memskill_cli.cli.console import Console, Debug, Json, Quiet, console
from memskill_cli.cli.memory import WHAT, Skills
from memskill_cli.errors import UsageError

if TYPE_CHECKING:
    from memskill_cli.app.memory import MemoryOptions

INSTALL = 'pip install "memskill[mcp]"'


def mcp(
    ctx: typer.Context,
    memory: Annotated[
        Path, o.option("--memory", panel=WHAT, help="The folder of the memory; created if it is missing.")
    ],
    user: Annotated[str, o.option("--user", "-u", panel=WHAT, help="Whose memory. Clients cannot name another user.")],
    http: Annotated[
        str | None,
        o.option("--http", panel=WHAT, help="HOST:PORT: serve streamable HTTP at /mcp. Default: stdin and stdout."),
    ] = None,
    token: Annotated[
        str | None,
        o.option(
            "--token",
            env="MEMSKILL_MCP_TOKEN",
            panel=WHAT,
            help="Clients of --http must send it; needed for an address that other machines reach. "
            "MEMSKILL_MCP_TOKEN is safer.",
        ),
    ] = None,
    allow_host: Annotated[
        list[str] | None,
        o.option("--allow-host", panel=WHAT, help="Another name that clients of --http use for it; repeatable."),
    ] = None,
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
    """Serve the memory of a user to MCP clients: over stdin and stdout, or with --http.

    One process at a time can have a memory open. Notices go to stderr; with --json, --http prints its URL on stdout.
    """
    with console(json, quiet, debug) as out:
        if util.find_spec("mcp") is None:
            raise UsageError("the MCP SDK is not installed", hint=INSTALL)
        if http is None:
            _check_streams(out)
        from memskill_cli.app.mcp_server import ServerRequest, serve
        from memskill_cli.utils import signals
        from memskill_cli.utils.redaction import remember

        def ready(url: str) -> None:
            out.notice(f"serving {url}; Ctrl-C ends it")
            if out.json:
                out.result({"url": url})

        if token:
            if _on_command_line(ctx, "token"):
                out.warn("a token on the command line can be seen in the output of ps; better use MEMSKILL_MCP_TOKEN")
            remember([token])
        request = ServerRequest(memory, user, _options(ctx.params, out), http, token or None, allow_host or ())
        signals.run(serve(request, ready), out.notice)


def _check_streams(out: Console) -> None:
    """Before an event loop runs: it would take the numbers of closed streams."""
    if sys.stdin is None or sys.stdout is None:
        raise UsageError("stdin or stdout is closed", hint="a client starts this command; or use --http HOST:PORT")
    if sys.stdin.isatty():
        out.notice("this command waits for an MCP client at stdin; Ctrl-C ends it (docs/mcp.md)")


def _on_command_line(ctx: typer.Context, flag: str) -> bool:
    source = ctx.get_parameter_source(flag)
    return source is not None and source.name == "COMMANDLINE"


def _options(flags: dict[str, Any], out: Console) -> MemoryOptions:
    o.access_of(flags, out.warn)  # warns of keys that others can see
    settings: dict[str, str] = {}
    for text in flags["set_"] or ():
        name, sign, value = text.partition("=")
        if not sign:
            raise UsageError("--set: expected section.key=value", hint="for example: --set memory.protect=false")
        settings[name.strip()] = value.strip()
    return {
        "skills": flags["skills"],
        "runs_dir": flags["runs_dir"],
        "model": flags["model"],
        "api_base": flags["api_base"],
        "api_key": flags["api_key"],
        "keys": flags["keys"],
        "encoder": flags["encoder"],
        "retriever": flags["retriever"],
        "cache_dir": flags["cache_dir"],
        "max_cost": flags["max_cost"],
        "settings": settings,
        "plugins": flags["plugin"] or (),
        "notice": out.notice,
    }
