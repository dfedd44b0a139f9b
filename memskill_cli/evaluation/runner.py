"""Evaluation of a split: build a memory for each trace, then answer and score its queries. It can be resumed.

The name of an evaluation is made from everything it depends on: data, split, method, the part of the run that the
method uses, and every setting that can change a score. Running the same evaluation again continues it, and model calls
that were paid for are not paid for again. Another checkpoint gives another evaluation with its own memories. Traces are
loaded from disk when they are needed, at most as many at a time as model calls may be in flight.
"""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from memskill_cli.agent import prompts
from memskill_cli.config import Config, to_toml
from memskill_cli.distributed.base import Engine, JobPool, LocalEngine
from memskill_cli.errors import AuthError, ModelError, RejectedPromptError, UnknownModelError
from memskill_cli.evaluation import methods
from memskill_cli.evaluation.artifact_store import EvalArtifactStore
from memskill_cli.evaluation.counts import add_counts
from memskill_cli.evaluation.evaluate_trace import EvalWorkerSpec, TraceCallbacks, evaluate_trace
from memskill_cli.evaluation.kinds import kind_of
from memskill_cli.evaluation.methods.base import SPANS, MethodContext
from memskill_cli.evaluation.policy import EvaluatedPolicy
from memskill_cli.evaluation.results import Row, read_latest
from memskill_cli.evaluation.spec import (
    IDENTITY,
    EvalPlan,
    EvalSpec,
    TraceJob,
    check_same,
    evaluation_id,
    evaluations_with_other_prompts,
    identity,
    settings_digest,
)
from memskill_cli.evaluation.step_log import StepLog
from memskill_cli.llm.ledger import Ledger
from memskill_cli.rollout.context import RolloutContext
from memskill_cli.rollout.question_answering import REFUSED, UNREADABLE
from memskill_cli.runs.run_dir import RunDir
from memskill_cli.types import Query, Trace
from memskill_cli.utils import files
from memskill_cli.utils.rows import AMOUNT, COUNT, COUNTS, TABLE, TEXT, check, numbered_rows, optional, read_rows

_SIZES = {"memories": COUNT, "executor": optional(TABLE)}
"""Fields of a line of ``memories.jsonl``, which may have other counts."""


@dataclasses.dataclass(frozen=True)
class EvalCallbacks:
    """Functions that an evaluation calls: ``on_span(n, total=)`` after n of about ``total`` spans; ``on_query()``."""

    on_span: Callable[..., None] = lambda n=1, total=None: None
    on_query: Callable[[], None] = lambda: None


