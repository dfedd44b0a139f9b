"""Evaluation as a library: its name, its plan, errors that stop it, the data it keeps. Models are scripted."""

from __future__ import annotations

import dataclasses
import json
import re
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from memskill_cli.config import load
from memskill_cli.config.datasets import DATASETS
from memskill_cli.datasets.base import Dataset
from memskill_cli.datasets.registry import register_dataset
from memskill_cli.errors import AuthError, MemoryBankError, MemskillError, ModelError, PluginError, RunError
from memskill_cli.evaluation.artifact_store import EvalArtifactStore
from memskill_cli.evaluation.policy import EvaluatedPolicy
from memskill_cli.evaluation.spec import IDENTITY, EvalSpec, evaluation_id, plan
from memskill_cli.memory.bank import MemoryBank
from memskill_cli.memory.store import MemoryStore
from memskill_cli.memory.stored_bank import StoredBank
from memskill_cli.testing import rules
from memskill_cli.testing.server import Fault, Request
from memskill_cli.types import Query, Trace
from memskill_cli.utils import files

from .harness import TASK, TRACES, Rig, trace


def named(task: EvalSpec = TASK, **overrides: Any) -> str:
    settings = load(overrides={name.replace("__", "."): value for name, value in overrides.items()})
    return evaluation_id(task, settings, EvaluatedPolicy.of(None, settings))


