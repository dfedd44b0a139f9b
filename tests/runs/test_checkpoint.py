"""Checkpoints: whole or not there, and never trusted blindly."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save as save_tensors

from memskill_cli.agent.controller import Controller
from memskill_cli.errors import CheckpointError
from memskill_cli.runs import checkpoint
from memskill_cli.skills.seeds import seed_bank
from memskill_cli.utils import files

STATE = {"dim": 4, "skill_dim": 4, "hidden": 8, "window_start": 0, "rewards": [0.5], "hard_cases": []}


def trained(steps: int) -> tuple[Controller, torch.optim.Adam]:
    controller = Controller.seeded(4, 8, seed=0)
    optimizer = torch.optim.Adam(controller.parameters(), lr=1e-3)
    for step in range(steps):
        optimizer.zero_grad()
        policy = controller(torch.full((2, 8), 0.1 * (step + 1)), torch.eye(4))
        (policy.logits_NS.square().mean() + policy.values_N.mean()).backward()
        optimizer.step()
    return controller, optimizer


def contents(done: int) -> checkpoint.Checkpoint:
    controller, optimizer = trained(done)
    adam = checkpoint.optimizer_tensors(optimizer)
    return checkpoint.Checkpoint(done, controller.state_dict(), adam, seed_bank(), STATE)


def saved(folder: Path, done: int) -> Path:
    return checkpoint.save(folder, contents(done))


def committed(folder: Path, name: str, content: bytes) -> Path:
    """Another file in a checkpoint, with a digest to match: what a careful forger, or another program, leaves."""
    (folder / name).write_bytes(content)
    record = json.loads((folder / "checkpoint.json").read_text())
    record["sha256"][name] = hashlib.sha256(content).hexdigest()
    (folder / "checkpoint.json").write_text(json.dumps(record))
    return folder


def restated(folder: Path, change: Callable[[dict[str, Any]], Any]) -> Path:
    """The same checkpoint with another ``state.json``."""
    state = json.loads((folder / "state.json").read_text())
    change(state)
    return committed(folder, "state.json", json.dumps(state).encode())


def refused(folder: Path, *, naming: Path) -> CheckpointError:
    """The error, after seeing that the checkpoint before is used in its place."""
    with pytest.raises(CheckpointError) as failure:
        checkpoint.load(folder)
    assert str(naming) in failure.value.message
    assert "\n" not in failure.value.message
    told: list[str] = []
    found = checkpoint.load_latest(folder.parent, told.append)
    assert found is not None
    assert found.num_updates == 1
    assert len(told) == 1
    assert failure.value.message in told[0]
    return failure.value


def test_training_goes_on_bit_for_bit_after_a_round_trip(tmp_path: Path) -> None:
    found = checkpoint.load(saved(tmp_path, 3))
    assert (found.num_updates, found.state, found.bank) == (3, STATE, seed_bank())
    controller, optimizer = trained(0)
    controller.load_state_dict(found.controller)
    checkpoint.restore_optimizer(optimizer, found.optimizer)
    straight, straight_optimizer = trained(3)
    for net, optim in ((controller, optimizer), (straight, straight_optimizer)):
        optim.zero_grad()
        net(torch.ones(2, 8), torch.eye(4)).logits_NS.sum().backward()
        optim.step()
    pairs = zip(controller.parameters(), straight.parameters(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)


@pytest.mark.parametrize("name", [*checkpoint.FILES, "checkpoint.json"])
@pytest.mark.parametrize("harm", ["truncated", "emptied", "flipped", "missing", "pickle", "folder"])
def test_a_damaged_file_is_named_and_the_checkpoint_before_it_used(tmp_path: Path, name: str, harm: str) -> None:
    saved(tmp_path, 1)
    file = saved(tmp_path, 2) / name
    content = file.read_bytes()
    match harm:
        case "truncated":
            file.write_bytes(content[: len(content) // 2])
        case "emptied":
            file.write_bytes(b"")
        case "flipped":
            at = content.index(b'"sha256"') + 1 if name == "checkpoint.json" else 40
            file.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
        case "missing":
            file.unlink()
        case "pickle":
            file.write_bytes(b"\x80\x04cposix\nsystem\n(S'touch pwned'\ntR.")
        case "folder":
            file.unlink()
            file.mkdir()
    refused(file.parent, naming=file)


def torch_zip(tensors: dict[str, torch.Tensor]) -> bytes:
    buffer = io.BytesIO()
    torch.save(tensors, buffer)
    return buffer.getvalue()


@pytest.mark.parametrize("name", checkpoint.TENSORS)
@pytest.mark.parametrize("form", [pickle.dumps, torch_zip], ids=["pickle", "torch.save"])
def test_what_is_not_safetensors_is_refused_even_with_a_digest(tmp_path: Path, name: str, form: Any) -> None:
    saved(tmp_path, 1)
    folder = saved(tmp_path, 2)
    weights = trained(2)[0].state_dict()
    committed(folder, name, form(weights))
    assert "not safetensors" in refused(folder, naming=folder / name).message


def _of_another_size(tensors: dict[str, torch.Tensor]) -> None:
    tensors["state_net.0.weight"] = torch.zeros(8, 9)


def _of_another_type(tensors: dict[str, torch.Tensor]) -> None:
    tensors["state_net.0.weight"] = tensors["state_net.0.weight"].double()


def _under_another_name(tensors: dict[str, torch.Tensor]) -> None:
    tensors["state_net.1.weight"] = tensors.pop("state_net.0.weight")


def _one_too_few(tensors: dict[str, torch.Tensor]) -> None:
    del tensors["critic_head.2.bias"]


@pytest.mark.parametrize("change", [_of_another_size, _of_another_type, _under_another_name, _one_too_few])
def test_tensors_of_something_else_are_refused_by_name(tmp_path: Path, change: Any) -> None:
    saved(tmp_path, 1)
    folder = saved(tmp_path, 2)
    tensors = trained(2)[0].state_dict()
    change(tensors)
    file = folder / "controller.safetensors"
    assert "tensor " in refused(committed(folder, file.name, save_tensors(tensors)), naming=file).message


def test_an_optimizer_of_another_controller_is_refused(tmp_path: Path) -> None:
    saved(tmp_path, 1)
    folder = saved(tmp_path, 2)
    tensors = checkpoint.optimizer_tensors(trained(2)[1])
    tensors["3.exp_avg"] = torch.zeros(9)
    file = folder / "optimizer.safetensors"
    assert "3.exp_avg" in refused(committed(folder, file.name, save_tensors(tensors)), naming=file).message


@pytest.mark.parametrize(
    "change",
    [
        lambda state: state.pop("hard_cases"),
        lambda state: state.pop("skill_bank"),
        lambda state: state["skill_bank"].update(skills=[{"name": "x"}]),
        lambda state: state["hard_cases"].append({"question": "?"}),
        lambda state: state.update(rewards=None),
        lambda state: state.update(window_start="0"),
        lambda state: state.update(done=7),
        lambda state: state.update(hidden=0),
    ],
)
def test_a_state_that_makes_no_sense_is_refused_even_with_a_digest(tmp_path: Path, change: Any) -> None:
    saved(tmp_path, 1)
    folder = restated(saved(tmp_path, 2), change)
    refused(folder, naming=folder / "state.json")


def test_a_state_that_is_no_json_is_refused_even_with_a_digest(tmp_path: Path) -> None:
    saved(tmp_path, 1)
    for content in (b"{", b"[]", b"\xff\xfe", b"null"):
        folder = committed(saved(tmp_path, 2), "state.json", content)
        refused(folder, naming=folder / "state.json")


@pytest.mark.parametrize("field", ["dim", "hidden"])
def test_a_controller_of_another_size_than_its_state_says_is_refused(tmp_path: Path, field: str) -> None:
    saved(tmp_path, 1)
    folder = restated(saved(tmp_path, 2), lambda state: state.update({field: 6}))
    refused(folder, naming=folder / "controller.safetensors")


@pytest.mark.parametrize("record", [[], {}, {"format": "2"}, {"format": 0}, {"format": 2, "sha256": {}}, None])
def test_a_record_that_makes_no_sense_is_refused(tmp_path: Path, record: Any) -> None:
    saved(tmp_path, 1)
    file = saved(tmp_path, 2) / "checkpoint.json"
    file.write_text(json.dumps(record))
    refused(file.parent, naming=file)


def test_a_checkpoint_under_another_number_is_refused(tmp_path: Path) -> None:
    saved(tmp_path, 1)
    folder = saved(tmp_path, 2).rename(tmp_path / "000009")
    refused(folder, naming=folder)


def test_a_newer_format_is_refused_and_not_gone_back_from(tmp_path: Path) -> None:
    saved(tmp_path, 1)
    record = saved(tmp_path, 2) / "checkpoint.json"
    record.write_text(json.dumps({**json.loads(record.read_text()), "format": 99}))
    for read in (lambda: checkpoint.load(record.parent), lambda: checkpoint.load_latest(tmp_path)):
        with pytest.raises(CheckpointError, match="newer") as failure:
            read()
        assert failure.value.hint == "pip install -U memskill"


def test_the_format_before_is_read(tmp_path: Path) -> None:
    """As the first release wrote it: no rewards in the state."""
    folder = restated(saved(tmp_path, 2), lambda state: state.pop("rewards"))
    record = json.loads((folder / "checkpoint.json").read_text())
    (folder / "checkpoint.json").write_text(json.dumps({**record, "format": 1}))
    found = checkpoint.load(folder)
    assert found.state == {**STATE, "rewards": None}
    assert torch.equal(found.controller["state_net.0.bias"], trained(2)[0].state_dict()["state_net.0.bias"])


class Killed(BaseException):
    """What a SIGKILL is to a test in one process."""


FOLDER_CALLS = ("replace", "fsync")


def killed_at(monkeypatch: pytest.MonkeyPatch, what: str, number: int, after: bool) -> Callable[[], int]:
    """From the ``number``-th ``os.<what>`` on nothing happens any more, as after a kill; gives how often it was called.

    Tidying up after the error is switched off: a killed process does not do it.
    """
    real, seen = getattr(os, what), 0

    def call(*arguments: Any, **more: Any) -> Any:
        nonlocal seen
        seen += 1
        if seen == number and after:
            real(*arguments, **more)
        if seen >= number:
            raise Killed
        return real(*arguments, **more)

    monkeypatch.setattr(os, what, call)
    monkeypatch.setattr(os, "unlink", lambda *arguments, **more: None)
    monkeypatch.setattr(shutil, "rmtree", lambda *arguments, **more: None)
    return lambda: seen


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("what", FOLDER_CALLS)
@pytest.mark.parametrize("again", [False, True], ids=["new", "replaced"])
def test_a_save_cut_short_anywhere_leaves_a_sound_checkpoint(
    tmp_path: Path, what: str, after: bool, again: bool
) -> None:
    """Of the number being saved the old or the new one; before the first there is the one before."""
    new = contents(2)
    for number in range(1, 100):
        folder = tmp_path / str(number)
        saved(folder, 1)
        if again:
            saved(folder, 2)
        with pytest.MonkeyPatch.context() as patch:
            calls = killed_at(patch, what, number, after)
            try:
                checkpoint.save(folder, new)
            except Killed:
                pass
            else:
                assert number > 3, "or nothing was cut short"
                assert calls() < number
                return
        checkpoint.remove_stale(folder)
        assert not list(folder.glob(".*")), "nothing is left over"
        found = checkpoint.load_latest(folder, lambda text: pytest.fail(text))
        assert found is not None
        assert found.num_updates == 2 if again else found.num_updates in (1, 2)
        assert checkpoint.load(checkpoint.save(folder, new)).num_updates == 2
    pytest.fail("it never came to an end")


def test_a_full_disk_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = saved(tmp_path, 2)
    before = {file.name: file.read_bytes() for file in folder.iterdir()}

    def full(path: Path, value: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files, "write_json", full)
    with pytest.raises(OSError, match="No space left"):
        checkpoint.save(tmp_path, contents(2))
    assert [path.name for path in tmp_path.iterdir()] == ["000002"]
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before


def test_pruning_keeps_the_newest_and_the_best(tmp_path: Path) -> None:
    for done in range(1, 7):
        saved(tmp_path, done)
    checkpoint.prune(tmp_path, keep=2, best=3, done=6)
    assert sorted(os.listdir(tmp_path)) == ["000003", "000005", "000006"]


def test_pruning_does_not_count_checkpoints_that_were_gone_back_from(tmp_path: Path) -> None:
    for done in range(1, 6):
        saved(tmp_path, done)
    checkpoint.prune(tmp_path, keep=1, best=None, done=3)
    assert sorted(os.listdir(tmp_path)) == ["000003", "000004", "000005"]


def test_one_that_is_dropped_while_it_is_looked_for_is_no_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A training goes on while somebody reads: the one listed is pruned, a newer one is there."""
    saved(tmp_path, 1)
    real = checkpoint.load

    def load(folder: Path) -> checkpoint.Checkpoint:
        if folder.name == "000001":
            saved(tmp_path, 2)
            shutil.rmtree(folder)
        return real(folder)

    monkeypatch.setattr(checkpoint, "load", load)
    found = checkpoint.load_latest(tmp_path, lambda text: pytest.fail(text))
    assert found is not None
    assert found.num_updates == 2


