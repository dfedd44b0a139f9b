"""``memskill prepare`` from the Hugging Face Hub, by way of a hub of our own, and the flags of variants."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from memskill_cli.datasets.prepared import load_split
from memskill_cli.datasets.samples import sample_path

TOKEN = "hf_canary51c0"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def question(n: int) -> dict[str, object]:
    context = "\n\n".join(f"Document {i}:\nTitle\nText {i}." for i in range(1, n + 1))
    return {"context": context, "input": "Who?", "answers": ["Ann"], "num_docs": n, "index": 0}


class Hub:
    """Answers as the Hub does for files of datasets: HEAD with commit and ETag, GET with the bytes."""

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files = files
        self.private = False
        self.requests: list[tuple[str, str, str]] = []  # method, path, authorization
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_HEAD(self) -> None:
                outer.answer(self, body=False)

            def do_GET(self) -> None:
                outer.answer(self, body=True)

            def log_message(self, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def answer(self, http: BaseHTTPRequestHandler, *, body: bool) -> None:
        allowed = http.headers.get("Authorization", "")
        self.requests.append((http.command, http.path, allowed))
        content = self.files.get(http.path)
        if self.private and allowed != f"Bearer {TOKEN}":
            return self._refuse(http, 401, "GatedRepo")
        if content is None:
            return self._refuse(http, 404, "EntryNotFound")
        http.send_response(200)
        http.send_header("X-Repo-Commit", COMMIT)
        http.send_header("ETag", f'"{hashlib.sha1(content).hexdigest()}"')
        http.send_header("Content-Length", str(len(content)))
        http.end_headers()
        if body:
            http.wfile.write(content)
        return None

    def _refuse(self, http: BaseHTTPRequestHandler, status: int, reason: str) -> None:
        http.send_response(status)
        http.send_header("X-Error-Code", reason)
        http.send_header("Content-Length", "0")
        http.end_headers()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def fetched(self) -> list[str]:
        return [path.rsplit("/", 1)[1] for method, path, _ in self.requests if method == "GET"]


@pytest.fixture
def hub() -> Iterator[Hub]:
    base = "/datasets/BytedTsinghua-SIA/hotpotqa/resolve/main"
    files = {f"{base}/eval_{n}.json": json.dumps([question(n)]).encode() for n in (50, 100, 200)}
    sample = sample_path("longmemeval").read_bytes()
    files["/datasets/xiaowu0162/longmemeval-cleaned/resolve/main/longmemeval_s_cleaned.json"] = sample
    made = Hub(files)
    yield made
    made.close()


@pytest.fixture
def run(tmp_path, hub):
    """Types a command with the fake hub as the Hub, and a home of its own."""

    def typed(*args: object, **env: str) -> subprocess.CompletedProcess[str]:
        kept = {name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ}
        home = {"HOME": str(tmp_path / "home"), "HF_HOME": str(tmp_path / "hf"), "HF_ENDPOINT": hub.url}
        command = [sys.executable, "-m", "memskill_cli", "prepare", "--data-dir", str(tmp_path / "data")]
        return subprocess.run(
            [*command, *map(str, args)],
            capture_output=True,
            text=True,
            timeout=60,
            env={**kept, **home, "COLUMNS": "110", **env},
        )

    return typed


def test_all_variants_come_from_the_hub_once(tmp_path, hub, run):
    done = run("--dataset", "hotpotqa")
    assert done.returncode == 0, done.stderr
    assert "hotpotqa: 3 traces, 3 queries" in done.stdout
    assert [line.split("│")[1].strip() for line in done.stdout.splitlines() if "test-" in line and "│" in line] == [
        "test-50", "test-100", "test-200"
    ]  # fmt: skip
    assert hub.fetched() == ["eval_50.json", "eval_100.json", "eval_200.json"]
    assert "next: memskill eval --dataset hotpotqa" in done.stderr
    asked = len(hub.requests)
    again = run("--dataset", "hotpotqa")
    assert "already prepared" in again.stderr
    assert len(hub.requests) == asked


def test_one_variant_now_and_another_later(tmp_path, hub, run):
    assert run("--dataset", "hotpotqa", "--variant", "100").returncode == 0
    done = run("--dataset", "hotpotqa", "--variant", "50", "--json")
    facts = json.loads(done.stdout)
    assert list(facts["splits"]) == ["test-50", "test-100"]
    assert facts["parts"]["test-50"]["source"] == "hf://datasets/BytedTsinghua-SIA/hotpotqa/eval_50.json"
    assert hub.fetched() == ["eval_100.json", "eval_50.json"]
    assert load_split("hotpotqa", tmp_path / "data", "test-50")[0].trace_id == "hotpotqa-50-0"


def test_the_hubs_cache_is_used_and_good_without_a_network(hub, run):
    assert run("--dataset", "hotpotqa", "--variant", "50").returncode == 0
    asked = len(hub.fetched())
    again = run("--dataset", "hotpotqa", "--variant", "50", "--force")
    assert again.returncode == 0
    assert len(hub.fetched()) == asked
    hub.close()
    assert run("--dataset", "hotpotqa", "--variant", "50", "--force").returncode == 0
    assert run("--dataset", "hotpotqa", "--variant", "50", "--force", HF_HUB_OFFLINE="1").returncode == 0


def test_a_token_reaches_the_hub_and_nothing_else(tmp_path, hub, run):
    hub.private = True
    refused = run("--dataset", "hotpotqa", "--variant", "50")
    assert refused.returncode == 1
    assert "the Hub answered 401" in refused.stderr
    done = run("--dataset", "hotpotqa", "--variant", "50", HF_TOKEN=TOKEN)
    assert done.returncode == 0
    assert hub.requests[-1][2] == f"Bearer {TOKEN}"
    everything = refused.stderr + done.stdout + done.stderr
    everything += "".join(f.read_text(errors="replace") for f in (tmp_path / "data").rglob("*") if f.is_file())
    assert "canary" not in everything


def test_a_file_that_the_hub_does_not_have(hub, run):
    done = run("--dataset", "hotpotqa", "--variant", "6400")
    assert done.returncode == 1
    assert (
        "could not download hf://datasets/BytedTsinghua-SIA/hotpotqa/eval_6400.json: the Hub answered 404"
        in done.stderr
    )
    assert "Traceback" not in done.stderr


def test_without_a_network_nothing_is_tried_for_long_and_the_ways_out_are_named(hub, run):
    hub.close()
    done = run("--dataset", "longmemeval")
    assert done.returncode == 1
    assert "could not download hf://datasets/xiaowu0162/longmemeval-cleaned/longmemeval_s_cleaned.json" in done.stderr
    assert "--source PATH" in done.stderr
    assert "--sample" in done.stderr
    assert "Retrying" not in done.stderr  # the Hub's client waits 23 s between its tries


def test_what_comes_from_the_hub_is_checked_like_any_file(hub, run):
    """The official place serving our sample: seven records with unknown ids are not split silently."""
    done = run("--dataset", "longmemeval")
    assert done.returncode == 1
    assert "7 of its 7 question ids are not published ones (first sample_user)" in done.stderr
    assert hub.fetched() == ["longmemeval_s_cleaned.json"]


def test_another_address_by_environment(tmp_path, hub, run):
    folder = f"{hub.url}/datasets/BytedTsinghua-SIA/hotpotqa/resolve/main"
    done = run("--dataset", "hotpotqa", "--variant", "100", "--json", MEMSKILL_HOTPOTQA_URL=folder)
    assert json.loads(done.stdout)["source"] == f"{folder}/eval_100.json"
    assert (tmp_path / "data" / "hotpotqa" / "eval_100.json").is_file()


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["-d", "locomo", "--variant", "50"], "locomo has no variants"),
        (["-d", "hotpotqa", "--variant", "many"], "hotpotqa has no split test-many"),
        (["-d", "locomo", "--split", "test"], "locomo is always prepared as a whole"),
        (["-d", "locomo", "--limit", "3"], "locomo is always prepared as a whole"),
        (["-d", "hotpotqa", "--limit", "-3"], "--limit -3"),
        (["-d", "longmemeval", "--split", "test"], "--split is only for a file of your own"),
        (["-d", "longmemeval", "--source", "hf://datasets/only"], "is not the address of a file"),
    ],
)
def test_wrong_usage_ends_with_2(run, args, said):
    done = run(*args)
    assert done.returncode == 2, done.stderr
    assert said in done.stderr


@pytest.mark.parametrize(("dataset", "split"), [("longmemeval", "test"), ("hotpotqa", "test-6")])
def test_the_samples(tmp_path, run, dataset, split):
    done = run("--dataset", dataset, "--sample")
    assert done.returncode == 0, done.stderr
    assert f"from sample:{dataset}_sample.json" in done.stdout
    assert f"next: memskill eval --dataset {dataset}" in done.stderr
    assert len(load_split(dataset, tmp_path / "data", split)) >= 6
    again = run("--dataset", dataset, "--sample")
    assert "already prepared" in again.stderr
