"""A run directory and evaluations in it, for tests of ``evaluation/`` as a library. Models are scripted."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from memskill_cli.agent.controller import Controller
from memskill_cli.app.evaluate import policies_of
from memskill_cli.config import load
from memskill_cli.evaluation.runner import Evaluation
from memskill_cli.evaluation.spec import EvalSpec, plan
from memskill_cli.memory.encoders import load_encoder
from memskill_cli.runs import checkpoint
from memskill_cli.runs.run_dir import RunDir
from memskill_cli.skills.bank import SkillBank
from memskill_cli.testing import rules
from memskill_cli.testing.replies import Script
from memskill_cli.testing.server import MockLLMServer, Request
from memskill_cli.types import Query, Session, Trace, Turn
from memskill_cli.utils import files

from ..factories import llm_client, make_ledger, rollout_context

TASK = EvalSpec("locomo", "test", "memskill", "data")


def trace(name: str, questions: int = 3) -> Trace:
    turns = tuple(Turn(name, f"I have {i + 2} plum trees in garden number {i}.") for i in range(questions))
    queries = tuple(
        Query(f"{name}-{i}", name, "single-hop", f"How many plum trees are in garden {i}?", (f"{i + 2}",))
        for i in range(questions)
    )
    unscored = Query(f"{name}-x", name, "adversarial", "Who felled the oak?", ("Nobody",), scored=False)
    return Trace(name, "locomo", "test", (Session("s1", "1 May 2025", turns),), (*queries, unscored))


TRACES = [trace("Ana"), trace("Ben")]


class Rig:
    """A run directory without training, and evaluations in it."""

    def __init__(self, folder: Path, name: str = "r", traces: Sequence[Trace] = TRACES, **overrides: Any) -> None:
        names = {name.replace("__", "."): value for name, value in overrides.items()}
        self.settings = load(overrides={"eval.span_mode": "full-session", "models.retries": 0, **names})
        self.run = RunDir.create(folder / "runs", name, self.settings, "data")
        self.traces = traces
        self.requests: list[Request] = []
        self.notices: list[str] = []

    def evaluate(self, reply: Script | Callable[[Request], Any] = rules.reply, task: EvalSpec = TASK) -> dict[str, Any]:
        script = reply if callable(reply) else (lambda request: reply)
        with MockLLMServer(script) as server:
            try:
                return asyncio.run(self._evaluate(server.url, task))
            finally:
                self.requests = server.requests

    def train(self, bank: SkillBank) -> None:
        """Write a checkpoint of one inner epoch with this bank."""
        with closing(load_encoder("hashing", cache_dir=None)) as encoder:
            dim = encoder.dim
        controller = Controller.seeded(dim, 16, 1).state_dict()
        state = {"dim": dim, "hidden": 16, "hard_cases": [], "window_start": 0, "rewards": []}
        checkpoint.save(self.run.checkpoints, checkpoint.Checkpoint(1, controller, {}, bank, state, run=self.run.id))

    def method(self, name: str, **more: Any) -> dict[str, Any]:
        """The summary of one method on :data:`TASK`."""
        return self.evaluate(task=dataclasses.replace(TASK, dataset=self.settings.dataset, method=name, **more))

    async def _evaluate(self, url: str, task: EvalSpec) -> dict[str, Any]:
        encoder = load_encoder("hashing", cache_dir=None)
        ledger, settings = make_ledger(scope="eval"), self.settings
        llm = llm_client(url, model="m", base=settings.models, ledger=ledger, notice=self.notices.append)
        context = rollout_context(llm, encoder, settings, judge_prompt=settings.eval.judge_prompt)
        try:
            policy = policies_of([task.method], self.run, "best", self.settings, self.notices.append)[task.method]
            evaluation = Evaluation(self.run, task, self.settings, policy, context, ledger, self.notices.append)
            self.folder, self.id = evaluation.folder, evaluation.id
            evaluation.method.check()
            return await evaluation.evaluate(self.traces, plan(self.traces, task))
        finally:
            await llm.aclose()
            encoder.close()

    def rows(self) -> list[dict[str, Any]]:
        return list(files.read_jsonl(self.folder / "results.jsonl"))

    def prompts(self, role: str) -> list[str]:
        """The prompts to the model of a role, in order of arrival."""
        return [request.text for request in self.requests if request.role == role]

    def roles(self) -> dict[str, int]:
        """The number of requests by role."""
        found = [str(request.role) for request in self.requests]
        return {role: found.count(role) for role in dict.fromkeys(found)}
