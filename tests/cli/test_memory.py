"""``memskill memory`` as it is typed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from memskill_cli.cli.app import app
from memskill_cli.testing.server import MockLLMServer, Request

from ..conftest import Home
from ..live.harness import bytes_of, insert_lines

ENCODERS = ("--encoder", "hashing", "--retriever", "hashing")


def write(request: Request) -> str:
    return insert_lines(request.messages[-1]["content"])


@pytest.fixture
def server() -> Iterator[MockLLMServer]:
    with MockLLMServer(write) as running:
        yield running


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    return tmp_path


def typed(*arguments: str, code: int = 0, given: str = "") -> Any:
    """The result of a command in this process."""
    done = CliRunner().invoke(app, ["memory", *arguments], input=given)
    assert done.exit_code == code, done.output
    return done


def asked(*arguments: str, **more: Any) -> Any:
    return json.loads(typed(*arguments, "--json", **more).stdout)


def models(server: MockLLMServer) -> tuple[str, ...]:
    return ("--model", "openai/rules", "--api-base", server.url, "--api-key", "none", *ENCODERS)


def anna(command: str, *more: str) -> list[str]:
    return [command, "--memory", "mem", "--user", "anna", *more]


def test_a_memory_from_its_first_message_to_its_erasure(place: Path, server: MockLLMServer) -> None:
    added = asked(*anna("add", "I moved to Leeds.", "--session", "s1"), *models(server))
    assert added["changes"] == [{"id": "m1-1", "event": "insert", "text": "I moved to Leeds."}]
    file = place / "messages.json"
    file.write_text(json.dumps([{"role": "user", "name": "Anna", "content": "I have a cat called Bento."}]))
    # The model and the encoders are remembered; a key is not.
    more = asked(*anna("add", "--messages", str(file)), "--api-key", "none")
    assert [change["id"] for change in more["changes"]] == ["m1-2"]
    assert asked("list", "--memory", "mem") == {"users": ["anna"]}
    listed = asked(*anna("list"))
    assert [memory["text"] for memory in listed["memories"]] == ["I moved to Leeds.", "I have a cat called Bento."]
    found = asked(*anna("search", "cat", "--limit", "1"))["memories"]
    assert [(memory["id"], memory["sources"][0]["text"]) for memory in found] == [
        ("m1-2", "I have a cat called Bento.")
    ]
    assert asked(*anna("edit", "m1-1", "Anna lives in York."))["memory"]["text"] == "Anna lives in York."
    history = asked("show", "m1-1", "--memory", "mem")["history"]
    assert [(version["event"], version["by"]) for version in history] == [("insert", "reader"), ("update", "hand")]
    assert asked(*anna("stats"))["memories"] == 2
    assert asked("stats", "--memory", "mem")["calls"][0]["calls"] == 2
    assert asked(*anna("export", "anna.json"))["memories"] == 2
    assert asked("import", "anna.json", "--memory", "mem", "--user", "bo") == {"memories": 2}
    assert asked(*anna("delete", "m1-1"))["erased"] == 1
    assert asked(*anna("forget", "--yes"))["forgotten"]
    assert asked("list", "--memory", "mem") == {"users": ["bo"]}
    assert b"anna" not in bytes_of(place / "mem" / "users" / "01")


def test_people_see_tables(place: Path, server: MockLLMServer) -> None:
    text = "I moved to [red]Leeds[/red] \x1b[31m now."
    assert "insert" in typed(*anna("add", text), *models(server)).stdout
    for command in (anna("list"), anna("search", "Leeds"), ["show", "m1-1", "--memory", "mem"]):
        shown = typed(*command).stdout
        assert "[red]Leeds[/red] \\x1b[31m now." in shown
        assert "\x1b[31m now" not in shown
    assert "messages" in typed(*anna("stats")).stdout
    assert "openai/rules" in typed("stats", "--memory", "mem").stdout
    assert "anna" in typed("list", "--memory", "mem").stdout
    assert typed("list", "--memory", "mem", "--user", "nobody").stdout.strip() == "no memories"


def test_messages_can_wait(place: Path, server: MockLLMServer) -> None:
    assert asked(*anna("add", "I moved to Leeds.", "--wait"), *models(server))["pending"] == 1
    assert not server.requests
    assert asked(*anna("list"))["memories"] == []
    assert len(asked(*anna("flush"), "--api-key", "none")["changes"]) == 1


def test_messages_from_stdin(place: Path, server: MockLLMServer) -> None:
    given = json.dumps([{"role": "user", "content": "One."}])
    assert asked(*anna("add", "--messages", "-"), *models(server), given=given)["changes"][0]["text"] == "One."


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["list", "--memory", "none"], 1, "there is no memory in none"),
        (anna("list"), 1, "there is no memory in mem"),
        (["add", "text", "--memory", "mem"], 2, "--user"),
        (anna("add"), 2, "give a text, or --messages FILE"),
        (anna("add", "text", "--messages", "x"), 2, "give a text, or --messages FILE"),
        (anna("add", "--messages", "x.json"), 1, "x.json: No such file"),
        (anna("add", "--messages", "bad.json"), 1, "bad.json:1: not JSON"),
        (anna("delete"), 2, "give ids of memories, or --all"),
        (anna("delete", "--all"), 2, "add --yes"),
        (anna("delete", "m1-1", "--all", "--yes"), 2, "give ids of memories, or --all"),
        (anna("forget"), 2, "add --yes"),
        (["import", "bad.json", "--memory", "mem"], 1, "bad.json:1: not JSON"),
    ],
)
def test_mistakes(place: Path, arguments: list[str], code: int, message: str) -> None:
    (place / "bad.json").write_text("{")
    done = typed(*arguments, code=code)
    assert message in done.output
    assert "Traceback" not in done.output
    assert not (place / "mem").exists()


def test_another_users_memory_is_not_touched(place: Path, server: MockLLMServer) -> None:
    asked(*anna("add", "zebra-4711."), *models(server))
    for command in (["delete", "m1-1"], ["edit", "m1-1", "x"], ["show", "m1-1"]):
        done = typed(*command, "--memory", "mem", "--user", "bo", code=1)
        assert "there is no memory 'm1-1'" in done.output
        assert "zebra" not in done.output
    assert len(asked(*anna("list"))["memories"]) == 1


def test_another_encoder_needs_a_reindex(place: Path, server: MockLLMServer) -> None:
    more = ("--encoder", "litellm:openai/embed", "--retriever", "litellm:openai/embed")
    keys = ("--api-base", server.url, "--api-key", "none")
    asked(*anna("add", "I moved to Leeds.", "--wait"), *models(server))
    asked(*anna("flush"), "--api-key", "none")
    refused = typed(*anna("add", "More."), *models(server)[:6], *more, code=1)
    assert "memskill memory reindex --memory mem" in refused.output.replace("\n", "")
    assert asked("reindex", "--memory", "mem", *more, *keys) == {"memories": 1}
    assert asked("reindex", "--memory", "mem", *more, *keys) == {"memories": 0}
    found = asked(*anna("search", "Where in Leeds?"), *keys)["memories"]
    assert [memory["text"] for memory in found] == ["I moved to Leeds."]
    assert "there is no" not in typed(*anna("search", "x"), *keys).output


def test_the_installed_command(home: Home) -> None:
    done = home.memskill("memory", "add", "--memory", "mem", "--user", "u", "text", "--wait", *ENCODERS)
    assert (done.code, "1 messages wait" in done.out) == (0, True), done.err
    told = home.memskill("memory", "--help")
    assert all(
        name in told.out for name in ("add", "list", "search", "show", "edit", "delete", "export", "forget", "stats")
    )
