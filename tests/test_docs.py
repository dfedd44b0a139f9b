"""What the pages show can be typed: links lead somewhere, commands and settings exist, Python compiles and imports."""

from __future__ import annotations

import importlib.util
import os
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from memskill_cli.errors import UsageError

from .doc_snippets import (
    PAGES,
    ROOT,
    SHELL,
    Refused,
    Snippet,
    check_command,
    check_python,
    check_shell,
    check_toml,
    memskill_commands,
    snippets,
)

SNIPPETS = [found for page in PAGES for found in snippets(str(page.relative_to(ROOT)), page.read_text("utf-8"))]
LANGUAGES = {*SHELL, "python", "toml", "json", "diff", "mermaid"}


def of(*languages: str) -> list[Snippet]:
    return [snippet for snippet in SNIPPETS if snippet.language in languages]


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("MEMSKILL_")]:
        monkeypatch.delenv(name)


@pytest.mark.parametrize("snippet", of(*SHELL), ids=str)
def test_commands_can_be_typed(snippet: Snippet) -> None:
    check_shell(snippet.text)


@pytest.mark.parametrize("snippet", of("python"), ids=str)
def test_python_can_be_imported(snippet: Snippet) -> None:
    check_python(snippet.text)


@pytest.mark.parametrize("snippet", of("toml"), ids=str)
def test_toml_is_read(snippet: Snippet, tmp_path: Path) -> None:
    check_toml(snippet.text, tmp_path)


def test_every_block_is_checked() -> None:
    """A block in another language is not; if it is to be there, say so in LANGUAGES."""
    assert {snippet.language for snippet in SNIPPETS} <= LANGUAGES
    assert len([page for page in PAGES if page.exists()]) > 10


def test_the_pages_show_every_command() -> None:
    text = "\n".join(page.read_text("utf-8") for page in PAGES)
    assert {arguments[0] for arguments in memskill_commands(text)} >= {
        *("prepare", "train", "evolve", "eval", "inspect-skills", "import", "export", "push", "pull", "runs"),
        *("memory", "mcp"),
    }


# --- the checks find what is wrong ---


def test_commands_are_found_where_they_are_typed() -> None:
    text = """
Not `memskill here`, nor
memskill there.

```console
$ memskill eval --dataset locomo    # a comment
memskill is not the beginning of this output
outer 0 inner 0: memskill says something
$ WANDB_MODE=offline memskill train … --tracker wandb
```

```
make demo
cd x && memskill prepare \\
    --dataset "a b" && memskill inspect-skills
```

```python
memskill = 1
```
"""
    assert list(memskill_commands(text)) == [
        ["eval", "--dataset", "locomo"],
        ["train", "--tracker", "wandb"],
        ["prepare", "--dataset", "a b"],
        ["inspect-skills"],
    ]


@pytest.mark.parametrize(
    "wrong",
    [
        "eval --datasett locomo",
        "eval --dataset locomoo",
        "eval --method memskil",
        "train --preset papr",
        "train --set train.top_kk=3",
        "train --outer-epochs many",
        "train --plugin",
        "evaluate",
        "memory serch x --memory mem --user u",
        "memory list --memory mem --users u",
    ],
)
def test_a_command_that_would_be_refused_is_found_out(wrong: str) -> None:
    with pytest.raises((Refused, UsageError)):
        check_command(wrong.split())


def test_what_a_plugin_adds_is_known_to_its_own_command_only() -> None:
    reward = ["train", "--dataset", "locomo", "--set", "reward.kind=brief"]
    for _ in range(2):
        check_command([*reward, "--plugin", "examples/custom_reward.py"])
        check_command(reward, {"MEMSKILL_PLUGIN": "examples/custom_reward.py"})
        check_command([*reward, "--plugin", "a_readers_own.py"])
        with pytest.raises(UsageError, match="no reward is called brief"):
            check_command(reward)


