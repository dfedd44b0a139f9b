"""Checkpoints: whole or not there, and never trusted blindly."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from memskill_cli.agent.controller import Controller
from memskill_cli.errors import CheckpointError
from memskill_cli.runs import checkpoint
from memskill_cli.skills.seeds import seed_bank


def trained(steps: int) -> tuple[Controller, torch.optim.Adam]:
    controller = Controller.seeded(4, 8, seed=0)
    optimizer = torch.optim.Adam(controller.parameters(), lr=1e-3)
    for step in range(steps):
        optimizer.zero_grad()
        policy = controller(torch.full((2, 8), 0.1 * (step + 1)), torch.eye(4))
        (policy.logits_NS.square().mean() + policy.values_N.mean()).backward()
        optimizer.step()
    return controller, optimizer


def saved(folder: Path, done: int) -> Path:
    controller, optimizer = trained(done)
    state = checkpoint.optimizer_tensors(optimizer)
    return checkpoint.save(folder, checkpoint.Checkpoint(done, controller.state_dict(), state, seed_bank(), {"dim": 4}))


def test_training_goes_on_bit_for_bit_after_a_round_trip(tmp_path: Path) -> None:
    found = checkpoint.load(saved(tmp_path, 3))
    assert (found.done, found.state, found.bank) == (3, {"dim": 4}, seed_bank())
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
@pytest.mark.parametrize("harm", ["truncated", "flipped", "missing", "pickle"])
def test_a_damaged_file_is_named_and_the_checkpoint_before_it_used(tmp_path: Path, name: str, harm: str) -> None:
    saved(tmp_path, 1)
    file = saved(tmp_path, 2) / name
    content = file.read_bytes()
    match harm:
        case "truncated":
            file.write_bytes(content[: len(content) // 2])
        case "flipped":
            file.write_bytes(content[:40] + bytes([content[40] ^ 1]) + content[41:])
        case "missing":
            file.unlink()
        case "pickle":
            file.write_bytes(b"\x80\x04cposix\nsystem\n(S'touch pwned'\ntR.")
    with pytest.raises(CheckpointError) as failure:
        checkpoint.load(file.parent)
    if name != "checkpoint.json":
        assert str(file) in failure.value.message
    told: list[str] = []
    found = checkpoint.load_latest(tmp_path, told.append)
    assert found is not None
    assert found.done == 1


def test_a_newer_format_is_refused(tmp_path: Path) -> None:
    record = saved(tmp_path, 1) / "checkpoint.json"
    record.write_text(json.dumps({**json.loads(record.read_text()), "format": 99}))
    with pytest.raises(CheckpointError, match="newer"):
        checkpoint.load(record.parent)


def test_pruning_keeps_the_newest_and_the_best(tmp_path: Path) -> None:
    for done in range(1, 7):
        saved(tmp_path, done)
    checkpoint.prune(tmp_path, keep=2, best=3)
    assert [path.name for path in checkpoint.all_of(tmp_path)] == ["000003", "000005", "000006"]
