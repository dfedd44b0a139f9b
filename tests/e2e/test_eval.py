"""``memskill eval`` as typed, against a scripted server over real HTTP."""

from __future__ import annotations

import json
import shutil
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

import pytest

from memskill_cli.datasets.prepared import load_split
from memskill_cli.datasets.samples import sample_path
from memskill_cli.runs.run_dir import RunDir
from memskill_cli.testing import rules
from memskill_cli.testing.server import Fault, MockLLMServer, Request

from ..conftest import Done, Home, tiny

TRAINING = ["--run", "a", "--outer-epochs", "1", "--inner-epochs", "2", "--batch-size", "1", "--top-k", "2"]
SUMMARY = {
    *("dataset", "split", "method", "queries", "f1", "judge", "ci95", "by_category", "errors", "memories", "usage"),
    *("seconds", "run", "checkpoint", "data_digest", "config_digest"),
}
USAGE = {"calls", "cached_calls", "prompt_tokens", "completion_tokens", "cost_usd"}
ROW = {"trace_id", "query_id", "category", "question", "truths", "prediction", "f1", "judge", "retrieved", "error"}


@dataclass
class Models:
    """The rule-made models, whose answers to some questions fail and whose verdicts on some cannot be read."""

    unanswered: str = "-"
    unreadable: str = "-"
    asked: list[Request] = field(default_factory=list)

    def __call__(self, request: Request) -> str | Fault:
        self.asked.append(request)
        question = rules.part(request, "question")
        if request.role == "answer" and question == self.unanswered:
            return Fault.server_error()
        if request.role == "judge" and question == self.unreadable:
            return '{"explanation": "splendid", "score": 10}'
        return rules.reply(request)


@dataclass(frozen=True)
class Evaluated:
    home: Home
    models: Models
    url: str
    done: Done


def rows(done: Done, home: Home) -> list[dict[str, Any]]:
    file = home.path / done.json["folder"] / "results.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()]


@pytest.fixture(scope="module")
def evaluated(new_home: Callable[[], Home]) -> Iterator[Evaluated]:
    """A short training, evaluated on the test split with one call at a time."""
    home, models = new_home(), Models()
    with MockLLMServer(models) as server:
        trained = home.memskill("train", *tiny(server.url, *TRAINING), "--no-evolve", "--quiet")
        assert trained.code == 0, trained.err
        models.asked.clear()
        done = home.memskill("eval", "--run", "a", "--concurrency", "1", "--json")
        assert done.code == 0, done.err
        yield Evaluated(home, models, server.url, done)


def test_the_files_are_what_the_contract_says(evaluated: Evaluated) -> None:
    summary = evaluated.done.json
    written = json.loads((evaluated.home.path / summary["folder"] / "summary.json").read_text())
    assert written.items() <= summary.items()
    assert written.keys() >= SUMMARY
    assert written["usage"].keys() == USAGE
    assert (written["dataset"], written["split"], written["method"]) == ("locomo", "test", "memskill")
    assert (written["run"], written["checkpoint"], written["errors"]) == ("a", "000002", {})
    assert written["seconds"] > 0
    found = rows(evaluated.done, evaluated.home)
    assert all(row.keys() == ROW | {"evidence"} for row in found if row.get("evidence"))
    assert all(row.keys() == ROW for row in found if not row.get("evidence"))
    assert all(row["retrieved"] and row["retrieved"][0].keys() == {"id", "text", "score"} for row in found)
    assert all(0 <= row["f1"] <= 1 and row["judge"] in (0, 0.5, 1) and row["error"] == "" for row in found)


def test_every_scored_question_is_there_once_in_order(evaluated: Evaluated) -> None:
    traces = load_split("locomo", evaluated.home.path / "data", "test")
    scored = [query.query_id for trace in traces for query in trace.queries if query.scored]
    left = sum(not query.scored for trace in traces for query in trace.queries)
    assert [row["query_id"] for row in rows(evaluated.done, evaluated.home)] == scored
    assert left > 0
    assert f"{left} queries are not scored and are left out" in evaluated.done.err
    assert "category 5" in evaluated.done.err
    assert evaluated.done.json["left_out"] == left
    assert "adversarial" not in evaluated.done.json["by_category"]


def test_the_numbers_follow_from_the_rows(evaluated: Evaluated) -> None:
    summary, found = evaluated.done.json, rows(evaluated.done, evaluated.home)
    groups = defaultdict(list)
    for row in found:
        groups[row["category"]].append(row)
    assert summary["queries"] == len(found)
    assert summary["by_category"].keys() == groups.keys()
    for part, some in [(summary, found), *((summary["by_category"][name], group) for name, group in groups.items())]:
        assert part["queries"] == len(some)
        for score in ("f1", "judge"):
            mean = fmean(row[score] for row in some)
            assert part[score] == pytest.approx(mean)
            low, high = part["ci95"][score]
            assert min(row[score] for row in some) - 1e-9 <= low <= mean + 1e-9
            assert mean - 1e-9 <= high <= max(row[score] for row in some) + 1e-9
    low, high = summary["ci95"]["f1"]
    assert low < summary["f1"] < high, "eleven answers are not all alike"


