"""Checkpoints: controller and optimizer as safetensors, the rest as JSON, committed by a record of digests.

``checkpoints/NNNNNN/`` is the state after NNNNNN inner epochs. It is written aside, ``checkpoint.json`` last, and then
renamed, so a folder of that name is whole unless somebody or a disk has harmed it: its files then do not have the
digests that the record names. What is read back is checked down to the shapes of the tensors; nothing is pickled.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from memskill_cli.agent.controller import Controller
from memskill_cli.agent.hard_cases import HardCase
from memskill_cli.errors import CheckpointError, MemskillError
from memskill_cli.skills.bank import SkillBank
from memskill_cli.utils import files

FORMAT = 2
TENSORS = ("controller.safetensors", "optimizer.safetensors")
FILES = (*TENSORS, "state.json")
UPGRADE = "pip install -U memskill"
_STATE = {"dim": int, "hidden": int, "window_start": int, "hard_cases": list, "rewards": list}


@dataclass(frozen=True)
class Checkpoint:
    """State after ``done`` inner epochs.

    ``state`` has ``dim``, ``skill_dim`` and ``hidden`` of the controller, ``window_start``, ``hard_cases`` as rows,
    and ``rewards``: those of the stage's inner epochs so far (None in a checkpoint of format 1, which left them to
    ``metrics.jsonl``).
    """

    done: int
    controller: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    bank: SkillBank
    state: dict[str, Any]
    digest: str = ""

    @property
    def skill_dim(self) -> int:
        """Width of the skill embeddings: the state encoder's unless it was recorded as another one."""
        return int(self.state.get("skill_dim", self.state["dim"]))


def save(folder: Path, checkpoint: Checkpoint) -> Path:
    """Write ``folder/NNNNNN`` durably, as a whole or not at all; one that is there already is replaced."""
    goal = folder / f"{checkpoint.done:06d}"
    contents = {
        "controller.safetensors": save_tensors(checkpoint.controller),
        "optimizer.safetensors": save_tensors(checkpoint.optimizer),
        "state.json": files.to_json(
            {"done": checkpoint.done, "skill_bank": checkpoint.bank.to_dict(), **checkpoint.state},
            pretty=True,
        ),
    }
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
    aside = _beside(goal, "tmp")
    shutil.rmtree(aside, ignore_errors=True)
    try:
        for name, content in contents.items():
            files.write_atomic(aside / name, content)
        files.write_json(aside / "checkpoint.json", {"format": FORMAT, "done": checkpoint.done, "sha256": digests})
        _put_in_place(aside, goal)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    return goal


def _put_in_place(aside: Path, goal: Path) -> None:
    """Rename ``aside``; a folder in its place stays beside it until then, for :func:`sweep` to bring back."""
    old = _beside(goal, "old")
    shutil.rmtree(old, ignore_errors=True)
    if goal.exists():
        os.replace(goal, old)
    os.replace(aside, goal)
    files.sync_folder(goal.parent)
    files.sync_folder(goal.parent.parent)
    shutil.rmtree(old, ignore_errors=True)


def _beside(goal: Path, what: str) -> Path:
    return goal.with_name(f".{goal.name}.{what}")


def sweep(folder: Path) -> None:
    """Tidy up after a crash: what was being replaced is brought back, what was being written or dropped goes.

    For the owner of the run only.
    """
    for left in folder.glob(".*"):
        goal = folder / left.name.split(".")[1]
        if left.suffix == ".old" and not goal.exists():
            os.replace(left, goal)
        elif left.suffix in (".tmp", ".old", ".gone"):
            shutil.rmtree(left)


def load(folder: Path) -> Checkpoint:
    """One checkpoint folder. Raises CheckpointError naming the file that is missing, damaged, foreign or too new."""
    record = _record(folder / "checkpoint.json")
    contents = {name: _content(folder / name, record["sha256"][name]) for name in FILES}
    done, bank, state = _state(folder / "state.json", contents["state.json"], record)
    if folder.name.isdigit() and int(folder.name) != done:
        raise CheckpointError(f"{folder}: holds the state after {done} inner epochs, not what its name says")
    controller, optimizer = (_tensors(folder / name, contents[name]) for name in TENSORS)
    with torch.device("meta"):  # shapes only
        like = Controller(2 * state["dim"], state.get("skill_dim", state["dim"]), state["hidden"]).state_dict()
    _check_tensors(folder / TENSORS[0], controller, like)
    if optimizer:  # before the first update there is none
        _check_tensors(folder / TENSORS[1], optimizer, _adam_like(like))
    digest = hashlib.sha256(files.to_json(record["sha256"])).hexdigest()[:12]
    return Checkpoint(done, controller, optimizer, bank, state, digest)


