"""Getting a benchmark ready: fetch or find its file, check and normalise it, write it with a manifest."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, NamedTuple, Protocol

import orjson
from filelock import FileLock, Timeout

from memskill_cli import __version__
from memskill_cli.datasets.base import (
    FORMAT,
    SPLITS,
    Dataset,
    Manifest,
    SplitSize,
    command,
    get,
    load_manifest,
    source_flags,
    to_row,
)
from memskill_cli.datasets.samples import sample_path
from memskill_cli.download import download, without_password
from memskill_cli.errors import DataError, UsageError
from memskill_cli.files import write_json
from memskill_cli.records import Trace

LOCK_SECONDS = 600.0
"""How long to wait for another process that prepares the same dataset."""

Phase = Literal["download", "normalise"]


class Progress(Protocol):
    """Told how far a phase has come: bytes of a download, traces of normalising."""

    def __call__(self, phase: Phase, done: int, total: int | None) -> None: ...


def silent(phase: Phase, done: int, total: int | None) -> None:
    """The progress of those who don't ask."""


@dataclass(frozen=True, slots=True)
class PrepareResult:
    """What is prepared in ``path``, and whether it was so already."""

    manifest: Manifest
    already: bool
    path: Path


class _Origin(NamedTuple):
    """Where the benchmark's file comes from: a ``file`` that is here, or a ``url`` to fetch."""

    source: str  # as the manifest and messages name it
    file: Path | None = None
    url: str = ""


def prepare(
    dataset: str,
    *,
    data_dir: Path,
    source: str | None = None,
    sample: bool = False,
    force: bool = False,
    report: Progress = silent,
) -> PrepareResult:
    """Prepare ``dataset`` in ``data_dir/<dataset>``, or find that it is prepared.

    ``source`` is a path or URL in place of the official address, ``sample`` takes the sample that ships with memskill.
    Without either, whatever is prepared is good. Raises UsageError for an unknown dataset or a senseless ``source``;
    DownloadError; DataError for a broken file, or if something else is prepared than what is asked for, which only
    ``force`` replaces.
    """
    reader = get(dataset)
    origin = _origin(reader, data_dir, source, sample)
    folder = data_dir / reader.name
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise UsageError(f"{data_dir} cannot hold data: it is not a folder", hint="choose another --data-dir") from None
    with _alone(folder):
        found = None if force else _prepared(dataset, data_dir)
        if found is None:
            return PrepareResult(_make(reader, origin, folder, report), already=False, path=folder)
        if (source or sample) and not _same(origin, found):
            raise DataError(
                f"{folder} holds something else: {found.source}, not {origin.source}",
                hint="replace it with: " + command(dataset, data_dir, *source_flags(origin.source), "--force"),
            )
        return PrepareResult(found, already=True, path=folder)


def _origin(reader: Dataset, data_dir: Path, source: str | None, sample: bool) -> _Origin:
    if source and sample:
        raise UsageError("--source and --sample exclude each other", hint="give one of them")
    if sample:
        path = sample_path(reader.name)
        return _Origin(f"sample:{path.name}", path)
    if source and "://" not in source:
        path = Path(source).expanduser().absolute()
        if not path.is_file():
            problem = "is a folder, expected the file" if path.is_dir() else "no such file"
            raise DataError(f"{path}: {problem}", hint=f"give the path of {reader.file_name}")
        return _Origin(str(path), path)
    url = source or os.environ.get(f"MEMSKILL_{reader.name.upper()}_URL") or reader.url
    if not url.startswith(("http://", "https://")):
        raise UsageError(f"{url} is neither a path nor an http(s) address")
    return _Origin(without_password(url), url=url)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    try:
        with FileLock(folder / ".lock", timeout=LOCK_SECONDS):
            yield
    except Timeout:
        raise DataError(f"another process has been preparing {folder} for {LOCK_SECONDS:g} s") from None


def _prepared(dataset: str, data_dir: Path) -> Manifest | None:
    """The manifest of what is there, or None if nothing is that this version can read."""
    try:
        manifest = load_manifest(dataset, data_dir)
    except DataError:
        return None
    return manifest if (data_dir / dataset / "traces").is_dir() else None


def _same(origin: _Origin, found: Manifest) -> bool:
    """Whether what is prepared came from ``origin``: by content where it can be read, else by address."""
    return origin.source == found.source if origin.file is None else _sha256(origin.file) == found.sha256


