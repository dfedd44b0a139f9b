"""Conversations of one's own beside benchmarks: names, the manifest, redaction, and what is said when they change."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from memskill_cli.config import load
from memskill_cli.config.datasets import DATASETS
from memskill_cli.datasets.importers import IMPORTERS, detect, names
from memskill_cli.datasets.own.dataset import OwnConversations
from memskill_cli.datasets.own.options import ReadOptions
from memskill_cli.datasets.prepare import PrepareResult, prepare
from memskill_cli.datasets.prepared import load_manifest, load_split
from memskill_cli.datasets.registry import find_own, get, is_own
from memskill_cli.datasets.samples import sample_path
from memskill_cli.errors import DataError, UsageError
from memskill_cli.reports.paper_results import find
from memskill_cli.types import Trace
from memskill_cli.utils.relative_dates import parse_date

from .files import asked, at, line, read, write

SAMPLE = sample_path("conversations")


@pytest.fixture(autouse=True)
def _no_names_of_other_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DATASETS, "_builtin", dict(DATASETS._builtin))


def users(folder: Path, number: int = 6) -> Path:
    """A folder with conversations and questions."""
    folder.mkdir()
    write(folder / "c.jsonl", *(line(f"u{n}", "s", f"I live at number {n}.") for n in range(number)))
    write(folder / "questions.jsonl", *(asked(f"u{n}", "Where?", str(n), evidence=["s"]) for n in range(number)))
    return folder


def made(folder: Path, source: Path, name: str = "support", force: bool = False, **options: object) -> PrepareResult:
    own = ReadOptions(**options)  # type: ignore[arg-type]
    return prepare(name, data_dir=folder / "data", source=str(source), own=own, force=force)


def test_several_live_side_by_side_and_are_known_by_their_manifests(tmp_path):
    made(tmp_path, users(tmp_path / "one"), "one")
    made(tmp_path, users(tmp_path / "two", 7), "two-2")
    DATASETS._builtin.pop("one")
    with pytest.raises(UsageError, match="no dataset is called one; there are locomo"):
        get("one")
    assert find_own(tmp_path / "data") == ["one", "two-2"]
    assert get("one").name == "one"
    assert is_own("two-2")
    assert not is_own("locomo")
    assert load_manifest("two-2", tmp_path / "data").traces == 7
    assert DATASETS.identity("one") == "", "the version of memskill is recorded elsewhere"
    assert load(overrides={"dataset": "one"}).eval.num_skills == 7
    assert not find("one").paper_results.results  # type: ignore[union-attr]


def test_an_unknown_name_without_a_source_names_the_nearest_and_how_to_begin(tmp_path):
    made(tmp_path, users(tmp_path / "one"))
    with pytest.raises(UsageError, match=r"no dataset is called suport; .* support") as caught:
        prepare("suport", data_dir=tmp_path / "data")
    assert caught.value.hint == "did you mean support?"
    with pytest.raises(UsageError) as caught:
        prepare("zzzz", data_dir=tmp_path / "data")
    assert "memskill prepare --dataset NAME --source FILE" in caught.value.hint


@pytest.mark.parametrize("name", ["a b", "../x", "a/b", "-x", "", "ü", "x" * 65, "a.b"])
def test_names_that_cannot_be(tmp_path, name):
    with pytest.raises(UsageError, match="a name has letters, digits, - and _"):
        made(tmp_path, users(tmp_path / "one"), name)


@pytest.mark.parametrize("name", ["LoCoMo", "ALFWORLD"])
def test_names_that_differ_from_a_benchmark_only_in_case(tmp_path, name):
    with pytest.raises(UsageError, match="there is a dataset called"):
        made(tmp_path, users(tmp_path / "one"), name)


def test_a_benchmark_takes_no_option_for_own_conversations(tmp_path):
    with pytest.raises(UsageError, match="locomo is not read with --redact"):
        prepare("locomo", data_dir=tmp_path / "data", sample=True, own=ReadOptions(redact=True))


def test_again_does_nothing_and_other_content_is_refused_with_the_command(tmp_path):
    source = users(tmp_path / "one")
    first = made(tmp_path, source, redact=True)
    assert made(tmp_path, source, redact=True).already
    assert prepare("support", data_dir=tmp_path / "data").already
    with pytest.raises(DataError, match="with other content or options") as caught:
        made(tmp_path, source)
    assert caught.value.hint.endswith("--force")
    write(source / "questions.jsonl", asked("u0"))
    with pytest.raises(DataError, match="with other content or options") as caught:
        made(tmp_path, source, redact=True)
    assert "--redact --force" in caught.value.hint
    assert made(tmp_path, source, redact=True, force=True).manifest.digest != first.manifest.digest
    with pytest.raises(UsageError, match="--force needs the source of support") as caught:
        prepare("support", data_dir=tmp_path / "data", force=True)
    assert f"--source {source} --redact --force" in caught.value.hint


def test_what_stands_in_the_manifest(tmp_path):
    manifest = made(tmp_path, users(tmp_path / "one"), roles=("user",)).manifest
    table = json.loads((tmp_path / "data" / "support" / "manifest.json").read_text())
    assert table["reading"] == manifest.reading == {
        "kind": "conversations",
        "format": "messages",
        "roles": ["user"],
        "split_by": "",
        "redacted": False,
        "flags": ["--roles", "user"],
    }  # fmt: skip
    assert manifest.notes[0] == "format messages, recognised by the content of c.jsonl"


def test_questions_of_a_trace_in_several_splits_are_counted_once_each(tmp_path):
    source = write(tmp_path / "c.jsonl", line("u", "s"))
    questions = write(tmp_path / "q.jsonl", *(asked("u", f"Q{n}?", category=f"c{n % 2}") for n in range(10)))
    manifest = made(tmp_path, source, questions=questions).manifest
    assert {name: size.queries for name, size in manifest.splits.items()} == {"train": 6, "val": 2, "test": 2}
    assert (manifest.traces, manifest.queries, manifest.categories) == (1, 10, {"c0": 5, "c1": 5})
    assert manifest.shared_traces


def test_damaged_tables_name_the_command_with_all_its_options(tmp_path):
    source = users(tmp_path / "one")
    made(tmp_path, source, redact=True)
    for table in (tmp_path / "data" / "support" / "traces").glob("*/*.arrow"):
        table.write_bytes(b"x")
    with pytest.raises(DataError, match="damaged") as caught:
        load_split("support", tmp_path / "data", "train")
    data = tmp_path / "data"
    flags = f"--data-dir {data} --source {source} --redact --force"
    assert caught.value.hint == f"memskill prepare --dataset support {flags}"


def test_a_file_that_is_broken_in_the_middle_leaves_what_was_prepared(tmp_path):
    source = users(tmp_path / "one")
    before = made(tmp_path, source).manifest
    with (source / "c.jsonl").open("a") as file:
        file.write('{"messages": 3}\n')
    with pytest.raises(DataError, match=r"c.jsonl:7: messages is a whole number"):
        made(tmp_path, source, force=True)
    assert load_manifest("support", tmp_path / "data") == before


def test_redaction_comes_before_anything_is_stored(tmp_path):
    secret, card, mail = "+44 113 496 0123", "4111 1111 1111 1111", "anna@example.org"
    session = line(mail, f"chat with {mail}", f"I am at {secret}", f"Paid with {card}, {mail}")
    session["messages"][0]["name"] = mail
    source = write(tmp_path / "c.jsonl", session, line("v", "s"))
    question = asked(mail, f"Whose is {secret}?", mail, evidence=[f"chat with {mail}"])
    questions = write(tmp_path / "q.jsonl", question)
    result = made(tmp_path, source, questions=questions, redact=True)
    stored = b"".join(path.read_bytes() for path in (tmp_path / "data" / "support").rglob("*") if path.is_file())
    assert not [text for text in (secret, card, mail, "496 0123") if text.encode() in stored]
    (trace,) = (
        trace for split in ("train", "test") if split in result.manifest.splits for trace in _split(tmp_path, split)
    )
    assert trace.trace_id.startswith("id-")
    assert trace.sessions[0].turns[0] == ("[email]", "I am at [phone]")
    assert trace.queries[0].evidence == (trace.sessions[0].label,)
    assert "replaced: [card] 1, [email] 3, [phone] 2" in result.manifest.notes


def _split(folder: Path, split: str) -> list[Trace]:
    return list(load_split("support", folder / "data", split))


# --- formats ---


def test_formats_are_found_by_content_or_by_name(tmp_path):
    native = write(tmp_path / "x.json", line())
    assert detect([native]).reason == "format messages, recognised by the content of x.json"
    assert detect([native], "messages").reason == "format messages, as asked for"
    with pytest.raises(UsageError, match="no format is called mesages") as caught:
        detect([native], "mesages")
    assert caught.value.hint == "did you mean messages?"
    assert names() == ["auto", *(importer.NAME for importer in IMPORTERS)]
    assert {"messages", "sharegpt", "chatgpt", "claude", "claude-code", "codex", "locomo"} <= set(names())


def test_no_two_importers_recognise_one_file(tmp_path):
    from memskill_cli.datasets.source_files import head_of

    for file in (SAMPLE / "conversations.jsonl", sample_path("locomo")):
        assert len([importer.NAME for importer in IMPORTERS if importer.recognises(head_of(file))]) == 1


def test_files_of_locomo_bring_their_questions_and_evidence(tmp_path):
    traces, notes = read(sample_path("locomo"))
    benchmark = {trace.trace_id: trace for trace in _locomo()}
    assert notes[0].startswith("format locomo, recognised by the content of")
    assert {trace.trace_id for trace in traces} == set(benchmark)
    for trace in traces:
        theirs = benchmark[trace.trace_id]
        assert [s.label for s in trace.sessions] == [s.label for s in theirs.sessions]
        assert [s.turns for s in trace.sessions] == [s.turns for s in theirs.sessions]
        scored = [query for query in theirs.queries if query.scored]
        assert [query.evidence for query in trace.queries] == [query.evidence for query in scored]
    assert any("adversarial questions" in note for note in notes)
    days = [[parse_date(s.date) for s in trace.sessions] for trace in traces]
    assert days == [[parse_date(s.date) for s in benchmark[trace.trace_id].sessions] for trace in traces]
    assert None not in days[0]


def _locomo() -> list[Trace]:
    from memskill_cli.datasets.base import ReaderCallbacks, SourceFile

    path = sample_path("locomo")
    return list(get("locomo").read(SourceFile(str(path), path), ReaderCallbacks()))


# --- the sample ---


def test_the_sample_has_what_it_promises():
    """12 users of 4 sessions, all in order, in all splits; every question has an answer that stands in its evidence."""
    traces, notes = read(SAMPLE)
    assert {(len(trace.sessions), len(trace.queries)) for trace in traces} == {(4, 4)}
    assert len(traces) == 12
    assert {trace.split for trace in traces} == {"train", "val", "test"}
    assert not any("left out" in note for note in notes)
    categories = {query.category for trace in traces for query in trace.queries}
    assert categories == {"fact", "change", "time", "preference", "several sessions"}
    for trace in traces:
        assert [s.date for s in trace.sessions] == sorted(s.date for s in trace.sessions)
        assert all(s.date.startswith("2025-") for s in trace.sessions)
        texts = {s.label: " ".join(turn.text for turn in s.turns).lower() for s in trace.sessions}
        for query in trace.queries:
            evidence = " ".join(texts[label] for label in query.evidence)
            answers = [answer.lower() for answer in query.gold_answers]
            assert any(all(word in evidence for word in answer.rstrip("s").split()[-1:]) for answer in answers), query
    assert OwnConversations("x").sample_name == SAMPLE.name


def test_order_of_time_is_independent_of_the_order_of_lines(tmp_path):
    lines = (SAMPLE / "conversations.jsonl").read_text("utf-8").splitlines(keepends=True)
    (tmp_path / "c.jsonl").write_text("".join(reversed(lines)), "utf-8")
    (forwards, _), (backwards, _) = read(SAMPLE / "conversations.jsonl"), read(tmp_path / "c.jsonl")
    assert {t.trace_id: t.sessions for t in forwards} == {t.trace_id: t.sessions for t in backwards}


def test_a_user_of_thousands_of_sessions(tmp_path):
    path = write(tmp_path / "c.jsonl", *(at(1.7e9 + 60 * (n * 7919 % 3000), line("u", f"s{n}")) for n in range(3000)))
    (trace,), _ = read(path)
    assert len(trace.sessions) == 3000
    assert [s.label for s in trace.sessions] == [f"s{n}" for n in sorted(range(3000), key=lambda n: n * 7919 % 3000)]


def test_damaged_and_empty_files_of_a_folder_are_named(tmp_path):
    (tmp_path / "a.jsonl").write_text("")
    (tmp_path / "b.json").write_text("<html>sign in</html>")
    shared = [{"id": "1", "conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]}]
    (tmp_path / "c.json").write_text(json.dumps(shared))
    traces, notes = read(tmp_path)
    assert len(traces) == 1
    assert "not read (empty, damaged or in another format): a.jsonl, b.json" in notes
    (tmp_path / "c.json").unlink()
    with pytest.raises(DataError, match=r"b.json: a web page"):
        read(tmp_path)
    write(tmp_path / "d.jsonl", line("u", "s"))
    assert "not read (empty, damaged or in another format): a.jsonl, b.json" in read(tmp_path)[1]
    (tmp_path / "b.json").rename(tmp_path / "b.jsonl")
    with pytest.raises(DataError, match=r"b.jsonl: a web page"):
        read(tmp_path)


def test_questions_are_checked_before_the_conversations_are_read(tmp_path):
    source = write(tmp_path / "c.jsonl", line("u", "s"), {"messages": 1})
    with pytest.raises(DataError, match=r"q.jsonl:1: question is missing"):
        read(source, write(tmp_path / "q.jsonl", {"answers": ["a"]}))
    with pytest.raises(DataError, match=r"none.jsonl: no such file"):
        read(source, tmp_path / "none.jsonl")


def test_a_name_without_data_leaves_no_folder(tmp_path):
    source = write(tmp_path / "c.jsonl", line("u", "s"), {"messages": 1})
    with pytest.raises(DataError):
        made(tmp_path, source)
    assert not (tmp_path / "data" / "support").exists()
    (tmp_path / "data" / "support").mkdir()
    inside = source.rename(tmp_path / "data" / "support" / "c.jsonl")
    with pytest.raises(DataError):
        made(tmp_path, inside)
    assert [path.name for path in (tmp_path / "data" / "support").iterdir()] == ["c.jsonl"], "the file of the user"


def test_training_without_questions_says_what_is_missing(tmp_path):
    from memskill_cli.app.train import create_run

    made(tmp_path, write(tmp_path / "c.jsonl", line("u", "s")))
    with pytest.raises(DataError, match=r"support in .* has no training split, only unasked") as caught:
        create_run(tmp_path / "runs", "a", load(overrides={"dataset": "support"}), tmp_path / "data")
    assert caught.value.hint.startswith("add questions (docs/own-data.md), then: memskill prepare --dataset support")


def test_from_python(tmp_path):
    from memskill_cli import prepare as library

    source = users(tmp_path / "one")
    questions = source.joinpath("questions.jsonl").rename(tmp_path / "q.jsonl")
    notes: list[str] = []
    options = {"questions": questions, "roles": ["user"], "split_by": "question", "redact": True}
    manifest = library("support", source=source, data_dir=tmp_path / "data", notice=notes.append, **options)
    assert manifest.queries == 6
    assert manifest.reading["flags"] == [
        *("--questions", str(questions), "--roles", "user", "--split-by", "question", "--redact")
    ]
    assert any(note.startswith("split by question") for note in notes)


def test_conversations_and_questions_that_were_mixed_up(tmp_path):
    conversations, questions = write(tmp_path / "c.jsonl", line("u", "s")), write(tmp_path / "qa.jsonl", asked("u"))
    with pytest.raises(DataError, match=r"c.jsonl: conversations, not questions"):
        read(conversations, conversations)
    (tmp_path / "meta.json").write_text('{\n "exported": "today"\n}')
    with pytest.raises(DataError, match=r"qa.jsonl: questions, not conversations") as caught:
        read(tmp_path)
    assert caught.value.hint == f"name the file with --questions {questions}"
    (trace,), notes = read(tmp_path, questions)
    assert len(trace.queries) == 1
    assert "not read (empty, damaged or in another format): meta.json" in notes
