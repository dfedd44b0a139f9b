"""Evaluating a split: a memory for every trace, then its queries, scored; resumable, and nothing paid for twice.

An evaluation is named by what it depends on: data, split, method, what of a run the method uses, and every setting
that can change a score. The same evaluation again goes on where it stopped; another checkpoint is another evaluation
with memories of its own. Traces are built from disk when their turn comes, so many at once as calls may be in flight.
"""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from memskill_cli.agent import prompts
from memskill_cli.config import Config, to_toml
from memskill_cli.distributed.base import Crew, Engine, LocalEngine
from memskill_cli.errors import AuthError, ModelError, UnknownModelError
from memskill_cli.evaluation import env_evaluation, methods
from memskill_cli.evaluation.artifact_store import Shelf
from memskill_cli.evaluation.counts import add_counts
from memskill_cli.evaluation.evaluate_trace import Desk, Sittings, sit
from memskill_cli.evaluation.methods.base import SPANS, Site
from memskill_cli.evaluation.policy import Subject
from memskill_cli.evaluation.results import Row
from memskill_cli.evaluation.spec import (
    IDENTITY,
    Plan,
    Task,
    Work,
    changed_wording,
    evaluation_id,
    identity,
    settings_digest,
)
from memskill_cli.evaluation.summary import summarise
from memskill_cli.llm.ledger import Ledger
from memskill_cli.rollout.episode import UNREADABLE, World
from memskill_cli.runs.run_dir import RunDir
from memskill_cli.types import Query, Trace
from memskill_cli.utils import files


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
        engine: Engine | None = None,
    ) -> None:
        self.id = evaluation_id(task, settings, subject)
        self.folder = run.evals / self.id
        self.run, self.task, self.settings, self.subject = run, task, settings, subject
        self.world, self.ledger, self.watcher, self.notice = world, ledger, Watcher(), notice
        # Runs of several people may share one Chroma server, and a run's name may be used again.
        owner = f"{run.name}@{run.manifest().created}/{self.id}"
        self.engine = engine or LocalEngine(world)
        self.shelf = Shelf(run.memory / self.id, settings.memory.server, owner, notice)
        self.method = methods.get(task.method)(Site(world, settings, subject, self.shelf))
        self.results = self.folder / "results.jsonl"
        self.sizes = self.folder / "memories.jsonl"
        self.tries = self.folder / "tries.jsonl"
        self._failures = 0
        self._traces = 0  # that are still owed something
        self._cut: list[int] = []  # spans of each of them that was cut so far
        self._answered: set[str] = set()  # queries that have a row by now

    async def evaluate(self, traces: Sequence[Trace], plan: Plan) -> dict[str, Any]:
        """Read, ask and score what is still owed of ``plan``; the summary, also written to ``summary.json``.

        Raises ModelError, with the files written, if not one query got an answer.
        """
        self._write_identity()
        files.write_atomic(self.folder / "config.toml", to_toml(self.settings))
        began = time.monotonic()
        with files.at_last(lambda: files.append_line(self.tries, {"seconds": round(time.monotonic() - began, 3)})):
            await self._work(traces, self._owed(plan))
        return self._finish(plan)

    def _write_identity(self) -> None:
        """Say what the rows depend on; name evaluations that were made with other prompts, if this one is new."""
        own, file = identity(self.task, self.settings, self.subject), self.folder / IDENTITY
        if file.exists():
            return
        if others := changed_wording(self.run.evals, own):
            self.notice(f"a new evaluation: {', '.join(others)} was made with other prompts, or by another version")
        files.write_json(file, own)

    def _owed(self, plan: Plan) -> list[Work]:
        done = {row["query_id"] for row in files.read_jsonl(self.results) if not row["error"]}
        owed = [work._replace(queries=[q for q in work.queries if q.query_id not in done]) for work in plan.work]
        for _ in range(len(plan.queries) - sum(len(work.queries) for work in owed)):
            self.watcher.query()
        return [work for work in owed if work.queries]

    async def _work(self, traces: Sequence[Trace], owed: list[Work]) -> None:
        if not owed:
            return
        self._traces = len(owed)
        slots = asyncio.Semaphore(self.settings.limits.concurrency)
        sittings = Sittings(self.task.method, self.settings, self.subject)
        try:
            async with self.engine.crew(sittings, self._desk()) as crew, asyncio.TaskGroup() as group:
                # The longest chain of calls bounds the whole, so it must not be the last to start.
                for work in sorted(owed, key=lambda work: work.size, reverse=True):
                    group.create_task(self._trace(crew, traces, work, slots))
        except BaseExceptionGroup as failures:
            raise failures.exceptions[0] from None
        finally:
            self.shelf.close()

    async def _trace(self, crew: Crew, traces: Sequence[Trace], work: Work, slots: asyncio.Semaphore) -> None:
        async with slots:
            await crew.run(sit, traces[work.place], work.queries)

    def _desk(self) -> Desk:
        shelf = self.shelf
        return Desk(
            owed=self._without_row,
            cut=self._has_spans,
            advance=lambda: self.watcher.span(),
            remembered=self._remembered,
            answered=self._has_answer,
            forgotten=self._forgotten,
            read_bank=shelf.read_bank,
            write_bank=shelf.write_bank,
            read_notes=shelf.read_notes,
            write_notes=shelf.write_notes,
        )

    async def _without_row(self, queries: Sequence[Query]) -> list[Query]:
        return [query for query in queries if query.query_id not in self._answered]

    def _has_spans(self, count: int) -> None:
        self._cut.append(count)
        if count:
            self.watcher.span(0, total=round(sum(self._cut) / len(self._cut) * self._traces))

    async def _remembered(self, trace_id: str, size: int, counts: Mapping[str, Any]) -> None:
        files.append_line(self.sizes, {"trace_id": trace_id, "memories": size, **counts})

    async def _has_answer(self, row: Row, error: ModelError | None) -> None:
        if row["query_id"] in self._answered:  # by the last words of a machine that was lost
            return
        if error is None:
            self._failures = 0
        else:
            self._failed(error)
        self._record(row)

    async def _forgotten(self, rows: Sequence[Row], error: ModelError) -> None:
        self._failed(error)
        for row in rows:
            self._record(row)

    def _failed(self, error: ModelError) -> None:
        """One failed call is a row with an error; keys or names that are wrong, or a server that is down, stop all."""
        self._failures += 1
        hopeless = isinstance(error, AuthError | UnknownModelError)
        if hopeless or self._failures >= max(16, self.settings.limits.concurrency):
            raise error

    def _record(self, row: Row) -> None:
        self._answered.add(row["query_id"])
        files.append_line(self.results, row)
        self.watcher.query()

    def _numbers(self, rows: list[Row]) -> dict[str, Any]:
        how = {"resamples": self.settings.eval.bootstrap, "seed": self.settings.seed}
        if self.world.playground is not None:
            return env_evaluation.summarise(rows, steps=self.world.playground.acting.steps, **how)
        return summarise(rows, **how)

    def _counts_by_trace(self) -> dict[str, dict[str, Any]]:
        """The last word on each trace; what only the attempt that read it has counted is kept from that one."""
        found: dict[str, dict[str, Any]] = {}
        for row in files.read_jsonl(self.sizes):
            trace_id = row.pop("trace_id")
            found[trace_id] = {**found.get(trace_id, {}), **row}
        return found

    def _finish(self, plan: Plan) -> dict[str, Any]:
        """Put the rows in the dataset's order, the last word on each query, and write the summary."""
        latest = {row["query_id"]: row for row in files.read_jsonl(self.results)}
        rows = [latest[query.query_id] for query in plan.queries]
        files.write_atomic(self.results, b"".join(map(files.to_json, rows)))
        counts: dict[str, Any] = {"memories": 0}
        for of_trace in self._counts_by_trace().values():
            add_counts(counts, of_trace)
        summary = {
            **dataclasses.asdict(self.task),
            "variant": self.task.variant,
            **self._numbers(rows),
            **counts,
            "usage": {k: v for k, v in dataclasses.asdict(self.ledger.usage()).items() if k != "by_role"},
            "seconds": round(sum(row["seconds"] for row in files.read_jsonl(self.tries)), 3),
            "run": self.run.name,
            "checkpoint": self.subject.checkpoint,
            "config_digest": settings_digest(self.settings, self.task.method),
            "max_spans": 0 if self.method.ignores >= SPANS else self.settings.eval.max_spans,
            "prompts": prompts.digest(designer=False),
            "id": self.id,
            **self.method.facts(),
        }
        files.write_json(self.folder / "summary.json", summary)
        if rows and all(row["error"] and row["f1"] is None and not row["error"].startswith(UNREADABLE) for row in rows):
            raise ModelError(
                f"none of {len(rows)} queries got an answer: {rows[0]['error']}",
                hint="see whether the server is up (--api-base); the same command asks again",
            )
        return summary
