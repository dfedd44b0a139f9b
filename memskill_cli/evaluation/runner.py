"""Evaluating a split: a memory bank for every trace, then its queries, scored; resumable, and nothing paid for twice.

An evaluation is named by what it depends on: data, split, method, the controller and bank it uses, and every setting
that can change a score. The same evaluation again goes on where it stopped; another checkpoint is another evaluation
with memories of its own.
"""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import torch

from memskill_cli import files
from memskill_cli.agent.answerer import recall_from
from memskill_cli.agent.controller import ChooseSkills, choose
from memskill_cli.config import Config, digest, to_dict
from memskill_cli.datasets.spans import cut
from memskill_cli.errors import AuthError, ModelError, UnknownModelError
from memskill_cli.evaluation.subject import Subject
from memskill_cli.evaluation.summary import summarise
from memskill_cli.llm.ledger import Ledger
from memskill_cli.memory.bank import MemoryBank
from memskill_cli.memory.store import MemoryStore
from memskill_cli.records import Answer, Query, Recall, Span, Trace
from memskill_cli.runs.run_dir import RunDir
from memskill_cli.training.rollout import World, ask, read, with_verdict

SETTINGS_THAT_SCORE = ("models", "encoders", "memory", "eval", "seed")
NOT_SCORING = {"models": ("api_base", "timeout", "retries", "designer", "designer_max_tokens")}


@dataclasses.dataclass(frozen=True)
class Task:
    """One evaluation."""

    dataset: str
    split: str
    method: str
    data_digest: str
    limit: int = 0


@dataclasses.dataclass(frozen=True)
class Watcher:
    """What an evaluation tells while it runs."""

    span: Callable[[], None] = lambda: None
    query: Callable[[], None] = lambda: None


Work = tuple[Trace, list[Query]]
"""A trace and the queries to ask of it."""


def settings_digest(settings: Config) -> str:
    """Names every setting that can change a score."""
    table = {name: value for name, value in to_dict(settings).items() if name in SETTINGS_THAT_SCORE}
    for section, names in NOT_SCORING.items():
        table[section] = {name: value for name, value in table[section].items() if name not in names}
    return digest(table)


def evaluation_id(task: Task, settings: Config, subject: Subject) -> str:
    parts = [dataclasses.asdict(task), settings_digest(settings), subject.digest]
    return f"{task.dataset}-{task.split}-{task.method}-{digest(parts)}"