class Evaluation:
    """One evaluation: its folder ``evals/<id>/`` and its stored memories."""

    def __init__(
        self,
        run: RunDir,
        task: EvalSpec,
        settings: Config,
        policy: EvaluatedPolicy,
        context: RolloutContext,
        ledger: Ledger,
        notice: Callable[[str], None] = lambda text: None,
        engine: Engine | None = None,
    ) -> None:
        self.id = evaluation_id(task, settings, policy)
        self.folder = run.evals / self.id
        self.run, self.spec, self.settings, self.policy = run, task, settings, policy
        self.context, self.ledger, self.callbacks, self.notice = context, ledger, EvalCallbacks(), notice
        # A Chroma server can have banks of several users, and the name of a deleted run can be used again.
        owner = f"{run.name}@{run.manifest().created}/{self.id}"
        self.engine = engine or LocalEngine(context)
        self.store = EvalArtifactStore(run.memory / self.id, settings.memory.server, owner, notice)
        self.method = methods.get(task.method)(MethodContext(context, settings, policy, self.store))
        self.results = self.folder / "results.jsonl"
        self.sizes = self.folder / "memories.jsonl"
        self.attempts = self.folder / "attempts.jsonl"
        self.steps = StepLog(self.folder / "steps.jsonl")
        self._failures = 0
        self._traces = 0  # number of traces that have queries to answer
        self._cut: list[int] = []  # number of spans of each trace that was divided so far
        self._answered: set[str] = set()  # ids of queries that have a row

    async def evaluate(self, traces: Sequence[Trace], plan: EvalPlan) -> dict[str, Any]:
        """Answer and score the pending queries of ``plan``. Returns the summary and writes it to ``summary.json``.

        Raises ModelError, after the files are written, if no query got an answer.
        """
        self._write_identity()
        files.write_atomic(self.folder / "config.toml", to_toml(self.settings))
        began = time.monotonic()

        def record_time() -> None:
            files.append_line(self.attempts, {"seconds": round(time.monotonic() - began, 3)})

        with files.run_on_exit(record_time):
            await self._work(traces, self._pending(plan))
        return self._finish(plan)

    def _write_identity(self) -> None:
        """Write what the rows depend on. If this evaluation is new, name those that differ in the prompts only."""
        own, file = identity(self.spec, self.settings, self.policy), self.folder / IDENTITY
        if file.exists():
            check_same(file, own)
            return
        if others := evaluations_with_other_prompts(self.run.evals, own):
            names = ", ".join(others)
            self.notice(f"this is a new evaluation; {names} was made with other prompts or by another version")
        files.write_json(file, own)

    def _pending(self, plan: EvalPlan) -> list[TraceJob]:
        done = {query_id for query_id, row in self._known_rows().items() if not row["error"]}
        pending = [work._replace(queries=[q for q in work.queries if q.query_id not in done]) for work in plan.jobs]
        for _ in range(len(plan.queries) - sum(len(work.queries) for work in pending)):
            self.callbacks.on_query()
        return [work for work in pending if work.queries]

    async def _work(self, traces: Sequence[Trace], pending: list[TraceJob]) -> None:
        if not pending:
            return
        self._traces = len(pending)
        slots = asyncio.Semaphore(self.settings.limits.concurrency)
        worker_spec = EvalWorkerSpec(self.spec.method, self.settings, self.policy)
        try:
            async with self.engine.open_pool(worker_spec, self._callbacks()) as pool, asyncio.TaskGroup() as group:
                # The longest trace takes the most time, so it must not start last.
                for work in sorted(pending, key=lambda work: work.size, reverse=True):
                    group.create_task(self._trace(pool, traces, work, slots))
        except BaseExceptionGroup as failures:
            raise failures.exceptions[0] from None
        finally:
            self.store.close()

    async def _trace(self, pool: JobPool, traces: Sequence[Trace], work: TraceJob, slots: asyncio.Semaphore) -> None:
        async with slots:
            await pool.run(evaluate_trace, traces[work.place], work.queries)

    def _callbacks(self) -> TraceCallbacks:
        store = self.store
        return TraceCallbacks(
            pending=self._without_row,
            on_spans=self._has_spans,
            on_span=lambda: self.callbacks.on_span(),
            on_steps=self._on_steps,
            on_memory=self._on_memory,
            on_result=self._has_answer,
            on_memory_failed=self._on_memory_failed,
            read_bank=store.read_bank,
            write_bank=store.write_bank,
            read_notes=store.read_notes,
            write_notes=store.write_notes,
        )

    async def _without_row(self, queries: Sequence[Query]) -> list[Query]:
        return [query for query in queries if query.query_id not in self._answered]

    def _has_spans(self, count: int) -> None:
        self._cut.append(count)
        if count:
            self.callbacks.on_span(0, total=round(sum(self._cut) / len(self._cut) * self._traces))

    async def _on_steps(self, trace_id: str, rows: Sequence[Row]) -> None:
        self.steps.write(trace_id, rows)

    async def _on_memory(self, trace_id: str, size: int, counts: Mapping[str, Any]) -> None:
        files.append_line(self.sizes, {"trace_id": trace_id, "memories": size, **counts})

    async def _has_answer(self, row: Row, error: ModelError | None) -> None:
        if row["query_id"] in self._answered:  # the row came from a worker that was lost afterwards
            return
        if error is None:
            self._failures = 0
        else:
            self._failed(error)
        self._record(row)

    async def _on_memory_failed(self, rows: Sequence[Row], error: ModelError) -> None:
        self._failed(error)
        for row in rows:
            self._record(row)

    def _failed(self, error: ModelError) -> None:
        """Count a failed call. Raise ``error`` if all calls would fail: wrong key, wrong model name, or no server.

        A refused prompt is not counted, because it says nothing about other calls.
        """
        if isinstance(error, RejectedPromptError):
            return
        self._failures += 1
        hopeless = isinstance(error, AuthError | UnknownModelError)
        if hopeless or self._failures >= max(16, self.settings.limits.concurrency):
            raise error

    def _record(self, row: Row) -> None:
        self._answered.add(row["query_id"])
        files.append_line(self.results, {**row, "evaluation": self.id})  # a copied line must not count elsewhere
        self.callbacks.on_query()

    def _known_rows(self) -> dict[str, Row]:
        """The rows of this evaluation that count, by query id. Rows that name another one are left out."""
        return read_latest(self.results, self.id, self.notice)

    def _seconds(self) -> float:
        """Wall time of all attempts, in seconds. In version 0.1 the name of the file was tries.jsonl."""
        logs = self.attempts, self.folder / "tries.jsonl"
        return sum(row["seconds"] for log in logs for row in read_rows(log, {"seconds": AMOUNT}))

    def _counts_by_trace(self) -> dict[str, dict[str, Any]]:
        """The latest counts of each trace. Counts that a later attempt does not have are kept from the earlier one."""
        found: dict[str, dict[str, Any]] = {}
        for number, row in numbered_rows(self.sizes):
            fields = {**dict.fromkeys(row, COUNTS), **_SIZES, "trace_id": TEXT}
            check(row, fields, f"{self.sizes}:{number}")
            trace_id = row.pop("trace_id")
            found[trace_id] = {**found.get(trace_id, {}), **row}
        return found

    def _finish(self, plan: EvalPlan) -> dict[str, Any]:
        """Keep the row of each query that counts, put the rows in the dataset's order, and write the summary."""
        latest = self._known_rows()
        rows = [{k: v for k, v in latest[query.query_id].items() if k != "evaluation"} for query in plan.queries]
        files.write_atomic(self.results, b"".join(map(files.to_json, rows)))
        self.steps.sort(list(dict.fromkeys(query.trace_id for query in plan.queries)))
        counts: dict[str, Any] = {"memories": 0}
        for of_trace in self._counts_by_trace().values():
            add_counts(counts, of_trace)
        summary = {
            **dataclasses.asdict(self.spec),
            "variant": self.spec.variant,
            **kind_of(self.spec.dataset).summarise(rows, self.settings),
            **counts,
            "usage": {k: v for k, v in dataclasses.asdict(self.ledger.usage()).items() if k != "by_role"},
            "seconds": round(self._seconds(), 3),
            "run": self.run.name,
            "checkpoint": self.policy.checkpoint,
            "config_digest": settings_digest(self.settings, self.spec.method),
            "max_spans": 0 if self.method.irrelevant_settings >= SPANS else self.settings.eval.max_spans,
            "prompts": prompts.digest(designer=False),
            "id": self.id,
            **self.method.summary_metadata(),
        }
        files.write_json(self.folder / "summary.json", summary)
        replied = UNREADABLE, REFUSED
        if rows and all(row["error"] and row["f1"] is None and not row["error"].startswith(replied) for row in rows):
            raise ModelError(
                f"none of {len(rows)} queries got an answer: {rows[0]['error']}",
                hint="check that the server is running (--api-base), then run the same command again",
            )
        return summary
