"""Write the traces of a reader: one table per split, and the manifest. All are moved into place at the end."""

from __future__ import annotations

import difflib
import hashlib
import os
import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson

from memskill_cli import __version__
from memskill_cli.datasets.arrow_tables import FILE, TableWriter, to_row
from memskill_cli.datasets.base import SPLITS, SourceFile
from memskill_cli.datasets.manifest import DatasetManifest, PartFacts, SplitSize
from memskill_cli.datasets.prepared import FORMAT
from memskill_cli.errors import DataError
from memskill_cli.types import Trace
from memskill_cli.utils.files import sync_folder, write_json
from memskill_cli.utils.locks import LOCK, OWNER

MANIFEST = "manifest.json"
SCRATCH = ".scratch"
"""The folder for temporary files of readers."""


def write_prepared(
    folder: Path,
    part: SourceFile,
    sha256: str,
    traces: Iterable[Trace],
    notes: list[str],
    found: DatasetManifest | None,
    reading: Callable[[], dict[str, Any]] = dict,
) -> DatasetManifest:
    """Write the ``traces`` of ``part`` to ``folder`` and return the new manifest.

    A part with one split is added to the splits of ``found``, or replaces one of them; a part with all splits replaces
    everything. All new data are on disk before old data are removed. If the process is killed, ``folder`` has the old
    data or the new data, or for the time of a few renames fewer data, but the manifest never names missing data.
    ``notes`` is read and ``reading`` is called (for the manifest) after the last trace. Raises DataError if there are
    no traces of the split of ``part``.
    """
    for left in folder.glob(".traces-*"):  # left by a killed process
        shutil.rmtree(left)
    made = Path(tempfile.mkdtemp(dir=folder, prefix=".traces-"))
    try:
        tally = _write_tables(made, traces)
        if part.split and set(tally.sizes) != {part.split}:
            raise DataError(f"{part.source}: has no {part.split} traces")
        usual = ", ".join(SPLITS)
        notes += [f"{split!r} may be a misspelt name of a split; the usual names are {usual}" for split in _odd(tally)]
        kept = found if part.split and found and found.parts else None
        manifest = replace(_describe(folder.name, part, sha256, tally, notes, kept, _sealed(made)), reading=reading())
        write_json(made / MANIFEST, manifest.to_dict())
        _put(made, folder, kept and _without(kept, part.split))
    finally:
        shutil.rmtree(made, ignore_errors=True)
    return manifest


def erase(folder: Path, *more: str) -> None:
    """Remove what :func:`write_prepared` and ``prepare`` made in ``folder``, the files ``more``, and the folder itself
    if nothing else is in it."""
    (folder / MANIFEST).unlink(missing_ok=True)
    for part in (folder / "traces", folder / SCRATCH, *folder.glob(".traces-*")):
        shutil.rmtree(part, ignore_errors=True)
    for name in (*more, LOCK, OWNER):
        (folder / name).unlink(missing_ok=True)
    with suppress(OSError):  # not empty: there are files of the user
        folder.rmdir()


@dataclass
class _Tally:
    """Counts of the written traces. A trace in several splits, and a query of several, count once, except in the sizes
    of the splits."""

    ids: set[str] = field(default_factory=set)
    query_ids: set[str] = field(default_factory=set)
    categories: Counter[str] = field(default_factory=Counter)
    sizes: dict[str, SplitSize] = field(default_factory=dict)
    sha: Any = field(default_factory=hashlib.sha256)

    def add(self, trace: Trace, row: dict[str, Any]) -> None:
        self.ids.add(trace.trace_id)
        new = [query for query in trace.queries if query.query_id not in self.query_ids]
        self.query_ids.update(query.query_id for query in new)
        self.categories.update(query.category for query in new)
        before = self.sizes.get(trace.split, SplitSize(0, 0))
        self.sizes[trace.split] = SplitSize(before.traces + 1, before.queries + len(trace.queries))
        queries = [{name: value for name, value in query.items() if name != "evidence"} for query in row["queries"]]
        content = {"split": trace.split, **row, "queries": queries}  # evidence changes no score
        self.sha.update(orjson.dumps(content, option=orjson.OPT_APPEND_NEWLINE))

    @property
    def digest(self) -> str:
        """12 hex digits that identify the content of the traces."""
        return str(self.sha.hexdigest()[:12])


def _write_tables(folder: Path, traces: Iterable[Trace]) -> _Tally:
    """Write one table per split. Only a few traces are in memory at a time."""
    tally = _Tally()
    with ExitStack() as stack:
        tables: dict[str, TableWriter] = {}
        for trace in traces:
            if trace.split not in tables:
                _check_split(trace)
                tables[trace.split] = stack.enter_context(TableWriter(folder / trace.split))
            row = to_row(trace)
            tables[trace.split].write(row)
            tally.add(trace, row)
    return tally


