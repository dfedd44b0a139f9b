"""Where a training starts from, as typed: another run's policy; and a resumed run stays with its own dataset."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors.numpy import load_file

from memskill_cli.testing.server import MockLLMServer

from ..conftest import Home, tiny

SHORT = ["--outer-epochs", "1", "--inner-epochs", "1", "--batch-size", "1", "--span-mode", "full-session"]


def weights(run: Path, checkpoint: str) -> dict[str, list[float]]:
    tensors = load_file(run / "checkpoints" / checkpoint / "controller.safetensors")
    return {name: tensor.ravel().tolist() for name, tensor in tensors.items()}


def test_a_run_starts_from_another_runs_policy_and_stays_with_its_dataset(prepared: Home) -> None:
    runs = prepared.path / "runs"
    with MockLLMServer() as server:
        first = prepared.memskill("train", *tiny(server.url, *SHORT, "--run", "a", "--seed", "7"), "--quiet")
        assert first.code == 0, first.err
        second, refused, missing, other = (
            prepared.memskill(*command)
            for command in (
                ["train", *tiny(server.url, *SHORT, "--run", "b", "--init-from", "a"), "--quiet"],
                ["train", "--dataset", "locomo", "--run", "c", "--init-from", "a", "--encoder", "minilm"],
                ["train", *tiny(server.url, *SHORT, "--run", "c", "--init-from", "nobody")],
                ["train", "--run", "a", "--resume", "--dataset", "hotpotqa"],
            )
        )
    assert second.code == 0, second.err
    assert weights(runs / "b", "000000") == weights(runs / "a", "000001"), "not the weights of seed 42"
    assert weights(runs / "b", "000001") != weights(runs / "b", "000000"), "and it learns from there"
    assert (refused.code, "--encoder hashing" in refused.err) == (2, True)
    assert missing.code == 1
    assert not (runs / "c").exists(), "a start that fails leaves no run"
    assert other.code == 1
    assert "run a is trained on locomo, not on hotpotqa" in " ".join(other.err.split())
    assert json.loads((runs / "a" / "run.json").read_text())["dataset"] == "locomo"
