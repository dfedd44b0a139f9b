"""Checkpoints: controller and optimizer as safetensors, the rest as JSON, and a file of digests. Nothing is pickled.

``checkpoints/NNNNNN/`` is the state after NNNNNN inner epochs. It is written to a temporary folder, ``checkpoint.json``
last, and then renamed, so it is complete. Later damage shows in the digests of ``checkpoint.json``. Reading also
validates the shapes of the tensors.
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
from memskill_cli.runs.run_dir import has_id, id_of
from memskill_cli.skills.bank import SkillBank
from memskill_cli.utils import files
from memskill_cli.utils.rows import COUNT, NUMBER, fault, list_of, optional, or_null, table_of

FORMAT = 2
TENSORS = ("controller.safetensors", "optimizer.safetensors")
FILES = (*TENSORS, "state.json")
UPGRADE = "pip install -U memskill"
_SIZES = ("dim", "skill_dim", "hidden")
_WIDEST = 1_000_000
_VALUES = {
    **dict.fromkeys((*_SIZES, "window_start"), COUNT),
    "rewards": or_null(list_of(NUMBER)),
    "held_out": optional(table_of(or_null(NUMBER))),
}
_STATE = {"dim": int, "hidden": int, "window_start": int, "hard_cases": list, "rewards": list}


@dataclass(frozen=True)
class Checkpoint:
    """State after ``num_updates`` inner epochs.

    ``state`` has ``dim``, ``skill_dim`` and ``hidden`` of the controller, ``window_start`` (inner epoch where the
    exploration window began), ``hard_cases`` as rows, ``rewards`` of the stage's inner epochs so far (None in
    format 1, where they are only in ``metrics.jsonl``), and ``held_out``: the scores of held-out questions at the end
    of a stage that they judge, else None.
    """

    num_updates: int
    controller: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    bank: SkillBank
    state: dict[str, Any]
    digest: str = ""
    run: str = ""
    """The id of the run that it belongs to; "" in checkpoints of older versions."""

    @property
    def skill_dim(self) -> int:
        """Dimension of the skill embeddings; ``dim`` if it was not recorded."""
        return int(self.state.get("skill_dim", self.state["dim"]))


def save(folder: Path, checkpoint: Checkpoint) -> Path:
    """Write ``folder/NNNNNN`` durably and atomically; an existing one is replaced. Returns its path."""
    target = folder / f"{checkpoint.num_updates:06d}"
    contents = {
        "controller.safetensors": save_tensors(checkpoint.controller),
        "optimizer.safetensors": save_tensors(checkpoint.optimizer),
        "state.json": files.to_json(
            {"done": checkpoint.num_updates, "skill_bank": checkpoint.bank.to_dict(), **checkpoint.state},
            pretty=True,
        ),
    }
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
    temporary = _hidden_sibling(target, "tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        for name, content in contents.items():
            files.write_atomic(temporary / name, content)
        run = {"run": checkpoint.run} if checkpoint.run else {}
        record = {"format": FORMAT, "done": checkpoint.num_updates, **run, "sha256": digests}
        files.write_json(temporary / "checkpoint.json", record)
        _commit(temporary, target)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return target


def _commit(temporary: Path, target: Path) -> None:
    """Rename ``temporary`` to ``target``. An old ``target`` is renamed first; :func:`remove_stale` can restore it."""
    old = _hidden_sibling(target, "old")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        os.replace(target, old)
    os.replace(temporary, target)
    files.sync_folder(target.parent)
    files.sync_folder(target.parent.parent)
    shutil.rmtree(old, ignore_errors=True)


def _hidden_sibling(target: Path, what: str) -> Path:
    return target.with_name(f".{target.name}.{what}")


def remove_stale(folder: Path) -> None:
    """Clean up after a crash: restore a checkpoint that was being replaced, delete unfinished and dropped ones.

    The caller must hold the run's lock.
    """
    for stale in folder.glob(".*"):
        target = folder / stale.name.split(".")[1]
        if stale.suffix == ".old" and not target.exists():
            os.replace(stale, target)
        elif stale.suffix in (".tmp", ".old", ".gone"):
            shutil.rmtree(stale)


def load(folder: Path) -> Checkpoint:
    """The checkpoint in ``folder``. Raises CheckpointError, which names the missing, damaged or too new file.

    One that lies in a run's directory must be of that run.
    """
    record = _record(folder / "checkpoint.json")
    _check_run(folder, record)
    contents = {name: _content(folder / name, record["sha256"][name]) for name in FILES}
    done, bank, state = _state(folder / "state.json", contents["state.json"], record)
    if folder.name.isdigit() and int(folder.name) != done:
        raise CheckpointError(f"{folder}: has the state after {done} inner epochs, which differs from its name")
    size = state["dim"], state.get("skill_dim", state["dim"]), state["hidden"]
    controller = controller_tensors(folder / TENSORS[0], contents[TENSORS[0]], *size)
    optimizer = _tensors(folder / TENSORS[1], contents[TENSORS[1]])
    if optimizer:  # empty before the first update
        _check_tensors(folder / TENSORS[1], optimizer, _expected_adam(_shapes(*size)))
    digest = hashlib.sha256(files.to_json(record["sha256"])).hexdigest()[:12]
    return Checkpoint(done, controller, optimizer, bank, state, digest, record.get("run", ""))


def _check_run(folder: Path, record: Mapping[str, Any]) -> None:
    """Raise CheckpointError if ``folder`` is in a run's directory and the checkpoint names another run.

    Runs of older versions have no id and checkpoints without a name.
    """
    manifest = folder.absolute().parents[1]
    named, own = record.get("run", ""), id_of(manifest)
    if own and named != own and (named or has_id(manifest)):
        raise CheckpointError(
            f"{folder}: the checkpoint is of another run",
            hint="evaluate it in its own run, or start a new run from that one: memskill train --init-from RUN",
        )


def _record(file: Path) -> dict[str, Any]:
    """The content of ``checkpoint.json``: format, number of inner epochs, and a sha256 per file."""
    try:
        record = orjson.loads(file.read_bytes())
        if record["format"] > FORMAT:
            message = f"{file}: format {record['format']} is newer than this memskill supports ({FORMAT})"
            raise CheckpointError(message, hint=UPGRADE)
        if record["format"] < 1 or not all(
            isinstance(text, str) for text in (record.get("run", ""), *(record["sha256"][name] for name in FILES))
        ):
            raise ValueError("no format and digests")
    except OSError as error:
        raise CheckpointError(f"{file}: the checkpoint is incomplete: {error.strerror}") from None
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{file}: not a valid checkpoint.json: {error}") from None
    return dict(record)


def _content(file: Path, digest: str) -> bytes:
    try:
        content = file.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{file}: {error.strerror}") from None
    if hashlib.sha256(content).hexdigest() != digest:
        raise CheckpointError(f"{file}: the content does not match its sha256 in checkpoint.json")
    return content


def _state(file: Path, content: bytes, record: Mapping[str, Any]) -> tuple[int, SkillBank, dict[str, Any]]:
    """(inner epochs done, bank, state) of ``state.json``, converted to the current format."""
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
        state.setdefault("skill_dim", state["dim"])
        if problem := fault(state, _VALUES):
            raise ValueError(problem)
        if done != record["done"] or done < 0 or not all(1 <= state[name] <= _WIDEST for name in _SIZES):
            sizes = ", ".join(f"{name} {state[name]}" for name in _SIZES)
            raise ValueError(f"done {done}, {sizes} are out of range")
        for row in state["hard_cases"]:
            HardCase.from_row(row)
    except (ValueError, KeyError, TypeError, AttributeError, MemskillError) as error:
        raise CheckpointError(f"{file}: not a valid training state: {error}") from None
    return done, bank, state


def _tensors(file: Path, content: bytes) -> dict[str, Tensor]:
    try:
        return load_tensors(content)
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{file}: not safetensors, the only format supported: {error}") from None


def controller_tensors(file: Path, content: bytes, dim: int, skill_dim: int, hidden: int) -> dict[str, Tensor]:
    """The tensors of a controller of this size, from the ``content`` of ``file``. CheckpointError if not."""
    found = _tensors(file, content)
    _check_tensors(file, found, _shapes(dim, skill_dim, hidden))
    return found


def _shapes(dim: int, skill_dim: int, hidden: int) -> dict[str, Tensor]:
    """The tensors of a controller of this size, without values, in the order of its parameters."""
    with torch.device("meta"):
        return Controller(2 * dim, skill_dim, hidden).state_dict()


def _check_tensors(file: Path, found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Raise CheckpointError unless ``found`` is float32 with the names and shapes of ``expected``."""
    for name in sorted(found.keys() ^ expected.keys()):
        which = "is unknown" if name in found else "is missing"
        raise CheckpointError(f"{file}: does not fit a controller of this size: tensor {name} {which}")
    for name, tensor in sorted(found.items()):
        if (tensor.dtype, tensor.shape) != (torch.float32, expected[name].shape):
            actual = f"{tensor.dtype} {tuple(tensor.shape)}"
            wanted = f"torch.float32 {tuple(expected[name].shape)}"
            raise CheckpointError(f"{file}: tensor {name} is {actual}, not {wanted}")
        if not tensor.isfinite().all():
            raise CheckpointError(f"{file}: tensor {name} has values that are NaN or infinite")


