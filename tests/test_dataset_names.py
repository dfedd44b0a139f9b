"""What differs between datasets is said in a dataset's own file: nobody else compares their names."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "memskill_cli"
NAMES = {"locomo", "longmemeval", "hotpotqa", "alfworld"}
OWN = ("datasets/locomo.py", "datasets/longmemeval.py", "datasets/hotpotqa.py", "envs/alfworld/")
ALLOWED = {
    "config/datasets.py": "the registry: from a name to its module",
    "config/renamed.py": "a section of the settings that had the name of the first environment",
    "runs/release_settings.py": "the arguments of the published code, which compares names",
    "testing/": "scripted models that know the wording of some datasets' prompts",
}


def compared(source: str) -> Iterator[int]:
    """Lines that compare something with the name of a dataset, or look something up by such names."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Compare):
            found = [node.left, *node.comparators]
        elif isinstance(node, ast.Dict):
            found = [key for key in node.keys if key is not None]
        elif isinstance(node, ast.MatchValue):
            found = [node.value]
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", "") in ("startswith", "endswith"):
            found = node.args
        else:
            continue
        constants = [one for part in found for one in ast.walk(part) if isinstance(one, ast.Constant)]
        if any(isinstance(one.value, str) and one.value.rstrip("-_:/") in NAMES for one in constants):
            yield node.lineno


@pytest.mark.parametrize(
    "line",
    [
        "x = dataset == 'locomo'",
        "x = 'alfworld' != dataset",
        "x = dataset in ('hotpotqa', 'locomo')",
        "x = {'longmemeval': 1}",
        "x = name.startswith('locomo-')",
        "match dataset:\n    case 'locomo':\n        pass",
    ],
)
def test_a_comparison_is_found(line: str) -> None:
    assert list(compared(line))


@pytest.mark.parametrize("line", ["get('locomo')", "x = table['alfworld']", "name = 'locomo'", "f(dataset='locomo')"])
def test_what_only_names_one_is_none(line: str) -> None:
    assert not list(compared(line))


def test_no_names_are_compared_outside_a_datasets_own_file() -> None:
    found = {
        name: lines
        for file in sorted(PACKAGE.rglob("*.py"))
        if (lines := list(compared(file.read_text("utf-8"))))
        if not (name := file.relative_to(PACKAGE).as_posix()).startswith((*OWN, *ALLOWED))
    }
    assert found == {}
