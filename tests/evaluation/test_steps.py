"""``steps.jsonl`` of an evaluation: what each span did to the memory, once for each span, whatever interrupts it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from memskill_cli.agent.controller import Controller
from memskill_cli.errors import MemoryBankError
from memskill_cli.evaluation.artifact_store import EvalArtifactStore
from memskill_cli.memory.encoders import load_encoder
from memskill_cli.memory.store import MemoryStore
from memskill_cli.memory.stored_bank import StoredBank
from memskill_cli.skills.bank import SkillBank
from memskill_cli.skills.seeds import seed_bank
from memskill_cli.testing import rules
from memskill_cli.testing.http import tokens
from memskill_cli.testing.server import Request

from .harness import Rig, trace

SPANS = [f"[1 May 2025]\nAna: I have {i + 2} plum trees in garden number {i}." for i in range(4)]


def rig(folder: Path, **overrides: Any) -> Rig:
    chosen = {"eval__span_mode": "turn", "eval__judge": False, "memory__protect": False, **overrides}
    return Rig(folder, traces=[trace("Ana", 4)], **chosen)


def steps(made: Rig) -> list[dict[str, Any]]:
    """The lines of the file; all of them can be read."""
    return [json.loads(line) for line in (made.folder / "steps.jsonl").read_text().splitlines()]


def place(request: Request, memory: str) -> int:
    """The index at which the prompt shows this memory."""
    return int(re.search(rf"^\[(\d+)\] .*{re.escape(memory)}$", request.text, re.M)[1])  # type: ignore[index]


def scripted(request: Request) -> str:
    """Two memories from the first span; of these, the second changes one and the third deletes the other."""
    if request.role != "executor":
        return rules.reply(request)
    number = int(re.findall(r"garden number (\d)", request.text)[-1])
    if number == 0:
        return "ACTION: INSERT\nMEMORY: two plums\n\nACTION: INSERT\nMEMORY: Ana gardens\n\nACTION: DELETE\nINDEX: 7"
    if number == 1:
        at = place(request, "two plums")
        return f"ACTION: UPDATE\nINDEX: {at}\nMEMORY: five plums\n\nACTION: INSERT\nMEMORY: a second garden"
    return f"ACTION: DELETE\nINDEX: {place(request, 'Ana gardens')}" if number == 2 else "ACTION: NOOP"


def test_a_line_has_what_its_span_did_to_the_memory(tmp_path: Path) -> None:
    made = rig(tmp_path)
    made.evaluate(scripted)
    rows = steps(made)
    assert [(row["trace_id"], row["span"], row["text"]) for row in rows] == [("Ana", i, SPANS[i]) for i in range(4)]
    assert [row["actions"] for row in rows] == [
        [
            {"action": "insert", "id": "m000001", "text": "two plums"},
            {"action": "insert", "id": "m000002", "text": "Ana gardens"},
        ],
        [
            {"action": "update", "id": "m000001", "text": "five plums", "before": "two plums"},
            {"action": "insert", "id": "m000003", "text": "a second garden"},
        ],
        [{"action": "delete", "id": "m000002", "text": "", "before": "Ana gardens"}],
        [{"action": "noop", "id": None, "text": ""}],
    ]
    assert [row["rejected"] for row in rows] == [{"bad_index": 1}, {}, {}, {}]
    assert [(row["memories_before"], row["memories_after"]) for row in rows] == [(0, 2), (2, 3), (3, 2), (2, 2)]
    assert [row["sources"] for row in rows] == [[f"s1:{i}"] for i in range(4)]
    assert {row["reply"] for row in rows} == {"read"}


def test_tokens_and_seconds_are_those_of_the_reply(tmp_path: Path) -> None:
    made = rig(tmp_path)
    made.evaluate(scripted)
    asked = [request for request in made.requests if request.role == "executor"]
    assert [(row["prompt_tokens"], row["completion_tokens"]) for row in steps(made)] == [
        (tokens(request.text), tokens(text)) for request, text in zip(asked, map(scripted, asked), strict=True)
    ]
    assert all(0 < row["seconds"] < 60 for row in steps(made))


def test_a_reply_that_cannot_be_read_has_the_tokens_of_both_calls(tmp_path: Path) -> None:
    made = rig(tmp_path)
    made.evaluate(lambda request: "Nothing." if request.role == "executor" else rules.reply(request))
    asked = [request for request in made.requests if request.role == "executor"]
    assert len(asked) == 8
    first = steps(made)[0]
    assert first["prompt_tokens"] == tokens(asked[0].text) + tokens(asked[1].text)
    assert first["completion_tokens"] == 2 * tokens("Nothing.")
    assert (first["reply"], first["actions"], first["seconds"] > 0) == ("unreadable", [], True)


def test_probabilities_are_the_softmax_of_the_controller_for_this_state(tmp_path: Path) -> None:
    made = rig(tmp_path, eval__num_skills=2)
    made.train(seed_bank())
    made.evaluate(writing("plums"))
    skills = seed_bank().skills
    with closing(load_encoder("hashing", cache_dir=None)) as encoder:
        state = np.concatenate([encoder.encode([SPANS[0]])[0], np.zeros(encoder.dim, np.float32)])
        described = torch.from_numpy(encoder.encode([skill.description for skill in skills]))
        logits = Controller.seeded(encoder.dim, 16, 1)(torch.from_numpy(state)[None], described).logits_NS[0].tolist()
    powers = np.exp(logits)
    best = sorted(range(len(skills)), key=lambda i: -logits[i])[:2]
    first = steps(made)[0]["skills"]
    assert [(one["name"], one["action"]) for one in first] == [(skills[i].name, skills[i].action.value) for i in best]
    assert [one["probability"] for one in first] == pytest.approx([powers[i] / powers.sum() for i in best], abs=2e-6)


@pytest.mark.parametrize("method", ["random-skills", "all-skills"])
def test_without_a_controller_there_is_no_probability(tmp_path: Path, method: str) -> None:
    made = rig(tmp_path, eval__num_skills=2)
    made.method(method)
    assert {one["probability"] for row in steps(made) for one in row["skills"]} == {None}
    assert all(len(row["skills"]) == (2 if method == "random-skills" else 4) for row in steps(made))


def test_a_method_that_writes_no_memory_has_no_file(tmp_path: Path) -> None:
    made = rig(tmp_path)
    made.method("rag")
    assert not (made.folder / "steps.jsonl").exists()


def test_a_span_for_which_only_noop_was_selected_needed_no_call(tmp_path: Path) -> None:
    made = rig(tmp_path)
    made.train(SkillBank([seed_bank()["noop"]]))
    made.method("memskill")
    for row in steps(made):
        assert [one["name"] for one in row["skills"]] == ["noop"]
        assert (row["reply"], row["actions"]) == ("not_asked", [])
        assert (row["prompt_tokens"], row["completion_tokens"], row["seconds"]) == (0, 0, 0)


# --- interrupted, and run again ----------------------------------------------------------------------------------


def writing(word: str) -> Callable[[Request], Any]:
    """A model that writes this word for each span."""
    return lambda request: f"ACTION: INSERT\nMEMORY: {word}" if request.role == "executor" else rules.reply(request)


def test_a_stored_memory_is_not_read_again_and_its_lines_stay(tmp_path: Path) -> None:
    made = rig(tmp_path)
    made.evaluate(writing("one"))
    before = (made.folder / "steps.jsonl").read_bytes()
    (made.folder / "results.jsonl").unlink()
    made.evaluate(writing("other"))
    assert (made.folder / "steps.jsonl").read_bytes() == before


def test_a_trace_that_is_read_again_has_the_lines_of_the_last_reading(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def full(store: EvalArtifactStore, trace_id: str, bank: StoredBank) -> None:
        raise MemoryBankError("the disk is full")

    made = rig(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(EvalArtifactStore, "write_bank", full)
        with pytest.raises(MemoryBankError):
            made.evaluate(writing("first"))
    assert [row["span"] for row in steps(made)] == [0, 1, 2, 3], "the reading was complete, its memory is not stored"
    with (made.folder / "steps.jsonl").open("ab") as file:
        file.write(b'{"trace_id": "Ana", "sp')
    made.evaluate(writing("second"))
    assert [row["span"] for row in steps(made)] == [0, 1, 2, 3]
    assert [action["text"] for row in steps(made) for action in row["actions"]] == ["second"] * 4
    with MemoryStore(made.run.memory / made.id) as store:
        bank = store.read(f"r@{made.run.manifest().created}/{made.id}/Ana")
    assert bank is not None
    written = {action["id"]: action["text"] for row in steps(made) for action in row["actions"]}
    assert {item.item_id: item.text for item in bank.items} == written


def test_an_evaluation_that_is_killed_while_it_writes_has_each_span_once_in_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from memskill_cli.utils import files

    class Killed(BaseException):
        """Stands for a SIGKILL."""

    made, real = Rig(tmp_path, eval__span_mode="turn", eval__judge=False, limits__concurrency=1), files.append_line
    written = 0

    def append(path: Path, value: Any, **more: Any) -> None:
        nonlocal written
        written += path.name == "steps.jsonl"
        if written == 5:  # in the middle of the second trace
            raise Killed
        real(path, value, **more)

    with monkeypatch.context() as patch:
        patch.setattr(files, "append_line", append)
        with pytest.raises(Killed):
            made.evaluate()
    assert [(row["trace_id"], row["span"]) for row in steps(made)] == [("Ana", i) for i in range(3)] + [("Ben", 0)]
    made.evaluate()
    assert [(row["trace_id"], row["span"]) for row in steps(made)] == [(n, i) for n in ("Ana", "Ben") for i in range(3)]


def test_traces_are_in_the_order_of_the_dataset(tmp_path: Path) -> None:
    made = Rig(tmp_path, traces=[trace("Ana", 1), trace("Ben", 3)], eval__span_mode="turn", limits__concurrency=1)
    made.evaluate()
    assert [row["trace_id"] for row in steps(made)] == ["Ana", "Ben", "Ben", "Ben"], "Ben was read first"
