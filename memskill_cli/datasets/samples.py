"""The small samples that ship with the project, in each benchmark's own format, and the published split lists."""

from __future__ import annotations

from pathlib import Path

from memskill_cli.errors import DataError

_PACKAGE = Path(__file__).parents[1]
FOLDERS = (_PACKAGE / "_data", _PACKAGE.parent / "data")
"""Where shipped data are in an installed wheel, and in a checkout."""


def shipped(name: str) -> Path:
    """The shipped file or folder called ``name``; DataError if this installation has none."""
    for folder in FOLDERS:
        if (folder / name).exists():
            return folder / name
    raise DataError(f"{name} is not part of this installation", hint="pip install --force-reinstall .")


def sample_path(dataset: str) -> Path:
    """The sample of ``dataset``, a file or a folder; DataError if this installation has none."""
    for name in (f"samples/{dataset}_sample.json", f"samples/{dataset}"):
        for folder in FOLDERS:
            if (folder / name).exists():
                return folder / name
    raise DataError(f"the sample of {dataset} is not part of this installation", hint="pip install --force-reinstall .")
