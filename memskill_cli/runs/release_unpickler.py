"""Convert a checkpoint of the published code to JSON and safetensors. Runs as a separate process::

    python -P -m memskill_cli.runs.release_unpickler FILE FOLDER

``FILE`` is an untrusted pickle. ``torch.load(weights_only=True)`` refuses every global that is not in its allow list.
This module adds only its own placeholder classes, which store their arguments: no code of numpy, of the published
project or of the file runs. The process has no API keys in its environment. A file that exhausts the stack or the
memory ends only this process.

Writes ``facts.json`` and ``tensors.safetensors`` to ``FOLDER``, or a ``facts.json`` with only the key ``error``.
"""

from __future__ import annotations

import json
import math
import re
import struct
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from memskill_cli.runs.release_names import READ

PARAMETERS = tuple(
    f"{part}.{layer}.{kind}"
    for part in ("state_net", "op_net", "actor_head", "critic_head")
    for layer in (0, 2)
    for kind in ("weight", "bias")
)
"""Names of the controller's tensors, in the order of its optimizer."""
FACTS, TENSORS = "facts.json", "tensors.safetensors"
MAX_NUMBERS = 1 << 27
"""Most numbers in one tensor: half a gigabyte as float32."""
MAX_SKILLS = 10_000
_CONTROLLER = ("controller_state_dict", "controller", "policy_state_dict", "policy", "state_dict", "model_state_dict")
_OPTIMIZER = ("optimizer_state_dict", "optimizer")
_ADAM = ("step", "exp_avg", "exp_avg_sq")
_STATISTICS = ("usage_count", "avg_reward", "recent_rewards", "recent_usage_ema")
_PROGRESS = ("epoch", "completed_outer_epoch", "new_action_bias_active", "new_action_bias_step")
_REFUSED = re.compile(r"GLOBAL ([\w.]{1,200})")
_FORMATS = {"f2": "e", "f4": "f", "f8": "d", "i1": "b", "i2": "h", "i4": "i", "i8": "q", "b1": "?"} | {
    "u1": "B",
    "u2": "H",
    "u4": "I",
    "u8": "Q",
}
"""numpy's type codes to those of the module struct."""


class UnusableError(Exception):
    """The file is not a usable checkpoint; the text gives the reason."""


class Placeholder:
    """Placeholder for an object in the file: stores the constructor's arguments and the state, and does nothing."""

    args: tuple[Any, ...]
    state: Any

    def __new__(cls, *args: Any) -> Placeholder:
        new = super().__new__(cls)
        new.args, new.state = args, None
        return new

    def __setstate__(self, state: Any) -> None:
        self.state = state


class Operation(Placeholder):
    """``src.operation_bank.Operation``, a skill of the published code."""


class Array(Placeholder):
    """``numpy.ndarray``. Its content is not used."""


class Dtype(Placeholder):
    """``numpy.dtype``."""


class Scalar(Placeholder):
    """A numpy scalar: a dtype and bytes."""


