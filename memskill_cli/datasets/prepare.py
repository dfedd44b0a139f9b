"""Prepare a benchmark: download or find its files, check and normalise them, write them with a manifest."""

from __future__ import annotations

import hashlib
import os
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, Protocol

from memskill_cli.datasets.base import (
    Dataset,
    PrepareOptions,
    ReaderCallbacks,
    SourceFile,
    prepare_command,
    source_flags,
)
from memskill_cli.datasets.hub import from_hub
from memskill_cli.datasets.manifest import DatasetManifest
from memskill_cli.datasets.own.dataset import OwnConversations
from memskill_cli.datasets.own.options import ReadOptions, check_name
from memskill_cli.datasets.prepared import load_manifest
from memskill_cli.datasets.registry import DATASETS, find_own, get, include_own, is_own
from memskill_cli.datasets.samples import sample_path
from memskill_cli.datasets.writer import SCRATCH, erase, write_prepared
from memskill_cli.errors import DataError, UsageError
from memskill_cli.utils.download import download, without_password
from memskill_cli.utils.locks import locked

Phase = Literal["download", "read", "normalise"]


class PrepareProgress(Protocol):
    """Receives the progress of a phase: bytes of a download, sessions that are read, traces that are normalised."""

    def __call__(self, phase: Phase, done: int, total: int | None) -> None: ...


def silent(phase: Phase, done: int, total: int | None) -> None:
    """Report no progress."""


@dataclass(frozen=True, slots=True)
class PrepareResult:
    """The prepared data in ``path``; ``already`` is True if they existed before the call."""

    manifest: DatasetManifest
    already: bool
    path: Path


def prepare(
    dataset: str,
    *,
    data_dir: Path,
    source: str | None = None,
    sample: bool = False,
    force: bool = False,
    ask: PrepareOptions = PrepareOptions(),
    own: ReadOptions | None = None,
    report: PrepareProgress = silent,
) -> PrepareResult:
    """Prepare ``dataset`` in ``data_dir/<dataset>``, unless it is already prepared.

    ``source`` is a path or URL instead of the official address; ``sample`` selects the sample that is part of memskill.
    Without both, any prepared data are accepted. If each split has its own file, splits can be added one by one. If
    there is no dataset of that name, ``source`` are conversations of one's own, which are read as ``own`` says.
    Raises UsageError for an unknown dataset, or an invalid ``source`` or ``ask``; DownloadError; DataError for a broken
    file, or if other data are prepared (``force`` replaces them); RunLockedError if another process is preparing the
    dataset.
    """
    find_own(data_dir)
    if not source and not sample and is_own(dataset):
        return _own_as_prepared(load_manifest(dataset, data_dir), data_dir, force)
    reader = reader_of(dataset, own, new=bool(source or sample))
    folder = data_dir / reader.name
    parts = _parts(reader, source, sample, ask)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise UsageError(f"{data_dir} is not a folder", hint="choose another --data-dir") from None
    with locked(folder, str(folder)):
        found = _prepared(dataset, data_dir)
        given = bool(source or sample)
        missing = [part for part in parts if force or not _have(part, found, folder, given)]
        for part in missing:
            try:
                found = _make(reader, part, folder, found, report)
            except DataError:
                if isinstance(reader, OwnConversations) and found is None:
                    erase(folder)  # no trace of a name that has no data
                raise
        assert found is not None  # there is at least one part
        return PrepareResult(found, already=not missing, path=folder)


def reader_of(dataset: str, own: ReadOptions | None, *, new: bool) -> Dataset:
    """The dataset of that name; with ``new`` conversations of one's own, if there is none or it is one already.

    Raises UsageError for an unknown or impossible name, or for ``own`` with a benchmark.
    """
    if new and (is_own(dataset) or dataset not in DATASETS.names()):
        check_name(dataset)
        twin = next((name for name in DATASETS.names() if name != dataset and name.lower() == dataset.lower()), "")
        if twin:  # on some systems, both would have the same folder
            raise UsageError(f"--dataset {dataset}: there is a dataset called {twin}", hint="choose another name")
        include_own(dataset)
        return OwnConversations(dataset, own or ReadOptions())
    reader = get(dataset)
    if own is not None and own != ReadOptions():
        raise UsageError(
            f"{dataset} is not read with {own.flags()[0]}: that is for conversations of your own",
            hint=f"leave it out, or choose another name: {prepare_command('NAME', None, '--source', 'FILE')}",
        )
    return reader


