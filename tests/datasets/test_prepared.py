"""Prepared data: what goes in comes out, and a half-made or foreign folder is never taken for a whole one."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from memskill_cli.datasets import writer as storing
from memskill_cli.datasets.base import ReaderCallbacks, SourceFile
from memskill_cli.datasets.prepare import prepare
from memskill_cli.datasets.prepared import load_manifest, load_split
from memskill_cli.datasets.registry import get
from memskill_cli.datasets.samples import sample_path
from memskill_cli.errors import DataError, UsageError

SAMPLE = sample_path("locomo")


@pytest.fixture
def data(tmp_path) -> Path:
    return tmp_path / "data"


def edited(folder: Path) -> Path:
    """A file that differs from the sample in one word."""
    path = folder / "other.json"
    path.write_text(SAMPLE.read_text("utf-8").replace("Pelican", "Penguin"), "utf-8")
    return path


def test_what_was_read_is_what_is_loaded(data):
    prepare("locomo", data_dir=data, sample=True)
    loaded = [trace for split in ("train", "val", "test") for trace in load_split("locomo", data, split)]
    assert loaded == list(get("locomo").read(SourceFile("", SAMPLE), ReaderCallbacks()))


def test_a_split_is_a_sequence(data):
    prepare("locomo", data_dir=data, sample=True)
    train = load_split("locomo", data, "train")
    assert len(train) == 3
    assert [t.trace_id for t in train[1:]] == ["sample-2", "sample-3"]
    assert train[-1] == train[2]
    with pytest.raises(IndexError):
        train[3]


def test_the_manifest_says_what_was_made(data):
    result = prepare("locomo", data_dir=data, source=str(SAMPLE))
    manifest = load_manifest("locomo", data)
    assert manifest == result.manifest
    assert (manifest.source, manifest.dataset, manifest.format) == (str(SAMPLE), "locomo", 2)
    assert manifest.traces == 5
    assert manifest.queries == sum(manifest.categories.values()) == sum(s.queries for s in manifest.splits.values())
    assert {name: size.traces for name, size in manifest.splits.items()} == {"train": 3, "val": 1, "test": 1}
    assert any("adversarial" in note and "never scored" in note for note in manifest.notes)


def test_the_digest_names_the_content_not_where_it_came_from(data, tmp_path):
    reformatted = tmp_path / "same.json"
    reformatted.write_text(json.dumps(json.loads(SAMPLE.read_text("utf-8"))), "utf-8")
    made = [
        prepare("locomo", data_dir=data / name, **options).manifest
        for name, options in {
            "a": {"sample": True}, "b": {"source": str(reformatted)}, "c": {"source": str(edited(tmp_path))}
        }.items()
    ]  # fmt: skip
    assert made[0].digest == made[1].digest != made[2].digest
    assert made[0].sha256 != made[1].sha256


def test_one_conversation_counts_once_though_it_is_in_every_split(data, tmp_path):
    path = tmp_path / "one.json"
    path.write_text(json.dumps(json.loads(SAMPLE.read_text("utf-8"))[:1]), "utf-8")
    manifest = prepare("locomo", data_dir=data, source=str(path)).manifest
    assert (manifest.traces, manifest.queries) == (1, 12)
    assert manifest.shared_traces
    assert load_split("locomo", data, "test")[0].split == "test"


def test_prepared_already_does_nothing_and_force_does_it_anew(data):
    first = prepare("locomo", data_dir=data, sample=True)
    before = (data / "locomo" / "manifest.json").stat().st_mtime_ns
    for options in ({}, {"sample": True}, {"source": str(SAMPLE)}):
        again = prepare("locomo", data_dir=data, **options)
        assert again.already
        assert again.manifest == first.manifest
    assert (data / "locomo" / "manifest.json").stat().st_mtime_ns == before
    assert not prepare("locomo", data_dir=data, sample=True, force=True).already
    assert (data / "locomo" / "manifest.json").stat().st_mtime_ns > before


def test_other_data_never_pass_for_what_was_asked(data, tmp_path):
    other = edited(tmp_path)
    prepare("locomo", data_dir=data, sample=True)
    for source in (str(other), "http://127.0.0.1:9/locomo10.json"):
        with pytest.raises(DataError, match="has data from") as caught:
            prepare("locomo", data_dir=data, source=source)
        assert caught.value.hint.endswith(f"--source {source} --force")
    prepare("locomo", data_dir=data, source=str(other), force=True)
    with pytest.raises(DataError, match="has data from"):
        prepare("locomo", data_dir=data, sample=True)


def test_a_crash_while_writing_leaves_the_old_data_as_they_were(data, tmp_path, monkeypatch):
    prepare("locomo", data_dir=data, sample=True)

    def full_disk(row):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(storing, "to_row", full_disk)
        with pytest.raises(OSError, match="No space"):
            prepare("locomo", data_dir=data, source=str(edited(tmp_path)), force=True)
    assert load_split("locomo", data, "test")[0].trace_id == "sample-5"
    assert prepare("locomo", data_dir=data, sample=True).already
    assert not list((data / "locomo").glob(".traces-*"))


def test_a_disk_that_is_full_at_the_last_byte_leaves_the_old_data_as_they_were(data, tmp_path, monkeypatch):
    prepare("locomo", data_dir=data, sample=True)
    before = {file: file.read_bytes() for file in data.rglob("*") if file.is_file()}

    def full_disk(handle):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("memskill_cli.utils.files.os.fsync", full_disk)
        patch.setattr(storing, "_sealed", lambda made: {})
        with pytest.raises(OSError, match="No space"):
            prepare("locomo", data_dir=data, source=str(edited(tmp_path)), force=True)
    assert {file: file.read_bytes() for file in data.rglob("*") if file.is_file()} == before


def test_data_prepared_before_tables_had_digests_are_read(data):
    prepare("locomo", data_dir=data, sample=True)
    record = data / "locomo" / "manifest.json"
    old = json.loads(record.read_bytes())
    assert set(old.pop("tables")) == {"train", "val", "test"}
    record.write_text(json.dumps(old))
    assert len(load_split("locomo", data, "test")) == 1


def test_a_crash_before_the_manifest_is_not_prepared(data, monkeypatch):
    def killed(path, value):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(storing, "write_json", killed)
        with pytest.raises(KeyboardInterrupt):
            prepare("locomo", data_dir=data, sample=True)
    with pytest.raises(DataError, match="is not prepared"):
        load_split("locomo", data, "test")
    (data / "locomo" / ".traces-left").mkdir()
    assert not prepare("locomo", data_dir=data, sample=True).already
    assert len(load_split("locomo", data, "test")) == 1
    assert not (data / "locomo" / ".traces-left").exists()


def test_not_prepared_says_what_to_type(data):
    with pytest.raises(DataError, match="locomo is not prepared") as caught:
        load_split("locomo", data, "test")
    assert caught.value.hint == f"memskill prepare --dataset locomo --data-dir {data}"
    with pytest.raises(DataError) as caught:
        load_manifest("locomo", Path("data"))
    assert caught.value.hint == "memskill prepare --dataset locomo"


def _truncate(folder: Path) -> None:
    arrow = next((folder / "traces" / "test").glob("*.arrow"))
    arrow.write_bytes(arrow.read_bytes()[:1000])


def _swap(folder: Path) -> None:
    shutil.rmtree(folder / "traces" / "test")
    shutil.copytree(folder / "traces" / "train", folder / "traces" / "test")


def _flip(folder: Path) -> None:
    """One bit in a text: Arrow reads it without a murmur."""
    arrow = folder / "traces" / "test" / "traces.arrow"
    content = bytearray(arrow.read_bytes())
    content[content.index(b"sample-5")] ^= 1
    arrow.write_bytes(content)


@pytest.mark.parametrize(
    "damage",
    [
        _truncate,
        _swap,
        _flip,
        lambda folder: shutil.rmtree(folder / "traces" / "test"),
        lambda folder: (folder / "traces" / "test" / "traces.arrow").write_text("{"),
        lambda folder: (folder / "traces" / "test" / "traces.arrow").write_text(""),
    ],
)
def test_damaged_data_are_refused_with_the_command_that_makes_them_anew(data, damage):
    prepare("locomo", data_dir=data, sample=True)
    damage(data / "locomo")
    with pytest.raises(DataError, match="damaged") as caught:
        load_split("locomo", data, "test")
    assert caught.value.hint.endswith("--sample --force")


@pytest.mark.parametrize(
    ("manifest", "problem"),
    [
        ("{", "damaged"),
        ("[]", "damaged"),
        ('{"format": 2}', "damaged"),
        ('{"format": 2, "splits": {"test": {}}}', "damaged"),
        ('{"format": 99}', "has format 99, but this version of memskill reads format 2"),
        ("{}", "format None"),
    ],
)
def test_a_manifest_of_another_version_or_damaged_is_refused_and_replaced(data, manifest, problem):
    prepare("locomo", data_dir=data, sample=True)
    (data / "locomo" / "manifest.json").write_text(manifest)
    with pytest.raises(DataError, match=problem):
        load_split("locomo", data, "test")
    assert not prepare("locomo", data_dir=data, sample=True).already
    assert len(load_split("locomo", data, "test")) == 1


def test_names_that_do_not_exist(data):
    prepare("locomo", data_dir=data, sample=True)
    with pytest.raises(UsageError, match="no split called dev; there are train, val, test"):
        load_split("locomo", data, "dev")
    with pytest.raises(UsageError, match="no dataset is called lokomo") as caught:
        get("lokomo")
    assert caught.value.hint == "did you mean locomo?"


def test_senseless_sources(data, tmp_path):
    with pytest.raises(UsageError, match="cannot be used together"):
        prepare("locomo", data_dir=data, source=str(SAMPLE), sample=True)
    with pytest.raises(UsageError, match="neither a path nor"):
        prepare("locomo", data_dir=data, source="ftp://example.org/x.json")
    with pytest.raises(DataError, match="no such file"):
        prepare("locomo", data_dir=data, source=str(tmp_path / "nothing.json"))
    with pytest.raises(DataError, match="is a folder"):
        prepare("locomo", data_dir=data, source=str(tmp_path))


def test_a_data_dir_that_is_a_file(tmp_path):
    (tmp_path / "data").write_text("mine")
    with pytest.raises(UsageError, match="not a folder"):
        prepare("locomo", data_dir=tmp_path / "data", sample=True)


def test_a_suggested_command_can_be_pasted(tmp_path):
    with pytest.raises(DataError) as caught:
        load_manifest("locomo", Path("my data"))
    assert caught.value.hint == "memskill prepare --dataset locomo --data-dir 'my data'"


def test_two_at_once_prepare_it_once(data):
    results = []
    threads = [
        threading.Thread(target=lambda: results.append(prepare("locomo", data_dir=data, sample=True).already))
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results) == [False, True]


def test_nothing_asks_the_network(data, monkeypatch):
    asked = []
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **kwargs: asked.append(args))
    monkeypatch.setattr(socket.socket, "connect", lambda self, address: asked.append(address))
    prepare("locomo", data_dir=data, sample=True)
    assert len(load_split("locomo", data, "test")[0].queries) == 13
    assert asked == []


def test_nothing_is_written_outside_the_data_folder(data, tmp_path):
    code = "import sys; from pathlib import Path; from memskill_cli.datasets import prepare, prepared;"
    code += "prepare.prepare('locomo', data_dir=Path(sys.argv[1]), sample=True);"
    code += "print(len(prepared.load_split('locomo', Path(sys.argv[1]), 'test')))"
    home = tmp_path / "home"
    home.mkdir()
    env = {"PATH": os.environ["PATH"], "HOME": str(home)}
    done = subprocess.run([sys.executable, "-c", code, data], env=env, capture_output=True, text=True, check=True)
    assert done.stdout == "1\n"
    assert list(home.rglob("*")) == []


def written(folder: Path, *splits: str):
    """The manifest of traces with these splits."""
    folder.mkdir(exist_ok=True)
    (trace,) = list(get("locomo").read(SourceFile("", SAMPLE), ReaderCallbacks()))[:1]
    traces = [dataclasses.replace(trace, trace_id=f"t{at}", split=split) for at, split in enumerate(splits)]
    return storing.write_prepared(folder, SourceFile("own"), "", traces, [], None)


def test_a_split_that_is_nearly_a_usual_one_is_noted(tmp_path):
    notes = written(tmp_path / "own", "train", "tset", "test-50", "dev").notes
    assert notes == ["'tset' may be a misspelt name of a split; the usual names are train, val, test"]


@pytest.mark.parametrize("split", ["../out", "", ".", "a/b", "-x"])
def test_a_split_that_is_no_plain_name_is_refused(tmp_path, split):
    with pytest.raises(DataError, match="cannot name a split"):
        written(tmp_path / "own", "train", split)
    assert [path.name for path in tmp_path.rglob("*")] == ["own"], "nothing is written"
