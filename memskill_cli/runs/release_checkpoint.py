"""A checkpoint of the published code (MemSkill, arXiv 2602.02474), read without running anything in it.

The file is opened in another process (:mod:`memskill_cli.runs.release_unpickler`), which writes tensors and plain JSON.
What comes back is checked here: names, shapes and finite numbers.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load as load_tensors
from torch import Tensor

from memskill_cli.agent.controller import Controller
from memskill_cli.envs.env_process import KEPT
from memskill_cli.errors import CheckpointError
from memskill_cli.runs.release_unpickler import FACTS, PARAMETERS, TENSORS

Notice = Callable[[str], None]
_HINT = (
    "memskill import takes a checkpoint that the published code wrote, such as <run>_epoch_10.pt; "
    "its authors' are at https://huggingface.co/collections/XaiverZ/memskill"
)
_ADAM = ("step", "exp_avg", "exp_avg_sq")  # in the order in which checkpoints have them


@dataclasses.dataclass(frozen=True)
class ReleaseCheckpoint:
    """What a file holds. ``controller`` has our tensor names, ``optimizer`` those of a checkpoint ({}: none).

    ``outer_epochs`` is None if the file does not say it. ``explored`` is how many inner epochs the exploration of new
    skills has lasted. ``snapshot`` is what was measured of the skills, ``{"reward", "best"}``; None if it does not say.
    ``values`` are settings by the published code's names, ``names`` are all that it stored.
    """

    file: Path
    sha256: str
    controller: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    outer_epochs: int | None
    explored: int
    operations: list[dict[str, Any]]
    capacity: Any
    new: list[str]
    snapshot: dict[str, Any] | None
    values: dict[str, Any]
    names: frozenset[str]

    @property
    def state_dim(self) -> int:
        return self.controller["state_net.0.weight"].shape[1]

    @property
    def skill_dim(self) -> int:
        return self.controller["op_net.0.weight"].shape[1]

    @property
    def hidden(self) -> int:
        return self.controller["state_net.0.weight"].shape[0]


def read(file: Path, notice: Notice) -> ReleaseCheckpoint:
    """The checkpoint in ``file``. CheckpointError, in one line, for anything else."""
    _check_archive(file)
    with tempfile.TemporaryDirectory(prefix="memskill-import-") as folder:
        _unpickle(file, Path(folder))
        facts = json.loads((Path(folder) / FACTS).read_text("ascii"))
        if "error" in facts:
            raise CheckpointError(f"{file}: {facts['error']}", hint=_HINT)
        tensors = load_tensors((Path(folder) / TENSORS).read_bytes())
    controller = {name: tensors[name] for name in PARAMETERS}
    _check_shapes(file, controller)
    controller = _as_float32(file, controller, notice)
    epochs, explored = _progress(facts["progress"])
    return ReleaseCheckpoint(
        file=file,
        sha256=_sha256(file),
        controller=controller,
        optimizer=_optimizer(tensors, controller, facts["no_optimizer"], notice),
        outer_epochs=epochs,
        explored=explored,
        operations=facts["operations"],
        capacity=facts["capacity"],
        new=facts["new"],
        snapshot=facts["snapshot"],
        values=facts["values"],
        names=frozenset(facts["names"]),
    )


def _check_archive(file: Path) -> None:
    """Raise CheckpointError unless the directory of ``file`` is that of an archive of ``torch.save``."""
    if not file.exists():
        raise CheckpointError(f"{file}: no such file", hint=_HINT)
    if not file.is_file():
        raise CheckpointError(f"{file}: not a file", hint=_HINT)
    with file.open("rb") as opened:
        start = opened.read(4)
    if start != b"PK\x03\x04":
        what = "an empty file" if not start else "not an archive of torch.save (of torch 1.6 or later)"
        raise CheckpointError(f"{file}: {what}", hint=_HINT)
    try:
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise CheckpointError(f"{file}: cut off or damaged: {error}", hint="get the file again") from None
    names = [entry.filename.rpartition("/")[2] for entry in entries]
    if names.count("data.pkl") != 1 or "constants.pkl" in names:
        raise CheckpointError(f"{file}: a ZIP archive, but not one of torch.save", hint=_HINT)
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):  # so that it is no larger than the file
        raise CheckpointError(f"{file}: it is compressed, which torch.save never does", hint=_HINT)


def _unpickle(file: Path, folder: Path) -> None:
    """Have ``file`` read by another process, which has no keys. CheckpointError if that process does not survive it."""
    environ = {name: os.environ[name] for name in KEPT if name in os.environ}
    program = [sys.executable, "-P", "-m", "memskill_cli.runs.release_unpickler", str(file.absolute()), str(folder)]
    done = subprocess.run(  # noqa: S603 - no shell; the program is ours, the file an argument
        program, env=environ, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, check=False
    )
    if done.returncode or not (folder / FACTS).is_file():
        code = done.returncode
        how = f"by {signal.Signals(-code).name}" if code < 0 else f"with code {code}"
        last = (done.stderr.decode(errors="replace").strip().splitlines() or [""])[-1][:200]
        raise CheckpointError(
            f"{file}: the process that read it ended {how}; it is damaged, or made to do harm"
            + (f": {last}" if last else ""),
            hint=_HINT,
        )


def _check_shapes(file: Path, controller: Mapping[str, Tensor]) -> None:
    """Raise CheckpointError unless all tensors are those of one controller."""
    first, skills = controller["state_net.0.weight"], controller["op_net.0.weight"]
    if first.dim() != 2 or skills.dim() != 2 or 0 in (*first.shape, *skills.shape):
        shapes = f"{tuple(first.shape)} and {tuple(skills.shape)}"
        raise CheckpointError(f"{file}: state_net.0.weight and op_net.0.weight have the shapes {shapes}", hint=_HINT)
    if first.shape[1] % 2:
        raise CheckpointError(f"{file}: a state has {first.shape[1]} numbers, which are not two embeddings", hint=_HINT)
    with torch.device("meta"):  # shapes only
        like = Controller(first.shape[1], skills.shape[1], first.shape[0]).state_dict()
    for name, tensor in controller.items():
        if tensor.shape != like[name].shape:
            wanted = f"not {tuple(like[name].shape)}, as state_net.0.weight and op_net.0.weight ask for"
            raise CheckpointError(f"{file}: {name} has the shape {tuple(tensor.shape)}, {wanted}", hint=_HINT)


def _as_float32(file: Path, controller: Mapping[str, Tensor], notice: Notice) -> dict[str, Tensor]:
    """The weights as this program computes with them. CheckpointError if one is not a finite number."""
    kinds = {str(tensor.dtype).removeprefix("torch.") for tensor in controller.values()} - {"float32"}
    if kinds:
        notice(f"weights in {', '.join(sorted(kinds))} are converted to float32")
    converted = {name: tensor.to(torch.float32) for name, tensor in controller.items()}
    for name, tensor in converted.items():
        if not tensor.isfinite().all():
            raise CheckpointError(f"{file}: {name} has numbers that are not finite")
    return converted


def _optimizer(
    tensors: Mapping[str, Tensor], controller: Mapping[str, Tensor], why_not: str, notice: Notice
) -> dict[str, Tensor]:
    """Adam's state under the names of a checkpoint; {} (and a notice) if the file has none that can be gone on with."""
    found: dict[str, Tensor] = {}
    for number, name in enumerate(PARAMETERS if not why_not else ()):
        for key in _ADAM:
            tensor = tensors[f"{name}/{key}"].to(torch.float32)
            shape = () if key == "step" else controller[name].shape
            if tuple(tensor.shape) != tuple(shape) or not tensor.isfinite().all():
                why_not = f"{key} of {name} does not fit the controller"
            found[f"{number}.{key}"] = tensor
    if why_not:
        notice(f"the optimizer's state is not taken over: {why_not}; evaluations do not need it")
        return {}
    return found


def _progress(facts: Mapping[str, Any]) -> tuple[int | None, int]:
    """(outer epochs done, inner epochs since new skills are explored), as far as the file says it."""
    told = (facts["completed_outer_epoch"], facts["epoch"])
    epochs = next((number for number in told if type(number) is int and 0 < number < 100_000), None)
    explored = facts["new_action_bias_step"]
    active = facts["new_action_bias_active"] is True and type(explored) is int and explored >= 0
    return epochs, explored if active else 0


def _sha256(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