class Evaluation:
    """One ``evals/<id>/`` and the memory that belongs to it."""

    def __init__(
        self,
        run: RunDir,
        task: Task,
        settings: Config,
        subject: Subject,
        world: World,
        ledger: Ledger,
    ) -> None:
        self.id = evaluation_id(task, settings, subject)
        self.folder = run.evals / self.id
        self.run, self.task, self.settings, self.subject = run, task, settings, subject
        self.world, self.ledger, self.watcher = world, ledger, Watcher()
        self.results = self.folder / "results.jsonl"
        self.tries = self.folder / "tries.jsonl"
        # Runs of several people may share one Chroma server, and a run's name may be used again.
        self._owner = f"{run.name}@{run.manifest().created}"
        self._failures = 0
        self._memories = 0

    async def evaluate(self, work: Sequence[Work]) -> dict[str, Any]:
        """Read, ask and score what is still owed of ``work``; the summary, also written to ``summary.json``.

        Raises ModelError, with the files written, if not one query got an answer.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        done = {row["query_id"] for row in files.read_jsonl(self.results) if not row["error"]}
        began = time.monotonic()
        try:
            await self._work(work, done)
        finally:
            files.append_line(self.tries, {"seconds": round(time.monotonic() - began, 3)})
        return self._finish([query for _, queries in work for query in queries])

    async def _work(self, work: Sequence[Work], done: set[str]) -> None:
        choose_skills = await self._policy()
        store = MemoryStore(self.settings.memory.server or self.run.memory / self.id)
        try:
            async with asyncio.TaskGroup() as group:
                for trace, queries in work:
                    group.create_task(self._trace(trace, queries, done, store, choose_skills))
        except BaseExceptionGroup as failures:
            raise failures.exceptions[0] from None
        finally:
            store.close()

    def plan(self, traces: Iterable[Trace]) -> list[Work]:
        """Traces with the queries that are asked of them: those scored, at most ``limit`` in all."""
        left = self.task.limit or None
        work: list[Work] = []
        for trace in traces:
            queries = [query for query in trace.queries if query.scored][:left]
            if queries:
                work.append((trace, queries))
            left = None if left is None else left - len(queries)
            if left == 0:
                break
        return work

    def spans(self, trace: Trace) -> list[Span]:
        how = self.settings.eval
        return cut(
            trace,
            how.span_mode,
            chunk_size=how.chunk_size,
            chunk_overlap=how.chunk_overlap,
            max_spans=how.max_spans,
        )

    async def _trace(
        self, trace: Trace, queries: list[Query], done: set[str], store: MemoryStore, choose_skills: ChooseSkills
    ) -> None:
        owed = [query for query in queries if query.query_id not in done]
        for _ in range(len(queries) - len(owed)):
            self.watcher.query()
        try:
            bank = await self._memory(trace, self.spans(trace), store, choose_skills)
        except ModelError as error:
            self._failed(error)
            for query in owed:
                self._record(Answer(query, "", (), None, error=f"memory: {error.message}"))
            return
        self._memories += len(bank)
        recall = recall_from(bank, self.world.spaces, self.settings.memory.top_k)
        await asyncio.gather(*(self._query(recall, query) for query in owed))

    async def _memory(
        self, trace: Trace, spans: Sequence[Span], store: MemoryStore, choose_skills: ChooseSkills
    ) -> MemoryBank:
        """The trace's memory bank: reopened if an earlier try finished it, else read now."""
        bank_id = f"{self._owner}/{self.id}/{trace.trace_id}"
        bank = await asyncio.to_thread(MemoryBank.open, bank_id, store)
        if bank is not None:
            for _ in spans:
                self.watcher.span()
            return bank
        bank = MemoryBank(bank_id, store=store)
        await read(self.world, spans, self.subject.bank, choose_skills, bank, self.watcher.span)
        await asyncio.to_thread(bank.save)
        return bank

    async def _policy(self) -> ChooseSkills:
        """The controller's plain top-K."""
        descriptions = [skill.description for skill in self.subject.bank.skills]
        skills_SD = torch.from_numpy(await self.world.spaces.state.aencode(descriptions))
        controller = self.subject.controller(self.settings, skills_SD.shape[1])
        return partial(choose, controller, skills_SD=skills_SD, k=self.settings.eval.top_k)

    async def _query(self, recall: Recall, query: Query) -> None:
        answer, what = Answer(query, "", (), None), "answer"
        try:
            answer, what = await ask(self.world, recall, query, judged=False), "judge"
            if self.settings.eval.judge:
                answer = await with_verdict(self.world, answer)
            self._failures = 0
        except ModelError as error:
            self._failed(error)
            answer = dataclasses.replace(answer, error=f"{what}: {error.message}")
        self._record(answer)

    def _failed(self, error: ModelError) -> None:
        """One failed call is a row with an error; keys or names that are wrong, or a server that is down, stop all."""
        self._failures += 1
        hopeless = isinstance(error, AuthError | UnknownModelError)
        if hopeless or self._failures >= max(16, self.settings.limits.concurrency):
            raise error

    def _record(self, answer: Answer) -> None:
        files.append_line(self.results, row_of(answer))
        self.watcher.query()

    def _finish(self, queries: Sequence[Query]) -> dict[str, Any]:
        """Put the rows in the dataset's order, the last word on each query, and write the summary."""
        latest = {row["query_id"]: row for row in files.read_jsonl(self.results)}
        rows = [latest[query.query_id] for query in queries]
        files.write_atomic(self.results, b"".join(map(files.to_json, rows)))
        summary = {
            **dataclasses.asdict(self.task),
            **summarise(rows, resamples=self.settings.eval.bootstrap, seed=self.settings.seed),
            "memories": self._memories,
            "usage": {k: v for k, v in dataclasses.asdict(self.ledger.usage()).items() if k != "by_role"},
            "seconds": round(sum(row["seconds"] for row in files.read_jsonl(self.tries)), 3),
            "run": self.run.name,
            "checkpoint": self.subject.checkpoint,
            "config_digest": settings_digest(self.settings),
            "max_spans": self.settings.eval.max_spans,
            "id": self.id,
        }
        files.write_json(self.folder / "summary.json", summary)
        if rows and all(row["f1"] is None for row in rows):
            raise ModelError(
                f"none of {len(rows)} queries got an answer: {rows[0]['error']}",
                hint="see whether the server is up (--api-base); the same command asks again",
            )
        return summary


def row_of(answer: Answer) -> dict[str, Any]:
    """One line of ``results.jsonl``."""
    query = answer.query
    return {
        "trace_id": query.trace_id,
        "query_id": query.query_id,
        "category": query.category,
        "question": query.question,
        "truths": list(query.truths),
        "prediction": answer.prediction,
        "f1": answer.f1,
        "judge": answer.judge,
        "retrieved": [
            {"id": found.item.item_id, "text": found.item.text, "score": round(found.score, 6)}
            for found in answer.retrieved
        ],
        "error": answer.error,
    }


def left_out(traces: Iterable[Trace]) -> int:
    """How many queries of ``traces`` the paper does not score."""
    return sum(not query.scored for trace in traces for query in trace.queries)
