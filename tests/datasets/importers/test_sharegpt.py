"""Reading ShareGPT: its roles, variants of its fields, and damaged records."""

from __future__ import annotations

import gzip
import json

import pytest

from memskill_cli.datasets.importers import sharegpt as importer
from memskill_cli.datasets.source_files import head_of
from memskill_cli.errors import DataError

from .exports import archive, document, lines, read, said

RECORD = {
    "id": "identity_0",
    "system": "You are a gardener.",
    "tools": "[]",
    "conversations": [
        {"from": "human", "value": "When do I plant garlic?"},
        {"from": "function_call", "value": '{"name": "calendar"}'},
        {"from": "observation", "value": "October"},
        {"from": "gpt", "value": "In October. 🧄"},
    ],
}


def deep(levels: int) -> list:
    value: list = []
    for _ in range(levels):
        value = [value]
    return value


def test_roles_system_prompt_and_id(tmp_path):
    (found,), skipped = read(importer, document(tmp_path / "data.json", [RECORD]))
    assert said(found) == [
        ("system", "You are a gardener."),
        ("user", "When do I plant garlic?"),
        ("tool", '{"name": "calendar"}'),
        ("tool", "October"),
        ("assistant", "In October. 🧄"),
    ]
    assert (found.user_id, found.session_id, found.metadata) == (None, "identity_0", {"id": "identity_0"})
    assert not skipped


def test_json_lines_compressed_with_other_names_of_fields(tmp_path):
    turns = [
        {"role": "system", "content": "Be short."},
        {"role": "user", "content": "<image>\nWhat is it?"},
        {"role": "assistant", "content": None},
        {"from": "tool", "value": {"found": ["a rose"]}},
    ]
    path = tmp_path / "data.jsonl.gz"
    path.write_bytes(gzip.compress("\n".join(json.dumps({"conversations": turns, "id": i}) for i in (7, "")).encode()))
    assert importer.recognises(head_of(path))
    first, second = read(importer, path)[0]
    assert said(first) == [
        ("system", "Be short."),
        ("user", "[image]\nWhat is it?"),
        ("assistant", ""),
        ("tool", '{"found":["a rose"]}'),
    ]
    assert (first.session_id, second.session_id) == ("7", "1")
    assert second.where == "data.jsonl.gz:2"


@pytest.mark.parametrize(
    "value",
    [[{"conversations": []}], [{"conversations": [{"value": "x"}]}], [{"messages": []}], {"conversations": "x"}, [[]]],
)
def test_other_files_are_not_recognised(tmp_path, value):
    assert not importer.recognises(head_of(document(tmp_path / "x.json", value)))


@pytest.mark.parametrize(
    ("turn", "problem"),
    [
        ({"from": "hunam", "value": "x"}, "conversations[0].from is 'hunam'; did you mean human?"),
        ({"from": "zzz", "value": "x"}, "conversations[0].from is 'zzz'; expected one of human, user"),
        ({"from": "human"}, "conversations[0].value is missing"),
        ({"from": "human", "value": 3}, "conversations[0].value is a whole number, expected text"),
        ({"from": "human", "value": {"a": 1}}, "conversations[0].value is an object, expected text"),
        ({"from": "tool", "value": deep(400)}, "conversations[0].value is nested too deep"),
        ({"value": "x"}, "conversations[0].role is missing"),
        ("x", "conversations[0] is text, expected an object"),
    ],
)
def test_malformed_turns_are_errors_with_their_place(tmp_path, turn, problem):
    path = lines(tmp_path / "data.jsonl", [RECORD, {"conversations": [turn]}])
    with pytest.raises(DataError) as caught:
        read(importer, path)
    assert caught.value.message == f"data.jsonl:2: {problem}" or caught.value.message.startswith(
        f"data.jsonl:2: {problem}"
    )


def test_an_archive_is_refused_with_the_command_to_type(tmp_path):
    path = archive(tmp_path / "x.zip", {"data.json": [RECORD]})
    with pytest.raises(DataError, match="a zip archive") as caught:
        read(importer, path)
    assert "unzip" in caught.value.hint
