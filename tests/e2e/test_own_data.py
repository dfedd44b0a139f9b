"""Conversations of one's own as a user sees them: check, prepare, train, evaluate, remove; and docs/own-data.md."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from memskill_cli.datasets.samples import sample_path
from memskill_cli.testing import rules
from memskill_cli.testing.replies import Reply
from memskill_cli.testing.server import MockLLMServer, Request

from ..conftest import Home
from ..doc_snippets import ROOT, shell_commands, snippets

SAMPLE = sample_path("conversations")
PAGE = ROOT / "docs" / "own-data.md"
SHORT = ["--outer-epochs", "1", "--inner-epochs", "1", "--batch-size", "2", "--set", "train.max_spans=2"]


def models(url: str) -> list[str]:
    encoder = ["--encoder", "hashing", "--retriever", "hashing"]
    return ["--model", "openai/rules", "--api-base", url, "--api-key", "none", *encoder]


def files_of(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_check_tells_all_and_writes_nothing(home: Home) -> None:
    before = files_of(home.path)
    command = ["prepare", "--dataset", "support", "--source", str(SAMPLE), "--check"]
    seen, facts = home.together([*command, "--model", "openai/gpt-4o-mini"], [*command, "--json"])
    assert (seen.code, facts.code) == (0, 0), seen.err + facts.err
    assert files_of(home.path) == before
    assert "support: 12 users, 48 sessions, 163 messages" in seen.out
    assert "2-3" in seen.out
    assert "nothing was written" in seen.err
    table = facts.json
    assert (table["users"], table["sessions"], table["questions"], table["questions_with_evidence"]) == (12, 48, 48, 48)
    assert sum(row["sessions"] for row in table["session_lengths"]) == 48
    assert sum(table["splits"].values()) == sum(table["categories"].values()) == 48
    training, evaluation = table["estimate"]["training"], table["estimate"]["evaluation"]
    assert training["spans"] > evaluation["spans"] == 4 * table["splits"]["test"] / 4
    assert training["usd"] == 0.0, "the embedded model costs nothing"
    assert "price unknown" not in seen.out


def test_errors_are_one_line_with_the_next_command(home: Home) -> None:
    (home.path / "page.jsonl").write_text("<!doctype html><title>Sign in</title>")
    (home.path / "bad.jsonl").write_text('{"mesages": []}\n{"messages": 1}\n')
    web, bad, nothing, name = (
        home.memskill("prepare", *flags)
        for flags in (
            ["--dataset", "mine", "--source", "page.jsonl"],
            ["--dataset", "mine", "--source", "bad.jsonl", "--format", "messages"],
            [],
            ["--dataset", "my data", "--source", "bad.jsonl"],
        )
    )
    assert (web.code, bad.code, nothing.code, name.code) == (1, 1, 2, 2)
    assert "error: page.jsonl: a web page (HTML), not data" in web.err
    assert "error: bad.jsonl:1: mesages: unknown key; did you mean messages?" in bad.err
    assert "error: --dataset is missing" in nothing.err
    assert "error: --dataset my data: a name has letters, digits, - and _" in name.err
    assert "Traceback" not in web.err + bad.err + nothing.err + name.err


@pytest.mark.slow
def test_it_is_trained_and_evaluated_like_a_benchmark_and_removed(home: Home) -> None:
    done = home.memskill("prepare", "--dataset", "support", "--source", str(SAMPLE), "--redact")
    assert done.code == 0, done.err
    assert "next: memskill train --dataset support" in done.err
    with MockLLMServer() as server:
        done = home.memskill("train", "--dataset", "support", "--run", "a", *models(server.url), *SHORT)
        assert done.code == 0, done.err
        evaluation = ["eval", "--run", "a", *models(server.url), "--json", "--quiet"]
        done = home.memskill(*evaluation, "--method", "memskill,rag,no-memory")
        assert done.code == 0, done.err
        calls = len(server.requests)
        again = home.memskill(*evaluation)
        assert len(server.requests) == calls, "the same evaluation again pays for nothing"
        evolved = home.memskill(
            "evolve", "--run", "a", "--dry-run", "--model", "openai/rules", "--api-base", server.url
        )
        assert evolved.code == 0, evolved.err
    summaries = [json.loads(path.read_text()) for path in home.path.glob("runs/a/evals/*/summary.json")]
    assert {one["method"] for one in summaries} == {"memskill", "rag", "no-memory"}
    assert {one["dataset"] for one in summaries} == {"support"}
    assert again.json["queries"] == 12
    assert again.json["evidence_recall"]["20"] > 0
    report = Path(
        again.json["report"] if Path(again.json["report"]).is_absolute() else home.path / again.json["report"]
    )
    assert "the paper" not in report.read_text().lower(), "there are no published figures to compare with"
    cache = home.path / "cache" / "own" / "support"
    assert (cache / "responses.sqlite").exists()
    assert not (home.path / "cache" / "responses.sqlite").exists()
    removed = home.memskill("prepare", "--remove", "support", "--json")
    assert removed.code == 0, removed.err
    assert not cache.exists()
    assert not (home.path / "data" / "support").exists()
    assert removed.json["runs"] == ["runs/a"]
    assert "runs with text of support are kept: a" in removed.err
    gone = home.memskill("eval", "--run", "a")
    assert gone.code != 0
    assert "no dataset is called support" in gone.err


def test_what_cannot_be_removed(home: Home) -> None:
    """Least of all a folder that ``prepare`` did not make."""
    (home.path / "data" / "photos").mkdir(parents=True)
    (home.path / "data" / "photos" / "cat.png").write_text("cat")
    benchmark, unknown = home.together(["prepare", "--remove", "locomo"], ["prepare", "--remove", "none"])
    foreign, outside = home.together(["prepare", "--remove", "photos"], ["prepare", "--remove", "../photos"])
    assert (foreign.code, outside.code) == (1, 2)
    assert (home.path / "data" / "photos" / "cat.png").exists()
    assert (benchmark.code, unknown.code) == (2, 1)
    assert "locomo is a benchmark, not conversations of your own" in benchmark.err
    assert "no conversations called none are prepared in data; there are none" in unknown.err


@pytest.mark.slow
def test_every_command_of_the_page_works_in_its_order(home: Home) -> None:
    """With scripted models in place of those that the page names, and a short training."""
    shutil.copytree(SAMPLE, home.path / "data" / "samples" / "conversations")
    text = PAGE.read_text("utf-8")
    written = {snippet.text for snippet in snippets("own-data.md", text) if snippet.language == "json"}
    assert written, "the page shows the format"
    commands = [
        found.arguments
        for snippet in snippets("own-data.md", text)
        if snippet.language == ""
        for found in shell_commands(snippet.text)
        if found.name == "memskill"
    ]
    assert {arguments[0] for arguments in commands} == {"prepare", "train", "eval", "inspect-skills", "evolve"}
    with MockLLMServer(_page_models) as server:
        for arguments in commands:
            done = home.memskill(*_here(arguments, server.url))
            assert done.code == 0, f"{arguments}: {done.err}"
            if "--remove" in arguments:
                assert not (home.path / "data" / "support").exists()
    manifest = json.loads((home.path / "data" / "support" / "manifest.json").read_text())
    assert manifest["queries"] == 12, "the questions that the model wrote: no user is asked the same twice"


def _page_models(request: Request) -> Reply:
    """The scripted models, and a designer that asks for the longest word of what a user says first in a session."""
    if "designer of questions" in request.text:
        said = re.findall(r"\[session (\d+)\].*\n[^:\n]+: ([^.!?\n]{8,})", request.text)
        return json.dumps({"questions": [_asked(number, quote) for number, quote in said]})
    if request.role == "answer" and "Which is the longest word?" in request.text:
        memories = request.text.partition("<memories>")[2].partition("</memories>")[0]
        return max(memories.rpartition("] ")[2].split() or ["unknown"], key=len)
    return rules.reply(request)


def _asked(number: str, quote: str) -> dict[str, Any]:
    evidence = [{"session": number, "quote": quote}]
    longest = max(quote.split(), key=len)
    return {"evidence": evidence, "kind": "fact", "question": "Which is the longest word?", "answer": longest}


def _here(arguments: list[str], url: str) -> list[str]:
    """A command of the page with the scripted models, and as short as it can be."""
    kept = [word for word in arguments if word not in ("--model", "openai/gpt-4o-mini", "--max-cost", "5")]
    if arguments[0] == "train":
        return [*kept, *models(url), *SHORT]
    if arguments[0] == "eval":
        return [*kept, *models(url), "--limit", "4", "--no-judge"]
    if "--write-questions" in arguments:
        return [*kept, *models(url)[:6]]
    if arguments[0] == "evolve":
        return [*kept, "--model", "openai/rules", "--api-base", url]
    return kept


def writes(request: Request) -> str:
    """A designer that asks for a word of the first long line of each session that it sees."""
    if request.role == "answer":
        return request.text.partition("<question>")[0].rpartition("MARK ")[2].split(" ")[0]
    found = re.findall(r"\[session (\d+)\].*\nuser: (I keep MARK (\w+) in a box\.)", request.text)
    items = [
        {"evidence": [{"session": n, "quote": quote}], "kind": "fact", "question": f"Which {word[:2]}?", "answer": word}
        for n, quote, word in found
    ]
    wrong = {"evidence": [{"session": 1, "quote": "never said"}], "kind": "fact", "question": "What?", "answer": "it"}
    return json.dumps({"questions": [wrong, *items]})


def test_questions_are_written_edited_and_taken_back(home: Home) -> None:
    words = ["abacus", "banjo", "cello", "dice", "easel", "flute"]
    sessions = [
        {
            "user_id": user,
            "session_id": f"{user}-{word}",
            "messages": [{"role": "user", "content": f"I keep MARK {word} in a box."}],
        }
        for user in ("anna", "bob")
        for word in words
    ]
    (home.path / "c.jsonl").write_text("".join(json.dumps(line) + "\n" for line in sessions))
    path = home.path / "data" / "mine" / "questions.jsonl"
    with MockLLMServer(writes) as server:
        command = ["prepare", "--dataset", "mine", "--source", "c.jsonl", "--write-questions", "4"]
        command += ["--model", "openai/rules", "--api-base", server.url, "--api-key", "none", "--json"]
        done = home.memskill(*command)
        assert done.code == 0, done.err
        assert "expected: " in done.err
        calls = len(server.requests)
        refused = home.memskill(*command)
        path.unlink()
        again = home.memskill(*command)
        assert again.json == done.json
        assert len(server.requests) == calls, "a stopped command takes its replies from the cache"
    assert refused.code == 1
    assert "questions.jsonl exists, and may have been edited" in refused.err
    assert (done.json["questions"], done.json["users"]) == (8, 2)
    assert set(done.json["dropped"]) == {"evidence is not in the text"}
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    asked = {(line["user_id"], line["evidence"][0], line["answers"][0]) for line in lines}
    assert len(asked) == 8, "no session twice while others have no question"
    assert all(session == f"{user}-{answer}" for user, session, answer in asked)
    assert all(line["quotes"] == [f"I keep MARK {line['answers'][0]} in a box."] for line in lines)
    command = ["prepare", "--dataset", "mine", "--source", "c.jsonl", "--questions", str(path), "--force", "--json"]
    taken = home.memskill(*command)
    assert taken.code == 0, taken.err
    assert taken.json["queries"] == 8


@pytest.mark.slow
def test_writing_holds_the_budget(home: Home) -> None:
    (home.path / "c.jsonl").write_text(
        json.dumps({"messages": [{"role": "user", "content": "I keep MARK a in a box."}]})
    )
    flags = ["--write-questions", "2", "--model", "openai/gpt-4o-mini", "--max-cost", "0.0000001"]
    flags += ["--set", "prices.openai/gpt-4o-mini=0.15,0.60"]
    with MockLLMServer(writes) as server:
        command = ["prepare", "--dataset", "mine", "--source", "c.jsonl", *flags]
        done = home.memskill(*command, "--api-base", server.url, "--api-key", "none")
        assert len(server.requests) <= 1
    assert done.code == 3, done.err
    assert not (home.path / "data" / "mine" / "questions.jsonl").exists()
