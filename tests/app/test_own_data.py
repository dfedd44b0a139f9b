"""``prepare --check`` and ``--remove``: what is counted, and what is erased and kept."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from memskill_cli.app.own_data import check_dataset, remove
from memskill_cli.app.runtime import ProviderAccess, own_cache
from memskill_cli.config.datasets import DATASETS
from memskill_cli.datasets.own.options import ReadOptions
from memskill_cli.datasets.prepare import prepare
from memskill_cli.datasets.registry import include_own
from memskill_cli.errors import DataError, UsageError


@pytest.fixture(autouse=True)
def _no_names_of_other_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DATASETS, "_builtin", dict(DATASETS._builtin))


def source(folder: Path, *lengths: int, text: str = "Hello there.") -> Path:
    """A file with a session of each length."""
    sessions = [{"user_id": "u", "messages": [{"role": "user", "content": text}] * length} for length in lengths]
    path = folder / "c.jsonl"
    path.write_text("".join(json.dumps(session) + "\n" for session in sessions))
    return path


def check(path: Path, name: str = "mine", **options: object) -> tuple[dict, list[str]]:
    found = check_dataset(name, str(path), False, ReadOptions(**options), None, path.parent / "data", print)  # type: ignore[arg-type]
    return found.facts, found.notes


def test_the_histogram_has_every_session_once(tmp_path):
    facts, _ = check(source(tmp_path, 1, 2, 3, 3, 9, 1))
    assert [(row["messages"], row["sessions"]) for row in facts["session_lengths"]] == [
        ("1", 2), ("2-3", 3), ("4-7", 0), ("8-15", 1)
    ]  # fmt: skip
    facts, _ = check(source(tmp_path, 3000))
    assert facts["session_lengths"][-1] == {"messages": "1024+", "sessions": 1}


def test_tokens_are_measured_and_long_sessions_are_a_warning(tmp_path):
    facts, notes = check(source(tmp_path, 10))
    assert 30 <= facts["tokens"] <= 60
    assert "there are no questions: they are needed for training and evaluation (--questions FILE)" in notes
    assert not any("--span-mode" in note for note in notes)
    _, notes = check(source(tmp_path, 10, text="one two three four " * 500))
    assert any("train with --span-mode fixed-length" in note for note in notes)


def test_what_is_left_out_is_counted_and_nothing_is_written(tmp_path):
    path = source(tmp_path, 2)
    before = sorted(tmp_path.rglob("*"))
    facts, _ = check(path, roles=("user", "tool"))
    assert facts["skipped"] == {}
    with pytest.raises(DataError, match="no conversation has a message to keep"):
        check(path, roles=("assistant",))
    assert sorted(tmp_path.rglob("*")) == before


def test_a_benchmark_cannot_be_checked(tmp_path):
    with pytest.raises(UsageError, match="--check is for conversations of your own, and locomo is a benchmark"):
        check(source(tmp_path, 1), "locomo")


def removed(folder: Path, name: str = "mine") -> list[str]:
    found = remove(name, folder / "data", folder / "runs", ProviderAccess(cache_dir=folder / "cache"))
    return [str(path.relative_to(folder)) for path in found.runs]


def test_everything_of_the_dataset_is_erased_and_its_runs_are_named(tmp_path):
    path = source(tmp_path, 1)
    for name in ("mine", "other"):
        prepare(name, data_dir=tmp_path / "data", source=str(path))
        cache = own_cache(tmp_path / "cache", name)
        cache.mkdir(parents=True)
        (cache / "responses.sqlite").write_text("x")
    (tmp_path / "data" / "mine" / "questions.jsonl").write_text("{}\n")
    for run, dataset in (("a", "mine"), ("b", "other"), ("c", "locomo")):
        (tmp_path / "runs" / run).mkdir(parents=True)
        (tmp_path / "runs" / run / "run.json").write_text(json.dumps({"dataset": dataset}))
    (tmp_path / "runs" / "c" / "evals" / "mine-test-rag-0").mkdir(parents=True)
    assert removed(tmp_path) == ["runs/a", "runs/c"]
    assert [folder.name for folder in (tmp_path / "data").iterdir()] == ["other"]
    assert [folder.name for folder in (tmp_path / "cache" / "own").iterdir()] == ["other"]
    assert path.exists()
    with pytest.raises(DataError, match=r"no conversations called mine are prepared in .*; there are other"):
        removed(tmp_path)


def test_what_a_killed_prepare_left_is_erased(tmp_path):
    left = tmp_path / "data" / "mine" / ".traces-x" / "train"
    left.mkdir(parents=True)
    (left / "traces.arrow").write_text("text of a user")
    removed(tmp_path)
    assert not (tmp_path / "data" / "mine").exists()


def test_files_of_the_user_in_its_folder_are_kept(tmp_path):
    (tmp_path / "data" / "mine").mkdir(parents=True)
    path = source(tmp_path / "data" / "mine", 1)
    (path.parent / "questions.jsonl").write_text('{"question": "Q?", "answers": ["a"]}\n')
    prepare("mine", data_dir=tmp_path / "data", source=str(path))
    removed(tmp_path)
    assert sorted(file.name for file in path.parent.iterdir()) == ["c.jsonl", "questions.jsonl"]


def test_the_cache_is_that_of_the_dataset_only_for_own_conversations(tmp_path):
    access = ProviderAccess(cache_dir=tmp_path)
    include_own("mine")
    assert access.cache_for("mine") == tmp_path / "own" / "mine"
    assert access.cache_for("locomo") == tmp_path