def run_with(folder: Path, **manifest: str) -> Path:
    """The folder of checkpoints of a run whose manifest has these fields."""
    files.write_json(folder / "run.json", manifest)
    return folder / "checkpoints"


@pytest.mark.parametrize(
    ("manifest", "named", "used"),
    [
        ({"id": "own", "created": "then"}, "own", True),
        ({"id": "own", "created": "then"}, "other", False),
        ({"id": "own", "created": "then"}, "", False),
        ({"created": "then"}, "", True),
        ({"created": "then"}, "then", True),
        ({"created": "then"}, "other", False),
    ],
)
def test_a_checkpoint_is_used_in_its_own_run_only(
    tmp_path: Path, manifest: dict[str, str], named: str, used: bool
) -> None:
    folder = run_with(tmp_path / "run", **manifest)
    checkpoint.save(folder, dataclasses.replace(contents(1), run=manifest.get("id", "then")))
    checkpoint.save(folder, dataclasses.replace(contents(2), run=named))
    if "id" not in manifest:
        record = json.loads((folder / "000001/checkpoint.json").read_text())
        del record["run"]  # as an older version wrote it
        files.write_json(folder / "000001/checkpoint.json", record)
    told: list[str] = []
    found = checkpoint.load_latest(folder, told.append)
    assert found is not None
    assert found.num_updates == (2 if used else 1)
    if not used:
        assert told == [f"{folder / '000002'}: the checkpoint is of another run; trying the checkpoint before it"]
        moved = shutil.copytree(folder / "000002", tmp_path / "elsewhere" / "deep" / "000002")
        assert checkpoint.load(moved).num_updates == 2, "outside of a run it is nobody's"


