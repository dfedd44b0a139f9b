"""Reads a checkpoint of the published code and writes plain data. A program of its own::

    python -P -m memskill_cli.runs.release_unpickler FILE FOLDER

``FILE`` is a pickle that somebody else made. ``torch.load(weights_only=True)`` refuses every global that is not on its
list. What is added to that list are classes of this module that only keep what they are given: no code of numpy, of the
published project or of the file is run. The process has no keys in its environment, and a file that is made to exhaust
the stack or the memory ends this process and nothing else.

``FOLDER`` gets ``facts.json`` and ``tensors.safetensors``, or a ``facts.json`` with nothing but ``error``.
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

from memskill_cli.runs.release_settings import READ

PARAMETERS = tuple(
    f"{part}.{layer}.{kind}"
    for part in ("state_net", "op_net", "actor_head", "critic_head")
    for layer in (0, 2)
    for kind in ("weight", "bias")
)
"""The tensors of a controller, in the order of its optimizer."""
FACTS, TENSORS = "facts.json", "tensors.safetensors"
MAX_NUMBERS = 1 << 27
"""Numbers that one tensor may have: half a gigabyte as float32."""
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
"""numpy's names of numbers, and those of the module struct."""


class UnusableError(Exception):
    """The file is not what is read here; the text says why."""


class Inert:
    """Stands in for an object of the file: it keeps what it would be made of, and does nothing."""

    args: tuple[Any, ...]
    state: Any

    def __new__(cls, *args: Any) -> Inert:
        made = super().__new__(cls)
        made.args, made.state = args, None
        return made

    def __setstate__(self, state: Any) -> None:
        self.state = state


class Operation(Inert):
    """``src.operation_bank.Operation``, a skill of the published code."""


class Array(Inert):
    """``numpy.ndarray``; none is needed, so none is made."""


class Dtype(Inert):
    """``numpy.dtype``."""


class Scalar(Inert):
    """One number of numpy: a dtype and bytes."""


