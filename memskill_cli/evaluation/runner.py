"""Evaluating a split: a memory for every trace, then its queries, scored; resumable, and nothing paid for twice.

An evaluation is named by what it depends on: data, split, method, what of a run the method uses, and every setting
that can change a score. The same evaluation again goes on where it stopped; another checkpoint is another evaluation
with memories of its own. Traces are built from disk when their turn comes, so many at once as calls may be in flight.
"""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any

from memskill_cli import files
from memskill_cli.config import Config, to_toml
from memskill_cli.datasets.spans import cut
from memskill_cli.datasets.trajectories import pack
from memskill_cli.errors import AuthError, ModelError, UnknownModelError
from memskill_cli.evaluation import alfworld, methods
from memskill_cli.evaluation.methods.base import RETRIEVAL, SPANS, Memory, Site
from memskill_cli.evaluation.rows import Row, row_of
from memskill_cli.evaluation.subject import Subject
from memskill_cli.evaluation.summary import summarise
from memskill_cli.evaluation.task import Plan, Task, Work, evaluation_id, settings_digest
from memskill_cli.llm.ledger import Ledger
from memskill_cli.records import Answer, Query, Span, Trace
from memskill_cli.runs.run_dir import RunDir
from memskill_cli.training.rollout import World, ask, expect, with_verdict


