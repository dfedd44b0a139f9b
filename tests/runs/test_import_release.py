"""Checkpoints of the published code, read without running anything in them. Their form is in releases.py."""

from __future__ import annotations

import builtins
import importlib
import json
import operator
import os
import pickle
import subprocess
import sys
import types
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from memskill_cli.agent.controller import Controller
from memskill_cli.app.import_run import make_run, skills_of
from memskill_cli.config import load
from memskill_cli.envs.env_process import ENV_VARS
from memskill_cli.errors import CheckpointError, RunError
from memskill_cli.runs import checkpoint, release_checkpoint, release_unpickler
from memskill_cli.runs.release_checkpoint import ReleaseCheckpoint
from memskill_cli.runs.release_unpickler import PARAMETERS, UnusableError
from memskill_cli.skills import stages

from .releases import DIM, HIDDEN, Policy, bank, content, operation, published_classes, save, trained, update


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files are read in this process: what is tested is not that another one does it."""
    monkeypatch.setattr(release_checkpoint, "_unpickle", release_unpickler.main)


def read(file: Path) -> tuple[ReleaseCheckpoint, list[str]]:
    told: list[str] = []
    return release_checkpoint.read(file, told.append), told


def refused(file: Path) -> str:
    """The one line that says why ``file`` is not read; it names the file and what to do."""
    with pytest.raises(CheckpointError) as failure:
        release_checkpoint.read(file, lambda text: None)
    assert "\n" not in failure.value.message
    assert failure.value.message.startswith(f"{file}: ")
    return failure.value.message.removeprefix(f"{file}: ")


def raw(file: Path, program: bytes) -> Path:
    """An archive as ``torch.save`` writes it, whose pickle is ``program``."""
    save(file, {})
    with zipfile.ZipFile(file) as archive:
        parts = {entry.filename: archive.read(entry) for entry in archive.infolist()}
    with zipfile.ZipFile(file, "w") as archive:
        for name, part in parts.items():
            archive.writestr(name, program if name.endswith("/data.pkl") else part)
    return file


# --- what is taken over


def test_a_checkpoint_is_read_by_another_process_that_has_no_keys(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[dict[str, Any]] = []
    real = subprocess.run
    monkeypatch.setenv("OPENAI_API_KEY", "sk-SECRET")
    monkeypatch.setattr(subprocess, "run", lambda *a, **kw: started.append(kw) or real(*a, **kw))
    written = content()
    found, told = read(save(tmp_path / "a.pt", written))
    assert [set(kw["env"]) <= set(ENV_VARS) for kw in started] == [True]
    assert "src" not in sys.modules
    assert told == []
    assert (found.state_dim, found.skill_dim, found.hidden, found.outer_epochs) == (2 * DIM, DIM, HIDDEN, 10)
    for name, tensor in written["controller_state_dict"].items():
        assert torch.equal(found.controller[name], tensor)
    assert found.snapshot == {"reward": 0.375, "best": True}
    assert found.explored == 10
    assert found.new == ["capture_activity_details"]
    assert len(found.sha256) == 64
    assert found.values["seed"] == 11
    assert found.names == set(written["config"])


@pytest.mark.usefixtures("here")
def test_tensors_need_no_renaming_and_mean_the_same(tmp_path: Path) -> None:
    policy, _ = trained()
    found, _ = read(save(tmp_path / "a.pt", content()))
    again = Policy()
    again.load_state_dict(found.controller)
    ours = Controller(2 * DIM, DIM, HIDDEN)
    ours.load_state_dict(found.controller)
    states, skills = torch.randn(6, 2 * DIM), torch.randn(5, DIM)
    with torch.no_grad():
        for one, other in zip(policy(states, skills), again(states, skills), strict=True):
            assert torch.equal(one, other)  # to the last bit
        exact = policy.double()(states.double(), skills.double())
        said = ours.double()(states.double(), skills.double())
        for one, other in zip(exact, said, strict=True):  # the same function; sums are taken in another order
            assert torch.allclose(one.double(), other, rtol=0, atol=1e-6)
    assert tuple(ours.state_dict()) == PARAMETERS


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("steps_as", [None, float, int])
def test_adam_goes_on_as_torch_would(tmp_path: Path, steps_as: Callable[[Any], Any] | None) -> None:
    policy, adam = trained()
    table = content()
    if steps_as:  # as older versions of torch kept them
        for entry in table["optimizer_state_dict"]["state"].values():
            entry["step"] = steps_as(entry["step"].item())
    found, _ = read(save(tmp_path / "a.pt", table))
    ours = Controller(2 * DIM, DIM, HIDDEN)
    ours.load_state_dict(found.controller)
    optimizer = torch.optim.Adam(ours.parameters(), lr=1e-3)
    checkpoint.restore_optimizer(optimizer, found.optimizer)
    for model, its in ((policy, adam), (ours, optimizer)):
        torch.manual_seed(3)
        for _ in range(3):
            update(model, its)
    for name, tensor in policy.state_dict().items():
        assert torch.equal(ours.state_dict()[name], tensor)


@pytest.mark.usefixtures("here")
def test_a_controller_whose_tensors_are_in_another_order(tmp_path: Path) -> None:
    """The optimizer counts parameters in the order in which the file's controller has them."""
    table = content()
    names = list(table["controller_state_dict"])
    table["controller_state_dict"] = {name: table["controller_state_dict"][name] for name in reversed(names)}
    found, _ = read(save(tmp_path / "a.pt", table))
    moments = table["optimizer_state_dict"]["state"]
    assert found.optimizer == {}  # shapes do not fit: nothing is taken over rather than the wrong thing
    table["optimizer_state_dict"]["state"] = {len(names) - 1 - place: one for place, one in moments.items()}
    found, told = read(save(tmp_path / "b.pt", table))
    assert told == []
    assert torch.equal(found.optimizer["0.exp_avg"], moments[0]["exp_avg"])


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda table: table.pop("optimizer_state_dict"), "the file has none"),
        (lambda table: table["optimizer_state_dict"]["state"].pop(3), "KeyError"),
        (lambda table: table["optimizer_state_dict"].update(param_groups=[]), "ValueError"),
        (lambda table: table["optimizer_state_dict"]["param_groups"][0]["params"].pop(), "not that of this controller"),
        (lambda table: table["optimizer_state_dict"]["state"][0].update(max_exp_avg_sq=1), "UnusableError"),
        (lambda table: table["optimizer_state_dict"]["state"][0].update(exp_avg=torch.ones(3)), "does not fit"),
        (lambda table: table["optimizer_state_dict"]["state"][0].update(exp_avg="x"), "UnusableError"),
        (lambda table: table["optimizer_state_dict"]["state"][2]["exp_avg"].fill_(torch.nan), "does not fit"),
        (lambda table: table.update(optimizer_state_dict=[1]), "the file has none"),
    ],
)
def test_an_optimizer_that_is_another_is_left_out_and_said(
    tmp_path: Path, change: Callable[[Any], Any], why: str
) -> None:
    table = content()
    change(table)
    found, told = read(save(tmp_path / "a.pt", table))
    assert found.optimizer == {}
    assert why in told[0]
    assert "evaluations do not need it" in told[0]