def _make(reader: Dataset, origin: _Origin, folder: Path, report: Progress) -> Manifest:
    file = origin.file or _fetch(reader, origin, folder, report)
    notes: list[str] = []
    traces = []
    for trace in reader.read(file, notes.append):
        traces.append(trace)
        report("normalise", len(traces), None)
    report("normalise", len(traces), len(traces))
    manifest = _describe(reader, origin, _sha256(file), traces, notes)
    _store(folder, traces, manifest)
    return manifest


def _fetch(reader: Dataset, origin: _Origin, folder: Path, report: Progress) -> Path:
    goal = folder / reader.file_name
    again = command(reader.name, folder.parent)
    hint = f"the same command goes on where it broke off; without a network: {again} --source PATH, or {again} --sample"
    download(origin.url, goal, hint=hint, report=lambda done, total: report("download", done, total))
    return goal


def _sha256(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _describe(reader: Dataset, origin: _Origin, sha256: str, traces: list[Trace], notes: list[str]) -> Manifest:
    once = list({trace.trace_id: trace for trace in traces}.values())
    queries = [query for trace in once for query in trace.queries]
    categories = Counter(query.category for query in queries)
    if unscored := sorted({query.category for query in queries if not query.scored}):
        count = sum(not query.scored for query in queries)
        notes.append(f"{count} queries ({', '.join(unscored)}) are kept but never scored, as in the paper")
    if origin.url == reader.url and sha256 != reader.sha256:
        notes.append(f"the official file is not the one this version was tested with (sha256 {reader.sha256[:12]}…)")
    parts = {split: [trace for trace in traces if trace.split == split] for split in SPLITS}
    return Manifest(
        format=FORMAT,
        dataset=reader.name,
        source=origin.source,
        sha256=sha256,
        digest=_digest(traces),
        traces=len(once),
        queries=len(queries),
        splits={split: SplitSize(len(part), sum(len(t.queries) for t in part)) for split, part in parts.items()},
        categories=dict(sorted(categories.items())),
        notes=notes,
        memskill=__version__,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _digest(traces: list[Trace]) -> str:
    """12 hex digits that name the traces' content."""
    sha = hashlib.sha256()
    for trace in traces:
        sha.update(orjson.dumps({"split": trace.split, **to_row(trace)}, option=orjson.OPT_APPEND_NEWLINE))
    return sha.hexdigest()[:12]


def _store(folder: Path, traces: list[Trace], manifest: Manifest) -> None:
    """Write traces and manifest so that at every moment there is the old form whole, the new one, or none."""
    for left in folder.glob(".traces-*"):  # by a process that was killed
        shutil.rmtree(left)
    made = Path(tempfile.mkdtemp(dir=folder, prefix=".traces-"))
    try:
        _write_tables(made, traces)
        (folder / "manifest.json").unlink(missing_ok=True)
        if (folder / "traces").exists():
            shutil.rmtree(folder / "traces")
        made.chmod(0o755)
        made.rename(folder / "traces")
    except BaseException:
        shutil.rmtree(made, ignore_errors=True)
        raise
    write_json(folder / "manifest.json", manifest.to_dict())


def _write_tables(folder: Path, traces: list[Trace]) -> None:
    """One Arrow table a split. ``from_list`` builds in memory, so the cache in the user's home is not touched."""
    import datasets

    datasets.disable_progress_bars()
    features = datasets.Features(
        {
            "trace_id": datasets.Value("string"),
            "sessions": [
                {
                    "label": datasets.Value("string"),
                    "date": datasets.Value("string"),
                    "turns": [{"speaker": datasets.Value("string"), "text": datasets.Value("string")}],
                }
            ],
            "queries": [
                {
                    "query_id": datasets.Value("string"),
                    "category": datasets.Value("string"),
                    "question": datasets.Value("string"),
                    "truths": [datasets.Value("string")],
                    "date": datasets.Value("string"),
                    "scored": datasets.Value("bool"),
                }
            ],
        }
    )
    tables = {
        split: datasets.Dataset.from_list([to_row(t) for t in traces if t.split == split], features=features)
        for split in SPLITS
    }
    datasets.DatasetDict(tables).save_to_disk(str(folder))
