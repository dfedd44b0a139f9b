"""The pool: whatever a game does, it costs that game only. Real processes, made-up games (fake_worker.py)."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from memskill_cli.envs import env_pool
from memskill_cli.envs.alfworld.expert import play_expert
from memskill_cli.envs.alfworld.game_files import GAME_FILE
from memskill_cli.envs.env_pool import EnvPool, Observation
from memskill_cli.errors import DataError, GameError

FAKE = (sys.executable, str(Path(__file__).with_name("fake_worker.py")))
Play = Callable[[EnvPool], Coroutine[Any, Any, Any]]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder of made-up games, each named as what it says."""
    stories = ["fine", "die", "leave", "hang", "stop", "break", "exit", "flood", "spawn"]
    for name in stories:
        write_game(tmp_path / "games", name, name)
    write_game(tmp_path, "outside", "fine")
    return tmp_path / "games"


def write_game(folder: Path, name: str, text: str) -> None:
    (folder / name).mkdir(parents=True)
    (folder / name / GAME_FILE).write_text(text, "utf-8")


def run(root: Path, play: Play, *, workers: int = 1, deadline: float = 30.0, **more: Any) -> Any:
    async def whole() -> Any:
        pool = EnvPool(root, workers=workers, deadline=deadline, **{"command": FAKE, **more})
        try:
            return await play(pool)
        finally:
            await pool.aclose()

    return asyncio.run(whole())


def pid_of(observation: Observation) -> int:
    return int(observation.commands[1].split()[1])


def state(pid: int) -> str:
    """R running, S waiting, T stopped, Z ended and not yet noticed by its parent, "" gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""


def alive(pid: int) -> bool:
    return state(pid) not in ("", "Z", "X")


def gone(pid: int, within: float = 20.0) -> bool:
    until = time.monotonic() + within
    while alive(pid) and time.monotonic() < until:
        time.sleep(0.02)
    return not alive(pid)


async def pids(pool: EnvPool, *games: str) -> list[int]:
    found = []
    for game_id in games:
        async with pool.open_task(game_id) as game:
            found.append(pid_of(game.observation))
    return found


def test_a_game_is_played_scene_by_scene(root):
    async def play(pool):
        async with pool.open_task("fine") as game:
            first = game.observation
            return first, await game.play("sing"), await game.play("win"), game.observation

    first, sung, won, last = run(root, play)
    assert (first.text, first.won, first.done) == ("fine", False, False)
    assert sung.text == "You sing."
    assert (won.won, won.done) == (True, True)
    assert last == won


def test_a_worker_lives_across_games_and_ends_with_the_pool(root):
    first, second = run(root, lambda pool: pids(pool, "fine", "fine"))
    assert first == second
    assert not alive(first)


def test_a_worker_is_replaced_when_it_has_played_for_long(root, monkeypatch):
    monkeypatch.setattr(env_pool, "LIFETIME", 2)
    notices: list[str] = []
    first, second, third = run(root, lambda games: pids(games, "fine", "fine", "fine"), notice=notices.append)
    assert first == second != third
    assert not alive(first)
    assert not notices


def test_as_many_games_at_a_time_as_there_are_workers(root):
    async def play(pool):
        async with pool.open_task("fine") as one, pool.open_task("fine") as other:
            waiting = [asyncio.create_task(pids(pool, "fine")) for _ in range(4)]
            await asyncio.sleep(0)
            both = {pid_of(one.observation), pid_of(other.observation)}
        return both, {pid for found in await asyncio.gather(*waiting) for pid in found}

    both, later = run(root, play, workers=2)
    assert len(both) == 2
    assert later <= both, "no third worker was started for those who waited"


@pytest.mark.parametrize(
    ("fault", "kind", "says"),
    [
        ("die", "died", "ended by SIGKILL"),
        ("leave", "died", "ended with code 3"),
        ("hang", "hung", "no reply within 1.5 s"),
        ("stop", "hung", "no reply within 1.5 s"),
        ("break", "broken", "ValueError: no such thing"),
        ("exit", "broken", "SystemExit: the translator gives up"),
        ("flood", "broken", "a reply of more than"),
    ],
)
@pytest.mark.parametrize("when", ["at the start", "in mid-game"])
def test_a_game_that_fails_costs_that_game_only(root, fault, kind, says, when):
    """The error names the game; the worker is gone unless it still answers; the next game is played."""
    game_id, command = (fault, "look") if when == "at the start" else ("fine", fault)

    async def play(pool):
        (before,) = await pids(pool, "fine")
        with pytest.raises(GameError, match=says) as caught:
            async with pool.open_task(game_id) as game:
                await game.play(command)
        (after,) = await pids(pool, "fine")
        return caught.value, before, after, alive(before)

    error, before, after, lives = run(root, play, deadline=1.5 if kind == "hung" else 30.0)
    assert error.kind == kind
    assert error.message.startswith(f"{game_id}: ")
    assert "\n" not in error.message
    assert (before == after) == lives == (fault in ("break", "exit"))


def test_what_a_worker_started_is_killed_with_it(root):
    async def play(pool):
        async with pool.open_task("spawn") as game:
            return int(game.observation.text)

    assert gone(run(root, play))


def test_a_cancelled_request_does_not_answer_the_next_one(root):
    async def play(pool):
        (before,) = await pids(pool, "fine")
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.3), pool.open_task("fine") as game:
                await game.play("hang")
        return before, await pids(pool, "fine")

    before, (after,) = run(root, play)
    assert before != after
    assert gone(before)


def test_a_worker_never_holds_a_key(root, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    monkeypatch.setenv("MEMSKILL_API_KEYS", "sk-secret")
    monkeypatch.setenv("HF_TOKEN", "hf-secret")

    async def play(pool):
        async with pool.open_task("fine") as game:
            return game.observation.commands[2].split()[1:]

    names = set(run(root, play))
    allowed = {"PATH", "HOME", "LANG", "LC_ALL", "LC_CTYPE", "TMPDIR", "LD_LIBRARY_PATH", "PYTHONPATH", "VIRTUAL_ENV"}
    assert "ALFWORLD_DATA" in names
    assert names - allowed == {"ALFWORLD_DATA", "OMP_NUM_THREADS"}


@pytest.mark.parametrize("game_id", ["../outside", "fine/../../outside", "link", "nothing", "", "{root}/fine"])
def test_no_game_outside_the_root_is_opened(root, game_id):
    (root / "link").symlink_to(root.parent / "outside")

    async def play(pool):
        async with pool.open_task(game_id.format(root=root)):
            pass

    with pytest.raises(GameError, match=r"not a game in|no game\.tw-pddl in") as caught:
        run(root, play)
    assert caught.value.kind == "broken"


def test_a_program_that_cannot_start_is_said_at_once(root):
    for command in [(sys.executable, "-c", "print('hello')"), (sys.executable, "-c", "import nothing_of_the_kind")]:
        with pytest.raises(DataError, match="games cannot be played on this machine") as caught:
            run(root, lambda pool: pids(pool, "fine"), command=command)
        assert "memskill[alfworld]" in caught.value.hint


def test_without_the_extra_the_command_to_install_it_is_said(root, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DataError, match="not installed, but needed for ALFWorld: alfworld, textworld") as caught:
        EnvPool(root, workers=1)
    assert caught.value.hint.startswith('pip install "memskill[alfworld]"')


PARENT = """
import asyncio, sys
from pathlib import Path
from memskill_cli.envs.env_pool import EnvPool
async def main():
    pool = EnvPool(Path(sys.argv[1]), workers=1, command=sys.argv[3:])
    async with pool.open_task("fine") as game:
        print(game.observation.commands[1].split()[1], flush=True)
        await game.play(sys.argv[2])
