"""No key is ever shown or stored: canaries in every place that keys come from, and a server that repeats them."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from memskill_cli.testing import rules
from memskill_cli.testing.server import Fault, MockLLMServer, Request

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
ALSO_THERE = {
    "HF_TOKEN": "hf_Uw3NvBt5QzMc9HpLg4JdFs8AyIoXe7RkTb",
    "WANDB_API_KEY": "wk5QzMc9HpLg4JdFs8AyIoXe7RkUw2NvBtWn",
    "AWS_SECRET_ACCESS_KEY": "aws/9HpLg4JdFs8AyIoXe7RkUw2NvBt5QzMc",
    "AZURE_CLIENT_SECRET": "azu~Lg4JdFs8AyIoXe7RkUw2NvBt5QzMc9Hp",
    "HTTPS_PROXY": "http://me:proxy-Kd3WmEr8TbVn6ZxQs1@127.0.0.1:9",
}
"""Secrets of other programs, which libraries of ours can read."""
TALKATIVE = {
    "LITELLM_LOG": "DEBUG",
    "OPENAI_LOG": "debug",
    "HTTPX_LOG_LEVEL": "debug",
    "PYTHONASYNCIODEBUG": "1",
    "PYTHONWARNINGS": "default",
    "MEMSKILL_DEBUG": "1",
}
"""What makes libraries tell what they send, and to whom."""
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
    for key in (*CANARIES.values(), *ALSO_THERE.values()):
        key = key.removeprefix("http://").removesuffix("@127.0.0.1:9")
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


def watched(home: Home) -> dict[str, str]:
    """An environment full of secrets and of libraries that talk, whose every file lies in ``home``."""
    places = {name: home.path / name.lower() for name in ("HOME", "TMPDIR", "XDG_CACHE_HOME", "XDG_CONFIG_HOME")}
    for place in places.values():
        place.mkdir(exist_ok=True)
    return {**ALSO_THERE, **TALKATIVE, **{name: str(place) for name, place in places.items()}}


def test_nothing_of_a_run_that_works_holds_a_key(prepared: Home) -> None:
    keys = ["--api-key", CANARIES["flag"], "--api-key", REFUSED]
    environ = watched(prepared)
    with MockLLMServer(indiscreet) as server:
        trained = prepared.memskill("train", *tiny(server.url, *LENGTH, *keys), **environ)
        assert trained.code == 0, trained.err
        assert "openai#2 was refused" in trained.err
        evaluated = prepared.memskill("eval", *keys, "--json", **environ)
        assert evaluated.code == 0, evaluated.err
        assert evaluated.json["method"] == "memskill", "nothing but the document is on stdout, whatever libraries say"
        assert {request.key for request in server.requests} == {CANARIES["flag"], REFUSED}
    results = next(prepared.path.glob("runs/*/evals/*/results.jsonl")).read_text()
    assert "[key]" in results, "the models did say the key"
    assert leaks(prepared, trained, evaluated) == []
    for done in (trained, evaluated):
        assert done.err.count("an API key on the command line can be seen in the shell's history") == 1


@pytest.mark.slow
def test_a_run_that_is_killed_leaves_no_key_behind_nor_does_what_follows(prepared: Home) -> None:
    with MockLLMServer(indiscreet, latency=0.05) as server:
        environ = {**watched(prepared), "MEMSKILL_API_KEYS": CANARIES["MEMSKILL_API_KEYS"]}
        training = prepared.start("train", *tiny(server.url, *LENGTH), **environ)
        deadline = time.monotonic() + 120
        while len(server.requests) < 8 and training.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        os.kill(training.pid, signal.SIGKILL)
        out, err = training.communicate(timeout=60)
        assert len(server.requests) >= 8, err
        assert training.returncode == -signal.SIGKILL
        assert leaks(prepared, Done(training.returncode, out, err)) == []
        resumed = prepared.memskill("train", "--resume", **environ)
        evolved = prepared.memskill("evolve", **environ)
        assert (resumed.code, evolved.code) == (0, 0), resumed.err + evolved.err
        assert "designer" in {request.role for request in server.requests}
    assert leaks(prepared, resumed, evolved) == []


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
        case "OPENAI_API_KEY" | "OPENAI_API_KEY_1":  # not sent to another server unless a keys file says so
            file.write_text(f'[[all]]\nkeys = ["env:{place}"]\n')
            return ["--keys", file.name], {place: key}
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

    with MockLLMServer(lambda request: echoes[request.key]) as server, ThreadPoolExecutor(2) as pool:
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


def test_a_secret_has_no_place_in_settings(home: Home) -> None:
    """Said before anything is made; which settings and how they are given: tests/config/test_config.py."""
    key = CANARIES["flag"]
    manifest = home.path / "data" / "locomo" / "manifest.json"
    manifest.parent.mkdir(parents=True)
    manifest.write_text("{}")
    (home.path / "mine.toml").write_text(f'[models]\napi_key = "{key}"\n')
    (home.path / "base.keys").write_text(f'[[all]]\nkeys = ["k"]\napi_base = "https://user:{key}@host.example/v1"\n')
    refused = home.together(
        ["train", "--debug", "--config", "mine.toml"],
        ["train", "--debug", "--keys", "base.keys"],
        ["eval", "--debug", "--api-base", f"https://host.example/v1?api-version=1&api_key={key}"],
    )
    says = (
        "mine.toml: models.api_key is not a setting",
        "[[all]] number 1: api_base must not",
        "models.api_base must not",
    )
    for done, words in zip(refused, says, strict=True):
        assert done.code == 2, done.err
        assert words in done.err
        assert "keys" in done.err.splitlines()[-1], "where keys belong"
        assert not [piece for piece in fragments() if piece in (done.out + done.err).encode()]
    assert not (home.path / "runs").exists()


def test_keys_that_others_can_see_are_warned_of_once(home: Home) -> None:
    """Also with --quiet, on stderr; not for ``none``, which local servers are given, and not for the better ways."""
    file = home.path / "my.keys"
    file.write_text('[[all]]\nkeys = ["k"]\n')
    link = home.path / "link.keys"
    link.symlink_to(file)
    file.chmod(0o644)
    stop = ["train", "--set", "no.such=1", "--quiet", "--json"]
    seen = [
        home.memskill(*stop, "--api-key", "one", "--api-key", "two"),
        home.memskill(*stop, "--keys", link.name),
        home.memskill(*stop, "--api-key", "none", MEMSKILL_API_KEYS="k", MEMSKILL_KEYS=""),
    ]
    file.chmod(0o600)
    seen.append(home.memskill(*stop, "--keys", link.name))
    assert {json.loads(done.out)["error"]["code"] for done in seen} == {2}
    warned = [[line for line in done.err.splitlines() if line.startswith("warning: ")] for done in seen]
    assert [len(lines) for lines in warned] == [1, 1, 0, 0], warned
    assert "MEMSKILL_API_KEYS or --keys FILE.toml" in warned[0][0]
    assert warned[1][0] == "warning: link.keys can be read by other users of this machine; fix: chmod 600 link.keys"
