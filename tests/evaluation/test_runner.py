"""An evaluation as a library: what names it, what it plans, what stops it, what it keeps. Models are scripted."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from memskill_cli import files
from memskill_cli.config import load
from memskill_cli.errors import AuthError, MemskillError, ModelError
from memskill_cli.evaluation.runner import Evaluation
from memskill_cli.evaluation.subject import Subject
from memskill_cli.evaluation.task import Task, evaluation_id, plan
from memskill_cli.llm.gateway import Gateway
from memskill_cli.llm.keys import KeyRing
from memskill_cli.llm.ledger import Ledger
from memskill_cli.memory.bank import MemoryBank
from memskill_cli.memory.encoders import load_encoder
from memskill_cli.memory.spaces import Spaces
from memskill_cli.memory.store import MemoryStore
from memskill_cli.records import Query, Session, Trace, Turn
from memskill_cli.runs.run_dir import RunDir
from memskill_cli.testing import rules
from memskill_cli.testing.script import Script
from memskill_cli.testing.server import Fault, Request, ScriptedServer
from memskill_cli.training.rollout import World

TASK = Task("locomo", "test", "memskill", "data")


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
    """A run directory without any training, and evaluations in it."""

    def __init__(self, folder: Path, name: str = "r", **overrides: Any) -> None:
        names = {name.replace("__", "."): value for name, value in overrides.items()}
        self.settings = load(overrides={"eval.span_mode": "full-session", "models.retries": 0, **names})
        self.run = RunDir.create(folder / "runs", name, self.settings, "data")
        self.requests: list[Request] = []

    def evaluate(self, reply: Script | Callable[[Request], Any] = rules.reply, task: Task = TASK) -> dict[str, Any]:
        script = reply if callable(reply) else (lambda request: reply)
        with ScriptedServer(script) as server:
            try:
                return asyncio.run(self._evaluate(server.url, task))
            finally:
                self.requests = server.requests

    async def _evaluate(self, url: str, task: Task) -> dict[str, Any]:
        encoder = load_encoder("hashing", cache_dir=None)
        self.subject = Subject.of(None, self.settings)
        ledger = Ledger(None, scope="eval", max_cost=0)
        models = dataclasses.replace(self.settings.models, executor="m", answer="m", judge="m", designer="m")
        gateway = Gateway(
            dataclasses.replace(models, api_base=url),
            self.settings.limits,
            keys=KeyRing.collect((), None, {}),
            ledger=ledger,
            cache=None,
            notice=lambda text: None,
        )
        world = World(gateway, Spaces(encoder, encoder), self.settings.memory, self.settings.reward, "locomo")
        try:
            evaluation = Evaluation(self.run, task, self.settings, self.subject, world, ledger)
            self.folder, self.id = evaluation.folder, evaluation.id
            return await evaluation.evaluate(TRACES, plan(TRACES, task))
        finally:
            await gateway.aclose()
            encoder.close()

    def rows(self) -> list[dict[str, Any]]:
        return list(files.read_jsonl(self.folder / "results.jsonl"))


def named(task: Task = TASK, **overrides: Any) -> str:
    settings = load(overrides={name.replace("__", "."): value for name, value in overrides.items()})
    return evaluation_id(task, settings, Subject.of(None, settings))


@pytest.mark.parametrize(
    "change",
    [
        {"eval__top_k": 3},
        {"eval__chunk_size": 300},
        {"eval__max_spans": 1},
        {"eval__judge": False},
        {"memory__top_k": 5},
        {"models__answer": "openai/other"},
        {"models__judge": "openai/other"},
        {"encoders__retrieval": "contriever"},
        {"seed": 7},
        {"controller__hidden": 64},
        {"controller__noop_seed": True},
    ],
)
def test_what_can_change_a_score_names_another_evaluation(change: dict[str, Any]) -> None:
    assert named(**change) != named()


@pytest.mark.parametrize(
    "change",
    [
        {"limits__concurrency": 3},
        {"limits__max_cost": 3.0},
        {"models__api_base": "http://elsewhere/v1"},
        {"models__timeout": 5.0},
        {"models__retries": 9},
        {"models__designer": "openai/other"},
        {"train__inner_epochs": 99},
        {"ppo__gamma": 0.5},
    ],
)
def test_what_cannot_names_the_same(change: dict[str, Any]) -> None:
    assert named(**change) == named()


@pytest.mark.parametrize("change", [{"limit": 3}, {"split": "val"}, {"data_digest": "other"}, {"method": "rag"}])
def test_another_task_is_another_evaluation(change: dict[str, Any]) -> None:
    assert named(dataclasses.replace(TASK, **change)) != named()


@pytest.mark.parametrize(("limit", "asked", "read"), [(2, 2, 1), (3, 3, 1), (4, 4, 2), (0, 6, 2)])
def test_a_limit_counts_scored_queries_and_reads_only_their_traces(
    tmp_path: Path, limit: int, asked: int, read: int
) -> None:
    rig = Rig(tmp_path, eval__judge=False)
    summary = rig.evaluate(task=dataclasses.replace(TASK, limit=limit))
    assert (summary["queries"], summary["limit"]) == (asked, limit)
    roles = [request.role for request in rig.requests]
    assert (roles.count("answer"), roles.count("executor")) == (asked, read)
    assert [row["query_id"] for row in rig.rows()] == [q.query_id for t in TRACES for q in t.queries if q.scored][
        :asked
    ]
    assert plan(TRACES, TASK).left_out == 2


def test_memories_are_kept_under_names_of_their_own(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    summary = rig.evaluate()
    assert summary["memories"] > 0
    with MemoryStore(rig.run.memory / rig.id) as store:
        names = [f"r@{rig.run.manifest().created}/{rig.id}/{name}" for name in ("Ana", "Ben")]
        banks = [MemoryBank.open(name, store) for name in names]
        assert sum(len(bank) for bank in banks if bank) == summary["memories"]
        assert MemoryBank.open("Ana", store) is None
    assert {item.history[0].provenance.trace_id for bank in banks if bank for item in bank.items} == {"Ana", "Ben"}


def test_a_second_try_reads_no_trace_again(tmp_path: Path) -> None:
    rig = Rig(tmp_path, eval__judge=False)

    def forgets(request: Request) -> str | Fault:
        failing = request.role == "answer" and "garden 1?" in request.text
        return Fault.server_error() if failing else rules.reply(request)

    first = rig.evaluate(forgets)
    assert first["errors"] == {"answer": 2}
    assert {request.role for request in rig.requests} == {"executor", "answer"}
    second = rig.evaluate()
    assert [request.role for request in rig.requests] == ["answer", "answer"]
    assert second["errors"] == {}
    assert second["memories"] == first["memories"]
    assert second["seconds"] > first["seconds"]
    assert [row["query_id"] for row in rig.rows()] == [f"{n}-{i}" for n in ("Ana", "Ben") for i in range(3)]


def test_a_memory_that_cannot_be_built_is_an_error_of_its_queries_only(tmp_path: Path) -> None:
    rig = Rig(tmp_path)

    def fails(request: Request) -> str | Fault:
        return (
            Fault.server_error()
            if request.role == "executor" and "Ben: I have" in request.text
            else rules.reply(request)
        )

    summary = rig.evaluate(fails)
    assert summary["errors"] == {"memory": 3}
    ana, ben = rig.rows()[:3], rig.rows()[3:]
    assert all(row["f1"] is not None and not row["error"] for row in ana)
    assert all(row["f1"] is None and row["judge"] is None and row["error"].startswith("memory: ") for row in ben)
    assert summary["f1"] == pytest.approx(sum(row["f1"] for row in ana) / 3), "what failed is in no mean"


def test_a_judge_who_is_gone_costs_no_f1(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    summary = rig.evaluate(lambda r: Fault.server_error() if r.role == "judge" else rules.reply(r))
    assert summary["errors"] == {"judge": 6}
    assert summary["f1"] is not None
    assert summary["judge"] is None
    assert summary["ci95"]["judge"] is None


@pytest.mark.parametrize(("fault", "error"), [(Fault.unauthorized(), AuthError), (Fault.server_error(), ModelError)])
def test_when_nothing_works_it_fails_and_is_still_owed(
    tmp_path: Path, fault: Fault, error: type[MemskillError]
) -> None:
    rig = Rig(tmp_path)
    with pytest.raises(error):
        rig.evaluate(fault)
    assert len(rig.requests) <= 4, "no use in asking on"
    assert rig.evaluate()["errors"] == {}
