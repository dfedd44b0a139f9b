"""``memskill train --tracker`` as typed: the copy holds what ``metrics.jsonl`` holds, and no key."""

from __future__ import annotations

import pytest

from memskill_cli.testing.server import MockLLMServer
from memskill_cli.utils import files

from ..conftest import Home, tiny
from ..runs.test_trackers import history, points, wandb_records

LENGTH = ["--inner-epochs", "2", "--batch-size", "1", "--no-evolve"]
KEY = "sk-canary-Zr4TnVq8WbLx1CyPk6DfJm3HsGe9AuOi"


@pytest.mark.extra
def test_a_run_is_followed_and_another_tracker_takes_over(prepared: Home) -> None:
    """TensorBoard for the first stage; resumed for a second with W&B, which is given the first one's rows too."""
    pytest.importorskip("wandb")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = prepared.path / "runs" / "t"
    with MockLLMServer(keys=[KEY]) as server:
        flags = [*tiny(server.url, *LENGTH), "--api-key", KEY, "--run", "t"]
        first = prepared.memskill("train", *flags, "--outer-epochs", "1", "--tracker", "tensorboard")
        assert first.code == 0, first.err
        more = [*flags, "--outer-epochs", "2", "--resume", "--tracker", "wandb"]
        second = prepared.memskill("train", *more, WANDB_MODE="offline", WANDB_API_KEY=KEY)
        assert second.code == 0, second.err
    assert "tensorboard --logdir runs" in first.err
    assert "wandb sync runs/t/wandb/offline-run-" in second.err

    rows = list(files.read_jsonl(run / "metrics.jsonl"))
    assert len(rows) == 4
    shown = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0})
    shown.Reload()
    rewards = [(event.step, event.value) for event in shown.Scalars("episode_reward_mean")]
    assert rewards == [(step, pytest.approx(rows[step - 1]["episode_reward_mean"])) for step in (1, 2)]

    (folder,) = (run / "wandb").glob("offline-run-*")
    assert history(wandb_records(folder)) == pytest.approx(points(rows))
    holding = [file for file in run.rglob("*") if file.is_file() and KEY[10:].encode() in file.read_bytes()]
    assert holding == []
    assert KEY[10:] not in first.out + first.err + second.out + second.err