ALLOWED_GLOBALS = [
    (Operation, "src.operation_bank.Operation"),
    (Array, "numpy.ndarray"),
    (Dtype, "numpy.dtype"),
    *((Array, f"numpy.{core}.multiarray._reconstruct") for core in ("core", "_core")),
    *((Scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
]
"""Globals allowed in addition to those of ``weights_only``: (class, name of the global in the file)."""


def load(file: Path) -> Any:
    """The content of ``file``. Raises UnusableError, which names the refused global or the damage."""
    import torch

    try:
        with torch.serialization.safe_globals(list(ALLOWED_GLOBALS)):
            return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # for damaged files torch raises exceptions of many types
        if refused := _REFUSED.search(str(error)):
            raise UnusableError(f"it loads {refused[1]}, which is refused; no code of the file was run") from None
        raise UnusableError(f"it cannot be read: {type(error).__name__}: {_first_line(error)}") from None


def extract(content: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """(facts as JSON values, tensors by name) of a checkpoint. Raises UnusableError if it has no such controller."""
    table = _table(content)
    if table is None:
        raise UnusableError("it has no dict of settings and weights")
    controller = _controller(table)
    weights = {name: _tensor(name, controller[name]) for name in PARAMETERS}
    adam, adam_error = _adam(table, [name for name in controller if name in weights])
    operations, bank = _operations(table.get("operation_bank"))
    config, args = _table(table.get("config")) or {}, _table(table.get("args")) or {}
    facts = {
        "progress": {name: _plain(table.get(name)) for name in _PROGRESS},
        "values": {**_known_settings(args), **_known_settings(config)},
        "names": sorted(config),
        "operations": operations,
        "capacity": _plain(bank.get("max_ops")),
        "new": _texts(table.get("operation_bank_new_operation_names", bank.get("new_operation_names"))),
        "snapshot": _snapshot(table.get("snapshot_manager"), operations),
        "no_optimizer": adam_error,
    }
    return facts, {**weights, **adam}


def _controller(table: Mapping[str, Any]) -> Mapping[str, Any]:
    """The dict of the controller's tensors: under one of several keys, or the table itself."""
    inner = (_table(table.get(name)) for name in _CONTROLLER)
    found = next((one for one in (*inner, table) if one and PARAMETERS[0] in one), None)
    if found is None:
        raise UnusableError(f"it has no controller: there is no tensor {PARAMETERS[0]}")
    for name in PARAMETERS:
        if name not in found:
            raise UnusableError(f"its controller has no tensor {name}")
    if found is not table and (more := sorted(found.keys() - set(PARAMETERS))):
        raise UnusableError(f"its controller has an unknown tensor: {more[0][:80]}")
    return found


def _tensor(name: str, value: Any) -> Any:
    """A contiguous copy of ``value``. Type and size are checked before the copy, because a file can claim any size."""
    import torch

    if type(value) not in (torch.Tensor, torch.nn.Parameter) or value.layout is not torch.strided:
        raise UnusableError(f"{name} is not a tensor of numbers")
    if value.device.type != "cpu" or not value.dtype.is_floating_point or value.is_quantized:
        raise UnusableError(f"{name} is not a tensor of floating-point numbers")
    if value.numel() > MAX_NUMBERS:
        raise UnusableError(f"{name} has {value.numel()} numbers, at most {MAX_NUMBERS} are read")
    return value.detach().clone(memory_format=torch.contiguous_format)


def _adam(table: Mapping[str, Any], order: list[str]) -> tuple[dict[str, Any], str]:
    """Adam's state as ``<tensor name>/<state name>`` and "", or an empty dict and the reason.

    ``order`` are the names of the controller's tensors in the file's order, which is the optimizer's numbering.
    """
    found = next((one for name in _OPTIMIZER if (one := _table(table.get(name)))), None)
    if found is None:
        return {}, "the file has none"
    try:
        (group,) = found["param_groups"]
        state = {order[index]: found["state"][number] for index, number in enumerate(group["params"])}
        return dict(_moments(state)), "" if set(state) == set(order) else "it is not that of this controller"
    except (KeyError, IndexError, TypeError, ValueError, UnusableError) as error:
        return {}, f"it is not that of Adam on this controller ({type(error).__name__})"


def _moments(state: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    import torch

    for name, entry in state.items():
        if set(entry) != set(_ADAM):
            raise UnusableError("another optimizer")
        for key in _ADAM:
            value = entry[key]
            steps = (
                torch.tensor(float(value)) if type(value) in (int, float) else value
            )  # old versions of torch stored a number
            yield f"{name}/{key}", _tensor(key, steps)


def _operations(bank: Any) -> tuple[list[dict[str, Any]], Mapping[str, Any]]:
    """The skills as plain dicts, and the dict that contains them."""
    table = _table(bank) or {}
    found = bank if isinstance(bank, list) else table.get("operations", table)
    named = found.items() if isinstance(found, dict) else [(None, one) for one in found] if type(found) is list else ()
    skills = [_operation(name, one) for name, one in named if isinstance(one, dict | Operation)]
    if len(skills) > MAX_SKILLS:
        raise UnusableError(f"it has {len(skills)} skills")
    return skills, table


def _operation(name: Any, value: Any) -> dict[str, Any]:
    """The texts and statistics of one skill; None for missing and invalid values."""
    table = _table(value.state if isinstance(value, Operation) else value) or {}
    statistics = _table(table.get("meta_info")) or {}
    fields = {
        "name": table.get("name", name),
        "description": table.get("description"),
        "body": table.get("instruction_template", table.get("content")),
        "action": table.get("update_type"),
    }
    texts = {key: text if type(text) is str else None for key, text in fields.items()}
    return {**texts, **{key: _plain(statistics.get(key)) for key in _STATISTICS}}


def _snapshot(manager: Any, operations: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The published code's measurement of this bank: ``{"reward": number or None, "best": bool}``.

    None if the file has no snapshots.
    """
    table = _table(manager) or {}
    snapshots = table.get("snapshots")
    if not isinstance(snapshots, list) or not snapshots:
        return None
    for index, snapshot in reversed(list(enumerate(snapshots))):
        one = _table(snapshot) or {}
        if _skill_texts(_operations(one.get("operation_bank_dict"))[0]) == _skill_texts(operations):
            reward = _plain(one.get("avg_reward"))
            known = isinstance(reward, int | float) and math.isfinite(reward)
            return {"reward": reward if known else None, "best": table.get("best_snapshot_idx") == index}
    return {"reward": None, "best": False}


def _skill_texts(operations: list[dict[str, Any]]) -> list[list[str]]:
    return sorted([str(one[key]) for key in ("name", "description", "body", "action")] for one in operations)


def _known_settings(table: Mapping[str, Any]) -> dict[str, Any]:
    """Only the settings that memskill reads. Others may be API keys and are dropped."""
    plain = {name: _plain(table[name]) for name in READ & table.keys()}
    return {name: value for name, value in plain.items() if isinstance(value, str | int | float)}


def _texts(value: Any) -> list[str]:
    return sorted({text for text in value if type(text) is str}) if isinstance(value, list | tuple | set) else []


def _table(value: Any) -> dict[str, Any] | None:
    """The entries of a dict ``value`` with string keys; None if it is no dict."""
    return {key: one for key, one in value.items() if type(key) is str} if isinstance(value, dict) else None


def _plain(value: Any) -> Any:
    """``value`` if it is a text, a number or a list of numbers; None for anything else."""
    value = _number(value)
    if isinstance(value, list | tuple):
        numbers = [_number(one) for one in value[-1000:]]
        return numbers if all(isinstance(one, int | float) for one in numbers) else None
    if type(value) is int and abs(value) >= 1 << 63:
        return None
    return value if type(value) in (bool, int, float, str) else None


def _number(value: Any) -> Any:
    """The Python number of a numpy scalar; any other ``value`` unchanged."""
    if not isinstance(value, Scalar):
        return value
    try:
        kind, data = value.args
        order = kind.state[1] if isinstance(kind.state, tuple) else "|"
        (number,) = struct.unpack({"|": "<"}.get(order, order) + _FORMATS[kind.args[0]], data)
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, struct.error):
        return None
    return number


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0][:200]


def main(file: Path, folder: Path) -> None:
    from safetensors.torch import save_file

    try:
        facts, tensors = extract(load(file))
        save_file(tensors, folder / TENSORS)
    except UnusableError as error:
        facts = {"error": str(error)}
    (folder / FACTS).write_text(json.dumps(facts), "ascii")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