STAND_INS = [
    (Operation, "src.operation_bank.Operation"),
    (Array, "numpy.ndarray"),
    (Dtype, "numpy.dtype"),
    *((Array, f"numpy.{core}.multiarray._reconstruct") for core in ("core", "_core")),
    *((Scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
]
"""What may occur in a file beside what ``weights_only`` lets pass: (class, the name that the file calls it by)."""


def load(file: Path) -> Any:
    """What ``file`` holds. UnusableError names the global that was refused, or says in what way it is damaged."""
    import torch

    try:
        with torch.serialization.safe_globals(list(STAND_INS)):
            return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # a file can be wrong in any way, and torch then raises whatever comes first
        if refused := _REFUSED.search(str(error)):
            raise UnusableError(f"it asks for {refused[1]}, which is refused; nothing in the file was run") from None
        raise UnusableError(f"it cannot be read: {type(error).__name__}: {_first_line(error)}") from None


def extract(content: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """(facts as JSON, tensors) of a checkpoint. UnusableError if it has no controller of this kind."""
    table = _table(content)
    if table is None:
        raise UnusableError("it holds no table of settings and weights")
    controller = _controller(table)
    weights = {name: _tensor(name, controller[name]) for name in PARAMETERS}
    adam, why_not = _adam(table, [name for name in controller if name in weights])
    operations, bank = _operations(table.get("operation_bank"))
    config, args = _table(table.get("config")) or {}, _table(table.get("args")) or {}
    facts = {
        "progress": {name: _plain(table.get(name)) for name in _PROGRESS},
        "values": {**_wanted(args), **_wanted(config)},
        "names": sorted(config),
        "operations": operations,
        "capacity": _plain(bank.get("max_ops")),
        "new": _texts(table.get("operation_bank_new_operation_names", bank.get("new_operation_names"))),
        "snapshot": _snapshot(table.get("snapshot_manager"), operations),
        "no_optimizer": why_not,
    }
    return facts, {**weights, **adam}


def _controller(table: Mapping[str, Any]) -> Mapping[str, Any]:
    """The table of the controller's tensors, which the file may hold under several names or be itself."""
    inner = (_table(table.get(name)) for name in _CONTROLLER)
    found = next((one for one in (*inner, table) if one and PARAMETERS[0] in one), None)
    if found is None:
        raise UnusableError(f"it has no controller: no tensor is called {PARAMETERS[0]}")
    for name in PARAMETERS:
        if name not in found:
            raise UnusableError(f"its controller has no tensor {name}")
    if found is not table and (more := sorted(found.keys() - set(PARAMETERS))):
        raise UnusableError(f"its controller has a tensor that is unknown: {more[0][:80]}")
    return found


def _tensor(name: str, value: Any) -> Any:
    """A plain copy of ``value``. A tensor is looked at before its numbers are: it may claim any size."""
    import torch

    if type(value) not in (torch.Tensor, torch.nn.Parameter) or value.layout is not torch.strided:
        raise UnusableError(f"{name} is not a tensor of numbers")
    if value.device.type != "cpu" or not value.dtype.is_floating_point or value.is_quantized:
        raise UnusableError(f"{name} is not a tensor of floating-point numbers")
    if value.numel() > MAX_NUMBERS:
        raise UnusableError(f"{name} has {value.numel()} numbers, at most {MAX_NUMBERS} are read")
    return value.detach().clone(memory_format=torch.contiguous_format)


def _adam(table: Mapping[str, Any], order: list[str]) -> tuple[dict[str, Any], str]:
    """The state of Adam as ``<name of tensor>/<name of state>``, or nothing and why.

    The optimizer numbers parameters in the order in which the controller has them.
    """
    found = next((one for name in _OPTIMIZER if (one := _table(table.get(name)))), None)
    if found is None:
        return {}, "the file has none"
    try:
        (group,) = found["param_groups"]
        state = {order[place]: found["state"][number] for place, number in enumerate(group["params"])}
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
            steps = torch.tensor(float(value)) if type(value) in (int, float) else value  # as torch once kept them
            yield f"{name}/{key}", _tensor(key, steps)


def _operations(bank: Any) -> tuple[list[dict[str, Any]], Mapping[str, Any]]:
    """The skills as plain tables, and the table they are in."""
    table = _table(bank) or {}
    found = bank if isinstance(bank, list) else table.get("operations", table)
    named = found.items() if isinstance(found, dict) else [(None, one) for one in found] if type(found) is list else ()
    skills = [_operation(name, one) for name, one in named if isinstance(one, dict | Operation)]
    if len(skills) > MAX_SKILLS:
        raise UnusableError(f"it has {len(skills)} skills")
    return skills, table


def _operation(name: Any, value: Any) -> dict[str, Any]:
    """The words and statistics of one skill; None where the file has nothing that makes sense."""
    table = _table(value.state if isinstance(value, Operation) else value) or {}
    statistics = _table(table.get("meta_info")) or {}
    words = {
        "name": table.get("name", name),
        "description": table.get("description"),
        "body": table.get("instruction_template", table.get("content")),
        "action": table.get("update_type"),
    }
    texts = {key: text if type(text) is str else None for key, text in words.items()}
    return {**texts, **{key: _plain(statistics.get(key)) for key in _STATISTICS}}


def _snapshot(manager: Any, operations: list[dict[str, Any]]) -> dict[str, Any] | None:
    """What the published code measured of this bank: its reward (None if none was), and whether it was the best.

    None if the file has no measurements.
    """
    table = _table(manager) or {}
    snapshots = table.get("snapshots")
    if not isinstance(snapshots, list) or not snapshots:
        return None
    for place, snapshot in reversed(list(enumerate(snapshots))):
        one = _table(snapshot) or {}
        if _words(_operations(one.get("operation_bank_dict"))[0]) == _words(operations):
            reward = _plain(one.get("avg_reward"))
            known = isinstance(reward, int | float) and math.isfinite(reward)
            return {"reward": reward if known else None, "best": table.get("best_snapshot_idx") == place}
    return {"reward": None, "best": False}


def _words(operations: list[dict[str, Any]]) -> list[list[str]]:
    return sorted([str(one[key]) for key in ("name", "description", "body", "action")] for one in operations)


def _wanted(table: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that are known here. Others are left behind: among them may be keys of providers."""
    plain = {name: _plain(table[name]) for name in READ & table.keys()}
    return {name: value for name, value in plain.items() if isinstance(value, str | int | float)}


def _texts(value: Any) -> list[str]:
    return sorted({text for text in value if type(text) is str}) if isinstance(value, list | tuple | set) else []


def _table(value: Any) -> dict[str, Any] | None:
    """``value`` if it is a table whose keys are texts; the others are left out."""
    return {key: one for key, one in value.items() if type(key) is str} if isinstance(value, dict) else None


def _plain(value: Any) -> Any:
    """``value`` as JSON if it is a text, a number or a list of numbers; None for anything else."""
    value = _number(value)
    if isinstance(value, list | tuple):
        numbers = [_number(one) for one in value[-1000:]]
        return numbers if all(isinstance(one, int | float) for one in numbers) else None
    if type(value) is int and abs(value) >= 1 << 63:
        return None
    return value if type(value) in (bool, int, float, str) else None


def _number(value: Any) -> Any:
    """``value``, of numpy's numbers their Python form."""
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
