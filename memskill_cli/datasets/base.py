"""What a benchmark is to the rest of the program: a reader of its own files, and prepared splits on disk.

A benchmark is one module of this package, named as on the command line, with a ``DATASET`` that keeps the protocol
below; adding one is that file and its name in ``NAMES``. Prepared data live in ``<data-dir>/<name>/``: Arrow files
under ``traces/`` (read by Hugging Face ``datasets``) and ``manifest.json``, written last, so that a folder that was
left half made is never taken for a prepared one.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib
import shlex
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import orjson

from memskill_cli.datasets.arrow_tables import FILE, PreparedSplit
from memskill_cli.errors import DataError, UsageError
from memskill_cli.types import Trace

FORMAT = 2
"""Version of the prepared form. Raised whenever it, or a reader's normalisation, changes: old data are made anew."""
MODULES = {
    "locomo": "memskill_cli.datasets.locomo",
    "longmemeval": "memskill_cli.datasets.longmemeval",
    "hotpotqa": "memskill_cli.datasets.hotpotqa",
    "alfworld": "memskill_cli.envs.alfworld.dataset",
}
"""Where the ``DATASET`` of each benchmark is; imported when it is asked for."""
NAMES = tuple(MODULES)
SPLITS = ("train", "val", "test")

Note = Callable[[str], None]
"""Takes one sentence on something odd that was met and how it was read."""


class Ask(NamedTuple):
    """What of a benchmark is wanted, beside its source. A reader refuses what it has no use for (:func:`only`)."""

    splits: tuple[str, ...] = ()
    """Names of splits; none is whatever the reader takes by default."""
    limit: int = 0
    """Traces of a split at most; 0 is all."""


@dataclass(frozen=True, slots=True)
class Part:
    """One file or folder of a benchmark, and what is to be made of it."""

    source: str
    """As the manifest and messages name it: URL, absolute path, or ``sample:<file name>``."""
    path: Path | None = None
    """Where it is; None while it is still to be fetched from ``url``."""
    url: str = ""
    """``http(s)://…``, or ``hf://datasets/<owner>/<name>/<file>`` on the Hugging Face Hub."""
    file_name: str = ""
    """What a file from ``url`` is called once it is here."""
    split: str = ""
    """The one split that is made of it; "" where it holds all splits of the benchmark."""
    limit: int = 0
    """Traces at most; 0 is all."""
    tested: str = ""
    """sha256 of the official file as it was when this version was tested."""
    fingerprint: str = ""
    """Names the content of a folder (a file's is its sha256): prepared again only if it differs."""


@dataclass(frozen=True, slots=True)
class Watch:
    """What a reader tells while it reads."""

    note: Note = lambda text: None
    """Oddities that change nothing in meaning. They end up in the manifest."""
    progress: Callable[[int, int | None], None] = lambda done, total: None
    """(pieces done, pieces in all): for readers whose work is long before the first trace."""
    scratch: Path = Path()
    """A folder of the reader's own beside the prepared data, for journals; removed once all is prepared."""


class Dataset(Protocol):
    """The reader of one benchmark's own files."""

    name: str
    trains: bool
    """Whether the benchmark is trained on; if not, `eval` is what follows `prepare`."""

    def parts(self, source: Path | str | None, ask: Ask) -> Sequence[Part]:
        """What is to be read, of a file or folder (Path), of a URL (str), or of the official place (None).

        Raises DataError for a path that does not exist or holds nothing of the benchmark; UsageError for an ``ask``
        that makes no sense.
        """
        ...

    def read(self, part: Part, watch: Watch) -> Iterator[Trace]:
        """The traces of ``part.path`` in order, each with its split (``part.split`` unless that is "").

        Raises DataError naming the file, the record and the field at fault.
        """
        ...


def get(name: str) -> Dataset:
    """The benchmark called ``name``. UsageError with the nearest name if there is none."""
    if name in NAMES:
        dataset: Dataset = importlib.import_module(MODULES[name]).DATASET
        return dataset
    near = difflib.get_close_matches(name.lower(), NAMES, n=1, cutoff=0.4)
    raise UsageError(
        f"no dataset is called {name}; there is {', '.join(NAMES)}", hint=f"did you mean {near[0]}?" if near else ""
    )


def command(dataset: str, data_dir: Path | None = None, *flags: str) -> str:
    """The ``prepare`` command to suggest, as it would be typed."""
    place = [] if data_dir in (None, Path("data")) else ["--data-dir", str(data_dir)]
    return shlex.join(["memskill", "prepare", "--dataset", dataset, *place, *flags])