@pytest.mark.parametrize(
    "state",
    [
        {"rewards": [1e308]},
        {"rewards": ["a"]},
        {"rewards": [None]},
        {"window_start": True},
        {"window_start": -1},
        {"held_out": [1]},
        {"held_out": {"q": "x"}},
        {"dim": 10**12},
        {"hidden": 10**18},
        {"hard_cases": [1]},
        {"hard_cases": [{"query_id": 1}]},
    ],
)
def test_a_state_of_another_kind_behind_a_valid_digest_is_named(tmp_path: Path, state: dict[str, Any]) -> None:
    folder = restated(saved(tmp_path, 1), lambda table: table.update(state))
    with pytest.raises(CheckpointError, match=r"state\.json: not a valid training state"):
        checkpoint.load(folder)


def test_a_tensor_that_is_not_finite_is_named(tmp_path: Path) -> None:
    folder, weights = saved(tmp_path, 1), contents(1).controller
    name = sorted(weights)[0]
    weights[name] = torch.full_like(weights[name], float("nan"))
    committed(folder, "controller.safetensors", save_tensors(weights))
    with pytest.raises(CheckpointError, match=f"tensor {name} has values that are NaN"):
        checkpoint.load(folder)


def test_a_huge_header_is_refused(tmp_path: Path) -> None:
    folder = committed(saved(tmp_path, 1), "controller.safetensors", (2**62).to_bytes(8, "little") + b"{}")
    with pytest.raises(CheckpointError, match="not safetensors"):
        checkpoint.load(folder)