def _own_as_prepared(manifest: DatasetManifest, data_dir: Path, force: bool) -> PrepareResult:
    """The prepared conversations. UsageError if they are to be made again: their source must be named then."""
    if force:
        flags = [*source_flags(manifest.source), *manifest.reading.get("flags", []), "--force"]
        raise UsageError(
            f"--force needs the source of {manifest.dataset}",
            hint=prepare_command(manifest.dataset, data_dir, *flags),
        )
    return PrepareResult(manifest, already=True, path=data_dir / manifest.dataset)


def _parts(reader: Dataset, source: str | None, sample: bool, ask: PrepareOptions) -> list[SourceFile]:
    if source and sample:
        raise UsageError("--source and --sample cannot be used together", hint="use one of them")
    if sample:
        path = sample_path(reader.sample_name or reader.name)
        return [replace(part, source=f"sample:{path.name}") for part in reader.parts(path, ask)]
    if source and "://" not in source:
        return list(reader.parts(Path(source).expanduser().absolute(), ask))
    url = source or os.environ.get(f"MEMSKILL_{reader.name.upper().replace('-', '_')}_URL")
    if url and not url.startswith(("http://", "https://", "hf://")):
        raise UsageError(
            f"{url} is neither a path nor an http(s) or hf address", hint="give a path, or https://… or hf://datasets/…"
        )
    return [replace(part, source=without_password(part.source)) for part in reader.parts(url, ask)]


def _prepared(dataset: str, data_dir: Path) -> DatasetManifest | None:
    """The manifest of the prepared data; None if there are none that this version can read."""
    try:
        manifest = load_manifest(dataset, data_dir)
    except DataError:
        return None
    return manifest if (data_dir / dataset / "traces").is_dir() else None


def _have(part: SourceFile, found: DatasetManifest | None, folder: Path, given: bool) -> bool:
    """Whether ``part`` is prepared.

    Raises DataError if other data are prepared and ``given`` (the user named a source or the sample). Local files are
    compared by content, others by address.
    """
    if found is None or (part.split and found.parts and part.split not in found.parts):
        return False
    if not given and (not part.split or part.split in found.splits):
        return True
    there = found.parts.get(part.split) if found.parts else None if part.split else found
    if there and (_fingerprint(part) == there.sha256 if part.path else part.source == there.source):
        return True
    flags = [*source_flags(part.source), *_split_flags(part), *part.flags, "--force"]
    before = (there or found).source
    raise DataError(
        f"{folder} has data from {before}, "
        + ("with other content or options" if before == part.source else f"not from {part.source}"),
        hint="replace them with: " + prepare_command(folder.name, folder.parent, *flags),
    )


def _make(
    reader: Dataset, part: SourceFile, folder: Path, found: DatasetManifest | None, report: PrepareProgress
) -> DatasetManifest:
    here = part if part.path else replace(part, path=_fetch(reader, part, folder, report))
    notes: list[str] = []
    sha256 = _fingerprint(here)
    if here.expected_sha256 not in ("", sha256):
        notes.append(
            f"the official file has changed since this version was tested (sha256 was {here.expected_sha256[:12]}…)"
        )
    scratch = folder / SCRATCH
    scratch.mkdir(exist_ok=True)
    watch = ReaderCallbacks(
        notes.append,
        lambda done, total: report("normalise", done, total),
        scratch,
        lambda done, total: report("read", done, total),
    )
    manifest = write_prepared(folder, here, sha256, reader.read(here, watch), notes, found, reader.reading)
    shutil.rmtree(scratch)
    return manifest


def _fetch(reader: Dataset, part: SourceFile, folder: Path, report: PrepareProgress) -> Path:
    again = prepare_command(reader.name, folder.parent)
    hint = f"run the same command again to continue; without a network: {again} --source PATH, or {again} --sample"

    def progress(done: int, total: int | None) -> None:
        report("download", done, total)

    if part.url.startswith("hf://"):
        return from_hub(part.url, hint=hint, report=progress)
    goal = folder / part.file_name
    download(part.url, goal, hint=hint, report=progress)
    return goal


def _fingerprint(part: SourceFile) -> str:
    assert part.path is not None
    if part.fingerprint:
        return part.fingerprint
    with part.path.open("rb") as opened:
        sha256 = hashlib.file_digest(opened, "sha256").hexdigest()
    return f"{sha256}[:{part.limit}]" if part.limit else sha256


def _split_flags(part: SourceFile) -> list[str]:
    return ["--split", part.split] if part.split else []
