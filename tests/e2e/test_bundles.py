"""What a run has learned goes to another machine: as a folder, a zip file, and by way of a hub of our own."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from memskill_cli.datasets.base import ReaderCallbacks, SourceFile
from memskill_cli.datasets.registry import get
from memskill_cli.datasets.samples import sample_path
from memskill_cli.testing.server import MockLLMServer
from memskill_cli.utils import files

from ..conftest import Home, tiny

SHORT = ["--outer-epochs", "1", "--inner-epochs", "1", "--batch-size", "1", "--span-mode", "full-session"]
COMMIT = "0123456789abcdef0123456789abcdef01234567"


class ModelHub:
    """Answers as the Hub does for one model repository: uploads in a commit, and downloads."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.created: list[dict[str, object]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                outer.post(self, self.path, body)

            def do_HEAD(self) -> None:
                outer.get(self, self.path.partition("?")[0])

            def do_GET(self) -> None:
                outer.get(self, self.path.partition("?")[0])

            def log_message(self, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def post(self, http: BaseHTTPRequestHandler, path: str, body: bytes) -> None:
        if path == "/api/repos/create":
            self.created.append(json.loads(body))
            return self.send(http, {"url": f"{self.url}/ada/support", "name": "ada/support"})
        if path.endswith("/preupload/main"):
            wanted = [
                {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in json.loads(body)["files"]
            ]
            return self.send(http, {"files": wanted})
        if path.endswith("/commit/main"):
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            return self.send(http, {"commitUrl": f"{self.url}/ada/support/commit/{COMMIT}", "commitOid": COMMIT})
        return self.send(http, {"errors": [], "warnings": []})  # of the card

    def get(self, http: BaseHTTPRequestHandler, path: str) -> None:
        if "/tree/" in path:
            tree = [{"type": "file", "path": n, "oid": "0" * 40, "size": len(c)} for n, c in self.files.items()]
            return self.send(http, tree)
        if path.startswith("/api/models/ada/support"):
            listed = [{"rfilename": name} for name in self.files]
            return self.send(
                http, {"id": "ada/support", "sha": COMMIT, "siblings": listed, "private": True, "tags": []}
            )
        name = path.partition(f"/resolve/{COMMIT}/")[2]
        if name not in self.files:
            http.send_response(404)
            http.send_header("Content-Length", "0")
            return http.end_headers()
        return self.send(http, self.files[name], ETag=f'"{hashlib.sha1(self.files[name]).hexdigest()}"')

    def send(self, http: BaseHTTPRequestHandler, content: object, **headers: str) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        http.send_response(200)
        for name, value in {"Content-Length": str(len(data)), "X-Repo-Commit": COMMIT, **headers}.items():
            http.send_header(name, value)
        http.end_headers()
        if http.command != "HEAD":
            http.wfile.write(data)

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def hub() -> Iterator[ModelHub]:
    made = ModelHub()
    yield made
    made.close()


def predictions(home: Home, summary: str) -> list[tuple[str, str]]:
    folder = home.path / json.loads(summary)["folder"]
    return [(row["query_id"], row["prediction"]) for row in files.read_jsonl(folder / "results.jsonl")]


def said() -> list[str]:
    """All that users said in the sample, in pieces that cannot be in a skill by chance."""
    sample = SourceFile("", sample_path("locomo"))
    traces = list(get("locomo").read(sample, ReaderCallbacks()))
    turns = [turn.text for trace in traces for session in trace.sessions for turn in session.turns]
    return [text for text in [*turns, *(q.question for t in traces for q in t.queries)] if len(text) > 20]


def test_a_bundle_answers_as_its_run_on_another_machine(prepared: Home, new_home: type, hub: ModelHub) -> None:
    other: Home = new_home()
    hugging = {"HF_ENDPOINT": hub.url, "HF_TOKEN": "hf_test", "HF_HUB_OFFLINE": "0", "HF_HOME": str(other.path / "hf")}
    with MockLLMServer() as server:
        flags = tiny(server.url, "--no-judge", "--limit", "6", "--json")
        done = prepared.memskill("train", *tiny(server.url, *SHORT, "--run", "a", "--seed", "7"), "--quiet")
        assert done.code == 0, done.err
        first = prepared.memskill("eval", *flags, "--run", "a")
        assert first.code == 0, first.err
        folder, zipped = prepared.path / "support", other.path / "support.zip"
        for target in (folder, zipped):
            written = prepared.memskill("export", str(target), "--run", "a")
            assert written.code == 0, written.err
        pushed = prepared.memskill("push", "support", "hf://ada/support", "--yes", **hugging)
        assert pushed.code == 0, pushed.err
        pulled = other.memskill("pull", "hf://ada/support", "pulled", **hugging)
        assert pulled.code == 0, pulled.err
        again = [other.memskill("eval", *flags, "--run", name) for name in ("support.zip", "pulled")]
        trained = other.memskill("train", *tiny(server.url, *SHORT, "--run", "b", "--init-from", "pulled"), "--quiet")
    assert [one.code for one in (*again, trained)] == [0, 0, 0], [one.err for one in (*again, trained)]
    assert [predictions(other, one.out) for one in again] == [predictions(prepared, first.out)] * 2
    assert "is now the run a-" in again[0].err
    assert "is now the run a-" not in again[1].err, "both are one bundle, and so one run"
    shown = other.memskill("inspect-skills", "--run", "pulled", "--json")
    assert json.loads(shown.out)["run"].startswith("a-")
    assert hub.created[0]["visibility"] == "private"
    hard_cases = (prepared.path / "runs" / "a" / "hard_cases.jsonl").read_text()
    content = "".join(file.read_text("utf-8", "replace") for file in folder.rglob("*") if file.is_file())
    assert any(text in hard_cases for text in said()), "so the test says something"
    assert [text for text in said() if text in content] == []
    record = json.loads((folder / "bundle.json").read_text())
    (score,) = record["scores"]
    assert (score["split"], score["queries"]) == ("test", 6)
    assert "95 % interval" in (folder / "README.md").read_text()


def test_wrong_bundles_and_addresses_are_one_line(prepared: Home) -> None:
    (prepared.path / "b.zip").write_bytes(b"PK no zip")
    (prepared.path / "empty").mkdir()
    for command, code, message in (
        (["eval", "--dataset", "locomo", "--run", "b.zip"], 1, "b.zip: not a bundle"),
        (["eval", "--dataset", "locomo", "--run", "empty"], 1, "no run is called empty"),
        (["eval", "--dataset", "locomo", "--run", "hf://nobody"], 2, "is not the address of a bundle"),
        (["push", "b.zip", "hf://a/b", "--yes"], 1, "b.zip: not a bundle"),
        (["pull", "a/b", "c"], 2, "is not the address of a bundle"),
        (["export", "x"], 1, "there is no trained run"),
    ):
        done = prepared.memskill(*command)
        assert (done.code, message in " ".join(done.err.split())) == (code, True), done.err
        assert "Traceback" not in done.err


def test_push_asks_first(prepared: Home, tmp_path: Path) -> None:
    from ..runs.test_bundle import made

    for name, content in made()[0].items():
        files.write_atomic(prepared.path / "support" / name, content)
    done = prepared.memskill("push", "support", "hf://a/b")
    assert done.code == 2
    assert "--yes" in done.err