def only(name: str, ask: Ask, *, splits: Sequence[str] = (), limit: bool = False) -> None:
    """UsageError if ``ask`` names a split that is not one of ``splits``, or a limit where there is none."""
    wrong = [split for split in ask.splits if split not in splits]
    if wrong and not splits:
        raise UsageError(f"{name} is prepared whole: --split {wrong[0]} makes no sense", hint=command(name))
    if wrong:
        raise UsageError(f"{name} has no split {wrong[0]}", hint=f"--split {', '.join(splits)}")
    if ask.limit and not limit:
        raise UsageError(f"{name} is prepared whole: --limit makes no sense", hint=command(name))


def local_file(path: Path, official: str) -> Path:
    """``path`` if it is a file; DataError naming what is expected if not."""
    if path.is_file():
        return path
    problem = "is a folder, expected the file" if path.is_dir() else "no such file"
    raise DataError(f"{path}: {problem}", hint=f"give the path of {official}")


class SplitSize(NamedTuple):
    """How much one split holds."""

    traces: int
    queries: int


class PartFacts(NamedTuple):
    """What the manifest keeps of a split that was prepared by itself. Fields are those of :class:`Manifest`."""

    source: str
    sha256: str
    digest: str
    traces: int
    queries: int
    categories: dict[str, int]
    notes: list[str]
    created: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """``manifest.json``: what was prepared, from what, and how much of it.

    ``traces``, ``queries`` and ``categories`` count each trace once, even one that is in several splits.
    """

    format: int
    dataset: str
    source: str
    """URL, absolute path, or ``sample:<file name>``; several are joined by "; "."""
    sha256: str
    """Of the benchmark's file (of a folder, its fingerprint); "" where ``parts`` say it."""
    digest: str
    """Of the traces as normalised: the same for the same content, wherever it came from. See :meth:`digest_of`."""
    traces: int
    queries: int
    splits: dict[str, SplitSize]
    categories: dict[str, int]
    """Queries by category."""
    notes: list[str]
    memskill: str
    created: str
    parts: dict[str, PartFacts] = field(default_factory=dict)
    """By split, where each is prepared by itself and others may be added; {} where one file holds all splits."""
    tables: dict[str, str] = field(default_factory=dict)
    """The sha256 of each split's table as written; a split that was prepared before this was kept has none."""

    def digest_of(self, split: str) -> str:
        """What names the content of ``split``; preparing another split does not change it."""
        return self.parts[split].digest if split in self.parts else self.digest

    @property
    def shared_traces(self) -> bool:
        """Whether traces are in more than one split, so that scores on one say nothing new about another."""
        return sum(size.traces for size in self.splits.values()) > self.traces

    def to_dict(self) -> dict[str, Any]:
        splits = {name: size._asdict() for name, size in self.splits.items()}
        return asdict(self) | {"splits": splits, "parts": {name: part._asdict() for name, part in self.parts.items()}}


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
        again = command(dataset, data_dir, *source_flags(str(table.get("source", ""))))
        problem = f"{path}: format {table.get('format')}, this version of memskill reads {FORMAT}"
        raise DataError(problem, hint=again if table.get("source") else hint)
    try:
        table["splits"] = {name: SplitSize(**size) for name, size in table["splits"].items()}
        table["parts"] = {name: PartFacts(**part) for name, part in table["parts"].items()}
        return Manifest(**table)
    except (TypeError, KeyError, AttributeError):
        raise DataError(f"{path}: damaged: fields are missing or of the wrong kind", hint=hint) from None


def load_split(dataset: str, data_dir: Path, split: str) -> PreparedSplit:
    """One split of what was prepared.

    Raises UsageError for a split that does not exist; DataError, with the command to type, if the dataset is not
    prepared, was prepared in another format, or is damaged.
    """
    manifest = load_manifest(dataset, data_dir)
    if split not in manifest.splits:
        raise UsageError(f"{dataset} has no split called {split}; there are {', '.join(manifest.splits)}")
    folder = data_dir / manifest.dataset / "traces" / split
    flags = source_flags(manifest.source)
    if part := manifest.parts.get(split):
        flags = [*source_flags(part.source), "--split", split]
    hint = command(dataset, data_dir, *flags, "--force")
    try:
        if split in manifest.tables:
            _check(folder / FILE, manifest.tables[split])
        traces = PreparedSplit.open(folder, manifest.dataset, split)
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise DataError(f"{folder}: damaged: {reason}", hint=hint) from error
    if len(traces) != (expected := manifest.splits[split].traces):
        raise DataError(f"{folder}: damaged: {len(traces)} traces, its manifest says {expected}", hint=hint)
    return traces


def _check(table: Path, sha256: str) -> None:
    """ValueError unless ``table`` is as it was written. Takes 0.8 s a gigabyte."""
    with table.open("rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != sha256:
            raise ValueError(f"{FILE} is not what was written (its sha256 is another than in manifest.json)")


def source_flags(source: str) -> list[str]:
    """The flags of ``prepare`` that ask for what a manifest's ``source`` names."""
    return ["--sample"] if source.startswith("sample:") else ["--source", source]