def _expected_adam(controller: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors with the names and shapes that :func:`optimizer_tensors` gives after an update."""
    expected: dict[str, Tensor] = {}
    for index, tensor in enumerate(controller.values()):
        moments = {f"{index}.exp_avg": tensor, f"{index}.exp_avg_sq": tensor}
        expected |= {f"{index}.step": tensor.new_zeros(()), **moments}
    return expected


def all_of(folder: Path) -> list[Path]:
    """The folders with the name of a checkpoint, oldest first. They may be damaged: :func:`load` validates."""
    return sorted((path for path in folder.glob("[0-9]*") if path.name.isdigit()), key=lambda path: int(path.name))


def load_latest(folder: Path, warn: Callable[[str], None] = print, *, upto: int | None = None) -> Checkpoint | None:
    """The newest valid checkpoint after at most ``upto`` inner epochs; None if there is none.

    Damaged checkpoints are reported through ``warn`` and skipped; those that a training deletes meanwhile are skipped
    without a warning. Raises CheckpointError for a newer format, because going on from an older checkpoint would
    overwrite it.
    """
    tried: set[Path] = set()
    while remaining := [p for p in all_of(folder) if p not in tried and (upto is None or int(p.name) <= upto)]:
        newest = remaining[-1]
        tried.add(newest)
        try:
            return load(newest)
        except CheckpointError as error:
            if error.hint == UPGRADE:
                raise
            if newest.exists():
                warn(f"{error.message}; trying the checkpoint before it")
    return None


def prune(folder: Path, keep: int, best: int | None, *, done: int) -> None:
    """Delete the checkpoints up to ``done`` except the ``keep`` newest and ``best``.

    Later checkpoints are damaged ones that resume skipped. They are not counted, and stay until they are replaced.
    """
    for path in [path for path in all_of(folder) if int(path.name) <= done][:-keep]:
        if int(path.name) != best:
            gone = _hidden_sibling(path, "gone")
            os.replace(path, gone)  # first, so that a half-deleted checkpoint is never found under its name
            shutil.rmtree(gone)


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The state of an optimizer as a flat dict of tensors, keys ``<parameter index>.<state name>``."""
    state = optimizer.state_dict()["state"]
    return {f"{i}.{name}": torch.as_tensor(value) for i, entry in state.items() for name, value in entry.items()}


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """The reverse of :func:`optimizer_tensors`. Settings of the optimizer, such as the learning rate, do not change."""
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        index, _, key = name.partition(".")
        state.setdefault(int(index), {})[key] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
