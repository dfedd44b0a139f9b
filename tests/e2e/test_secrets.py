"""No key is ever shown or stored: canaries in every place that keys come from, and a server that repeats them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from memskill_cli.testing import rules
from memskill_cli.testing.server import Fault, Request, ScriptedServer

from ..conftest import Done, Home, tiny

SHORTEST = 12
"""A run of so many characters of a key counts as the key."""
CANARIES = {
    "flag": "sk-flag-7Qm2xWfP9rTz4LkVb8NhYc3GdJs6Ae1U",
    "second flag": "sk-other-5KpB0vXc7MnR2wQzJt9LfHd4GsYa8EuI",
    "MEMSKILL_API_KEYS": "sk-memskill-Zr4TnVq8WbLx1CyPk6DfJm3HsGe9AuOi",
    "OPENAI_API_KEY": "sk-provider-Xe7RkUw2NvBt5QzMc9HpLg4JdFs8AyIo",
    "OPENAI_API_KEY_1": "sk-numbered-Kd3WmEr8TbVn6ZxQs1YfHj5PgLc0UaOi",
    "keys file": "sk-infile-Gh9SvNk4XwTz2BrMq7CpLd6JyFe3UaOi",
    "keys file env:": "sk-infileenv-Vt6LpYw1RxKn8DzBs3MqHc5GjFe0UaOi",
}
REFUSED = CANARIES["second flag"]
LENGTH = ["--outer-epochs", "1", "--inner-epochs", "1", "--batch-size", "1", "--no-evolve"]
ECHOES = (
    Fault.unauthorized(),
    Fault.error(400, "You sent {key}, and it makes no sense."),
    Fault.error(404, "The model {key} does not exist."),
    Fault.error(500, "Crashed on {key}"),
    Fault(500, "<html>{key}</html>"),
    Fault.error_in_200("Upstream refused {key}"),
)


def fragments() -> Iterator[bytes]:
    for key in CANARIES.values():
        yield from (key[i : i + SHORTEST].encode() for i in range(len(key) - SHORTEST + 1))


def leaks(home: Home, *outputs: Done) -> list[str]:
    """Files and outputs that hold a piece of a key."""
    pieces = set(fragments())
    texts = {str(file): file.read_bytes() for file in home.path.rglob("*") if file.is_file() and file.suffix != ".keys"}
    texts |= {f"output {i}": (done.out + done.err).encode() for i, done in enumerate(outputs)}
    assert any("responses.sqlite" in name for name in texts)
    return sorted(name for name, text in texts.items() if any(piece in text for piece in pieces))


def indiscreet(request: Request) -> str | Fault:
    """Models that put the key they were sent into what they say."""
    if request.key == REFUSED:
        return Fault.unauthorized()
    if request.role == "executor":
        return f"ACTION: INSERT\nMEMORY: My key is {request.key}, as everybody knows.\n\n{rules.reply(request)}"
    if request.role == "answer":
        return f"{rules.reply(request)} ({request.key})"
    return rules.reply(request)


def test_nothing_of_a_run_that_works_holds_a_key(prepared: Home) -> None:
    keys = ["--api-key", CANARIES["flag"], "--api-key", REFUSED]
    with ScriptedServer(indiscreet) as server:
        trained = prepared.memskill("train", *tiny(server.url, *LENGTH, *keys), "--debug")
        assert trained.code == 0, trained.err
        assert "openai#2 was refused" in trained.err
        evaluated = prepared.memskill("eval", *keys, "--debug", "--json")
        assert evaluated.code == 0, evaluated.err
        assert {request.key for request in server.requests} == {CANARIES["flag"], REFUSED}
    results = next(prepared.path.glob("runs/*/evals/*/results.jsonl")).read_text()
    assert "[key]" in results, "the models did say the key"
    assert leaks(prepared, trained, evaluated) == []


def given(place: str, home: Home) -> tuple[list[str], dict[str, str]]:
    """Flags and environment that give the canary of a place."""
    key = CANARIES[place]
    file = home.path / f"{place.strip(':').replace(' ', '-')}.keys"
    match place:
        case "keys file":
            file.write_text(f'[[all]]\nkeys = ["{key}"]\n')
        case "keys file env:":
            file.write_text('[[all]]\nkeys = ["env:MY_OWN_KEY"]\n')
            return ["--keys", file.name], {"MY_OWN_KEY": key}
        case "flag" | "second flag":
            return ["--api-key", key], {}
        case _:
            return [], {place: key}
    return ["--keys", file.name], {}


@pytest.mark.slow  # the gateway's own canaries are quick: tests/llm/test_canary.py
def test_no_failure_shows_or_stores_a_key(new_home: Callable[[], Home]) -> None:
    home = new_home()
    places = [place for place in CANARIES if place != "flag"]
    echoes = {CANARIES[place]: ECHOES[i] for i, place in enumerate(places)}

    def fail(place: str) -> Done:
        flags, environ = given(place, home)
        command = "eval" if places.index(place) % 2 else "train"
        length = LENGTH if command == "train" else ["--limit", "2"]
        where = ["--runs-dir", f"runs/{places.index(place)}", "--set", "models.retries=0"]
        return home.memskill(command, *tiny(server.url, *length, *where, *flags), "--debug", **environ)

    with ScriptedServer(lambda request: echoes[request.key]) as server, ThreadPoolExecutor(2) as pool:
        failed = list(pool.map(fail, places))
        assert {request.key for request in server.requests} == set(echoes), "every place was read"
    assert [done.code for done in failed] == [1] * len(places), [done.err for done in failed]
    assert all("error: " in done.err for done in failed)
    assert leaks(home, *failed) == []


@pytest.mark.slow
def test_a_broken_keys_file_is_named_without_what_is_in_it(prepared: Home) -> None:
    key = CANARIES["keys file"]
    contents = (f'[[all]]\nkeys = "{key}"\n', f'[["{key}"]]\n', f'[[all]\nkeys = ["{key}"]\n')
    commands = []
    for i, content in enumerate(contents):
        (prepared.path / f"{i}.keys").write_text(content)
        flags = tiny("http://127.0.0.1:9/v1", *LENGTH, "--run", f"r{i}")
        commands.append(["train", *flags, "--keys", f"{i}.keys", "--debug"])
    for i, done in enumerate(prepared.together(*commands)):
        assert done.code == 2, done.err
        assert f"{i}.keys" in done.err
        assert not [piece for piece in fragments() if piece in (done.out + done.err).encode()]