def _check_split(trace: Trace) -> None:
    """Raise DataError if the split of ``trace`` is no plain name: it becomes the name of a folder."""
    if not re.fullmatch(r"\w[\w.-]*", trace.split):
        raise DataError(
            f"trace {trace.trace_id}: {trace.split!r} cannot name a split", hint=f"name it {', '.join(SPLITS)}"
        )


def _odd(tally: _Tally) -> list[str]:
    """The splits whose names are nearly, but not quite, one of the usual names."""
    unusual = (split for split in tally.sizes if split not in SPLITS and not split.startswith("test-"))
    return [split for split in unusual if difflib.get_close_matches(split, SPLITS, cutoff=0.7)]


def _sealed(made: Path) -> dict[str, str]:
    """Flush each split's table to the disk and return its sha256."""
    found = {}
    for table in made.glob(f"*/{FILE}"):
        with table.open("rb") as file:
            found[table.parent.name] = hashlib.file_digest(file, "sha256").hexdigest()
            os.fsync(file.fileno())
    return found


def _describe(
    dataset: str,
    part: SourceFile,
    sha256: str,
    tally: _Tally,
    notes: list[str],
    kept: DatasetManifest | None,
    tables: dict[str, str],
) -> DatasetManifest:
    created = datetime.now(UTC).isoformat(timespec="seconds")
    categories = dict(sorted(tally.categories.items()))
    queries = tally.categories.total()
    if part.split:
        facts = PartFacts(part.source, sha256, tally.digest, len(tally.ids), queries, categories, notes, created)
        parts, others = (kept.parts, kept.tables) if kept else ({}, {})
        return _joined(dataset, {**parts, part.split: facts}, {**others, **tables})
    order = [*SPLITS, *(split for split in tally.sizes if split not in SPLITS)]
    return DatasetManifest(
        format=FORMAT,
        dataset=dataset,
        source=part.source,
        sha256=sha256,
        digest=tally.digest,
        traces=len(tally.ids),
        queries=queries,
        splits={split: tally.sizes[split] for split in order if split in tally.sizes},
        categories=categories,
        notes=notes,
        memskill=__version__,
        created=created,
        tables=tables,
    )


def _joined(dataset: str, parts: dict[str, PartFacts], tables: dict[str, str]) -> DatasetManifest:
    """The manifest of splits that were prepared separately."""
    parts = dict(sorted(parts.items(), key=lambda item: (len(item[0]), item[0])))  # test-50 before test-100
    categories: Counter[str] = sum((Counter(part.categories) for part in parts.values()), Counter())
    digests = "\n".join(f"{split} {part.digest}" for split, part in sorted(parts.items()))
    return DatasetManifest(
        format=FORMAT,
        dataset=dataset,
        source="; ".join(dict.fromkeys(part.source for part in parts.values())),
        sha256="",
        digest=hashlib.sha256(digests.encode()).hexdigest()[:12],
        traces=sum(part.traces for part in parts.values()),
        queries=sum(part.queries for part in parts.values()),
        splits={split: SplitSize(part.traces, part.queries) for split, part in parts.items()},
        categories=dict(sorted(categories.items())),
        notes=[f"{split}: {note}" for split, part in parts.items() for note in part.notes],
        memskill=__version__,
        created=max(part.created for part in parts.values()),
        parts=parts,
        tables={split: tables[split] for split in parts if split in tables},
    )


def _without(manifest: DatasetManifest, split: str) -> DatasetManifest | None:
    """``manifest`` without ``split``, which is being replaced; None if it has no other split."""
    rest = {name: part for name, part in manifest.parts.items() if name != split}
    return _joined(manifest.dataset, rest, manifest.tables) if rest else None


def _put(made: Path, folder: Path, meanwhile: DatasetManifest | None) -> None:
    """Move the content of ``made`` to ``folder``, the manifest last. Until then its manifest is ``meanwhile``."""
    goal, record = folder / "traces", folder / MANIFEST
    if meanwhile is None:
        record.unlink(missing_ok=True)
        shutil.rmtree(goal, ignore_errors=True)
    else:
        write_json(record, meanwhile.to_dict())
    goal.mkdir(exist_ok=True)
    for table in (path for path in made.iterdir() if path.is_dir()):
        if (goal / table.name).exists():
            shutil.rmtree(goal / table.name)
        table.rename(goal / table.name)
    sync_folder(goal)
    os.replace(made / MANIFEST, record)
    sync_folder(folder)