@dataclasses.dataclass(frozen=True)
class Watcher:
    """What an evaluation tells while it runs. ``span(n, total=)``: n more were read, of about so many."""

    span: Callable[..., None] = lambda n=1, total=None: None
    query: Callable[[], None] = lambda: None


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
        notice: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.id = evaluation_id(task, settings, subject)
        self.folder = run.evals / self.id
        self.run, self.task, self.settings, self.subject = run, task, settings, subject
        self.world, self.ledger, self.watcher = world, ledger, Watcher()
        # Runs of several people may share one Chroma server, and a run's name may be used again.
        owner = f"{run.name}@{run.manifest().created}/{self.id}"
        site = Site(world, settings, subject, run.memory / self.id, owner, notice)
        self.method = methods.get(task.method)(site)
        self.results = self.folder / "results.jsonl"
        self.sizes = self.folder / "memories.jsonl"
        self.tries = self.folder / "tries.jsonl"
        self._failures = 0
        self._cut: list[int] = []  # spans of each trace that was cut so far

    async def evaluate(self, traces: Sequence[Trace], plan: Plan) -> dict[str, Any]:
        """Read, ask and score what is still owed of ``plan``; the summary, also written to ``summary.json``.

        Raises ModelError, with the files written, if not one query got an answer.
        """
        files.write_atomic(self.folder / "config.toml", to_toml(self.settings))
        began = time.monotonic()
        with files.at_last(lambda: files.append_line(self.tries, {"seconds": round(time.monotonic() - began, 3)})):
            await self._work(traces, self._owed(plan))
        return self._finish(plan)

    def _owed(self, plan: Plan) -> list[Work]:
        done = {row["query_id"] for row in files.read_jsonl(self.results) if not row["error"]}
        owed = [work._replace(queries=[q for q in work.queries if q.query_id not in done]) for work in plan.work]
        for _ in range(len(plan.queries) - sum(len(work.queries) for work in owed)):
            self.watcher.query()
        return [work for work in owed if work.queries]

    async def _work(self, traces: Sequence[Trace], owed: list[Work]) -> None:
        if not owed:
            return
        await self.method.open()
        slots = asyncio.Semaphore(self.settings.limits.concurrency)
        try:
            async with asyncio.TaskGroup() as group:
                # The longest chain of calls bounds the whole, so it must not be the last to start.
                for work in sorted(owed, key=lambda work: work.size, reverse=True):
                    group.create_task(self._trace(traces, work, len(owed), slots))
        except BaseExceptionGroup as failures:
            raise failures.exceptions[0] from None
        finally:
            await self.method.aclose()

    async def _trace(self, traces: Sequence[Trace], work: Work, count: int, slots: asyncio.Semaphore) -> None:
        async with slots:
            trace = traces[work.place]
            spans = await asyncio.to_thread(self.spans, trace)
            self._cut.append(len(spans))
            if spans:
                self.watcher.span(0, total=round(sum(self._cut) / len(self._cut) * count))
            if not self.method.ignores >= RETRIEVAL:
                expect(self.world, work.queries, len(spans))
            try:
                memory = await self.method.remember(trace, spans, self.watcher.span)
            except ModelError as error:
                self._failed(error)
                for query in work.queries:
                    self._record(Answer(query, "", (), None, error=f"memory: {error.message}"), None)
                return
            files.append_line(self.sizes, {"trace_id": trace.trace_id, "memories": memory.size})
            await asyncio.gather(*(self._query(memory, query) for query in work.queries))

    def spans(self, trace: Trace) -> list[Span]:
        """The spans of a trace, none for a method that reads none."""
        how = self.settings.eval
        if self.method.ignores >= SPANS:
            return []
        if self.world.playground is not None:
            return pack(trace, how.chunk_size, how.max_spans)
        return cut(
            trace,
            how.span_mode,
            chunk_size=how.chunk_size,
            chunk_overlap=how.chunk_overlap,
            max_spans=how.max_spans,
        )

    async def _query(self, memory: Memory, query: Query) -> None:
        answer, what = Answer(query, "", (), None), "answer"
        try:
            answer, what = await ask(self.world, memory.recall, query, judged=False), "judge"
            if self.settings.eval.judge and self.world.playground is None:
                answer = await with_verdict(self.world, answer, settled=False)  # a row with an error heals
            self._failures = 0
        except ModelError as error:
            self._failed(error)
            answer = dataclasses.replace(answer, error=f"{what}: {error.message}")
        self._record(answer, memory)

    def _failed(self, error: ModelError) -> None:
        """One failed call is a row with an error; keys or names that are wrong, or a server that is down, stop all."""
        self._failures += 1
        hopeless = isinstance(error, AuthError | UnknownModelError)
        if hopeless or self._failures >= max(16, self.settings.limits.concurrency):
            raise error

    def _record(self, answer: Answer, memory: Memory | None) -> None:
        row = row_of(answer, memory)
        if self.world.playground is not None:
            row |= alfworld.played_row(answer)
        files.append_line(self.results, row)
        self.watcher.query()

    def _numbers(self, rows: list[Row]) -> dict[str, Any]:
        how = {"resamples": self.settings.eval.bootstrap, "seed": self.settings.seed}
        if self.world.playground is not None:
            return alfworld.summarise(rows, steps=self.world.playground.steps, **how)
        return summarise(rows, **how)

    def _finish(self, plan: Plan) -> dict[str, Any]:
        """Put the rows in the dataset's order, the last word on each query, and write the summary."""
        latest = {row["query_id"]: row for row in files.read_jsonl(self.results)}
        rows = [latest[query.query_id] for query in plan.queries]
        files.write_atomic(self.results, b"".join(map(files.to_json, rows)))
        sizes = {row["trace_id"]: row["memories"] for row in files.read_jsonl(self.sizes)}
        summary = {
            **dataclasses.asdict(self.task),
            "variant": self.task.variant,
            **self._numbers(rows),
            "memories": sum(sizes.values()),
            "usage": {k: v for k, v in dataclasses.asdict(self.ledger.usage()).items() if k != "by_role"},
            "seconds": round(sum(row["seconds"] for row in files.read_jsonl(self.tries)), 3),
            "run": self.run.name,
            "checkpoint": self.subject.checkpoint,
            "config_digest": settings_digest(self.settings, self.task.method),
            "max_spans": 0 if self.method.ignores >= SPANS else self.settings.eval.max_spans,
            "id": self.id,
            **self.method.facts(),
        }
        files.write_json(self.folder / "summary.json", summary)
        if rows and all(row["error"] and row["f1"] is None for row in rows):
            raise ModelError(
                f"none of {len(rows)} queries got an answer: {rows[0]['error']}",
                hint="see whether the server is up (--api-base); the same command asks again",
            )
        return summary
