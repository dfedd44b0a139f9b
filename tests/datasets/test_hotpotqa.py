"""Reading HotpotQA's long-context files: documents to the letter, variants that add up, and files that are broken."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memskill_cli.datasets.base import PrepareOptions, ReaderCallbacks, SourceFile
from memskill_cli.datasets.prepare import prepare
from memskill_cli.datasets.prepared import load_manifest, load_split
from memskill_cli.datasets.registry import get
from memskill_cli.datasets.samples import sample_path
from memskill_cli.datasets.spans import split_spans
from memskill_cli.errors import DataError, UsageError
from memskill_cli.types import Trace

REAL = Path(__file__).parents[2] / ".." / "shared" / "data" / "hotpotqa"


def context(n: int) -> str:
    return "\n\n".join(f"Document {i}:\nTitle {i}\nText of {i}." for i in range(1, n + 1))


BASE: dict[str, Any] = {"context": context(3), "input": "Who?", "answers": ["Ann", "Ann B."], "num_docs": 3, "index": 0}


def record(change: Callable[[dict[str, Any]], Any] = lambda record: None, **fields: Any) -> dict[str, Any]:
    made = copy.deepcopy(BASE) | fields
    change(made)
    return made


def write(path: Path, *records: Any) -> Path:
    path.write_text(json.dumps(list(records)), "utf-8")
    return path


def read(folder: Path, *records: Any, split: str = "test-3", limit: int = 0) -> tuple[list[Trace], list[str]]:
    path = write(folder / "some.json", *records)
    notes: list[str] = []
    part = SourceFile(str(path), path, split=split, limit=limit)
    return list(get("hotpotqa").read(part, ReaderCallbacks(notes.append))), notes


def test_a_record_is_a_trace_with_one_question_and_any_of_its_answers(tmp_path):
    (trace,), notes = read(tmp_path, record(input=" Who? "))
    assert (trace.trace_id, trace.split) == ("hotpotqa-3-0", "test-3")
    (query,) = trace.queries
    assert (query.question, query.gold_answers, query.category, query.date) == ("Who?", ("Ann", "Ann B."), "all", "")
    assert [(s.label, s.date, len(s.turns)) for s in trace.sessions] == [("documents", "", 3)]
    assert notes == []


def test_yes_and_no_and_numbers_are_answers(tmp_path):
    traces, _ = read(tmp_path, record(answers=["yes"]), record(answers=["no "]), record(answers=[1904]))
    assert [trace.queries[0].gold_answers for trace in traces] == [("yes",), ("no",), ("1904",)]


def test_ids_are_unique_though_a_question_or_an_index_occurs_twice(tmp_path):
    traces, _ = read(tmp_path, record(), record())
    assert [trace.trace_id for trace in traces] == ["hotpotqa-3-0", "hotpotqa-3-1"]
    assert [trace.queries[0].query_id for trace in traces] == ["hotpotqa-3-0", "hotpotqa-3-1"]


def test_paragraph_spans_are_the_documents(tmp_path):
    (trace,), _ = read(tmp_path, record())
    assert [span.text for span in split_spans(trace, "paragraph")] == [
        f"Document {i}:\nTitle {i}\nText of {i}." for i in (1, 2, 3)
    ]


ODD_CONTEXTS = [
    context(3),
    context(3) + "\n",
    "Read this.\n\n" + context(3),
    "Document 1:\nA\nSee Document 2: it is below.\n\n\n\nDocument 2:\nB\n\nDocument 3:\nC\r\nlast\n\n",
    "Document 1:\nA\nDocument 2:\nB\nDocument 3:\nC",
]


@pytest.mark.parametrize("text", ODD_CONTEXTS)
def test_the_whole_text_is_the_context_to_the_letter(tmp_path, text):
    (trace,), _ = read(tmp_path, record(context=text))
    assert [span.text for span in split_spans(trace, "full-session")] == [text]
    assert "".join(span.text for span in split_spans(trace, "fixed-length", chunk_size=5, chunk_overlap=0)) == text
    assert len(split_spans(trace, "paragraph")) == 3 + text.startswith("Read")


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text(st.characters(codec="utf-8"), max_size=20), min_size=1, max_size=5))
def test_any_documents_join_to_the_context(tmp_path_factory, texts):
    text = "\n\n".join(f"Document {i}:\n{body}" for i, body in enumerate(texts, 1))
    (trace,), _ = read(tmp_path_factory.mktemp("wild"), record(context=text, num_docs=len(texts)), split="train")
    assert [span.text for span in split_spans(trace, "full-session")] == [text]


def test_another_number_of_documents_than_announced_is_noted(tmp_path):
    _, notes = read(tmp_path, record(), record(context=context(2)))
    assert notes == ["questions whose context has a different number of documents than num_docs: 1"]


BROKEN = [
    (lambda made: made.pop("context"), "context is missing"),
    (lambda made: made.update(context=None), "context is missing"),
    (lambda made: made.update(context="Title\ntext"), "context has no line that begins with Document 1:"),
    (lambda made: made.pop("input"), "input is missing"),
    (lambda made: made.update(input=" "), "input is empty"),
    (lambda made: made.update(answers=[]), "answers is an empty list"),
    (lambda made: made.update(answers="Ann"), "answers is text, expected a list"),
    (lambda made: made.update(answers=[None]), "answers[0] is null, expected text or a number"),
    (lambda made: made.update(num_docs=50), "has 50 documents, but the requested variant has 3"),
]


@pytest.mark.parametrize(("change", "problem"), BROKEN, ids=[problem for _, problem in BROKEN])
def test_a_broken_file_is_named_with_record_and_field(tmp_path, change, problem):
    with pytest.raises(DataError) as caught:
        read(tmp_path, record(), record(change))
    assert caught.value.message == f"some.json: record 1: {problem}"


@pytest.mark.parametrize("content", [b"", b"[{", b"{}", b"[]", b'["x"]', b"<html>"])
def test_a_file_that_is_no_list_of_records(tmp_path, content):
    path = tmp_path / "eval_50.json"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"^eval_50\.json: "):
        prepare("hotpotqa", data_dir=tmp_path / "data", source=str(path))
    assert not (tmp_path / "data" / "hotpotqa" / "manifest.json").exists()


# --- variants ----------------------------------------------------------------------------------------------------


@pytest.fixture
def official(tmp_path) -> Path:
    """A folder with the official names."""
    folder = tmp_path / "official"
    folder.mkdir()
    for n in (50, 100, 200):
        write(folder / f"eval_{n}.json", *(record(context=context(n), num_docs=n, input=f"q{i}") for i in range(2)))
    return folder


def splits(data: Path) -> list[str]:
    return list(load_manifest("hotpotqa", data).splits)


def test_a_folder_gives_all_variants_in_order_of_size(tmp_path, official):
    manifest = prepare("hotpotqa", data_dir=tmp_path, source=str(official)).manifest
    assert list(manifest.splits) == ["test-50", "test-100", "test-200"]
    assert (manifest.traces, manifest.queries, manifest.categories) == (6, 6, {"all": 6})
    assert {trace.trace_id for name in splits(tmp_path) for trace in load_split("hotpotqa", tmp_path, name)} == {
        f"hotpotqa-{n}-{i}" for n in (50, 100, 200) for i in range(2)
    }


def test_variants_add_up_and_keep_their_digests(tmp_path, official):
    first = prepare("hotpotqa", data_dir=tmp_path, source=str(official / "eval_100.json")).manifest
    second = prepare(
        "hotpotqa", data_dir=tmp_path, source=str(official), ask=PrepareOptions(splits=("test-50",))
    ).manifest
    assert list(second.splits) == ["test-50", "test-100"]
    assert first.digest_of("test-100") == second.digest_of("test-100") != second.digest_of("test-50")
    arrow = tmp_path / "hotpotqa" / "traces" / "test-100" / "traces.arrow"
    before = arrow.stat().st_mtime_ns
    third = prepare("hotpotqa", data_dir=tmp_path, source=str(official))
    assert not third.already
    assert splits(tmp_path) == ["test-50", "test-100", "test-200"]
    assert arrow.stat().st_mtime_ns == before
    assert prepare("hotpotqa", data_dir=tmp_path, source=str(official)).already
    assert prepare("hotpotqa", data_dir=tmp_path).already


def test_force_replaces_the_variant_asked_for_and_no_other(tmp_path, official):
    before = prepare("hotpotqa", data_dir=tmp_path, source=str(official)).manifest
    other = write(official / "eval_100.json", record(context=context(100), num_docs=100, input="another"))
    with pytest.raises(DataError, match="has data from") as caught:
        prepare("hotpotqa", data_dir=tmp_path, source=str(other))
    assert caught.value.hint.endswith(f"--source {other} --split test-100 --force")
    after = prepare("hotpotqa", data_dir=tmp_path, source=str(other), force=True).manifest
    assert after.splits["test-100"].traces == 1
    for name in ("test-50", "test-200"):
        assert after.parts[name] == before.parts[name]
        assert len(load_split("hotpotqa", tmp_path, name)) == 2


def test_a_broken_variant_leaves_the_others_as_they_were(tmp_path, official):
    before = prepare("hotpotqa", data_dir=tmp_path, source=str(official)).manifest
    (official / "eval_100.json").write_text("[{")
    with pytest.raises(DataError, match="not JSON"):
        prepare("hotpotqa", data_dir=tmp_path, source=str(official / "eval_100.json"), force=True)
    assert load_manifest("hotpotqa", tmp_path) == before
    assert len(load_split("hotpotqa", tmp_path, "test-100")) == 2


def test_a_file_of_another_name_is_known_by_its_number_of_documents(tmp_path):
    path = write(tmp_path / "mine.json", record())
    assert list(prepare("hotpotqa", data_dir=tmp_path, source=str(path)).manifest.splits) == ["test-3"]


def test_a_file_that_does_not_say_its_variant_is_asked_about(tmp_path):
    path = write(tmp_path / "mine.json", record(lambda made: made.pop("num_docs")))
    with pytest.raises(DataError, match="neither its name nor num_docs") as caught:
        prepare("hotpotqa", data_dir=tmp_path, source=str(path))
    assert caught.value.hint.endswith("--variant 50")
    with pytest.raises(DataError, match="has 3 documents, but the requested variant has 50"):
        prepare("hotpotqa", data_dir=tmp_path, source=str(path), ask=PrepareOptions(splits=("test-50",)))
    made = prepare("hotpotqa", data_dir=tmp_path, source=str(path), ask=PrepareOptions(splits=("test-3",)))
    assert list(made.manifest.splits) == ["test-3"]


def test_a_file_never_passes_for_another_variant(tmp_path, official):
    with pytest.raises(DataError, match="has 50 documents, but the requested variant has 100"):
        prepare(
            "hotpotqa",
            data_dir=tmp_path,
            source=str(official / "eval_50.json"),
            ask=PrepareOptions(splits=("test-100",)),
        )


def test_senseless_wishes(tmp_path, official):
    for name in ("test", "test-x", "test-0", "val", "test-50/../.."):
        with pytest.raises(UsageError, match="hotpotqa has no split"):
            prepare("hotpotqa", data_dir=tmp_path, ask=PrepareOptions(splits=(name,)))
    with pytest.raises(UsageError, match="is one file, but 2 variants are requested"):
        prepare(
            "hotpotqa",
            data_dir=tmp_path,
            source=str(official / "eval_50.json"),
            ask=PrepareOptions(splits=("test-50", "train")),
        )
    with pytest.raises(DataError, match=r"has no eval_400\.json"):
        prepare("hotpotqa", data_dir=tmp_path, source=str(official), ask=PrepareOptions(splits=("test-400",)))
    with pytest.raises(DataError, match=r"has no eval_50\.json"):
        prepare("hotpotqa", data_dir=tmp_path / "a", source=str(tmp_path))
    with pytest.raises(DataError, match="no such file or folder"):
        prepare("hotpotqa", data_dir=tmp_path, source=str(tmp_path / "nothing"))


def parquet(path: Path, n: int) -> Path:
    """The training file's form: the same content under other names."""
    rows = [
        {
            "data_source": "hotpotqa",
            "prompt": [{"role": "user", "content": f"q{i}?"}],
            "context": context(2 + i),
            "reward_model": {"style": "rule", "ground_truth": [f"a{i}"]},
            "extra_info": {"index": i, "num_docs": 2 + i},
        }
        for i in range(n)
    ]
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def test_the_training_file_is_read_when_asked_for_and_may_be_cut(tmp_path, official):
    parquet(official / "hotpotqa_train_32k.parquet", 40)
    prepare("hotpotqa", data_dir=tmp_path, source=str(official))
    assert "train" not in splits(tmp_path)
    ask = PrepareOptions(splits=("train",), limit=25)
    manifest = prepare("hotpotqa", data_dir=tmp_path, source=str(official), ask=ask).manifest
    assert manifest.splits["train"].traces == 25
    assert "train: the first 25 of 40 questions" in manifest.notes
    train = load_split("hotpotqa", tmp_path, "train")
    assert (train[24].queries[0].question, train[24].queries[0].gold_answers) == ("q24?", ("a24",))
    assert len(train[24].sessions[0].turns) == 26
    assert prepare("hotpotqa", data_dir=tmp_path, source=str(official), ask=ask).already
    with pytest.raises(DataError, match="has data from"):
        prepare("hotpotqa", data_dir=tmp_path, source=str(official), ask=PrepareOptions(splits=("train",), limit=30))


