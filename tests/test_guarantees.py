"""The promises page names tests that pytest finds and runs."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "guarantees.md").read_text("utf-8")


def named() -> list[tuple[str, str]]:
    """(file, test) of every test on the page; ``::name`` alone is of the file named before it; "" is a whole file."""
    found, file = [], ""
    for path, test in re.findall(r"`(tests/[\w/]+\.py)?(?:::(\w+))?`", PAGE):
        file = path or file
        if path or test:
            found.append((file, test))
    return found


NAMED = sorted(set(named()))
COLLECT = """
import json, sys
import pytest

class Found:
    def pytest_collection_finish(self, session):
        with open(sys.argv[1], "w") as out:
            for item in session.items:
                name = getattr(item, "originalname", item.name)
                print(json.dumps([item.location[0], name, [mark.name for mark in item.iter_markers()]]), file=out)

sys.exit(pytest.main(["--collect-only", "-q", "-p", "no:cacheprovider", *sys.argv[2:]], plugins=[Found()]))
"""


@pytest.fixture(scope="module")
def collected(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], set[str]]:
    """The marks of every test that pytest collects in the files on the page, by file and name."""
    found: dict[tuple[str, str], set[str]] = {}
    out, files = tmp_path_factory.mktemp("collected") / "items", sorted({file for file, _ in NAMED})
    command = [sys.executable, "-c", COLLECT, str(out), *files]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stdout + done.stderr
    for line in out.read_text().splitlines():
        file, name, marks = json.loads(line)
        found.setdefault((file, name), set()).update(marks)
    return found


def never_runs(source: str, name: str) -> bool:
    """Whether a test is skipped whatever the machine: by ``skipif`` with a constant, or by a call that nothing guards.

    A test without any statement but its docstring does not count as one that runs either.
    """
    tree = ast.parse(source)
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)]
    if any(call.func.attr == "skipif" and isinstance(call.args[0], ast.Constant) for call in calls):  # type: ignore[attr-defined]
        return True
    (test,) = (node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == name)
    body = [node for node in test.body if not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant))]
    skips = [ast.unparse(node).startswith(("pytest.skip(", "pytest.xfail(", "return")) for node in body]
    return not body or isinstance(body[0], ast.Pass) or any(skips)


def test_the_page_names_tests() -> None:
    assert len(named()) > 50


@pytest.mark.parametrize(("file", "test"), NAMED)
def test_a_named_test_is_found_and_runs(file: str, test: str, collected: dict[tuple[str, str], set[str]]) -> None:
    needed = re.search(r'^\w+ = pytest\.importorskip\("(\w+)"', (ROOT / file).read_text("utf-8"), re.MULTILINE)
    if needed and find_spec(needed[1]) is None:
        pytest.skip(f"pytest collects {file} only where {needed[1]} is installed")
    names = [name for path, name in collected if path == file and test in ("", name)]
    assert names, "pytest collects no such test"
    for name in names:
        assert not collected[file, name] & {"skip", "xfail"}
        assert not never_runs((ROOT / file).read_text("utf-8"), name)


@pytest.mark.parametrize(
    "body",
    [
        "    pass",
        '    """Says much."""',
        '    pytest.skip("later")\n    assert True',
        "    return\n    assert False",
        "    assert True\n\n@pytest.mark.skipif(True, reason='later')\ndef other():\n    assert True",
    ],
)
def test_a_test_that_never_runs_is_found_out(body: str) -> None:
    assert never_runs(f"def test_it():\n{body}\n", "test_it")
    assert not never_runs(
        "def test_it():\n    if find('x') is None:\n        pytest.skip('no x')\n    assert 1\n", "test_it"
    )
