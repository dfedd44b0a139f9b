"""Bundles: what is written is read, and nothing else is: not a changed file, a foreign path or a huge one."""

from __future__ import annotations

import dataclasses
import json
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from memskill_cli.agent.controller import Controller
from memskill_cli.errors import RunError
from memskill_cli.runs import bundle
from memskill_cli.runs.checkpoint import Checkpoint
from memskill_cli.skills.seeds import seed_bank

RECORD = {"name": "r", "dataset": "locomo", "encoders": {}, "settings": {}}
SIZE = {"dim": 6, "skill_dim": 5, "hidden": 4}


def made() -> tuple[dict[str, bytes], Checkpoint]:
    weights = Controller.seeded(6, 4, 0, skill_dim=5).state_dict()
    bank = seed_bank()
    state = {**SIZE, "hard_cases": [{"question": "CANARY"}]}
    found = Checkpoint(12, weights, {"0.step": torch.zeros(())}, bank, state)
    return bundle.contents(RECORD, found, "card"), found


@pytest.fixture(params=["folder", "b.zip"])
def target(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return tmp_path / request.param


def test_what_is_written_is_read(target: Path) -> None:
    files, found = made()
    bundle.write(target, files)
    assert bundle.is_bundle(target)
    back = bundle.read(target)
    assert back.size == {**SIZE, "inner_epochs": 12}
    assert {name: tensor.tolist() for name, tensor in back.controller.items()} == {
        name: tensor.tolist() for name, tensor in found.controller.items()
    }
    assert [dataclasses.replace(skill, stats=found.bank[skill.name].stats) for skill in back.bank.skills] == list(
        found.bank.skills
    )
    assert b"CANARY" not in b"".join(files.values())
    assert "optimizer" not in " ".join(files)


def test_equal_bundles_are_equal_files(tmp_path: Path) -> None:
    for name in ("a.zip", "b.zip"):
        bundle.write(tmp_path / name, made()[0])
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()
    assert not list(tmp_path.glob(".*")), "no temporary file is left"


def test_nothing_is_overwritten(target: Path) -> None:
    bundle.write(target, made()[0])
    with pytest.raises(RunError, match="already exists"):
        bundle.write(target, made()[0])


def with_record(files: dict[str, bytes], change: Callable[[dict[str, Any]], Any]) -> dict[str, bytes]:
    record = json.loads(files[bundle.RECORD])
    change(record)
    return {**files, bundle.RECORD: json.dumps(record).encode()}


def with_digest(record: dict[str, Any], name: str) -> None:
    record["sha256"][name] = record["sha256"][bundle.CONTROLLER]


CHANGES: dict[str, tuple[Callable[[dict[str, bytes]], dict[str, bytes]], str]] = {
    "a changed skill": (
        lambda files: {**files, "skills/insert/SKILL.md": files["skills/insert/SKILL.md"] + b"x"},
        "skills/insert/SKILL.md does not match its sha256",
    ),
    "a changed controller": (
        lambda files: {**files, bundle.CONTROLLER: files[bundle.CONTROLLER][:-1] + b"\1"},
        "controller.safetensors does not match its sha256",
    ),
    "a missing controller": (lambda files: {k: v for k, v in files.items() if k != bundle.CONTROLLER}, "controller"),
    "a foreign path": (
        lambda files: with_record(files, lambda record: with_digest(record, "../../etc/passwd")),
        "names files that a bundle does not have",
    ),
    "a foreign file": (
        lambda files: with_record(files, lambda record: with_digest(record, "skills/x/run.py")),
        "names files that a bundle does not have",
    ),
    "another size": (
        lambda files: with_record(files, lambda record: record["controller"].update(hidden=8)),
        "is torch.float32 (4,), not torch.float32 (8,)",
    ),
    "a negative size": (lambda files: with_record(files, lambda record: record["controller"].update(hidden=-8)), ""),
    "a huge size": (lambda files: with_record(files, lambda record: record["controller"].update(dim=10**30)), ""),
    "a newer format": (lambda files: with_record(files, lambda record: record.update(format=2)), "format 2 is newer"),
    "no format": (lambda files: with_record(files, lambda record: record.pop("format")), "has no format"),
    "a list": (lambda files: {**files, bundle.RECORD: b"[]"}, "has no format"),
    "no JSON": (lambda files: {**files, bundle.RECORD: b"{"}, "not a bundle"),
    "no settings": (lambda files: with_record(files, lambda record: record.pop("settings")), "settings"),
    "a name that is none": (lambda files: with_record(files, lambda record: record.update(name=7)), "name in bundle"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_is_not_a_bundle_is_refused_with_one_line(change: str, target: Path) -> None:
    edit, message = CHANGES[change]
    bundle.write(target, edit(made()[0]))
    with pytest.raises(RunError) as error:
        bundle.read(target)
    assert message in error.value.message
    assert str(target) in error.value.message
    assert "\n" not in error.value.message


def test_a_file_that_is_too_large_is_not_read(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files, _ = made()
    bundle.write(target, files)
    monkeypatch.setattr(bundle, "MAX_CONTROLLER", len(files[bundle.CONTROLLER]) - 1)
    with pytest.raises(RunError, match="has more than"):
        bundle.read(target)


def test_a_link_is_read_only_if_it_leads_to_the_recorded_content(tmp_path: Path) -> None:
    """As in the Hub's cache."""
    bundle.write(tmp_path / "b", made()[0])
    skill, outside = tmp_path / "b" / "skills" / "insert" / "SKILL.md", tmp_path / "outside"
    skill.rename(outside)
    skill.symlink_to(outside)
    assert "insert" in bundle.read(tmp_path / "b").bank.names
    outside.write_text("another file of this machine")
    with pytest.raises(RunError, match="does not match its sha256"):
        bundle.read(tmp_path / "b")


@given(st.data())
def test_a_damaged_zip_file_is_one_error(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    path = tmp_path_factory.mktemp("zip") / "b.zip"
    bundle.write(path, made()[0])
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(bytes(content[: data.draw(st.integers(0, len(content)))]))
    with suppress(RunError):  # and no other exception
        assert bundle.read(path).bank


def test_only_the_named_members_of_a_zip_file_are_read(tmp_path: Path) -> None:
    path = tmp_path / "b.zip"
    bundle.write(path, made()[0])
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("../escape.txt", "x")
        archive.writestr("skills/evil/SKILL.md", "not named")
    assert "evil" not in bundle.read(path).bank.names
    assert sorted(file.name for file in tmp_path.iterdir()) == ["b.zip"]