@pytest.mark.parametrize(
    "change",
    [
        {"eval__num_skills": 3},
        {"eval__chunk_size": 300},
        {"eval__max_spans": 1},
        {"eval__judge": False},
        {"memory__num_memories": 5},
        {"models__answer": "openai/other"},
        {"models__judge": "openai/other"},
        {"encoders__retrieval": "contriever"},
        {"seed": 7},
        {"controller__hidden": 64},
        {"controller__include_noop": False},
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
    assert plan(TRACES, TASK).excluded == 2


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


def test_questions_do_not_wait_for_a_memory_to_be_written_down(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, write = [], EvalArtifactStore.write_bank

    async def written(shelf: EvalArtifactStore, trace_id: str, bank: StoredBank) -> None:
        asked.append([row["query_id"] for row in rig.rows() if row["trace_id"] == trace_id])
        await write(shelf, trace_id, bank)

    monkeypatch.setattr(EvalArtifactStore, "write_bank", written)
    rig = Rig(tmp_path)
    rig.evaluate()
    assert sorted(map(len, asked)) == [2, 2], "the memory of a trace is written once, after its questions"


def test_a_trace_has_all_its_rows_only_when_its_memory_is_written_down(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def full(shelf: EvalArtifactStore, trace_id: str, bank: StoredBank) -> None:
        raise MemoryBankError("the disk is full")

    rig = Rig(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(EvalArtifactStore, "write_bank", full)
        with pytest.raises(MemoryBankError):
            rig.evaluate()
    assert len(rig.rows()) <= 4, "at least one of the three queries of each trace has no answer yet"
    summary = rig.evaluate()
    with MemoryStore(rig.run.memory / rig.id) as store:
        banks = [store.read(f"r@{rig.run.manifest().created}/{rig.id}/{name}") for name in ("Ana", "Ben")]
    assert sum(len(bank.items) for bank in banks if bank) == summary["memories"] > 0
    assert len(rig.rows()) == 6


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
    assert summary["f1"] == pytest.approx(sum(row["f1"] for row in ana) / 3), "failed queries are left out of the mean"


def test_a_refused_prompt_is_a_row_with_the_reason_and_never_ends_an_evaluation(tmp_path: Path) -> None:
    rig = Rig(tmp_path, limits__concurrency=1)
    filtered = Fault.error(400, "The prompt triggers the content management policy", code="content_filter")

    def refuses(request: Request) -> str | Fault:
        spans = request.role == "executor" and "Ben: I have" in request.text
        return filtered if spans or (request.role == "answer" and "1?" in request.text) else rules.reply(request)

    summary = rig.evaluate(refuses)
    assert set(summary["errors"]) == {"refused"}
    assert summary["executor"]["refused"] > 0
    refused = [row for row in rig.rows() if row["error"]]
    assert len(refused) == summary["errors"]["refused"]
    assert all("content management policy" in row["error"] and row["f1"] is None for row in refused)
    answers = [request.text for request in rig.requests if request.role == "answer"]
    assert len(answers) == len(set(answers)) == 6, "no prompt is sent twice"


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
    assert len(rig.requests) <= 4, "it makes no further call"
    assert rig.evaluate()["errors"] == {}


def unanswerable(name: str) -> Trace:
    """A trace with one question that can be answered and one that cannot."""
    told = trace(name, 1)
    truth = "The user never mentioned a greenhouse."
    lost = Query(f"{name}-abs", name, "abstention", "Where is my greenhouse?", (truth,), scored=False)
    return dataclasses.replace(told, dataset="longmemeval", queries=(told.queries[0], lost))


def test_abstention_is_judged_apart_and_in_no_mean(tmp_path: Path) -> None:
    rig = Rig(tmp_path, traces=[unanswerable("Ana"), unanswerable("Ben")], dataset="longmemeval")
    plain = rig.method("memskill")
    answered = {row["query_id"]: row for row in rig.rows()}
    assert "abstention" not in plain
    assert plain["queries"] == 2
    apart = rig.method("memskill", include_abstention=True)
    assert apart["abstention"] == {
        "queries": 2,
        "f1": None,
        "judge": pytest.approx(sum(row["judge"] for row in rig.rows() if row["category"] == "abstention") / 2),
        "ci95": {"f1": None, "judge": apart["abstention"]["ci95"]["judge"]},
    }
    same = ("queries", "f1", "judge", "ci95", "by_category")
    assert {name: apart[name] for name in same} == {name: plain[name] for name in same}
    rows = {row["query_id"]: row for row in rig.rows()}
    assert rows.keys() - answered.keys() == {"Ana-abs", "Ben-abs"}
    assert all(rows[name]["f1"] is None and rows[name]["judge"] is not None for name in ("Ana-abs", "Ben-abs"))
    told = [prompt for prompt in rig.prompts("judge") if "<rule>" in prompt]
    assert len(told) == 2
    assert all("greenhouse" in prompt for prompt in told)


class Read(Sequence[Trace]):
    """Traces that record when they are loaded."""

    def __init__(self, traces: Sequence[Trace], log: list[str]) -> None:
        self.traces, self.log = traces, log

    def __len__(self) -> int:
        return len(self.traces)

    def __getitem__(self, place: Any) -> Any:
        self.log.append(self.traces[place].trace_id)
        return self.traces[place]

    def __iter__(self) -> Iterator[Trace]:
        return iter(self.traces)


@pytest.mark.parametrize(("method", "read"), [("memskill", ["executor"]), ("rag", [])])
def test_a_trace_is_built_when_its_turn_comes_and_not_again(tmp_path: Path, method: str, read: list[str]) -> None:
    log: list[str] = []
    names = ["Ana", "Ben", "Cleo", "Dan"]
    rig = Rig(tmp_path, traces=Read([trace(name, 1) for name in names], log), limits__concurrency=1, eval__judge=False)
    down = True

    def reply(request: Request) -> str | Fault:
        log.append(request.role)
        failing = down and request.role == "answer" and log.count("answer") == 4
        return Fault.server_error() if failing else rules.reply(request)

    task = dataclasses.replace(TASK, method=method)
    first = rig.evaluate(reply, task)
    assert log == [event for name in names for event in (name, *read, "answer")], "one after the other"
    assert first["errors"] == {"answer": 1}
    log.clear()
    down = False
    second = rig.evaluate(reply, task)
    assert log == ["Dan", "answer"], "a trace without pending queries is not loaded again"
    assert second["errors"] == {}
    assert second["memories"] == first["memories"] > 0


@pytest.mark.parametrize("method", ["memskill", "all-skills", "no-memory"])
def test_a_run_killed_before_its_summary_makes_it_without_a_call(tmp_path: Path, method: str) -> None:
    rig = Rig(tmp_path)
    first = rig.method(method)
    (rig.folder / "summary.json").unlink()
    again = rig.method(method)
    assert rig.requests == []
    assert {**again, "seconds": 0, "usage": 0} == {**first, "seconds": 0, "usage": 0}


def test_the_longest_trace_is_read_first_and_rows_keep_the_datasets_order(tmp_path: Path) -> None:
    rig = Rig(tmp_path, traces=[trace("Ana", 1), trace("Ben", 3), trace("Cas", 2)], limits__concurrency=1)
    rig.evaluate()
    read = [name for prompt in rig.prompts("executor") for name in ("Ana", "Ben", "Cas") if f"{name}: " in prompt]
    assert read == ["Ben", "Cas", "Ana"]
    assert [row["trace_id"] for row in rig.rows()] == ["Ana", "Ben", "Ben", "Ben", "Cas", "Cas"]


def test_an_exception_in_a_plug_ins_score_ends_the_evaluation_and_names_the_query(tmp_path: Path) -> None:
    class Broken(Dataset):
        name = "broken-score"

        def read(self, part: Any, watch: Any) -> Any:
            raise NotImplementedError

        def score(self, query: Query, prediction: str) -> float:
            raise IndexError("no word")

    register_dataset(Broken)
    try:
        rig = Rig(tmp_path, dataset="broken-score", eval__judge=False)
        with pytest.raises(PluginError) as told:
            rig.method("no-memory")
    finally:
        DATASETS.unregister("broken-score")
    assert re.fullmatch(r"Broken\.score \(.*\) failed for query \w+-\d: IndexError: no word", told.value.message)
    assert 'raise IndexError("no word")' in "".join(traceback.format_exception(told.value)), "what --debug shows"


def test_rows_and_folders_of_another_identity_are_never_mixed(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    rig.evaluate()
    sound = rig.rows()
    (rig.folder / "summary.json").unlink()
    line = {**sound[0], "prediction": "of another", "evaluation": "locomo-test-rag-0123456789ab"}
    files.append_line(rig.folder / "results.jsonl", line)
    rig.evaluate()
    assert rig.rows() == sound
    assert [text for text in rig.notices if "1 lines are of another evaluation, locomo-test-rag-0123456789ab" in text]
    own = json.loads((rig.folder / IDENTITY).read_text())
    files.write_json(rig.folder / IDENTITY, {**own, "prompts": "0" * 12, "reading": 1})
    (rig.folder / "summary.json").unlink()
    with pytest.raises(RunError, match="prompts, the version of reading and scoring differ") as refused:
        rig.evaluate()
    assert "rename or delete that folder" in refused.value.hint


def test_a_row_names_its_evaluation_until_the_evaluation_is_complete(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    seen: list[Any] = []

    def reply(request: Request) -> Any:
        if request.role == "judge":
            seen.extend(row["evaluation"] for row in files.read_jsonl(rig.folder / "results.jsonl"))
        return rules.reply(request)

    rig.method("no-memory")
    (rig.folder / "summary.json").unlink()
    (rig.folder / "results.jsonl").unlink()
    rig.evaluate(reply, task=dataclasses.replace(TASK, method="no-memory"))
    assert set(seen) <= {rig.id}
    assert all("evaluation" not in row for row in rig.rows())


def test_a_good_row_stays_though_a_later_line_has_an_error(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    rig.evaluate()
    sound = rig.rows()
    (rig.folder / "summary.json").unlink()
    files.append_line(rig.folder / "results.jsonl", {**sound[0], "f1": None, "error": "answer: no server"})
    summary = rig.evaluate()
    assert rig.rows() == sound
    assert summary["errors"] == {}
    assert rig.requests == []