@pytest.mark.parametrize(
    "wrong",
    [
        "memskill train --set train.top_k=3",
        "make demoo",
        "make test J=ppo",
        'pip install ".[embeded]"',
        "python tools/no_such_tool.py",
        "export A=b && make no-such-goal",
    ],
)
def test_other_commands_that_fail_are_found_out(wrong: str) -> None:
    with pytest.raises(AssertionError):
        check_shell(wrong)


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        ("def (", SyntaxError),
        ("import no_such_module_at_all", ModuleNotFoundError),
        ("from memskill_cli import no_such_name", AttributeError),
        ("from memskill_cli.config import load\nload(presets='demo')", TypeError),
        ("import json\njson.dumps_all({}, indent=1)", AttributeError),
    ],
)
def test_python_that_fails_is_found_out(wrong: str, error: Any) -> None:
    with pytest.raises(error):
        check_python(wrong)


@pytest.mark.parametrize(
    "wrong", ["[train]\ntop_kk = 3\n", "[ppo]\nclip = 0.3\n", "[[answr]]\nkeys = ['a']\n", "[[all]]\nkey = 'a'\n"]
)
def test_toml_that_is_refused_is_found_out(wrong: str, tmp_path: Path) -> None:
    with pytest.raises((UsageError, AssertionError)):
        check_toml(wrong, tmp_path)


# --- links ---


@pytest.fixture(scope="module")
def check_links() -> Any:
    spec = importlib.util.spec_from_file_location("check_links", ROOT / "tools" / "check_links.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_links_of_the_pages(check_links: Any) -> None:
    assert check_links.problems(ROOT) == []


RIGHT = """# Top

[right](docs/other.md) [right](docs/other.md#a-code--more) [right](#top) [right](docs/other.md#twice-1)
[right](docs/other.md#own) [right](a%20b.txt) [right](docs) [right](https://example.org/x#y) `[code](none.md)`

```
[code](none.md)
```"""
WRONG = {
    "[wrong](docs/none.md)": "docs/none.md: no such file",
    "[wrong](docs/other.md#none)": "docs/other.md#none: no such heading",
    "[wrong](#none)": "#none: no such heading",
    "[wrong](/docs/other.md)": "/docs/other.md: is not relative",
    "[wrong](../outside.md)": "../outside.md: leads out of the project",
    "![wrong](none.png)": "none.png: no such file",
    "[wrong][ref]": "none.md: no such file",
    "<img src='none.svg'>": "none.svg: no such file",
}


def test_wrong_links_are_found_out(check_links: Any, tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "other.md").write_text("# A `code` & more\n\n## Twice\n\n## Twice\n\n<a id='own'></a>\n")
    (tmp_path / "a b.txt").write_text("")
    (tmp_path / "README.md").write_text(RIGHT + "\n\n".join(["", *WRONG]) + "\n\n[ref]: none.md\n")
    assert [problem.split(" ", 1)[1] for problem in check_links.problems(tmp_path)] == list(WRONG.values())
    first = RIGHT.count("\n") + 3
    assert check_links.problems(tmp_path)[0] == f"README.md:{first}: docs/none.md: no such file"


def test_names_of_headings(check_links: Any, tmp_path: Path) -> None:
    """As GitHub makes them."""
    page = tmp_path / "page.md"
    page.write_text("# Keys, limits – and `--max-cost`\n## [A link](x.md) *here*\n## a_b\n## Ünïcode 2.0\n")
    assert check_links.anchors(page) == {"keys-limits--and---max-cost", "a-link-here", "a_b", "ünïcode-20"}


def test_the_citation_is_whole() -> None:
    """What CFF 1.2.0 requires, of the software and of the paper."""
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    assert citation.keys() >= {"cff-version", "message", "title", "authors"}
    assert citation["license"] == project["license"]
    paper = citation["preferred-citation"]
    assert paper.keys() >= {"type", "title", "authors", "year", "url"}
    assert all(person.keys() == {"given-names", "family-names"} for person in paper["authors"])
