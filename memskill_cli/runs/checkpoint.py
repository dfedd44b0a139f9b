"""Checkpoints: controller and optimizer as safetensors, the rest as JSON, committed by a record of digests.

``checkpoints/NNNNNN/`` is the state after NNNNNN inner epochs. ``checkpoint.json`` is written last: a folder without
it, or whose files do not have the digests it names, is not a checkpoint. Nothing is pickled.
"""

from __future__ import annotations

import hashlib
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from memskill_cli import files
from memskill_cli.errors import CheckpointError
from memskill_cli.skills.bank import SkillBank

FORMAT = 1
TENSORS = ("controller.safetensors", "optimizer.safetensors")
FILES = (*TENSORS, "state.json")


@dataclass(frozen=True)
class Checkpoint:
    """State after ``done`` inner epochs."""

    done: int
    controller: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    bank: SkillBank
    state: dict[str, Any]
    digest: str = ""


def save(folder: Path, checkpoint: Checkpoint) -> Path:
    """Write ``folder/NNNNNN``; it counts from the moment its record is in place."""
    goal = folder / f"{checkpoint.done:06d}"
    shutil.rmtree(goal, ignore_errors=True)
    goal.mkdir(parents=True)
    contents = {
        "controller.safetensors": save_tensors(checkpoint.controller),
        "optimizer.safetensors": save_tensors(checkpoint.optimizer),
        "state.json": files.to_json(
            {"done": checkpoint.done, "skill_bank": checkpoint.bank.to_dict(), **checkpoint.state},
            pretty=True,
        ),
    }
    for name, content in contents.items():
        files.write_atomic(goal / name, content)
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
    files.write_json(goal / "checkpoint.json", {"format": FORMAT, "done": checkpoint.done, "sha256": digests})
    return goal


def load(folder: Path) -> Checkpoint:
    """One checkpoint folder. Raises CheckpointError naming the file that is missing, damaged or foreign."""
    try:
        record = orjson.loads((folder / "checkpoint.json").read_bytes())
        known = {name: record["sha256"][name] for name in FILES}
        if record["format"] > FORMAT:
            raise CheckpointError(f"{folder}: format {record['format']} is newer than this memskill reads ({FORMAT})")
    except (OSError, orjson.JSONDecodeError, KeyError, TypeError) as error:
        raise CheckpointError(f"{folder}: no whole checkpoint: {error!r}") from None
    contents = {}
    for name, digest in known.items():
        try:
            contents[name] = (folder / name).read_bytes()
        except OSError as error:
            raise CheckpointError(f"{folder / name}: {error.strerror}") from None
        if hashlib.sha256(contents[name]).hexdigest() != digest:
            raise CheckpointError(f"{folder / name}: its contents are not those that were written")
    state = orjson.loads(contents["state.json"])
    bank = SkillBank.from_json(contents["state.json"].decode(), str(folder / "state.json"), at=("skill_bank",))
    del state["skill_bank"]
    controller, optimizer = (load_tensors(contents[name]) for name in TENSORS)
    digest = hashlib.sha256(files.to_json(record["sha256"])).hexdigest()[:12]
    return Checkpoint(state.pop("done"), controller, optimizer, bank, state, digest)


def all_of(folder: Path) -> list[Path]:
    """Committed checkpoints, oldest first."""
    return sorted(record.parent for record in folder.glob("[0-9]*/checkpoint.json"))


def load_latest(folder: Path, warn: Any = print) -> Checkpoint | None:
    """The newest sound checkpoint; a damaged one is named through ``warn`` and the one before it used."""
    for path in reversed(all_of(folder)):
        try:
            return load(path)
        except CheckpointError as error:
            warn(f"{error.message}; using the checkpoint before it")
    return None


def prune(folder: Path, keep: int, best: int | None) -> None:
    """Drop all but the ``keep`` newest and the best."""
    for path in all_of(folder)[:-keep]:
        if int(path.name) != best:
            shutil.rmtree(path)


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The state of an optimizer as flat tensors named ``<parameter index>.<state name>``."""
    state = optimizer.state_dict()["state"]
    return {f"{i}.{name}": torch.as_tensor(value) for i, entry in state.items() for name, value in entry.items()}


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """The reverse of :func:`optimizer_tensors`; settings such as the learning rate stay the optimizer's own."""
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        index, _, key = name.partition(".")
        state.setdefault(int(index), {})[key] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
