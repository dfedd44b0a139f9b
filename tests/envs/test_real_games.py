"""The sample's games, really played by TextWorld in worker processes. Needs the extra ``alfworld``."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from memskill_cli.datasets.prepared import load_split
from memskill_cli.datasets.samples import sample_path
from memskill_cli.envs.alfworld.expert import play_expert
from memskill_cli.envs.alfworld.game_files import GAME_FILE
from memskill_cli.envs.env_pool import EnvPool
from memskill_cli.errors import GameError

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("alfworld") is None, reason='pip install "memskill[alfworld]"'),
]
SAMPLE = sample_path("alfworld")
GAMES = sorted(file.parent.relative_to(SAMPLE).as_posix() for file in SAMPLE.rglob(GAME_FILE))
HEAT = "train/pick_heat_then_place_in_recep-Potato-None-DiningTable-3/trial_1"


def run(play: Callable[[EnvPool], Coroutine[Any, Any, Any]], root: Path = SAMPLE, **more: Any) -> Any:
    async def whole() -> Any:
        pool = EnvPool(root, **{"workers": 2, **more})
        try:
            return await play(pool)
        finally:
            await pool.aclose()

    return asyncio.run(whole())


def spoilt(root: Path, name: str, **changes: Any) -> str:
    """A copy of a game in ``root``, with other fields in its file."""
    shutil.copytree(SAMPLE / HEAT, root / name)
    file = root / name / GAME_FILE
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    return name


async def fate(pool: EnvPool, game_id: str) -> str:
    """What becomes of a game that is played by its walkthrough: ``won``, or the kind of the error."""
    try:
        await play_expert(pool, game_id)
    except GameError as error:
        return error.kind if error.message.startswith(f"{game_id}: ") else error.message
    return "won"


def workers(root: Path) -> set[int]:
    """Ids of the processes on this machine that play games of ``root``."""
    found = set()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().split(b"\0")
            ours = f"ALFWORLD_DATA={root}".encode() in (folder / "environ").read_bytes().split(b"\0")
        except OSError:  # it has just ended
            continue
        if ours and b"memskill_cli.envs.env_worker" in words:
            found.add(int(folder.name))
    return found


def test_every_sample_game_is_won_by_its_walkthrough():
    async def play(pool):
        return await asyncio.gather(*(play_expert(pool, game_id) for game_id in GAMES))

    stored = [json.loads((SAMPLE / game_id / GAME_FILE).read_text())["walkthrough"] for game_id in GAMES]
    assert len(GAMES) == 18
    assert [[command for command, _ in played.moves] for played in run(play)] == stored


VANILLA = """
import json, sys, textworld
from textworld.envs.pddl import PddlEnv
from alfworld.agents.environment.alfred_tw_env import AlfredDemangler
env = AlfredDemangler(PddlEnv(textworld.EnvInfos(won=True, admissible_commands=True)))
env.load(sys.argv[1])
state = env.reset()
seen = [[state["feedback"], state["admissible_commands"], state["won"]]]
for command in json.load(sys.stdin):
    state, _, _ = env.step(command)
    seen.append([state["feedback"], state["admissible_commands"], state["won"]])