def test_a_training_file_that_is_no_parquet(tmp_path):
    path = tmp_path / "hotpotqa_train_32k.parquet"
    path.write_text("[]")
    with pytest.raises(DataError, match=r"hotpotqa_train_32k\.parquet: not Parquet"):
        prepare("hotpotqa", data_dir=tmp_path / "data", source=str(path))


# --- real files and the sample -----------------------------------------------------------------------------------


@pytest.mark.skipif(not REAL.exists(), reason="the real files are not here")
@pytest.mark.parametrize("n", [50, 100, 200])
def test_the_real_files(n):
    path = REAL / f"eval_{n}.json"
    raw = json.loads(path.read_bytes())
    notes: list[str] = []
    traces = list(get("hotpotqa").read(SourceFile("", path, split=f"test-{n}"), ReaderCallbacks(notes.append)))
    assert notes == []
    assert len(traces) == 126
    assert sum(trace.queries[0].gold_answers[0] in ("yes", "no") for trace in traces) == 13
    assert all(trace.queries[0].question == item["input"].strip() for trace, item in zip(traces, raw, strict=True))
    for trace, item in zip(traces, raw, strict=True):
        assert [span.text for span in split_spans(trace, "full-session")] == [item["context"]]
        assert len(split_spans(trace, "paragraph")) == n


def test_the_sample_can_be_answered_from_its_documents(tmp_path):
    manifest = prepare("hotpotqa", data_dir=tmp_path, sample=True).manifest
    assert {name: size.traces for name, size in manifest.splits.items()} == {"test-6": 6}
    assert manifest.source == "sample:hotpotqa_sample.json"
    for trace in load_split("hotpotqa", tmp_path, "test-6"):
        texts = [span.text for span in split_spans(trace, "paragraph")]
        assert len(texts) == 6
        truth = trace.queries[0].gold_answers[0]
        assert truth in ("yes", "no") or any(truth in text for text in texts)
    raw = json.loads(sample_path("hotpotqa").read_text("utf-8"))
    assert any(item["input"] != item["input"].strip() for item in raw)
    assert all(len(re.findall(r"^Document \d:", item["context"], re.MULTILINE)) == 6 for item in raw)