@pytest.mark.usefixtures("here")
def test_statistics_and_new_skills(tmp_path: Path) -> None:
    mine = operation("insert", meta_info={"usage_count": np.int64(7), "avg_reward": np.float64(0.3)})
    mine["meta_info"]["recent_rewards"] = [np.float32(0.5)] * 25
    table = content(operation_bank=bank(mine, operation("other_one", "update"), max_ops=12))
    table["operation_bank_new_operation_names"] = ["other_one"]
    found, told = read(save(tmp_path / "a.pt", table))
    skills = skills_of(found, None, load(), told.append)
    stats = skills["insert"].stats
    assert (stats.uses, stats.mean_reward, stats.usage_ema) == (7, 0.3, 0.125)
    assert stats.recent_rewards == (0.5,) * 20
    assert (skills.capacity, skills.new, skills.names) == (12, {"other_one"}, ("insert", "other_one"))
    assert skills["other_one"].body == "Purpose: other_one what is said."
    assert (skills["other_one"].action, skills["other_one"].origin) == ("update", "import")
    assert found.snapshot == {"reward": None, "best": False}  # this bank was never measured
    assert told == []


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("shape", ["dict", "list", "plain"])
def test_skills_that_are_objects_of_the_published_class(tmp_path: Path, shape: str) -> None:
    with published_classes() as kind:
        made = []
        for one in (operation("insert"), operation("update", "update")):
            made.append(kind())
            made[-1].__dict__.update(one, embedding=np.ones(DIM, dtype=np.float32))
        named = {one.name: one for one in made}
        operations: Any = {"dict": {"operations": named}, "list": {"operations": made}, "plain": named}[shape]
        save(tmp_path / "a.pt", content(operation_bank=operations))
    found, told = read(tmp_path / "a.pt")
    skills = skills_of(found, None, load(), told.append)
    assert skills.names == ("insert", "update")
    assert skills["insert"].stats.uses == 12
    assert "src" not in sys.modules


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("name", ["controller", "policy", "state_dict", ""])
def test_weights_under_other_names_or_alone(tmp_path: Path, name: str) -> None:
    weights = trained()[0].state_dict()
    found, told = read(save(tmp_path / "a.pt", {name: weights} if name else weights))
    assert set(found.controller) == set(PARAMETERS)
    assert (found.outer_epochs, found.operations, found.values, found.snapshot) == (None, [], {}, None)
    assert "the file has none" in told[0]


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("kind", [torch.float64, torch.float16, torch.bfloat16])
def test_other_floating_point_numbers_are_converted_and_said(tmp_path: Path, kind: torch.dtype) -> None:
    table = content()
    table["controller_state_dict"] = {name: t.to(kind) for name, t in table["controller_state_dict"].items()}
    found, told = read(save(tmp_path / "a.pt", table))
    assert {tensor.dtype for tensor in found.controller.values()} == {torch.float32}
    assert told[0] == f"weights in {str(kind).removeprefix('torch.')} are converted to float32"


