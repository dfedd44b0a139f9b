"""The small samples that ship with the project, in each benchmark's own format."""

from __future__ import annotations

from pathlib import Path

from memskill_cli.errors import DataError

_PACKAGE = Path(__file__).parents[1]
FOLDERS = (_PACKAGE / "_data" / "samples", _PACKAGE.parent / "data" / "samples")
"""Where samples are in an installed wheel, and in a checkout."""


def sample_path(dataset: str) -> Path:
    """The sample of ``dataset``, a file or a folder; DataError if this installation has none."""
    for folder in FOLDERS:
        for path in (folder / f"{dataset}_sample.json", folder / dataset):
            if path.exists():
                return path
    raise DataError(f"the sample of {dataset} is not part of this installation", hint="pip install --force-reinstall .")
