"""Read a checkpoint of the published code (MemSkill, arXiv 2602.02474) without running code from the file.

Another process (:mod:`memskill_cli.runs.release_unpickler`) opens the file and writes tensors and plain JSON. This
module checks the result: names, shapes and finite numbers.
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
from memskill_cli.envs.env_process import ENV_VARS
from memskill_cli.errors import CheckpointError
from memskill_cli.runs.release_unpickler import FACTS, PARAMETERS, TENSORS

Notice = Callable[[str], None]
_HINT = (
    "memskill import reads a checkpoint written by the published code, such as <run>_epoch_10.pt; "
    "the authors' checkpoints are at https://huggingface.co/collections/XaiverZ/memskill"
)
_ADAM = ("step", "exp_avg", "exp_avg_sq")  # in the order of our checkpoints


@dataclasses.dataclass(frozen=True)
class ReleaseCheckpoint:
    """The content of a checkpoint. ``controller`` and ``optimizer`` ({}: none) have our checkpoints' tensor names.

    ``outer_epochs``: completed outer epochs, None if unknown. ``explored``: inner epochs since the exploration of new
    skills began. ``snapshot``: the measurement of the bank, ``{"reward", "best"}``, None if unknown. ``values``:
    settings by the published code's names; ``names``: the names of all stored settings.
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
    """The checkpoint in ``file``. Raises CheckpointError if it is not one; ``notice`` gets what was not imported."""
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
    """Raise CheckpointError unless ``file`` has the ZIP directory of a ``torch.save`` archive."""
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
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):  # could be a decompression bomb
        raise CheckpointError(f"{file}: a compressed ZIP archive, but torch.save never compresses", hint=_HINT)


def _unpickle(file: Path, folder: Path) -> None:
    """Convert ``file`` in another process without API keys. Raises CheckpointError if that process fails."""
    environ = {name: os.environ[name] for name in ENV_VARS if name in os.environ}
    program = [sys.executable, "-P", "-m", "memskill_cli.runs.release_unpickler", str(file.absolute()), str(folder)]
    done = subprocess.run(  # noqa: S603 - no shell; the program is ours, the file an argument
        program, env=environ, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, check=False
    )
    if done.returncode or not (folder / FACTS).is_file():
        code = done.returncode
        how = f"by {signal.Signals(-code).name}" if code < 0 else f"with code {code}"
        last = (done.stderr.decode(errors="replace").strip().splitlines() or [""])[-1][:200]
        raise CheckpointError(
            f"{file}: the process that read it ended {how}; the file is damaged or malicious"
            + (f": {last}" if last else ""),
            hint=_HINT,
        )


def _check_shapes(file: Path, controller: Mapping[str, Tensor]) -> None:
    """Raise CheckpointError unless the shapes of all tensors fit one controller."""
    first, skills = controller["state_net.0.weight"], controller["op_net.0.weight"]
    if first.dim() != 2 or skills.dim() != 2 or 0 in (*first.shape, *skills.shape):
        shapes = f"{tuple(first.shape)} and {tuple(skills.shape)}"
        raise CheckpointError(f"{file}: state_net.0.weight and op_net.0.weight have the shapes {shapes}", hint=_HINT)
    if first.shape[1] % 2:
        raise CheckpointError(
            f"{file}: a state has {first.shape[1]} numbers, not twice the size of an embedding", hint=_HINT
        )
    with torch.device("meta"):  # shapes only
        expected = Controller(first.shape[1], skills.shape[1], first.shape[0]).state_dict()
    for name, tensor in controller.items():
        if tensor.shape != expected[name].shape:
            wanted = f"not {tuple(expected[name].shape)} as state_net.0.weight and op_net.0.weight require"
            raise CheckpointError(f"{file}: {name} has the shape {tuple(tensor.shape)}, {wanted}", hint=_HINT)


def _as_float32(file: Path, controller: Mapping[str, Tensor], notice: Notice) -> dict[str, Tensor]:
    """The weights as float32. Raises CheckpointError if one is not finite."""
    kinds = {str(tensor.dtype).removeprefix("torch.") for tensor in controller.values()} - {"float32"}
    if kinds:
        notice(f"weights in {', '.join(sorted(kinds))} are converted to float32")
    converted = {name: tensor.to(torch.float32) for name, tensor in controller.items()}
    for name, tensor in converted.items():
        if not tensor.isfinite().all():
            raise CheckpointError(f"{file}: {name} has numbers that are not finite")
    return converted


def _optimizer(
    tensors: Mapping[str, Tensor], controller: Mapping[str, Tensor], reason: str, notice: Notice
) -> dict[str, Tensor]:
    """Adam's state with the tensor names of our checkpoints; {} (and a notice) if there is no usable state.

    ``reason``: why the file has no usable state, "" if it may have one.
    """
    found: dict[str, Tensor] = {}
    for number, name in enumerate(PARAMETERS if not reason else ()):
        for key in _ADAM:
            tensor = tensors[f"{name}/{key}"].to(torch.float32)
            shape = () if key == "step" else controller[name].shape
            if tuple(tensor.shape) != tuple(shape) or not tensor.isfinite().all():
                reason = f"{key} of {name} does not fit the controller"
            found[f"{number}.{key}"] = tensor
    if reason:
        notice(f"the optimizer state is not imported: {reason}; evaluations do not need it")
        return {}
    return found


def _progress(facts: Mapping[str, Any]) -> tuple[int | None, int]:
    """(completed outer epochs or None, inner epochs since the exploration of new skills began)."""
    stated = (facts["completed_outer_epoch"], facts["epoch"])
    epochs = next((number for number in stated if type(number) is int and 0 < number < 100_000), None)
    explored = facts["new_action_bias_step"]
    active = facts["new_action_bias_active"] is True and type(explored) is int and explored >= 0
    return epochs, explored if active else 0


def _sha256(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