print(json.dumps(seen))
"""


@pytest.mark.parametrize("game_id", GAMES[::9])
def test_a_worker_says_what_textworld_says(game_id):
    """Untouched TextWorld in another process: the same observations, commands and outcome, step by step."""
    file = SAMPLE / game_id / GAME_FILE
    commands = ["look", "inventory", "fly", *json.loads(file.read_text())["walkthrough"]]
    arguments = [sys.executable, "-c", VANILLA, str(file)]
    done = subprocess.run(arguments, input=json.dumps(commands), capture_output=True, text=True, check=True)

    async def play(pool):
        async with pool.open_task(game_id) as game:
            return [game.observation, *[await game.play(command) for command in commands]]

    theirs = [(text.strip(), tuple(commands), won) for text, commands, won in json.loads(done.stdout.splitlines()[-1])]
    assert [(observation.text, observation.commands, observation.won) for observation in run(play)] == theirs


def test_what_is_carried_is_known_without_asking():
    async def play(pool):
        async with pool.open_task(HEAT) as game:
            for command in ("go to fridge 1", "open fridge 1"):
                await game.play(command)
            before = game.observation
            taken = await game.play("take potato 1 from fridge 1")
            return before, taken, await game.play("inventory")

    before, taken, asked = run(play)
    assert before.inventory == "You are not carrying anything."
    assert taken.inventory == "You are carrying: a potato 1." == asked.text
    assert asked.inventory == taken.inventory


def test_the_planner_plays_a_game_without_a_walkthrough(tmp_path):
    game_id = spoilt(tmp_path, "bare", walkthrough=None)
    played = run(lambda pool: play_expert(pool, game_id), tmp_path)
    assert any(command == "heat potato 1 with microwave 1" for command, _ in played.moves)


def test_a_game_file_cut_off_or_full_of_nonsense_is_a_broken_game(tmp_path):
    """One worker meets them all, and plays a good game in the end."""
    whole = (SAMPLE / HEAT / GAME_FILE).read_bytes()
    bad = []
    for cut in (0, 100, len(whole) // 2):
        bad.append(spoilt(tmp_path, f"cut-{cut}"))
        (tmp_path / bad[-1] / GAME_FILE).write_bytes(whole[:cut])
    for field in ("pddl_domain", "pddl_problem", "grammar"):
        for number, value in enumerate(("", "(define nonsense", 7, None)):
            bad.append(spoilt(tmp_path, f"{field}-{number}", **{field: value}))
    bad.append(spoilt(tmp_path, "walk", walkthrough=[1, 2]))
    good = spoilt(tmp_path, "good")

    async def play(pool):
        return [await fate(pool, game_id) for game_id in [*bad, good]]

    *fates, last = run(play, tmp_path, workers=1)
    assert fates == ["broken"] * len(bad)
    assert last == "won"


CODE = (
    "__import__('os').system('touch {trap}')",
    "open('{trap}', 'w').name",
    "r.name.__class__.__mro__",
    "r.__class__",
)


def test_no_code_in_a_game_is_run(tmp_path):
    """TextWorld evaluates the expressions of a game's grammar; games come from elsewhere."""
    trap = tmp_path / "trap"
    grammar = json.loads((SAMPLE / HEAT / GAME_FILE).read_text())["grammar"]
    planted = [grammar.replace("{r.name}", "{" + code.replace("{trap}", str(trap)) + "}") for code in CODE]
    games = [spoilt(tmp_path / "games", f"code-{number}", grammar=text) for number, text in enumerate(planted)]

    async def play(pool):
        return [await fate(pool, game_id) for game_id in games]

    assert run(play, tmp_path / "games", workers=1) == ["broken"] * len(CODE)
    assert not trap.exists()


@pytest.mark.parametrize(("blow", "kind"), [(signal.SIGKILL, "died"), (signal.SIGSTOP, "hung")])
def test_an_environment_lost_in_mid_episode_is_replaced(tmp_path, blow, kind):
    game_id = spoilt(tmp_path, "game")

    async def play(pool):
        async with pool.open_task(game_id) as game:
            (lost,) = workers(tmp_path)
            os.kill(lost, blow)
            with pytest.raises(GameError, match=f"^{game_id}: ") as caught:
                await game.play("look")
        return caught.value.kind, await fate(pool, game_id), lost, workers(tmp_path)

    found, then, lost, left = run(play, tmp_path, deadline=10.0, workers=1)
    assert (found, then) == (kind, "won")
    assert lost not in left
    assert not workers(tmp_path)


def test_a_preparation_killed_outright_leaves_no_process_and_goes_on(home):
    games = home.path / "games"
    shutil.copytree(SAMPLE, games)
    flags = ["prepare", "--dataset", "alfworld", "--source", str(games)]
    journal = home.path / "data" / "alfworld" / ".scratch" / "played.jsonl"
    with home.start(*flags) as process:
        while not (journal.exists() and journal.stat().st_size) and process.poll() is None:
            time.sleep(0.01)
        assert workers(games)
        process.kill()
    until = time.monotonic() + 30
    while workers(games) and time.monotonic() < until:
        time.sleep(0.05)
    assert not workers(games)
    assert journal.exists()

    done = home.memskill(*flags, "--json")
    assert done.code == 0, done.err
    assert {name: size["traces"] for name, size in done.json["splits"].items()} == {"train": 12, "valid_seen": 6}
    assert done.json["notes"] == []
    assert [trace.trace_id for trace in load_split("alfworld", home.path / "data", "train")] == GAMES[:12]
    assert home.memskill("prepare", "--dataset", "alfworld", "--sample", "--json").json["already"]  # the same content
