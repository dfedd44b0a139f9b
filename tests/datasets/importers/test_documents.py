"""Containers of records: archives that are hostile or damaged, lists, lines; and the bound on nesting."""

from __future__ import annotations

import json
import re
import struct
import zipfile

import pytest

from memskill_cli.datasets.importers import chatgpt, documents
from memskill_cli.datasets.importers.documents import any_record
from memskill_cli.datasets.source_files import head_of
from memskill_cli.errors import DataError

from .exports import archive, chatgpt_root
from .exports import chatgpt as conversation

WANTED = re.compile(r"(?:.*/)?conversations\.json")


def read(path, wanted=WANTED):
    return list(documents.documents(path, wanted))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('[{"a": 1}, {"a": 2}]', [("x: record 0", {"a": 1}), ("x: record 1", {"a": 2})]),
        ('{"a": 1}\n\n{"a": 2}\n', [("x:1", {"a": 1}), ("x:3", {"a": 2})]),
        ('{\n "a": 1\n}', [("x", {"a": 1})]),
        ("\ufeff[1]", [("x: record 0", 1)]),
        ("[]", []),
    ],
)
def test_records_with_their_places(tmp_path, text, expected):
    path = tmp_path / "x"
    path.write_text(text, "utf-8")
    assert read(path) == expected
    inside = archive(tmp_path / "x.zip", {"conversations.json": text})
    if not text.startswith("{"):
        assert [value for _, value in read(inside)] == [value for _, value in expected]


def test_no_path_of_an_archive_is_written(tmp_path):
    files = {"../conversations.json": "[1]", "/etc/conversations.json": "[2]", "a/../../conversations.json": "[3]"}
    (tmp_path / "in").mkdir()
    path = archive(tmp_path / "in" / "x.zip", files)
    before = sorted(tmp_path.rglob("*"))
    assert sorted(value for _, value in read(path)) == [1, 2, 3]
    assert sorted(tmp_path.rglob("*")) == before


def test_a_zip_bomb_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(documents, "_SMALL", 1 << 16)
    path = archive(tmp_path / "x.zip", {"conversations.json": "[" + " " * (1 << 22) + "]"})
    with pytest.raises(DataError, match="times its compressed size"):
        read(path)
    monkeypatch.setattr(documents, "MAX_RATIO", 1 << 30)
    assert read(path) == []
    monkeypatch.setattr(documents, "MAX_MEMBER", 1 << 20)
    with pytest.raises(DataError, match="would be 4 MB"):
        read(path)


def test_a_file_that_is_larger_than_its_archive_says_is_an_error(tmp_path):
    """A bomb that declares a small size: no more than that is read of it."""
    path = archive(tmp_path / "x.zip", {"conversations.json": "[" + "1," * 50_000 + "1]"})
    data = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as opened:
        size = opened.infolist()[0].file_size
    for found in re.finditer(re.escape(struct.pack("<I", size)), bytes(data)):
        data[found.start() : found.end()] = struct.pack("<I", 1000)
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"x\.zip"):
        read(path)


def test_a_record_that_is_too_large_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(documents, "MAX_RECORD", 1 << 18)
    path = archive(tmp_path / "x.zip", {"conversations.json": json.dumps(["x" * 100_000] * 20)})
    assert len(read(path)) == 20
    path = archive(tmp_path / "x.zip", {"conversations.json": json.dumps(["x" * 1_000_000])})
    with pytest.raises(DataError, match="a record has more than"):
        read(path)


@pytest.mark.parametrize("text", ["[" * 200_000, '[{"a":' * 100_000, "[1,", "[1] x", "", "nothing", "[NaN]", "[1e999]"])
def test_what_is_no_json_is_an_error(tmp_path, text):
    with pytest.raises(DataError):
        read(archive(tmp_path / "x.zip", {"conversations.json": text}))
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(DataError):
        read(tmp_path / "x.json")


def test_archives_that_cannot_be_read(tmp_path):
    path = archive(tmp_path / "x.zip", {"other.json": "[]"})
    with pytest.raises(DataError, match=r"this archive has no conversations.json"):
        read(path)
    with pytest.raises(DataError, match="a zip archive"):
        read(path, None)
    path = archive(tmp_path / "x.zip", {"conversations.json": json.dumps(list(range(10_000)))})
    whole = path.read_bytes()
    path.write_bytes(whole[:200])
    with pytest.raises(DataError, match="damaged zip file"):
        read(path)
    path.write_bytes(whole[:60] + b"\x00\xff" * 20 + whole[100:])
    with pytest.raises(DataError):
        read(path)


def test_an_encrypted_archive_is_refused(tmp_path):
    path = archive(tmp_path / "x.zip", {"conversations.json": "[]"})
    data = bytearray(path.read_bytes())
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        data[data.index(signature) + offset] |= 1
    path.write_bytes(data)
    with pytest.raises(DataError, match="is encrypted"):
        read(path)


def test_looking_for_a_key_reads_only_the_beginning(tmp_path):
    first = conversation({"root": chatgpt_root()}, "root")
    text = json.dumps([first]) + "not JSON any more"
    head = head_of(archive(tmp_path / "x.zip", {"conversations.json": text}))
    assert chatgpt.recognises(head)
    assert not any_record(head, WANTED, "chat_messages")
    assert not any_record(head_of(archive(tmp_path / "y.zip", {"conversations.json": "[[["})), WANTED, "mapping")
    assert not any_record(head_of(archive(tmp_path / "z.zip", {"a.txt": ""})), WANTED, "mapping")
