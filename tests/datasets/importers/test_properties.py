"""Whatever JSON a file has, every importer yields conversations or refuses it with a DataError."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memskill_cli.datasets.conversations import Conversation, Importer, Message, Skipped
from memskill_cli.datasets.importers import IMPORTERS
from memskill_cli.datasets.source_files import head_of
from memskill_cli.errors import DataError

from . import test_langfuse, test_langsmith, test_sharegpt
from .exports import (
    chatgpt,
    chatgpt_node,
    chatgpt_root,
    claude,
    claude_code_line,
    claude_message,
    codex_message,
    codex_meta,
)

NEW = [importer for importer in IMPORTERS if importer.NAME not in ("messages", "locomo")]
BY_NAME = {importer.NAME: importer for importer in NEW}
NAMES = (
    *("mapping", "current_node", "parent", "message", "author", "role", "content", "content_type", "parts", "text"),
    *("metadata", "attachments", "name", "create_time", "conversation_id", "id", "title", "recipient", "weight"),
    *("chat_messages", "sender", "created_at", "uuid", "parent_message_uuid", "account", "files", "file_name"),
    *("type", "payload", "timestamp", "sessionId", "parentUuid", "isSidechain", "isMeta", "origin", "kind", "source"),
    *("conversations", "from", "value", "system", "run_type", "trace_id", "parent_run_id", "inputs", "outputs"),
    *("messages", "extra", "start_time", "input", "output", "parent_observation_id", "session_id", "user_id", "runs"),
)
WORDS = (
    *("user", "assistant", "human", "gpt", "system", "tool", "text", "session_meta", "response_item", "event_msg"),
    *("message", "thread_rolled_back", "llm", "GENERATION", "2025-03-04T09:34:00Z", "", "a", "b", "summary", "image"),
)
SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**53), 2**53), st.floats(), st.sampled_from(WORDS), st.text(max_size=8)
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(st.one_of(st.sampled_from(NAMES), st.sampled_from(("a", "b"))), inner, max_size=6),
    ),
    max_leaves=25,
)
CHATGPT = chatgpt(
    {
        "r": chatgpt_root(),
        "a": chatgpt_node("r", "user", ["Hi"], 1.0),
        "b": chatgpt_node("a", "assistant", ["Yes"], 2.0),
    },
    "b",
)
CLAUDE = claude([claude_message("m", "human", "Hi", "2025-05-02T08:00:01Z", files=[{"file_name": "a.pdf"}])])
CODE = claude_code_line("user", "u", "p", [{"type": "text", "text": "Hi"}], "09:00:00", origin={"kind": "human"})
SEEDS: dict[str, list[Any]] = {
    "sharegpt": [test_sharegpt.RECORD],
    "chatgpt": [CHATGPT],
    "claude": [CLAUDE],
    "claude-code": [CODE],
    "codex": [codex_meta(), codex_message("user", "Hi", {"type": "input_image"})],
    "langsmith": [test_langsmith.run(1)],
    "langfuse": [test_langfuse.row(1)],
}


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths to all values in a JSON value."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, part in inner for place in places(part, (*path, key)))]


def put(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    """A copy of a JSON value with another value at ``path``."""
    if not path:
        return new
    key, *rest = path
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[key] = put(copy[key], tuple(rest), new)
    return copy


def check(importer: Importer, data: str) -> None:
    """Read ``data`` with and without asking whether it is recognised; check what is yielded."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "data.json"
        path.write_text(data, "utf-8")
        skipped = Skipped()
        try:
            recognised = importer.recognises(head_of(path))
            found = list(importer.read(path, skipped))
        except DataError as error:
            refusal = error.message
        else:
            refusal = ""
    if refusal:
        assert "data.json" in refusal
        assert "\n" not in refusal
        return
    assert isinstance(recognised, bool)
    assert min(skipped.values(), default=1) > 0
    assert all(sound(one) for one in found)


def sound(one: Conversation) -> bool:
    json.dumps(dict(one.metadata))
    return bool(one.session_id) and (one.user_id is None or bool(one.user_id)) and all(map(sound_message, one.messages))


def sound_message(one: Message) -> bool:
    assert one.timestamp is None or isinstance(one.timestamp, datetime)
    return one.role in ("user", "assistant", "system", "tool") and isinstance(one.content, str)


def written(values: list[Any], as_list: bool) -> str:
    if as_list:
        return json.dumps(values, allow_nan=False)
    return "".join(json.dumps(value, allow_nan=False) + "\n" for value in values)


def finite(value: Any) -> Any:
    """The value without numbers that JSON does not have."""
    if isinstance(value, float):
        return value if abs(value) < 1e300 else None
    if isinstance(value, list):
        return [finite(part) for part in value]
    return {key: finite(part) for key, part in value.items()} if isinstance(value, dict) else value


@pytest.mark.parametrize("name", BY_NAME)
@settings(max_examples=60)
@given(values=st.lists(VALUES, max_size=3), as_list=st.booleans())
def test_any_json(name, values, as_list):
    check(BY_NAME[name], written(finite(values), as_list))


@pytest.mark.parametrize("name", BY_NAME)
@settings(max_examples=150)
@given(data=st.data())
def test_a_real_record_with_a_value_replaced(name, data):
    values = SEEDS[name]
    path = data.draw(st.sampled_from(places(values)[1:]))
    check(BY_NAME[name], written(put(values, path, finite(data.draw(VALUES))), data.draw(st.booleans())))


@pytest.mark.parametrize("name", BY_NAME)
@settings(max_examples=40)
@given(data=st.binary(max_size=60))
def test_any_bytes(name, data):
    with TemporaryDirectory() as folder:
        path = Path(folder) / "data.json"
        path.write_bytes(data)
        try:
            list(BY_NAME[name].read(path, Skipped()))
        except DataError:
            return


@pytest.mark.parametrize("name", BY_NAME)
def test_each_format_is_recognised_by_one_importer(tmp_path, name):
    path = tmp_path / "data"
    path.write_text(written(SEEDS[name], as_list=False))
    assert [importer.NAME for importer in IMPORTERS if importer.recognises(head_of(path))] == [name]
