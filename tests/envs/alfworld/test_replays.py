"""Trajectories that the published replay script has written, in place of games that are replayed here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from memskill_cli.datasets.base import PrepareOptions
from memskill_cli.datasets.prepare import prepare
from memskill_cli.datasets.prepared import load_split
from memskill_cli.envs.alfworld.dataset import env_root
from memskill_cli.errors import DataError, UsageError
from memskill_cli.types import Query, Turn

SIMPLE, LIGHT = "pick_and_place_simple", "look_at_obj_in_light"


@pytest.fixture(autouse=True)
def _no_games(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ALFWORLD_DATA", str(tmp_path / "nothing"))


def entry(name: str, **more: Any) -> dict[str, Any]:
    """What the script writes of a game that was won."""
    opening = f"-= Welcome =-\n\nYou are in a room.\n\nYour task is to: do {name}."
    steps = [
        {"step": 0, "action": None, "observation": f"{opening}\n", "reward": 0.0, "done": False, "expert_plan": ["a"]},
        {"step": 1, "action": "look", "observation": " You look.", "reward": 0.0, "done": False, "expert_plan": []},
        {"step": 2, "action": "win", "observation": "You win.", "reward": 1.0, "done": True, "expert_plan": []},
    ]
    facts = {"traj_path": "…", "first_observation": opening, "objective": f"do {name}", "total_reward": 1.0}
    return {**facts, "steps": steps, "trajectory": "…", **more}


def path(name: str, split: str = "train", root: str = "/far/away") -> str:
    return f"{root}/json_2.1.1/{split}/{name}/trial_1/game.tw-pddl"


def write(file: Path, table: Any) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(table, indent=2))
    return file


def ids(data: Path, split: str) -> list[str]:
    return [trace.trace_id for trace in load_split("alfworld", data, split)]


def test_a_trajectory_becomes_the_trace_that_replaying_makes(tmp_path: Path) -> None:
    file = write(tmp_path / "replays.json", {SIMPLE: {path("b"): entry("b"), path("a"): entry("a")}, LIGHT: {}})
    manifest = prepare("alfworld", data_dir=tmp_path / "data", source=str(file)).manifest
    trace, _ = load_split("alfworld", tmp_path / "data", "train")
    game_id = "json_2.1.1/train/a/trial_1"
    assert trace.trace_id == game_id
    assert trace.queries == (Query(game_id, game_id, SIMPLE, "do a.", ()),)
    assert trace.sessions[0].label == SIMPLE
    assert trace.sessions[0].turns == (
        Turn("Goal", "do a."),
        Turn("Environment", "-= Welcome =-\n\nYou are in a room.\n\nYour task is to: do a."),
        Turn("Agent", "look"),
        Turn("Environment", "You look."),
        Turn("Agent", "win"),
        Turn("Environment", "You win."),
    )
    assert prepare("alfworld", data_dir=tmp_path / "data", source=str(file)).already
    with pytest.raises(DataError, match="only trajectories of train were prepared"):
        env_root(manifest, "train")


def test_games_are_found_where_the_script_found_them_or_where_alfworld_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for root in ("there", "official"):
        write(tmp_path / root / "json_2.1.1" / "train" / "a" / "trial_1" / "game.tw-pddl", {})
    file = write(tmp_path / "r.json", {SIMPLE: {path("a", root=str(tmp_path / "there")): entry("a")}})
    manifest = prepare("alfworld", data_dir=tmp_path / "one", source=str(file)).manifest
    assert env_root(manifest, "train") == tmp_path / "there"
    monkeypatch.setenv("ALFWORLD_DATA", str(tmp_path / "official"))
    write(file, {SIMPLE: {path("a"): entry("a")}})
    manifest = prepare("alfworld", data_dir=tmp_path / "two", source=str(file)).manifest
    assert env_root(manifest, "train") == tmp_path / "official"
    assert ids(tmp_path / "two", "train") == ["json_2.1.1/train/a/trial_1"]


def test_what_was_not_won_is_left_out_and_said(tmp_path: Path) -> None:
    table = {
        SIMPLE: {
            path("a"): entry("a"),
            path("b"): {},
            path("c"): entry("c", error="no plan"),
            path("d"): entry("d", total_reward=0.0),
            path("e"): {"traj_path": "…", "error": "TimeoutError()"},
            path("f", "valid_seen"): entry("f"),
            path("g"): entry("g", steps=[]),
            path("h"): entry("h", steps=[{"action": None}]),
            "/elsewhere/game.tw-pddl": entry("i"),
            path("j"): None,
        },
        "other": {path("k"): entry("k")},
    }
    file = write(tmp_path / "r.json", table)
    manifest = prepare("alfworld", data_dir=tmp_path / "data", source=str(file)).manifest
    assert ids(tmp_path / "data", "train") == ["json_2.1.1/train/a/trial_1"]
    assert sorted(note.removeprefix("train: ") for note in manifest.notes) == [
        "1 trajectories left out: its path names no split",
        "1 trajectories left out: not won",
        "1 trajectories left out: of valid_seen",
        "1 trajectories left out: task type other",
        "2 trajectories left out: its steps are incomplete",
        "4 trajectories left out: could not be played",
    ]


def test_a_folder_of_splits_and_a_limit(tmp_path: Path) -> None:
    games = {kind: {path(f"{kind}-{n}"): entry(str(n)) for n in range(3)} for kind in (SIMPLE, LIGHT)}
    write(tmp_path / "in" / "train.json", games)
    write(tmp_path / "in" / "seen.json", {SIMPLE: {path("s", "valid_seen"): entry("s")}})
    write(tmp_path / "in" / "other.json", ["something else"])
    manifest = prepare(
        "alfworld", data_dir=tmp_path / "data", source=str(tmp_path / "in"), ask=PrepareOptions((), 3)
    ).manifest
    assert {name: size.traces for name, size in manifest.splits.items()} == {"train": 3, "valid_seen": 1}
    kinds = [name.split("/")[2].rpartition("-")[0] for name in ids(tmp_path / "data", "train")]
    assert set(kinds) == {LIGHT, SIMPLE}  # types take turns
    one = prepare(
        "alfworld", data_dir=tmp_path / "b", source=str(tmp_path / "in"), ask=PrepareOptions(("valid_seen",))
    ).manifest
    assert list(one.splits) == ["valid_seen"]
    write(tmp_path / "in" / "again.json", games)
    with pytest.raises(UsageError, match="two files have train"):
        prepare("alfworld", data_dir=tmp_path / "c", source=str(tmp_path / "in"))


def test_paths_of_another_system_and_without_the_folder_between(tmp_path: Path) -> None:
    table = {SIMPLE: {r"C:\games\train\a\trial_1\game.tw-pddl": entry("a"), "train/b/trial_1": entry("b")}}
    prepare("alfworld", data_dir=tmp_path / "data", source=str(write(tmp_path / "r.json", table)))
    assert ids(tmp_path / "data", "train") == ["train/a/trial_1", "train/b/trial_1"]


@pytest.mark.parametrize(
    "text", ["", "[]", "[1]", "5", '{"a": 5}', '{"a": {}}', "{", '{"pick_and_place_simple": {"x": {"steps"', "\xff"]
)
def test_files_that_are_none(tmp_path: Path, text: str) -> None:
    file = tmp_path / "r.json"
    file.write_text(text, "latin-1")
    with pytest.raises(DataError, match=r"r\.json: has no won trajectory"):
        prepare("alfworld", data_dir=tmp_path / "data", source=str(file))


def test_a_file_that_is_cut_off_after_its_first_game(tmp_path: Path) -> None:
    whole = json.dumps({SIMPLE: {path("a"): entry("a"), path("b"): entry("b")}})
    file = tmp_path / "r.json"
    file.write_text(whole[:-40])
    with pytest.raises(DataError, match=r"r\.json: not JSON"):
        prepare("alfworld", data_dir=tmp_path / "data", source=str(file))
