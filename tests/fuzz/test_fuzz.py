"""Whatever comes in is read or refused, in bounded time. What the fuzzers found stays here."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from memskill_cli.agent.designer_parsing import parse_analysis, parse_refinement
from memskill_cli.agent.env_runner import parse_command
from memskill_cli.agent.parsing import parse_reply
from memskill_cli.agent.reply_blocks import MAX_REPLY_CHARS
from memskill_cli.datasets.hotpotqa import extract_answer
from memskill_cli.errors import SkillBankError
from memskill_cli.evaluation.methods.external import read_object
from memskill_cli.llm.reasoning import read_reply, strip_reasoning
from memskill_cli.scoring.judge import parse_verdict
from memskill_cli.skills.bank import SkillBank
from memskill_cli.skills.markdown import from_markdown, import_bank

from .targets import CASES, COMMANDS, SEEDS, TARGETS, WORDS

RUN = Path(__file__).with_name("run.py")
DEEP = 400
_LAUGHS = "".join(f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n" for a, b in pairwise("abcdefghi"))
FOUND: dict[str, list[str]] = {
    "executor": [
        '[{"action": "noop"}, ' + "[" * 2 * DEEP + "]" * 2 * DEEP + "]",  # deeper than the reader may go
        '{"actions": [{"action": "insert", "memory": "half \\ud800 of it"}]}',
        '{"action": "update", "index": ' + "9" * 5000 + "}",
        'action {"' * 200 + "{" * 500,
        "\n\n".join(f"ACTION: UPDATE\nINDEX: {i}\nMEMORY: x" for i in (-1, 0, 2, 3, 99)),
    ],
    "judge": [
        '{"score": 1' + "0" * 400 + "}",  # a whole number that no float holds
        "{" * 20_000 + "}",
        '{"score": ' + "[" * 3000 + "1" + "]" * 3000 + "}",
    ],
    "analysis": ['{"patterns": ' + "[" * DEEP + "]" * DEEP + "}"],
    "refinement": ['{"changes": [' + '{"change": "refine", "name": "zzz"},' * 5000 + "{}]}"],
    "bank": ['{"format": ' + "9" * 5000 + "}", "[" * 100_000, '{"skills": 1e999}'],
    "skill": [
        "---\nname: a\ndescription: b\nmetadata: {action: insert}\n---\n" + "---\n" * 20_000,
        f"---\na: &a [x, x]\n{_LAUGHS}metadata: {{bank-name: *i, action: *i}}\n---\n",  # a billion of them
        "---\nmetadata: {bank-name: [a]}\n---\n",
        "---\n" + "[" * 20_000 + "\n---\n",
    ],
    "systems": [
        '{"facts": ["\\ud800"]}',
        '{"calls": ' + "[" * 900 + "]" * 900 + "}",
        '{"memory": ' + '[{"a": ' * 20_000,
        '{"memory": [{"id": "0", "text": 5, "event": "ADD"}]}',
    ],
}  # fmt: skip


@pytest.mark.parametrize(("target", "text"), [(name, text) for name, texts in FOUND.items() for text in texts])
@pytest.mark.timeout(60)
def test_what_was_found_once(target: str, text: str) -> None:
    TARGETS[target](text)


READERS: dict[str, Callable[[str], Any]] = {
    "reasoning": lambda text: read_reply(text, False),
    "executor": lambda text: parse_reply(text).actions,
    "judge": lambda text: str(parse_verdict(text)),
    "answer": extract_answer,
    "analysis": lambda text: parse_analysis(text, CASES)["patterns"],
    "refinement": lambda text: parse_refinement(text).changes,
    "command": lambda text: parse_command(text, COMMANDS),
    "bank": lambda text: SkillBank.from_json(text, "file").names,
    "skill": lambda text: from_markdown(text).name,
    "systems": lambda text: read_object(text, "facts" if "facts" in text else "memory"),
}


@pytest.mark.parametrize(("name", "seed"), [(name, seed) for name, seeds in SEEDS.items() for seed in seeds])
def test_a_seed_is_read(name: str, seed: str) -> None:
    """Else a reader that refuses everything would pass the tests below."""
    assert READERS[name](seed)


@st.composite
def nearly_right(draw: st.DrawFn, name: str) -> str:
    """A seed with pieces cut out, words of the formats and any text put in."""
    text = draw(st.sampled_from(SEEDS[name]))
    piece = st.one_of(st.sampled_from(WORDS), st.text(max_size=8))
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, len(text)))
        text = text[:at] + draw(piece) * draw(st.sampled_from([0, 1, 1, 40])) + text[at + draw(st.integers(0, 9)) :]
    return text


@pytest.mark.parametrize("name", TARGETS)
@settings(suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_anything_is_read_or_refused(name: str, data: Any) -> None:
    TARGETS[name](data.draw(st.one_of(nearly_right(name), st.text())))


LONG = 1_000_000
PIECES = (
    "x\n", "\n", " ", "ACTION: DELETE INDEX: 1 ", "ACTION: INSERT\nMEMORY: x\n", "<think></think>", "MEMORY: <think>",
    '{"', "{", "[{", '{"a": ', "</think>", "<answer>", "answer ", "- ", "(1) ", "---\n", "go to fridge 1",
)  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.timeout(600)
def test_a_million_characters_are_no_burden(name: str) -> None:
    """What grows by the square would need hours for these; the limit is that of the test."""
    for piece in PIECES:
        for head in ("", SEEDS[name][0], "ACTION: INSERT\nMEMORY: a\n"):
            TARGETS[name](head + piece * (LONG // len(piece)))


def test_no_alias_of_yaml_is_followed() -> None:
    with pytest.raises(SkillBankError, match="alias"):
        from_markdown(f"---\na: &a [x, x]\n{_LAUGHS}name: *i\n---\n")
    assert from_markdown("---\nname: a\ndescription: '*b & c'\nmetadata: {action: insert}\n---\nbody *c*").name == "a"


@pytest.mark.parametrize(("size", "name"), [(100_001, "SKILL.md"), (8_000_001, "bank.json")])
def test_a_huge_file_is_no_skill(tmp_path: Path, size: int, name: str) -> None:
    file = tmp_path / name
    file.write_bytes(b" " * (size - 1) + "é".encode())  # of which the first byte is the first too many
    with pytest.raises(SkillBankError, match="larger than"):
        import_bank(file)


def test_devices_and_loops_in_a_folder_are_no_skills(tmp_path: Path) -> None:
    (tmp_path / "zero.md").symlink_to("/dev/zero")
    (tmp_path / "loop.md").symlink_to(tmp_path / "loop.md")
    (tmp_path / "up").symlink_to(tmp_path)
    os.mkfifo(tmp_path / "pipe.md")
    with pytest.raises(SkillBankError, match="no skills there"):
        import_bank(tmp_path)


def test_a_reply_beyond_all_bounds_is_not_read() -> None:
    block = "ACTION: INSERT\nMEMORY: Ana has a cat.\n\n"
    assert parse_reply(block * (MAX_REPLY_CHARS // len(block))).found
    assert not parse_reply(block * (MAX_REPLY_CHARS // len(block) + 1)).found


@pytest.mark.timeout(60)
def test_many_thoughts_in_one_line_take_no_longer_than_they_are_long() -> None:
    assert strip_reasoning("x" + "<think>a</think>" * 250_000) == "x"


@pytest.mark.slow
@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.skipif(find_spec("atheris") is None, reason="atheris is not installed")
def test_guided_by_coverage(name: str, tmp_path: Path) -> None:
    """The same ten thousand inputs each time; without a seed and for longer: ``python tests/fuzz/run.py``."""
    the_same = ["--seed", "1", "--runs", "10000", "--seconds", "120"]
    command = [sys.executable, str(RUN), name, *the_same, "--findings", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "nothing found" in done.stdout