def test_the_same_again_asks_nothing(evaluated: Evaluated) -> None:
    evaluated.models.asked.clear()
    again = evaluated.home.memskill("eval", "--run", "a", "--concurrency", "7", "--json")
    assert again.code == 0, again.err
    assert evaluated.models.asked == []
    assert again.json == evaluated.done.json
    assert "is complete" in again.err


def test_concurrency_changes_no_result(evaluated: Evaluated) -> None:
    home = evaluated.home
    shutil.copytree(home.path / "runs", home.path / "others", ignore=shutil.ignore_patterns("evals", "memory", ".*"))
    where = ["--runs-dir", "others", "--concurrency", "32", "--json", "--quiet"]
    done = home.memskill("eval", *where, MEMSKILL_CACHE_DIR="elsewhere")
    assert done.code == 0, done.err
    assert done.err == ""
    assert rows(done, home) == rows(evaluated.done, home)
    same = ("f1", "judge", "ci95", "by_category", "memories", "id", "queries")
    assert {name: done.json[name] for name in same} == {name: evaluated.done.json[name] for name in same}


def test_what_failed_is_owed_and_asked_again_alone(evaluated: Evaluated) -> None:
    home, models = evaluated.home, evaluated.models
    first, second = rows(evaluated.done, home)[:2]
    flags = ["eval", "--run", "a", "--limit", "4", "--set", "models.retries=0", "--json", "--quiet"]
    models.unanswered, models.unreadable = first["question"], second["question"]
    failed = home.memskill(*flags, MEMSKILL_CACHE_DIR="fresh")
    assert failed.code == 0, failed.err
    assert "2 of 4 queries failed" in failed.err
    assert failed.json["id"] != evaluated.done.json["id"], "four questions are another evaluation"
    assert failed.json["errors"] == {"answer": 1, "judge": 1}
    unanswered, unjudged, *others = rows(failed, home)
    assert (unanswered["f1"], unanswered["judge"]) == (None, None)
    assert unanswered["error"].startswith("answer: ")
    assert (unjudged["f1"], unjudged["judge"]) == (second["f1"], None), "a verdict not read is no 0"
    assert unjudged["error"].startswith("judge: ")
    assert failed.json["f1"] == pytest.approx(fmean(row["f1"] for row in [unjudged, *others]))
    assert failed.json["judge"] == pytest.approx(fmean(row["judge"] for row in others))

    models.unanswered = models.unreadable = "-"
    models.asked.clear()
    mended = home.memskill(*flags, MEMSKILL_CACHE_DIR="fresh")
    assert mended.code == 0, mended.err
    assert mended.err == ""
    asked = sorted((request.role, rules.part(request, "question")) for request in models.asked)
    wanted = [("answer", first["question"]), ("judge", first["question"]), ("judge", second["question"])]
    assert asked == sorted(wanted)
    assert mended.json["errors"] == {}
    assert rows(mended, home) == rows(evaluated.done, home)[:4]
    assert mended.json["seconds"] > failed.json["seconds"], "the time of both tries"


def test_another_checkpoint_has_memories_of_its_own_even_while_the_run_is_in_use(evaluated: Evaluated) -> None:
    home, run = evaluated.home, RunDir(evaluated.home.path / "runs" / "a")
    with run.lock():
        earlier, latest = home.together(
            ["eval", "--run", "a", "--checkpoint", "runs/a/checkpoints/000001", "--no-judge", "--json"],
            ["eval", "--run", "a", "--checkpoint", "latest", "--json"],
        )
    assert earlier.code == 0, earlier.err
    assert earlier.json["checkpoint"] == "000001"
    assert earlier.json["judge"] is None
    assert earlier.json["id"] != evaluated.done.json["id"]
    assert {folder.name for folder in run.memory.iterdir()} >= {earlier.json["id"], evaluated.done.json["id"]}
    assert latest.code == 0, latest.err
    assert latest.json == evaluated.done.json, "of one stage, the latest is the best"


def test_without_any_run_it_says_that_nothing_is_trained(evaluated: Evaluated) -> None:
    home = evaluated.home
    flags = tiny(evaluated.url, "--runs-dir", "none-yet", "--limit", "2")
    done, split = home.together(["eval", *flags], ["eval", "--run", "a", "--split", "tset"])
    assert done.code == 0, done.err
    assert "untrained controller" in done.err
    assert "checkpoint untrained" in done.out
    assert "only the first 2 queries" in done.out
    assert json.loads((home.path / "none-yet" / "untrained" / "run.json").read_text())["status"] == "untrained"
    assert split.code == 2
    assert "no split called tset; there are train, val, test" in split.err


