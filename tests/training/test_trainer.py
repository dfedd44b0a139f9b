"""The training loop: sampling, judging, keeping and rolling back, with a scripted model server."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from memskill_cli.config import load
from memskill_cli.memory.encoders import load_encoder
from memskill_cli.runs.run_dir import RunDir
from memskill_cli.skills import stages
from memskill_cli.skills.seeds import seed_bank
from memskill_cli.testing import rules
from memskill_cli.testing.server import MockLLMServer, Request
from memskill_cli.training.episode_sampler import QASampler
from memskill_cli.training.query_sampling import sample_queries
from memskill_cli.training.resume import resume
from memskill_cli.training.trainer import TrainCallbacks, Trainer
from memskill_cli.types import Query, Session, Trace, Turn
from memskill_cli.utils import files

from ..factories import llm_client, make_ledger, rollout_context

WORDS = ["apples", "boats", "cellos", "dahlias", "eels", "ferns", "gongs", "harps"]
CATEGORIES = ["single-hop", "temporal"]


def trace(name: str) -> Trace:
    """A trace with two sessions, eight facts, and a question about each fact."""
    turns = [Turn(name, f"I bought {i + 3} {word} in the market.") for i, word in enumerate(WORDS)]
    sessions = tuple(Session(f"s{i}", "1 May 2025", tuple(turns[4 * i : 4 * i + 4])) for i in range(2))
    queries = tuple(
        Query(f"{name}-{i}", name, CATEGORIES[i % 2], f"How many {word} did {name} buy?", (f"{i + 3} {word}",))
        for i, word in enumerate(WORDS)
    )
    return Trace(name, "locomo", "train", sessions, queries)


TRACES = [trace("Ana"), trace("Ben"), trace("Cleo")]


class Rig:
    """A run directory and the objects that a trainer needs."""

    def __init__(self, folder: Path, **overrides: Any) -> None:
        chosen = {"train.batch_size": 2, "train.outer_epochs": 1, "train.inner_epochs": 2, "train.num_skills": 2}
        names = {name.replace("__", "."): value for name, value in overrides.items()}
        self.settings = load(overrides={**chosen, "models.retries": 0, **names})
        self.run = RunDir.create(folder / "runs", "r", self.settings, "data")
        self.notices: list[str] = []
        self.trainer: Trainer | None = None

    def train(
        self,
        reply: Callable[[Request], str] = rules.reply,
        *,
        epoch: Callable[[dict[str, Any], list[Request]], None] = lambda row, requests: None,
        only_resume: bool = False,
    ) -> list[dict[str, Any]]:
        """The metrics after training (or only resuming). ``epoch`` gets each metrics line and the requests so far."""
        with MockLLMServer(reply) as server:
            asyncio.run(self._train(server, epoch, only_resume))
        return list(files.read_jsonl(self.run.metrics))

    async def _train(self, server: MockLLMServer, epoch: Any, only_resume: bool) -> None:
        encoder = load_encoder("hashing", cache_dir=None)
        ledger = make_ledger(scope="train")
        llm = llm_client(server.url, model="m", base=self.settings.models, ledger=ledger)
        context = rollout_context(llm, encoder, self.settings)
        callbacks = TrainCallbacks(on_epoch=lambda row: epoch(row, server.requests), notice=self.notices.append)
        try:
            bank = seed_bank(noop=False)
            episode_specs = QASampler(self.settings, TRACES)
            self.trainer = Trainer(self.run, self.settings, context, ledger, episode_specs, bank, None, callbacks)
            resume(self.trainer)
            if not only_resume:
                await self.trainer.train()
        finally:
            await llm.aclose()
            encoder.close()

    @property
    def digests(self) -> list[str]:
        newest = sorted(self.run.checkpoints.iterdir())[-1]
        names = ("controller.safetensors", "optimizer.safetensors")
        return [hashlib.sha256((newest / name).read_bytes()).hexdigest() for name in names]


def test_resuming_drops_the_metrics_after_the_checkpoint(tmp_path: Path) -> None:
    rig = Rig(tmp_path, train__inner_epochs=3)
    whole, learned = rig.train(), rig.digests
    assert len(whole) == 3
    (rig.run.checkpoints / "000003" / "controller.safetensors").write_bytes(b"torn")
    kept = rig.train(only_resume=True)
    assert kept == whole[:2]
    assert rig.trainer is not None
    assert rig.trainer.num_updates == 2
    assert any("000003" in text and "the checkpoint before it" in text for text in rig.notices)
    again = rig.train()
    assert rig.digests == learned
    assert [row | {"seconds": 0} for row in again] == [row | {"seconds": 0} for row in whole]


def test_a_stage_is_judged_by_its_last_quarter(tmp_path: Path) -> None:
    rig = Rig(tmp_path, train__inner_epochs=5, train__batch_size=1, reward__query_ratio=0.25)
    rewards = [row["episode_reward_mean"] for row in rig.train()]
    (stage,) = stages.read_all(rig.run.stages)
    assert len(set(rewards)) > 1, "otherwise this tests nothing"
    assert stage.reward == pytest.approx((rewards[3] + rewards[4]) / 2), "the last quarter of five has two"
    assert stage.checkpoint == 5


def test_a_run_ends_on_the_bank_of_its_best_stage(tmp_path: Path) -> None:
    answers = 0

    def tires(request: Request) -> str:
        nonlocal answers
        answers += request.role == "answer"
        return rules.reply(request) if request.role != "answer" or answers <= 32 else "I do not know."

    rig = Rig(tmp_path, train__outer_epochs=2)
    rewards = [row["episode_reward_mean"] for row in rig.train(tires)]
    assert min(rewards[:2]) > 0 == max(rewards[2:])
    first, second = stages.read_all(rig.run.stages)
    assert (first.is_best, second.is_best) == (True, False)
    bank = json.loads(rig.run.skill_bank.read_text())
    snapshots = [json.loads(stages.path_of(rig.run.stages, number).read_text())["bank"] for number in (0, 1)]
    assert bank == snapshots[0] != snapshots[1]
    used = sum(skill["stats"]["uses"] for skill in bank["skills"])
    assert used == 2 * 2 * 2 * 2, "statistics of its stage only: epochs * episodes * spans * skills per span"


def test_queries_are_sampled_by_seed_conversation_and_epoch(tmp_path: Path) -> None:
    asked: list[set[str]] = []
    seen = 0

    def epoch(row: dict[str, Any], requests: list[Request]) -> None:
        nonlocal seen
        new, seen = requests[seen:], len(requests)
        asked.append({rules.part(request, "question") for request in new if request.role == "answer"})

    rig = Rig(tmp_path, train__outer_epochs=2, train__batch_size=3, reward__query_ratio=0.3, seed=5)
    rig.train(epoch=epoch)
    wanted = [
        {q.question for t in TRACES for q in sample_queries(t.queries, 0.3, (5, t.trace_id, outer, inner))}
        for outer in range(2)
        for inner in range(2)
    ]
    assert asked == wanted
    assert len(set(map(frozenset, asked))) > 1, "the questions differ between epochs"
    assert all(len(questions) == 3 * 3 for questions in asked)


def test_the_steps_of_the_first_episode_of_each_inner_epoch_are_written(tmp_path: Path) -> None:
    rig = Rig(tmp_path, train__outer_epochs=2, train__span_mode="full-session")
    metrics = rig.train()
    rows = list(files.read_jsonl(rig.run.steps))
    assert [(row["outer"], row["inner"], row["episode"], row["span"]) for row in rows] == [
        (outer, inner, 0, span) for outer in range(2) for inner in range(2) for span in range(2)
    ]
    firsts = [QASampler(rig.settings, TRACES).episode(outer, inner, 0) for outer in range(2) for inner in range(2)]
    assert [row["trace_id"] for row in rows] == [spec.spans[0].trace_id for spec in firsts for _ in range(2)]
    assert all(len(row["skills"]) == 2 and 0 < row["skills"][0]["probability"] < 1 for row in rows)
    assert all("text" not in row for row in rows), "a training has its texts in the prepared data"
    assert sum(row["memories_after"] - row["memories_before"] for row in rows) > 0
    assert len(rows) < sum(row["steps"] for row in metrics) == 2 * len(rows), "the other episode is left out"


def test_resuming_drops_the_steps_after_the_checkpoint(tmp_path: Path) -> None:
    rig = Rig(tmp_path, train__inner_epochs=3)
    rig.train()
    whole = list(files.read_jsonl(rig.run.steps))
    (rig.run.checkpoints / "000003" / "controller.safetensors").write_bytes(b"torn")
    with rig.run.steps.open("ab") as file:
        file.write(b'{"outer": 0, "in')
    rig.train(only_resume=True)
    kept = [json.loads(line) for line in rig.run.steps.read_text().splitlines()]
    assert kept == [row for row in whole if row["inner"] < 2]
    rig.train()
    again = list(files.read_jsonl(rig.run.steps))
    assert [row | {"seconds": 0} for row in again] == [row | {"seconds": 0} for row in whole]


def test_every_trace_is_read_equally_often(tmp_path: Path) -> None:
    rig = Rig(tmp_path, train__inner_epochs=3)
    read: list[str] = []

    def listen(request: Request) -> str:
        if request.role == "executor":
            read.append(next(t.trace_id for t in TRACES if f"{t.trace_id}: I bought" in request.text))
        return rules.reply(request)

    rig.train(listen)
    assert {name: read.count(name) for name in set(read)} == {t.trace_id: 2 * 2 for t in TRACES}
