"""The small samples that are part of memskill, in the format of their benchmark, and the published split lists."""

from __future__ import annotations

from pathlib import Path

from memskill_cli.errors import DataError

_PACKAGE = Path(__file__).parents[1]
FOLDERS = (_PACKAGE / "_data", _PACKAGE.parent / "data")
"""The folders of these files: in an installed wheel, and in a checkout."""


def shipped(name: str) -> Path:
    """The file or folder called ``name``. Raises DataError if this installation does not have it."""
    for folder in FOLDERS:
        if (folder / name).exists():
            return folder / name
    raise DataError(f"{name} is not part of this installation", hint="pip install --force-reinstall .")


def sample_path(dataset: str) -> Path:
    """The sample of ``dataset``, a file or a folder. Raises DataError if this installation does not have it."""
    for name in (f"samples/{dataset}_sample.json", f"samples/{dataset}"):
        for folder in FOLDERS:
            if (folder / name).exists():
                return folder / name
    raise DataError(f"the sample of {dataset} is not part of this installation", hint="pip install --force-reinstall .")