def test_methods_side_by_side_on_the_same_questions(evaluated: Evaluated) -> None:
    """Compared with what was there already, asking only what is new, and once more nothing at all."""
    home, models = evaluated.home, evaluated.models
    models.asked.clear()
    flags = ["eval", "--run", "a", "--method", "memskill,no-memory,rag", "--quiet"]
    done = home.memskill(*flags, "--json")
    assert done.code == 0, done.err
    assert {request.role for request in models.asked} == {"answer", "judge"}, "memskill's memory was there"
    ours, nothing, rag = done.json["evaluations"]
    assert ours.items() >= {name: evaluated.done.json[name] for name in ("id", "f1", "judge", "memories")}.items()
    assert [summary["checkpoint"] for summary in (ours, nothing, rag)] == ["000002", "none", "none"]
    assert nothing["memories"] == 0 < rag["memories"]
    gains = {(gain["method"], gain["score"]): gain for gain in done.json["differences"]}
    assert gains.keys() == {(method, score) for method in ("no-memory", "rag") for score in ("f1", "judge")}
    for summary in (nothing, rag):
        pairs = list(zip(rows(evaluated.done, home), read(home, summary["folder"]), strict=True))
        assert all(a["query_id"] == b["query_id"] for a, b in pairs)
        for score in ("f1", "judge"):
            gain = gains[summary["method"], score]
            assert gain["difference"] == pytest.approx(fmean(b[score] - a[score] for a, b in pairs))
            assert gain["first"] == "memskill"
            assert gain["ci95"][0] <= gain["difference"] <= gain["ci95"][1]
    models.asked.clear()
    shown = home.memskill(*flags)
    assert shown.code == 0, shown.err
    assert models.asked == []
    assert "difference to memskill" in shown.out
    assert all(name in shown.out for name in ("memskill", "no-memory", "rag"))


def test_what_cannot_work_is_said_before_anything_is_asked(evaluated: Evaluated) -> None:
    home, models = evaluated.home, evaluated.models
    models.asked.clear()
    flags = ["eval", "--run", "a", "--limit", "1"]
    window, unknown = home.together(
        [*flags, "--method", "no-memory,full-context"], [*flags, "--method", "no-memory,full-contxt"]
    )
    twice, abstention = home.together([*flags, "--method", "rag,rag"], [*flags, "--include-abstention"])
    assert (window.code, unknown.code, twice.code, abstention.code) == (2, 2, 2, 2)
    assert "eval.context_tokens" in window.err
    assert "did you mean full-context?" in unknown.err
    assert "several different" in twice.err
    assert "locomo has no abstention questions" in abstention.err
    assert models.asked == []


def read(home: Home, folder: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (home.path / folder / "results.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def documents(evaluated: Evaluated) -> Home:
    """The same home with the HotpotQA sample in two sizes: as it ships, and without the last two documents."""
    home = evaluated.home
    records = json.loads(sample_path("hotpotqa").read_text())
    for record in records:
        record["context"] = record["context"].partition("\n\nDocument 5:")[0]
        record["num_docs"] = 4
    (home.path / "eval_4.json").write_text(json.dumps(records))
    for flags in (["--sample"], ["--source", "eval_4.json"]):
        done = home.memskill("prepare", "--dataset", "hotpotqa", *flags, "--quiet")
        assert done.code == 0, done.err
    return home


def test_skills_go_over_to_document_sets_of_every_size(documents: Home, evaluated: Evaluated) -> None:
    evaluated.models.asked.clear()
    flags = ["eval", "--dataset", "hotpotqa", "--run", "a", "--json", "--quiet"]
    both, one = documents.together(
        [*flags, "--method", "memskill,no-memory"], [*flags, "--variant", "6", "--limit", "1"]
    )
    assert both.code == 0, both.err
    assert one.code == 0, one.err
    made = both.json["evaluations"]
    assert [(s["split"], s["variant"], s["method"]) for s in made] == [
        ("test-4", "4", "memskill"),
        ("test-4", "4", "no-memory"),
        ("test-6", "6", "memskill"),
        ("test-6", "6", "no-memory"),
    ]
    assert made[0]["checkpoint"] == "000002", "the LoCoMo run's controller"
    assert len({summary["id"] for summary in made}) == 4
    assert made[0]["data_digest"] != made[2]["data_digest"]
    assert {(gain["variant"], gain["first"], gain["method"]) for gain in both.json["differences"]} == {
        ("4", "memskill", "no-memory"),
        ("6", "memskill", "no-memory"),
    }
    assert (one.json["variant"], one.json["queries"]) == ("6", 1), "of one evaluation, its summary as ever"
    answers = [request for request in evaluated.models.asked if request.role == "answer"]
    assert {request.body["max_tokens"] for request in answers} == {512}, "HotpotQA's own settings, not LoCoMo's"
    table = documents.memskill(
        "eval", "--dataset", "hotpotqa", "--run", "a", "--method", "memskill,no-memory", "--quiet"
    )
    assert table.code == 0, table.err
    assert "hotpotqa test, checkpoint 000002" in table.out
    assert "variant" in table.out
