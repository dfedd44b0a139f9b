"""What a benchmark is to the rest of the program: a reader of its own files, and prepared splits on disk.

A benchmark is one module of this package, named as on the command line, with a ``DATASET`` that keeps the protocol
below; adding one is that file and its name in ``NAMES``. Prepared data live in ``<data-dir>/<name>/``: Arrow files
under ``traces/`` (written and read by Hugging Face ``datasets``) and ``manifest.json``, written last, so that a folder
that was left half made is never taken for a prepared one.
"""

from __future__ import annotations

import difflib
import importlib
import shlex
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, overload

import orjson

from memskill_cli.errors import DataError, UsageError
from memskill_cli.records import Query, Session, Trace, Turn

if TYPE_CHECKING:
    from datasets import Dataset as Table

FORMAT = 1
"""Version of the prepared form. Raised whenever a reader's normalisation changes, so that old data are made anew."""
NAMES = ("locomo",)
PLANNED = ("longmemeval", "hotpotqa", "alfworld")
SPLITS = ("train", "val", "test")

Note = Callable[[str], None]
"""Takes one sentence on something odd that was met and how it was read."""


class Dataset(Protocol):
    """The reader of one benchmark's own file."""

    name: str
    url: str
    """The official address."""
    file_name: str
    """What the official file is called."""
    sha256: str
    """Of the official file as it was when this version was tested."""

    def read(self, path: Path, note: Note) -> Iterator[Trace]:
        """The traces of ``path`` in order, each with its split; oddities that change nothing in meaning go to ``note``.

        Raises DataError naming the file, the record and the field at fault.
        """
        ...


def get(name: str) -> Dataset:
    """The benchmark called ``name``. UsageError with the nearest name if there is none."""
    if name in NAMES:
        dataset: Dataset = importlib.import_module(f"memskill_cli.datasets.{name}").DATASET
        return dataset
    if name in PLANNED:
        raise UsageError(
            f"{name} is not in this version, which prepares {', '.join(NAMES)} only", hint=command(NAMES[0])
        )
    near = difflib.get_close_matches(name.lower(), NAMES, n=1, cutoff=0.4)
    raise UsageError(
        f"no dataset is called {name}; there is {', '.join(NAMES)}", hint=f"did you mean {near[0]}?" if near else ""
    )


def command(dataset: str, data_dir: Path | None = None, *flags: str) -> str:
    """The ``prepare`` command to suggest, as it would be typed."""
    place = [] if data_dir in (None, Path("data")) else ["--data-dir", str(data_dir)]
    return shlex.join(["memskill", "prepare", "--dataset", dataset, *place, *flags])


class SplitSize(NamedTuple):
    """How much one split holds."""

    traces: int
    queries: int


@dataclass(frozen=True, slots=True)
class Manifest:
    """``manifest.json``: what was prepared, from what, and how much of it.

    ``traces``, ``queries`` and ``categories`` count each trace once, even one that is in several splits.
    """

    format: int
    dataset: str
    source: str
    """URL, absolute path, or ``sample:<file name>``."""
    sha256: str
    """Of the benchmark's file."""
    digest: str
    """Of the traces as normalised: the same for the same content, wherever it came from."""
    traces: int
    queries: int
    splits: dict[str, SplitSize]
    categories: dict[str, int]
    """Queries by category."""
    notes: list[str]
    memskill: str
    created: str

    @property
    def shared_traces(self) -> bool:
        """Whether traces are in more than one split, so that scores on one say nothing new about another."""
        return sum(size.traces for size in self.splits.values()) > self.traces

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"splits": {name: size._asdict() for name, size in self.splits.items()}}


def load_manifest(dataset: str, data_dir: Path) -> Manifest:
    """What is prepared of ``dataset``. DataError, with the command to type, if nothing is or it cannot be used."""
    path = data_dir / get(dataset).name / "manifest.json"
    hint = command(dataset, data_dir)
    try:
        table = orjson.loads(path.read_bytes())
    except FileNotFoundError:
        raise DataError(f"{dataset} is not prepared in {data_dir}", hint=hint) from None
    except orjson.JSONDecodeError as error:
        raise DataError(f"{path}: damaged: {error}", hint=hint) from None
    if isinstance(table, dict) and table.get("format") != FORMAT:
        raise DataError(f"{path}: format {table.get('format')}, this version of memskill reads {FORMAT}", hint=hint)
    try:
        table["splits"] = {name: SplitSize(**size) for name, size in table["splits"].items()}
        return Manifest(**table)
    except (TypeError, KeyError, AttributeError):
        raise DataError(f"{path}: damaged: fields are missing or of the wrong kind", hint=hint) from None


class PreparedSplit(Sequence[Trace]):
    """The traces of one split, each built from disk when it is asked for."""

    def __init__(self, table: Table, dataset: str, split: str) -> None:
        self._table = table
        self.dataset = dataset
        self.split = split

    def __len__(self) -> int:
        return len(self._table)

    @overload
    def __getitem__(self, index: int) -> Trace: ...
    @overload
    def __getitem__(self, index: slice) -> list[Trace]: ...
    def __getitem__(self, index: int | slice) -> Trace | list[Trace]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        return self._trace(self._table[index])

    def _trace(self, row: dict[str, Any]) -> Trace:
        trace_id = row["trace_id"]
        sessions = tuple(
            Session(s["label"], s["date"], tuple(Turn(t["speaker"], t["text"]) for t in s["turns"]))
            for s in row["sessions"]
        )
        queries = tuple(Query(trace_id=trace_id, **{**q, "truths": tuple(q["truths"])}) for q in row["queries"])
        return Trace(trace_id, self.dataset, self.split, sessions, queries)


def to_row(trace: Trace) -> dict[str, Any]:
    """``trace`` as a row of the prepared form, the inverse of what :class:`PreparedSplit` does."""
    return {
        "trace_id": trace.trace_id,
        "sessions": [
            {"label": s.label, "date": s.date, "turns": [turn._asdict() for turn in s.turns]} for s in trace.sessions
        ],
        "queries": [
            {
                "query_id": q.query_id,
                "category": q.category,
                "question": q.question,
                "truths": list(q.truths),
                "date": q.date,
                "scored": q.scored,
            }
            for q in trace.queries
        ],
    }


def load_split(dataset: str, data_dir: Path, split: str) -> PreparedSplit:
    """One split of what was prepared.

    Raises UsageError for a split that does not exist; DataError, with the command to type, if the dataset is not
    prepared, was prepared in another format, or is damaged.
    """
    manifest = load_manifest(dataset, data_dir)
    if split not in manifest.splits:
        raise UsageError(f"{dataset} has no split called {split}; there are {', '.join(manifest.splits)}")
    from datasets import Dataset as Table

    folder = data_dir / manifest.dataset / "traces" / split
    hint = command(dataset, data_dir, *source_flags(manifest.source), "--force")
    try:
        table = Table.load_from_disk(str(folder))
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise DataError(f"{folder}: damaged: {reason}", hint=hint) from error
    if len(table) != manifest.splits[split].traces:
        expected = manifest.splits[split].traces
        raise DataError(f"{folder}: damaged: {len(table)} traces, its manifest says {expected}", hint=hint)
    return PreparedSplit(table, manifest.dataset, split)


def source_flags(source: str) -> list[str]:
    """The flags of ``prepare`` that ask for what a manifest's ``source`` names."""
    return ["--sample"] if source.startswith("sample:") else ["--source", source]