def _record(file: Path) -> dict[str, Any]:
    """What ``checkpoint.json`` says, with a digest for every file."""
    try:
        record = orjson.loads(file.read_bytes())
        if record["format"] > FORMAT:
            message = f"{file}: format {record['format']} is newer than this memskill reads ({FORMAT})"
            raise CheckpointError(message, hint=UPGRADE)
        if record["format"] < 1 or not all(isinstance(record["sha256"][name], str) for name in FILES):
            raise ValueError("no format and digests")
    except OSError as error:
        raise CheckpointError(f"{file}: no whole checkpoint: {error.strerror}") from None
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{file}: not the record of a checkpoint: {error}") from None
    return dict(record)


def _content(file: Path, digest: str) -> bytes:
    try:
        content = file.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{file}: {error.strerror}") from None
    if hashlib.sha256(content).hexdigest() != digest:
        raise CheckpointError(f"{file}: its contents are not those that were written")
    return content


def _state(file: Path, content: bytes, record: Mapping[str, Any]) -> tuple[int, SkillBank, dict[str, Any]]:
    """What ``state.json`` holds, brought up to this format: inner epochs done, the bank, and the rest."""
    try:
        state = orjson.loads(content)
        bank = SkillBank.from_json(content.decode(), str(file), at=("skill_bank",))
        del state["skill_bank"]
        done = state.pop("done")
        if record["format"] == 1:
            state["rewards"] = None
        for name, kind in _STATE.items():
            if not isinstance(state[name], kind) and (record["format"] > 1 or name != "rewards"):
                raise TypeError(f"{name} is no {kind.__name__}")
        if not isinstance(state.setdefault("skill_dim", state["dim"]), int) or state["skill_dim"] < 1:
            raise ValueError(f"skill_dim {state['skill_dim']} makes no sense")
        if done != record["done"] or done < 0 or state["dim"] < 1 or state["hidden"] < 1:
            raise ValueError(f"done {done}, dim {state['dim']}, hidden {state['hidden']} make no sense")
        for row in state["hard_cases"]:
            HardCase.from_row(row)
    except (ValueError, KeyError, TypeError, AttributeError, MemskillError) as error:
        raise CheckpointError(f"{file}: not the state of a training: {error}") from None
    return done, bank, state


def _tensors(file: Path, content: bytes) -> dict[str, Tensor]:
    try:
        return load_tensors(content)
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{file}: not safetensors, and nothing else is read: {error}") from None


def _check_tensors(file: Path, found: Mapping[str, Tensor], like: Mapping[str, Tensor]) -> None:
    """Raises CheckpointError unless ``found`` has the names, shapes and type of ``like``."""
    for name in sorted(found.keys() ^ like.keys()):
        which = "is unknown" if name in found else "is missing"
        raise CheckpointError(f"{file}: not of a controller of this size: tensor {name} {which}")
    for name, tensor in sorted(found.items()):
        if (tensor.dtype, tensor.shape) != (torch.float32, like[name].shape):
            is_now = f"{tensor.dtype} {tuple(tensor.shape)}"
            wanted = f"torch.float32 {tuple(like[name].shape)}"
            raise CheckpointError(f"{file}: tensor {name} is {is_now}, not {wanted}")


def _adam_like(controller: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors as :func:`optimizer_tensors` names them after an update."""
    like: dict[str, Tensor] = {}
    for index, tensor in enumerate(controller.values()):
        like |= {f"{index}.step": tensor.new_zeros(()), f"{index}.exp_avg": tensor, f"{index}.exp_avg_sq": tensor}
    return like


def all_of(folder: Path) -> list[Path]:
    """The folders that carry a checkpoint's name, oldest first; only :func:`load` tells whether one is sound."""
    return sorted((path for path in folder.glob("[0-9]*") if path.name.isdigit()), key=lambda path: int(path.name))


def load_latest(folder: Path, warn: Callable[[str], None] = print, *, upto: int | None = None) -> Checkpoint | None:
    """The newest sound checkpoint (of those after at most ``upto`` inner epochs); a damaged one is named through
    ``warn`` and the one before it tried.

    One that a training dropped meanwhile is passed over without a word. CheckpointError for one of a newer format: it
    is no damage, and what an older checkpoint leads to would overwrite it.
    """
    tried: set[Path] = set()
    while left := [p for p in all_of(folder) if p not in tried and (upto is None or int(p.name) <= upto)]:
        tried.add(left[-1])
        try:
            return load(left[-1])
        except CheckpointError as error:
            if error.hint == UPGRADE:
                raise
            if left[-1].exists():
                warn(f"{error.message}; trying the checkpoint before it")
    return None


def prune(folder: Path, keep: int, best: int | None, *, done: int) -> None:
    """Drop all but the ``keep`` newest and the best of the checkpoints up to ``done``.

    Later ones, damaged and gone back from, do not count; they stay until they are replaced.
    """
    for path in [path for path in all_of(folder) if int(path.name) <= done][:-keep]:
        if int(path.name) != best:
            gone = _beside(path, "gone")
            os.replace(path, gone)  # first, so that no half of a checkpoint is ever found under its name
            shutil.rmtree(gone)


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