@pytest.mark.parametrize("kind", ["f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "b1", ">f8", ">i4"])
def test_numbers_of_numpy_are_read_without_numpy(tmp_path: Path, kind: str) -> None:
    number = np.array([1.0 if kind == "b1" else 5.0]).astype(kind)[0]
    scalar = release_unpickler.load(save(tmp_path / "a.pt", {"a": number}))["a"]
    assert isinstance(scalar, release_unpickler.Scalar)
    assert release_unpickler._number(scalar) == number.item()


def test_nothing_else_of_a_command_line_is_kept(tmp_path: Path) -> None:
    facts, _ = release_unpickler.extract(release_unpickler.load(save(tmp_path / "a.pt", content())))
    assert "SECRET" not in json.dumps(facts)
    assert facts["values"]["retriever"] == "dpr"


# --- what is refused


class Payload:
    """Pickled as a call of ``function``."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.call


PAYLOADS: dict[str, Callable[[str], Payload]] = {
    "system": lambda marker: Payload(os.system, f"touch {marker}"),
    "eval": lambda marker: Payload(builtins.eval, f"open({marker!r}, 'w')"),
    "exec": lambda marker: Payload(builtins.exec, f"open({marker!r}, 'w')"),
    "open": lambda marker: Payload(builtins.open, marker, "w"),
    "Popen": lambda marker: Payload(subprocess.Popen, ["touch", marker]),
    "import_module": lambda marker: Payload(importlib.import_module, "antigravity"),
    "loads": lambda marker: Payload(pickle.loads, pickle.dumps(Payload(os.system, f"touch {marker}"))),
    "methodcaller": lambda marker: Payload(operator.methodcaller, "touch"),
    "Path": lambda marker: Payload(Path, marker),
}


@pytest.mark.parametrize("name", PAYLOADS)
@pytest.mark.parametrize("where", ["config", "operation_bank", "controller_state_dict", "whole"])
def test_nothing_in_a_file_is_run(tmp_path: Path, name: str, where: str) -> None:
    marker = tmp_path / "ran"
    payload = PAYLOADS[name](str(marker))
    table: Any = payload if where == "whole" else {**content(), where: payload}
    with pytest.raises(UnusableError, match=r"it loads [\w.]+, which is refused; no code of the file was run"):
        release_unpickler.load(save(tmp_path / "a.pt", table))
    assert not marker.exists()


def test_the_global_is_named_in_one_line(tmp_path: Path) -> None:
    file = save(tmp_path / "a.pt", {**content(), "args": Payload(os.system, f"touch {tmp_path / 'ran'}")})
    assert refused(file) == "it loads posix.system, which is refused; no code of the file was run"
    assert not (tmp_path / "ran").exists()


def test_a_class_of_the_published_name_with_code_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the module ``src`` is imported nor a method of such a class called, even where there is one."""
    ran: list[str] = []
    with published_classes() as kind:
        kind.__setstate__ = lambda self, state: ran.append("setstate")  # type: ignore[attr-defined]
        kind.__reduce__ = lambda self: (kind, (), {"name": "x"})  # type: ignore[assignment]
        kind.__new__ = lambda cls, *a: ran.append("new") or object.__new__(cls)  # type: ignore[assignment,misc]
        one = object.__new__(kind)
        file = save(tmp_path / "a.pt", {"a": one, **content()})
        ran.clear()
        assert isinstance(release_unpickler.load(file)["a"], release_unpickler.Operation)
        kind.__reduce__ = lambda self: (os.system, (f"touch {tmp_path / 'ran'}",))  # type: ignore[assignment]
        save(file, {"a": one})
        with pytest.raises(UnusableError, match=r"posix\.system"):
            release_unpickler.load(file)
    trap = types.ModuleType("src")
    trap.__getattr__ = lambda name: ran.append(name)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "src", trap)
    with pytest.raises(UnusableError, match=r"posix\.system"):
        release_unpickler.load(file)
    assert ran == []
    assert not (tmp_path / "ran").exists()


def test_nothing_of_numpy_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An array whose dtype claims objects: numpy would take its bytes for addresses."""
    dtype = b"cnumpy\ndtype\n(X\x02\x00\x00\x00O8K\x00K\x01tR"
    array = b"cnumpy._core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\x00\x85U\x01btR"
    state = b"(K\x01K\x01\x85" + dtype + b"\x89U\x08AAAAAAAAtb"
    found = release_unpickler.load(raw(tmp_path / "a.pt", b"\x80\x02" + array + state + b"."))
    assert isinstance(found, release_unpickler.Array)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize(
    "program",
    [
        b"",
        b".",
        b"\x80\x02",
        b"\x80\x02}q\x00(X\xff\xff\xff\x7fabc",
        b"\x80\x02h\x05.",
        b"\x80\x02a.",
        b"\x80\x02((((.",
        b"\x80\x02cnumpy\ndtype\nR.",
        b"\x80\x02X\x02\x00\x00\x00\xff\xfe.",
        b"\x80\x04\x95\x05\x00\x00\x00\x00\x00\x00\x00\x8c\x01a\x94.",
        b"\x80\x02cbuiltins\nbytearray\nJ\x00\x00\x00\x80\x85R.",
        b"\x80\x02ctorch\nFloatStorage\nK\x05\x85R.",
        b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(K\x01K\x01K\x01K\x01K\x01K\x01tR.",
        b"\x80\x02(K\x01K\x02tQ.",
        b"\x80\x02X\x03\x00\x00\x00abcQ.",
    ],
)
def test_programs_that_make_no_sense(tmp_path: Path, program: bytes) -> None:
    with pytest.raises(UnusableError, match=r"it cannot be read: |has no dict"):
        release_unpickler.extract(release_unpickler.load(raw(tmp_path / "a.pt", program)))


def test_deep_nesting(tmp_path: Path) -> None:
    """A table of a million lists is no checkpoint; tuples as deep exhaust the stack of the process that reads them."""
    deep = 1_000_000
    lists = raw(tmp_path / "a.pt", b"\x80\x02}X\x01\x00\x00\x00a" + b"]" * deep + b"a" * (deep - 1) + b"s.")
    assert "it has no controller" in refused(lists)
    key = raw(tmp_path / "b.pt", b"\x80\x02})" + b"\x85" * deep + b"K\x01s.")
    assert "the process that read it ended by SIGSEGV; the file is damaged or malicious" in refused(key)
    table = content()
    for _ in range(900):
        table["config"] = {"gamma": table["config"], "retriever": [table["config"]]}
    facts, _ = release_unpickler.extract(table)
    assert facts["values"] == {"seed": 11, "retriever": "dpr", "model": "some/model"}


def test_files_that_are_none(tmp_path: Path) -> None:
    whole = save(tmp_path / "whole.pt", content()).read_bytes()
    file = tmp_path / "a.pt"
    assert refused(tmp_path / "nowhere.pt") == "no such file"
    assert refused(tmp_path) == "not a file"
    for data in (b"", b"garbage" * 50, b"\x80\x02}q\x00.", b"PK\x03\x04", b"PK\x03\x04" + bytes(1000)):
        file.write_bytes(data)
        assert refused(file).startswith(("an empty file", "not an archive of torch.save", "cut off or damaged"))
    for share in (0.001, 0.3, 0.9, 0.999):
        file.write_bytes(whole[: int(share * len(whole))])
        assert refused(file).startswith("cut off or damaged")


def test_archives_of_something_else(tmp_path: Path) -> None:
    file = tmp_path / "a.pt"
    torch.save(content(), file, _use_new_zipfile_serialization=False)
    assert refused(file).startswith("not an archive of torch.save")
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), file)
    assert refused(file) == "a ZIP archive, but not one of torch.save"
    save_file({"state_net.0.weight": torch.ones(2)}, file)
    assert refused(file).startswith("not an archive of torch.save")
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(100_000))
    assert refused(file) == "a compressed ZIP archive, but torch.save never compresses"


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda c: c["op_net.0.weight"].fill_(torch.nan), "op_net.0.weight has numbers that are not finite"),
        (lambda c: c["critic_head.2.bias"].fill_(torch.inf), "critic_head.2.bias has numbers that are not finite"),
        (
            lambda c: c.update({"op_net.0.bias": torch.full((HIDDEN,), 1e300, dtype=torch.float64)}),
            "op_net.0.bias has numbers that are not finite",
        ),
        (lambda c: c.pop("actor_head.2.bias"), "its controller has no tensor actor_head.2.bias"),
        (lambda c: c.update(extra=torch.ones(1)), "its controller has an unknown tensor: extra"),
        (lambda c: c.update({"op_net.2.bias": torch.ones(HIDDEN + 1)}), "op_net.2.bias has the shape (9,), not (8,)"),
        (lambda c: c.update({"actor_head.0.weight": torch.ones(HIDDEN, HIDDEN)}), "has the shape (8, 8), not (8, 16)"),
        (lambda c: c.update({"state_net.0.weight": torch.ones(HIDDEN, 7)}), "a state has 7 numbers"),
        (lambda c: c.update({"state_net.0.weight": torch.ones(HIDDEN)}), "have the shapes (8,) and (8, 4)"),
        (lambda c: c.update({"state_net.0.weight": torch.ones(HIDDEN, 0)}), "have the shapes (8, 0) and (8, 4)"),
        (lambda c: c.update({"op_net.0.bias": torch.ones(HIDDEN, dtype=torch.int64)}), "floating-point numbers"),
        (lambda c: c.update({"op_net.0.bias": torch.ones(2, 2).to_sparse()}), "not a tensor of numbers"),
        (lambda c: c.update({"op_net.0.bias": [0.0] * HIDDEN}), "not a tensor of numbers"),
        (lambda c: c.update({"op_net.0.bias": torch.ones(1).expand(1 << 28)}), "at most 134217728 are read"),
        (lambda c: c.update({"op_net.0.bias": torch.ones(HIDDEN, device="meta")}), "floating-point numbers"),
    ],
)
def test_controllers_that_are_none(tmp_path: Path, change: Callable[[Any], Any], why: str) -> None:
    table = content()
    table["controller_state_dict"] = dict(table["controller_state_dict"])
    change(table["controller_state_dict"])
    assert why in refused(save(tmp_path / "a.pt", table))


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("table", [[], "x", 5, None, {}, {"controller_state_dict": 5}, {5: {}}, torch.ones(3)])
def test_tables_without_a_controller(tmp_path: Path, table: Any) -> None:
    assert refused(save(tmp_path / "a.pt", table)).startswith(("it has no dict", "it has no controller"))


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("skills", [None, 5, [], {}, {"operations": 5}, {"operations": [5]}, {"max_ops": 3}])
def test_a_file_without_skills_says_how_to_give_others(tmp_path: Path, skills: Any) -> None:
    found, _ = read(save(tmp_path / "a.pt", content(operation_bank=skills)))
    with pytest.raises(CheckpointError, match="contains no skills") as failure:
        skills_of(found, None, load(), lambda text: None)
    assert "--skills" in failure.value.hint
    assert skills_of(found, "seeds", load(), lambda text: None).names == ("delete", "insert", "noop", "update")


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("told", [{"epoch": "x"}, {"epoch": -1}, {"epoch": True}, {"epoch": 10**12}, {"epoch": None}])
def test_epochs_that_make_no_sense_are_not_told(tmp_path: Path, told: dict[str, Any]) -> None:
    table = {**content(), "completed_outer_epoch": 0, **told}
    assert read(save(tmp_path / "a.pt", table))[0].outer_epochs is None


# --- the run


@pytest.mark.usefixtures("here")
def test_the_run_is_whole_and_its_name_is_taken_once(tmp_path: Path) -> None:
    found, _ = read(save(tmp_path / "a.pt", content()))
    settings = load(preset="paper", overrides={"train.outer_epochs": 10, "train.inner_epochs": 100})
    skills = skills_of(found, None, settings, lambda text: None)
    run = make_run(tmp_path / "runs", "r", found, skills, settings, tmp_path, measured=True)
    assert (run.status, run.manifest().data_digest) == ("finished", "")
    (stage,) = stages.read_all(run.stages)
    assert (stage.is_best, stage.reward, stage.checkpoint, stage.bank) == (True, 0.375, 1000, skills)
    assert stages.mark_best([stage]) == [stage]  # also where a training goes on from it
    saved = checkpoint.load(run.checkpoints / "001000")
    assert (saved.bank, saved.num_updates, saved.skill_dim) == (skills, 1000, DIM)
    assert saved.state["window_start"] == 990
    assert (run.metrics.read_bytes(), run.hard_cases.read_bytes()) == (b"", b"")
    with pytest.raises(RunError, match="run r already exists"):
        make_run(tmp_path / "runs", "r", found, skills, settings, tmp_path, measured=True)
    other = make_run(tmp_path / "runs", "s", found, skills, settings, tmp_path, measured=False)
    (unmeasured,) = stages.read_all(other.stages)
    assert unmeasured.reward is None
    assert stages.mark_best([unmeasured]) == [unmeasured]