asyncio.run(main())
"""


SPAWNS = PARENT.replace('"fine"', '"spawn"').replace("commands[1].split()[1]", "text")


def test_nothing_that_a_worker_started_outlives_the_parent(root):
    arguments = [sys.executable, "-c", SPAWNS, str(root), "hang", *FAKE]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) as parent:
        pid = int(parent.stdout.readline())
        assert alive(pid)
        parent.kill()
    assert gone(pid)


@pytest.mark.parametrize("doing", ["hang", "stop"])
def test_no_worker_outlives_its_parent(root, doing):
    """Killed outright, the parent can tidy nothing; workers notice by themselves, even one that is stopped."""

    arguments = [sys.executable, "-c", PARENT, str(root), doing, *FAKE]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) as parent:
        pid = int(parent.stdout.readline())
        while doing == "stop" and state(pid) != "T":
            time.sleep(0.02)
        assert alive(pid)
        parent.kill()
    assert gone(pid)


def test_the_expert_follows_the_walkthrough_then_the_planner(root):
    games = {
        "stored": {"opening": "A room.", "walkthrough": ["look", "win", "never played"], "plan": []},
        "planned": {"walkthrough": ["look"], "plan": ["sing", "win"]},
        "hopeless": {"walkthrough": ["look"], "plan": ["sing"]},
        "bare": {"walkthrough": [], "plan": []},
    }
    for name, table in games.items():
        write_game(root, name, json.dumps(table))

    async def play(pool):
        return await asyncio.gather(*(play_expert(pool, name) for name in games), return_exceptions=True)

    stored, planned, hopeless, bare = run(root, play, workers=2)
    assert stored.moves == (("look", "You look."), ("win", "You win."))
    assert stored.opening == "A room."
    assert [command for command, _ in planned.moves] == ["sing", "win"]
    assert str(hopeless) == "hopeless: its walkthrough does not win, and the planner finds no solution"
    assert str(bare) == "bare: the planner finds no solution"


def test_the_processes_of_a_pool_are_not_interrupted_by_a_terminal(root):
    """Ctrl-C reaches the foreground group; who owns the pool decides what becomes of its games."""

    async def play(pool):
        (pid,) = await pids(pool, "fine")
        return os.getpgid(pid), pid

    group, pid = run(root, play)
    assert group == pid != os.getpgrp()
