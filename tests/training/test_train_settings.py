"""Training settings that the published code also has: each one has the expected effect."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from memskill_cli.errors import CheckpointError
from memskill_cli.runs import checkpoint
from memskill_cli.runs.run_dir import RunDir
from memskill_cli.skills import stages
from memskill_cli.skills.seeds import seed_bank
from memskill_cli.testing.server import MockLLMServer, Request
from memskill_cli.types import Matrix

from .resume_harness import Lives, reply


def trained(folder: Path, *, asked: list[Request] | None = None, **overrides: object) -> RunDir:
    with MockLLMServer(reply) as server:
        lives = Lives(folder, server, **overrides)
        run = lives.begin("r")
        lives.live(run)
        if asked is not None:
            asked += server.requests
    return run


def rewards(run: RunDir) -> list[float]:
    from memskill_cli.utils import files

    return [row["episode_reward_mean"] for row in files.read_jsonl(run.metrics)]


def test_a_designer_every_second_outer_epoch_makes_stages_of_two(tmp_path: Path) -> None:
    asked: list[Request] = []
    run = trained(tmp_path, asked=asked, train__outer_epochs=3, train__inner_epochs=2, designer__every=2)
    known = stages.read_all(run.stages)
    assert [stage.checkpoint for stage in known] == [4, 6], "the last stage ends with the run"
    measured = rewards(run)
    assert known[0].reward == pytest.approx(measured[3])
    assert known[1].reward == pytest.approx(measured[5])
    assert sum("<limit>" in request.text for request in asked) == 1, "one designer cycle, between the two stages"


def test_a_run_made_longer_judges_the_stage_that_had_ended_early_at_its_real_end(tmp_path: Path) -> None:
    with MockLLMServer(reply) as server:
        short = Lives(tmp_path, server, train__outer_epochs=3, train__inner_epochs=1, designer__every=2)
        run = short.begin("r")
        short.live(run)
        assert [stage.checkpoint for stage in stages.read_all(run.stages)] == [2, 3]
        longer = Lives(tmp_path, server, train__outer_epochs=4, train__inner_epochs=1, designer__every=2)
        longer.live(run)
    known = stages.read_all(run.stages)
    assert [stage.checkpoint for stage in known] == [2, 4]
    assert known[1].reward == pytest.approx(rewards(run)[3])


def test_the_share_of_rewards_that_judges_a_stage_is_a_setting(tmp_path: Path) -> None:
    overrides = {"train__outer_epochs": 1, "train__inner_epochs": 4, "train__evolve": False}
    half = trained(tmp_path / "half", designer__judged_share=0.5, **overrides)
    assert stages.read_all(half.stages)[0].reward == pytest.approx(sum(rewards(half)[2:]) / 2)
    whole = trained(tmp_path / "whole", designer__judged_share=1.0, **overrides)
    assert stages.read_all(whole.stages)[0].reward == pytest.approx(sum(rewards(whole)) / 4)


def test_a_designer_that_may_only_refine_adds_nothing(tmp_path: Path) -> None:
    asked: list[Request] = []
    run = trained(tmp_path, asked=asked, designer__refine_only=True)
    names = {name for stage in stages.read_all(run.stages) for name in stage.bank.names}
    assert names == {"delete", "insert", "update"}
    assert all("no skill may be added" in request.text for request in asked if "<limit>" in request.text)


@pytest.mark.parametrize("hint", [True, False])
def test_the_hint_to_prefer_new_skills_is_in_analysis_and_reflection_only(tmp_path: Path, hint: bool) -> None:
    asked: list[Request] = []
    trained(tmp_path, asked=asked, train__outer_epochs=2, designer__prefer_new_skills=hint)
    told = ["recommend a new skill" in request.text for request in asked if request.role == "designer"]
    refine = ["<limit>" in request.text for request in asked if request.role == "designer"]
    assert told == [hint and not last for last in refine]
    assert any(refine)


def test_the_first_bank_has_the_capacity_that_is_set(tmp_path: Path) -> None:
    from memskill_cli.app.train import _first_bank
    from memskill_cli.config import load
    from memskill_cli.errors import SkillBankError

    bank = _first_bank(load(sets=["designer.capacity=7"]), None, None)
    assert (bank.capacity, bank.names) == (7, ("delete", "insert", "noop", "update"))
    assert _first_bank(load(sets=["controller.include_noop=no"]), None, None).names == ("delete", "insert", "update")
    with pytest.raises(SkillBankError, match="capacity 3"):
        _first_bank(load(sets=["designer.capacity=3"]), None, None)


def test_a_controller_reads_skills_in_a_width_of_their_own(tmp_path: Path) -> None:
    """Skill descriptions have another encoder than spans. The checkpoint records both sizes."""
    seen: list[str] = []

    def embed(model: str, texts: Sequence[str]) -> Matrix:
        seen.extend(texts)
        return np.array([[len(text), 1.0, text.count("e")] for text in texts], np.float32)

    with MockLLMServer(reply) as server:
        lives = Lives(tmp_path, server, embed_skills=embed, train__outer_epochs=1)
        run = lives.begin("r")
        lives.live(run)
        found = checkpoint.load_latest(run.checkpoints)
        assert found is not None
        assert found.skill_dim == 3
        assert found.controller["op_net.0.weight"].shape[1] == 3
        assert found.controller["state_net.0.weight"].shape[1] == 2 * found.state["dim"]
        assert {skill.description for skill in seed_bank(noop=False).skills} <= set(seen)
        assert not any("job is baker" in text for text in seen), "spans use another encoder"
        with pytest.raises(CheckpointError, match="3-d of skills"):
            Lives(tmp_path, server, train__outer_epochs=2).live(run)
