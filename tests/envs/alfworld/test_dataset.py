"""ALFWorld's folder prepared: which games are played, what is noted, and that a killed preparation goes on.

Real worker processes, games of the fake engine (tests/envs/fake_worker.py); real games are in test_real_games.py.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from memskill_cli.datasets.base import PrepareOptions
from memskill_cli.datasets.prepare import prepare
from memskill_cli.datasets.prepared import load_manifest, load_split
from memskill_cli.envs import env_pool
from memskill_cli.envs.alfworld import dataset
from memskill_cli.envs.alfworld.dataset import env_root
from memskill_cli.errors import DataError, UsageError
from memskill_cli.types import Query, Turn

FAKE = (sys.executable, str(Path(__file__).parents[1] / "fake_worker.py"))
CLEAN, TWO = "pick_clean_then_place_in_recep", "pick_two_obj_and_place"


@pytest.fixture(autouse=True)
def _fake_games(monkeypatch):
    monkeypatch.setattr(env_pool, "program", lambda name: FAKE)
    monkeypatch.delenv("ALFWORLD_DATA", raising=False)


def add(folder: Path, name: str, task_type: str = CLEAN, **game: Any) -> Path:
    """A game of the fake engine, as ALFWorld lays one out."""
    place = folder / name / "trial_1"
    place.mkdir(parents=True)
    opening = f"You are in a room with {name}.\n\nYour task is to: do {name}."
    table = {"pddl_problem": "…", "solvable": True, "opening": opening, "walkthrough": ["look", "win"], "plan": []}
    (place / "game.tw-pddl").write_text(json.dumps(table | game), "utf-8")
    (place / "traj_data.json").write_text(json.dumps({"task_type": task_type}), "utf-8")
    return place


@pytest.fixture
def source(tmp_path: Path) -> Path:
    root = tmp_path / "alfworld"
    for name in ("a", "b", "c"):
        add(root / "json_2.1.1" / "train", name)
    add(root / "json_2.1.1" / "train", "d", TWO)
    add(root / "json_2.1.1" / "valid_seen", "e")
    return root


def prepared(source: Path, data: Path, *splits: str, limit: int = 0, **more: Any) -> Any:
    return prepare("alfworld", data_dir=data, source=str(source), ask=PrepareOptions(splits, limit), **more).manifest


def ids(data: Path, split: str) -> list[str]:
    return [trace.trace_id for trace in load_split("alfworld", data, split)]


def test_a_game_becomes_a_trace_of_what_the_expert_did(source, tmp_path):
    manifest = prepared(source, tmp_path / "data")
    assert {name: tuple(size) for name, size in manifest.splits.items()} == {"train": (4, 4), "valid_seen": (1, 1)}
    trace = load_split("alfworld", tmp_path / "data", "train")[0]
    game_id = "json_2.1.1/train/a/trial_1"
    assert trace.trace_id == game_id
    assert trace.queries == (Query(game_id, game_id, CLEAN, "do a.", ()),)
    (session,) = trace.sessions
    assert (session.label, session.date) == (CLEAN, "")
    assert session.turns == (
        Turn("Goal", "do a."),
        Turn("Environment", "You are in a room with a.\n\nYour task is to: do a."),
        Turn("Agent", "look"),
        Turn("Environment", "You look."),
        Turn("Agent", "win"),
        Turn("Environment", "You win."),
    )
    assert env_root(manifest, "train") == source


def test_the_folder_within_will_do_as_well(source, tmp_path):
    prepared(source / "json_2.1.1", tmp_path / "data", "train")
    assert ids(tmp_path / "data", "train") == [f"train/{name}/trial_1" for name in "abcd"]


def test_the_planner_where_the_walkthrough_does_not_win(source, tmp_path):
    add(source / "json_2.1.1" / "valid_unseen", "f", walkthrough=["look"], plan=["sing", "win"])
    add(source / "json_2.1.1" / "valid_unseen", "g", walkthrough=None, plan=["win"])
    prepared(source, tmp_path / "data", "valid_unseen")
    played = [trace.sessions[0].turns[2::2] for trace in load_split("alfworld", tmp_path / "data", "valid_unseen")]
    assert [[turn.text for turn in turns] for turns in played] == [["sing", "win"], ["win"]]


def test_a_limit_takes_task_types_in_turn(source, tmp_path):
    manifest = prepared(source, tmp_path / "data", "train", limit=2)
    assert ids(tmp_path / "data", "train") == ["json_2.1.1/train/a/trial_1", "json_2.1.1/train/d/trial_1"]
    assert manifest.categories == {CLEAN: 1, TWO: 1}


def test_splits_add_up(source, tmp_path):
    first = prepared(source, tmp_path / "data", "train")
    second = prepared(source, tmp_path / "data", "valid_seen")
    assert list(first.splits) == ["train"]
    assert set(second.splits) == {"train", "valid_seen"}
    assert first.digest_of("train") == second.digest_of("train")


def test_what_the_method_leaves_out_is_counted(source, tmp_path):
    train = source / "json_2.1.1" / "train"
    add(train, "pick_and_place_with_movable_recep-Pen-Mug-Desk", "pick_and_place_with_movable_recep")
    add(train, "pick_heat-TomatoSliced-None-Fridge")
    add(train, "another", "dance_with_object")
    add(train, "lost", solvable=False)
    add(train, "unknown", solvable=None)
    manifest = prepared(source, tmp_path / "data", "train")
    assert manifest.traces == 4
    assert manifest.notes == [
        "train: 2 games left out: movable receptacles or sliced objects",
        "train: 2 games left out: not known to be solvable",
        "train: 1 games left out: task type dance_with_object",
    ]


def test_a_file_cut_in_half_is_named_and_skipped(source, tmp_path):
    train = source / "json_2.1.1" / "train"
    for name, file in (("a", "game.tw-pddl"), ("b", "traj_data.json")):
        half = train / name / "trial_1" / file
        half.write_bytes(half.read_bytes()[: half.stat().st_size // 2])
    (train / "c" / "trial_1" / "traj_data.json").write_text("[]")
    manifest = prepared(source, tmp_path / "data", "train")
    assert ids(tmp_path / "data", "train") == ["json_2.1.1/train/d/trial_1"]
    for name, problem in (("a", "game.tw-pddl is cut off"), ("b", "traj_data.json is cut off"), ("c", "no task_type")):
        assert any(re.search(f"skipped json_2.1.1/train/{name}/trial_1: .*{problem}", note) for note in manifest.notes)


def test_a_game_that_dies_or_cannot_be_won_is_named_and_skipped(source, tmp_path):
    train = source / "json_2.1.1" / "train"
    add(train, "killer", walkthrough=["look", "die"])
    add(train, "hopeless", walkthrough=["look"])
    manifest = prepared(source, tmp_path / "data", "train")
    assert manifest.traces == 4
    assert manifest.notes == [
        "train: skipped json_2.1.1/train/hopeless/trial_1: "
        "its walkthrough does not win, and the planner finds no solution",
        "train: skipped json_2.1.1/train/killer/trial_1: its process ended by SIGKILL",
    ]


def test_many_broken_games_are_counted(source, tmp_path):
    for number in range(25):
        shutil.copytree(source / "json_2.1.1" / "train" / "a", source / "json_2.1.1" / "train" / f"z{number:02}")
        (source / "json_2.1.1" / "train" / f"z{number:02}" / "trial_1" / "game.tw-pddl").write_text("{")
    notes = prepared(source, tmp_path / "data", "train").notes
    assert len(notes) == 21
    assert notes[-1] == "train: skipped 5 more that cannot be played"


def test_all_games_failing_says_why(tmp_path):
    add(tmp_path / "games" / "train", "a", walkthrough=["die"])
    with pytest.raises(DataError, match=r"none of 1 games of .* could be played; the first was train/a.*SIGKILL"):
        prepared(tmp_path / "games", tmp_path / "data")


def test_a_preparation_that_was_interrupted_goes_on(source, tmp_path, monkeypatch):
    """Games that were played are not played again; nothing is taken for prepared until all are."""
    real = dataset.append_line
    written = []

    def killed_at_the_third(path, row):
        if len(written) == 2:
            raise KeyboardInterrupt
        real(path, row)
        written.append(row["digest"])

    with monkeypatch.context() as patch:
        patch.setattr(dataset, "append_line", killed_at_the_third)
        with pytest.raises(KeyboardInterrupt):
            prepared(source, tmp_path / "data", "train")
    with pytest.raises(DataError, match="is not prepared"):
        load_manifest("alfworld", tmp_path / "data")

    again = []
    monkeypatch.setattr(dataset, "append_line", lambda path, row: (real(path, row), again.append(row["digest"])))
    resumed = prepared(source, tmp_path / "data", "train")
    assert len(again) == 2
    assert not {*again} & {*written}
    assert resumed.digest == prepared(source, tmp_path / "whole", "train").digest
    assert not (tmp_path / "data" / "alfworld" / ".scratch").exists()


def test_a_full_disk_is_said_as_such(source, tmp_path, monkeypatch):
    def full(path, row):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(dataset, "append_line", full)
    with pytest.raises(OSError, match="No space left"):
        prepared(source, tmp_path / "data", "train")


def test_a_game_that_changed_meanwhile_is_played_again(source, tmp_path):
    journal = tmp_path / "data" / "alfworld" / ".scratch" / "played.jsonl"
    journal.parent.mkdir(parents=True)
    journal.write_text('{"digest": "of another file", "opening": "…", "moves": [["cheat", "…"]]}\n{"torn', "utf-8")
    prepared(source, tmp_path / "data", "train")
    turns = [
        turn.text for trace in load_split("alfworld", tmp_path / "data", "train") for turn in trace.sessions[0].turns
    ]
    assert turns.count("win") == 4
    assert "cheat" not in turns


def test_prepared_already_unless_the_games_differ(source, tmp_path):
    prepared(source, tmp_path / "data")
    assert prepare("alfworld", data_dir=tmp_path / "data", source=str(source)).already
    add(source / "json_2.1.1" / "train", "new")
    with pytest.raises(DataError, match="has data from") as caught:
        prepared(source, tmp_path / "data", "train")
    assert caught.value.hint.endswith("--split train --force")
    assert prepared(source, tmp_path / "data", "train", force=True).splits["train"].traces == 5


def test_games_are_found_where_alfworld_keeps_them(source, tmp_path, monkeypatch):
    monkeypatch.setenv("ALFWORLD_DATA", str(source))
    result = prepare("alfworld", data_dir=tmp_path / "data", ask=PrepareOptions(("train",)))
    assert result.manifest.source == str(source)


@pytest.mark.parametrize("variable", [True, False])
def test_without_games_the_way_to_them_is_said(tmp_path, monkeypatch, variable):
    monkeypatch.setenv("HOME", str(tmp_path))
    if variable:
        monkeypatch.setenv("ALFWORLD_DATA", str(tmp_path / "empty"))
    with pytest.raises(DataError, match="no ALFWorld games: ALFWORLD_DATA") as caught:
        prepare("alfworld", data_dir=tmp_path / "data")
    assert "alfworld-download" in caught.value.hint
    assert "--sample" in caught.value.hint


def test_what_makes_no_sense_is_refused(source, tmp_path):
    with pytest.raises(UsageError, match="alfworld has no split test"):
        prepared(source, tmp_path / "data", "test")
    with pytest.raises(UsageError, match="a folder, not a URL"):
        prepare("alfworld", data_dir=tmp_path / "data", source="https://example.org/games.zip")
    with pytest.raises(DataError, match="has no valid_unseen"):
        prepared(source, tmp_path / "data", "valid_unseen")
    with pytest.raises(DataError, match="no folder train"):
        prepared(tmp_path, tmp_path / "data")


def test_games_that_were_moved_away_are_missed(source, tmp_path):
    manifest = prepared(source, tmp_path / "data", "valid_seen")
    source.rename(tmp_path / "elsewhere")
    with pytest.raises(DataError, match="are missing"):
        env_root(manifest, "valid_seen")
