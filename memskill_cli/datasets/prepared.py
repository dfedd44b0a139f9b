"""Prepared data on disk: the manifest and the splits.

They are in ``<data-dir>/<name>/``: Arrow files under ``traces/`` (read by Hugging Face ``datasets``) and
``manifest.json``. The manifest is written last, so that an incomplete folder does not count as prepared.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import orjson

from memskill_cli.datasets.arrow_tables import FILE, PreparedSplit
from memskill_cli.datasets.base import prepare_command, source_flags
from memskill_cli.datasets.manifest import DatasetManifest, PartFacts, SplitSize
from memskill_cli.datasets.registry import get
from memskill_cli.errors import DataError, RunError, UsageError
from memskill_cli.utils.rows import COUNT, TEXT, check, list_of, table_of, with_fields

FORMAT = 2
"""Version of the format. Raise it when the format or a reader's normalisation changes: old data are then rejected."""


_SIZE = {"traces": COUNT, "queries": COUNT}
_MANIFEST = {
    **dict.fromkeys(("dataset", "source", "sha256", "digest", "memskill", "created"), TEXT),
    **_SIZE,
    "splits": table_of(with_fields(_SIZE)),
    "categories": table_of(COUNT),
    "notes": list_of(TEXT),
    "parts": table_of(
        with_fields({**dict.fromkeys(("source", "sha256", "digest", "created"), TEXT), **_SIZE})
    )._replace(required=False),
    "tables": table_of(TEXT)._replace(required=False),
}


def load_manifest(dataset: str, data_dir: Path) -> DatasetManifest:
    """The manifest of ``dataset``. Raises DataError, with the next command, if it is missing or cannot be used."""
    path = data_dir / get(dataset).name / "manifest.json"
    hint = prepare_command(dataset, data_dir)
    try:
        table = orjson.loads(path.read_bytes())
    except FileNotFoundError:
        raise DataError(f"{dataset} is not prepared in {data_dir}", hint=hint) from None
    except orjson.JSONDecodeError as error:
        raise DataError(f"{path}: damaged: {error}", hint=hint) from None
    if isinstance(table, dict) and table.get("format") != FORMAT:
        again = prepare_command(dataset, data_dir, *source_flags(str(table.get("source", ""))))
        problem = f"{path}: has format {table.get('format')}, but this version of memskill reads format {FORMAT}"
        raise DataError(problem, hint=again if table.get("source") else hint)
    try:
        check(table, _MANIFEST, str(path))
        table["splits"] = {name: SplitSize(**size) for name, size in table["splits"].items()}
        table["parts"] = {name: PartFacts(**part) for name, part in table["parts"].items()}
        return DatasetManifest(**table)
    except (TypeError, KeyError, AttributeError, RunError):
        raise DataError(f"{path}: damaged: fields are missing or have the wrong type", hint=hint) from None


def load_split(dataset: str, data_dir: Path, split: str) -> PreparedSplit:
    """One prepared split.

    Raises UsageError for a split that does not exist; DataError, with the next command, if the dataset is not prepared,
    has another format, or is damaged.
    """
    manifest = load_manifest(dataset, data_dir)
    if split not in manifest.splits:
        raise UsageError(f"{dataset} has no split called {split}; there are {', '.join(manifest.splits)}")
    folder = data_dir / manifest.dataset / "traces" / split
    flags = [*source_flags(manifest.source), *manifest.reading.get("flags", [])]
    if part := manifest.parts.get(split):
        flags = [*source_flags(part.source), "--split", split]
    hint = prepare_command(dataset, data_dir, *flags, "--force")
    try:
        if split in manifest.tables:
            _check(folder / FILE, manifest.tables[split])
        traces = PreparedSplit.open(folder, manifest.dataset, split)
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise DataError(f"{folder}: damaged: {reason}", hint=hint) from error
    if len(traces) != (expected := manifest.splits[split].traces):
        raise DataError(f"{folder}: damaged: {len(traces)} traces instead of {expected}", hint=hint)
    return traces


def _check(table: Path, sha256: str) -> None:
    """Raise ValueError if ``table`` has changed since it was written. Takes 0.8 s per gigabyte."""
    with table.open("rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != sha256:
            raise ValueError(f"{FILE} has changed (its sha256 differs from the one in manifest.json)")
