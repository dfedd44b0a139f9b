"""What a run records of plug-ins, and that it is not used without them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from memskill_cli.config import load
from memskill_cli.errors import RunError
from memskill_cli.runs.run_dir import RunDir
from memskill_cli.utils import registry
from memskill_cli.utils.registry import Plugin, load_plugin


@pytest.fixture(autouse=True)
def _nothing_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_loaded", {})


def made_with(folder: Path, *names: str) -> RunDir:
    for name in names:
        (folder / name).write_text(f"# {name}")
        load_plugin(folder / name)
    return RunDir.create(folder / "runs", "r", load(), "digest")


def test_a_run_records_names_and_no_paths(tmp_path: Path) -> None:
    run = made_with(tmp_path, "one.py", "two.py")
    text = (run.path / "run.json").read_text()
    assert list(json.loads(text)["plugins"]) == ["one.py", "two.py"]
    assert str(tmp_path) not in text
    assert run.settings() == load()


def test_a_run_without_plugins_has_the_manifest_that_older_versions_read(tmp_path: Path) -> None:
    run = made_with(tmp_path)
    run.set_status("paused")
    assert "plugins" not in json.loads((run.path / "run.json").read_text())
    assert run.record_plugins() == []


def test_a_run_is_not_used_without_its_plugins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = made_with(tmp_path, "one.py", "two.py")
    monkeypatch.setattr(registry, "_loaded", {tmp_path / "one.py": Plugin(tmp_path / "one.py", "0")})
    with pytest.raises(RunError, match=r"run r was made with the plug-in two\.py, which is not loaded") as caught:
        run.settings()
    assert caught.value.hint == "add --plugin FILE, where FILE is the path of two.py"


def test_another_version_and_another_plugin_are_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = made_with(tmp_path, "one.py")
    files = {tmp_path / name: Plugin(tmp_path / name, "0") for name in ("one.py", "more.py")}
    monkeypatch.setattr(registry, "_loaded", files)
    assert run.record_plugins() == ["one.py"]
    assert run.manifest().plugins == {"one.py": "0", "more.py": "0"}
    assert run.record_plugins() == [], "it is said once"
