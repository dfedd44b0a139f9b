"""``memskill prepare`` as typed, with files, with the sample, and with servers that behave and that don't."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from memskill_cli.datasets.prepared import load_split
from memskill_cli.datasets.samples import sample_path
from memskill_cli.errors import DownloadError
from memskill_cli.utils import download as downloading
from memskill_cli.utils.download import download

REAL = Path(__file__).parents[2] / ".." / "shared" / "data" / "locomo" / "locomo10.json"
SAMPLE = sample_path("locomo")
BODY = SAMPLE.read_bytes()


@dataclass
class FileServer:
    """Serves ``body`` with Range and ETag, and misbehaves as told, one entry of ``script`` a request.

    An entry is a status to answer with, or a number of bytes (negative) after which the connection is cut; None (and
    the end of the script) is a good answer.
    """

    body: bytes = BODY
    etag: str | None = '"v1"'
    ranges: bool = True
    length: bool = True
    script: list[int | None] = field(default_factory=list)
    requests: list[dict[str, str]] = field(default_factory=list)

    def __enter__(self) -> FileServer:
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.answer(self)

            def log_message(self, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *args: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}/locomo10.json"

    def answer(self, http: BaseHTTPRequestHandler) -> None:
        self.requests.append({key.lower(): value for key, value in http.headers.items()})
        told = self.script.pop(0) if self.script else None
        if told is not None and told > 0:
            http.send_error(told)
            return
        start = self._start(http)
        if start > len(self.body):
            http.send_error(416)
            return
        http.send_response(206 if start else 200)
        if self.etag:
            http.send_header("ETag", self.etag)
        if self.length:
            http.send_header("Content-Length", str(len(self.body) - start))
        if start:
            http.send_header("Content-Range", f"bytes {start}-{len(self.body) - 1}/{len(self.body)}")
        http.end_headers()
        http.wfile.write(self.body[start:] if told is None else self.body[start : start - told])

    def _start(self, http: BaseHTTPRequestHandler) -> int:
        asked = http.headers.get("Range")
        if asked is None or not self.ranges or http.headers.get("If-Range", self.etag) != self.etag:
            return 0
        return int(asked.removeprefix("bytes=").removesuffix("-"))


def memskill(*args: object, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "memskill_cli", *map(str, args)],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "COLUMNS": "100", **env},
    )


def prepare(data: Path, *args: object, **env: str) -> subprocess.CompletedProcess[str]:
    return memskill("prepare", "--dataset", "locomo", "--data-dir", data, *args, **env)


def test_the_sample_as_a_person_sees_it(tmp_path):
    done = prepare(tmp_path, "--sample")
    assert done.returncode == 0
    assert "locomo: 5 traces, 61 queries, from sample:locomo_sample.json" in done.stdout
    assert "│ train │      3 │      36 │" in done.stdout
    assert "│ adversarial │      10 │" in done.stdout
    assert "split by position into 3 train, 1 val, 1 test" in done.stderr
    assert f"next: memskill train --dataset locomo --data-dir {tmp_path} --preset demo" in done.stderr
    assert load_split("locomo", tmp_path, "test")[0].trace_id == "sample-5"


def test_json_is_one_document_of_the_same_facts(tmp_path):
    prepare(tmp_path, "--sample", "--quiet")
    done = prepare(tmp_path, "--json")
    facts = json.loads(done.stdout)
    assert facts["already"] is True
    assert facts["splits"]["test"] == {"traces": 1, "queries": 13}
    assert facts["categories"]["adversarial"] == 10
    assert facts["path"] == str(tmp_path / "locomo")
    assert "already prepared" in done.stderr


def test_quiet_is_quiet(tmp_path):
    assert prepare(tmp_path, "--sample", "--quiet").stderr == ""


@pytest.mark.skipif(not REAL.exists(), reason="the real file is not here")
def test_the_real_file(tmp_path):
    done = prepare(tmp_path, "--source", REAL, "--json")
    facts = json.loads(done.stdout)
    assert done.returncode == 0
    assert {name: size["traces"] for name, size in facts["splits"].items()} == {"train": 6, "val": 2, "test": 2}
    assert facts["queries"] == 1986
    assert facts["categories"] == {
        "multi-hop": 282, "temporal": 321, "open-domain": 96, "single-hop": 841, "adversarial": 446
    }  # fmt: skip
    assert facts["source"] == str(REAL.absolute())
    assert not (tmp_path / "locomo" / "locomo10.json").exists()  # read where it is


def test_a_broken_file_ends_with_1_and_names_the_place(tmp_path):
    path = tmp_path / "mine.json"
    records = json.loads(BODY)
    records[3]["qa"][7]["category"] = 9
    path.write_text(json.dumps(records), "utf-8")
    done = prepare(tmp_path, "--source", path)
    assert done.returncode == 1
    assert "mine.json: record 3 (sample-4): qa[7].category is 9, expected 1..5" in done.stderr
    assert "Traceback" not in done.stderr
    assert "Traceback" in prepare(tmp_path, "--source", path, "--debug").stderr


def test_too_few_conversations_is_a_warning_that_quiet_does_not_hide(tmp_path):
    path = tmp_path / "one.json"
    path.write_text(json.dumps(json.loads(BODY)[:1]), "utf-8")
    done = prepare(tmp_path, "--source", path, "--quiet")
    assert done.returncode == 0
    assert "warning: train, val and test contain the same conversations" in done.stderr


def test_other_data_than_those_prepared_are_refused(tmp_path):
    prepare(tmp_path, "--sample")
    other = tmp_path / "other.json"
    other.write_bytes(BODY.replace(b"Pelican", b"Penguin"))
    done = prepare(tmp_path, "--source", other)
    assert done.returncode == 1
    assert f"--source {other} --force" in done.stderr
    assert prepare(tmp_path, "--source", other, "--force").returncode == 0


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--dataset", "lokomo"], "did you mean locomo?"),
        (["--dataset", "locomo", "--sample", "--source", "x.json"], "cannot be used together"),
        (["--dataset", "locomo", "--source", "ftp://x/y"], "neither a path nor an http(s) or hf address"),
        (["--dataset", "locomo", "--sauce", "x"], "--source"),
        ([], "--dataset"),
    ],
)
def test_wrong_usage_ends_with_2(tmp_path, args, said):
    done = memskill("prepare", *args, "--data-dir", tmp_path)
    assert done.returncode == 2
    assert said in done.stderr


def test_options_are_read_from_the_environment(tmp_path):
    done = memskill(
        "prepare", "--json", MEMSKILL_DATASET="locomo", MEMSKILL_SAMPLE="1", MEMSKILL_DATA_DIR=str(tmp_path)
    )
    assert json.loads(done.stdout)["source"] == "sample:locomo_sample.json"


# --- downloads ---------------------------------------------------------------------------------------------------


def test_a_download_from_the_official_place(tmp_path):
    with FileServer() as server:
        done = prepare(tmp_path, "--json", MEMSKILL_LOCOMO_URL=server.url)
    assert done.returncode == 0
    assert json.loads(done.stdout)["source"] == server.url
    assert (tmp_path / "locomo" / "locomo10.json").read_bytes() == BODY
    assert not list(tmp_path.rglob("*.part*"))
    assert "downloading" in done.stderr


def test_a_broken_connection_is_resumed_within_one_command(tmp_path):
    with FileServer(script=[-10_000, -5_000]) as server:
        done = prepare(tmp_path, "--source", server.url)
    assert done.returncode == 0
    assert [r.get("range") for r in server.requests] == [None, "bytes=10000-", "bytes=15000-"]
    assert server.requests[1]["if-range"] == '"v1"'
    assert (tmp_path / "locomo" / "locomo10.json").read_bytes() == BODY


def test_what_came_before_giving_up_is_kept_for_the_next_command(tmp_path):
    with FileServer(script=[-1000, -1000, -1000]) as server:
        failed = prepare(tmp_path, "--source", server.url)
        assert failed.returncode == 1
        assert "tried 3 times" in failed.stderr
        assert "run the same command again to continue" in failed.stderr
        done = prepare(tmp_path, "--source", server.url)
    assert done.returncode == 0
    assert server.requests[3]["range"] == "bytes=3000-"


def test_an_interrupted_download_goes_on(tmp_path):
    """Ctrl-C in the middle: exit 130, and the next command asks for the rest only."""
    gate = threading.Event()

    class Slow(FileServer):
        def answer(self, http):
            self.script.append(-10_000 if not self.requests else None)
            super().answer(http)
            if len(self.requests) == 1:
                gate.wait(30)  # the connection stays open, with bytes still owed

    with Slow() as server:
        command = [sys.executable, "-m", "memskill_cli", "prepare", "-d", "locomo"]
        process = subprocess.Popen(
            [*command, "--data-dir", str(tmp_path), "--source", server.url], stderr=subprocess.PIPE, text=True
        )
        part = tmp_path / "locomo" / "locomo10.json.part"
        while not (part.exists() and part.stat().st_size):
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=30)
        gate.set()
        assert process.returncode == 130, said
        kept = part.stat().st_size
        assert prepare(tmp_path, "--source", server.url).returncode == 0
    assert 0 < kept <= 10_000
    assert server.requests[1]["range"] == f"bytes={kept}-"


def test_an_address_that_does_not_answer_names_the_ways_out(tmp_path):
    done = prepare(tmp_path, MEMSKILL_LOCOMO_URL="http://127.0.0.1:9/locomo10.json")
    assert done.returncode == 1
    assert "could not download http://127.0.0.1:9/locomo10.json" in done.stderr
    assert f"memskill prepare --dataset locomo --data-dir {tmp_path} --source PATH" in done.stderr
    assert f"memskill prepare --dataset locomo --data-dir {tmp_path} --sample" in done.stderr
    assert prepare(tmp_path, "--sample").returncode == 0


def test_a_page_that_is_no_benchmark_is_not_taken_for_one(tmp_path):
    with FileServer(body=b"<html>please log in</html>") as server:
        done = prepare(tmp_path, "--source", server.url)
    assert done.returncode == 1
    assert "locomo10.json: not JSON" in done.stderr
    assert not (tmp_path / "locomo" / "manifest.json").exists()


def test_a_password_in_an_address_is_neither_shown_nor_stored(tmp_path):
    with FileServer(script=[None, 404]) as server:
        url = server.url.replace("http://", "http://me:canary-7f3a@")
        shown = [prepare(tmp_path, "--source", url, "--json"), prepare(tmp_path, "--source", url, "--force")]
    assert [done.returncode for done in shown] == [0, 1]
    assert server.requests[0]["authorization"].startswith("Basic ")
    everything = "".join(done.stdout + done.stderr for done in shown)
    everything += "".join(path.read_text(errors="replace") for path in tmp_path.rglob("*") if path.is_file())
    assert "canary" not in everything


@pytest.fixture
def goal(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(downloading, "PAUSE", 0.0)
    return tmp_path / "file.json"


def test_404_is_not_tried_again(goal):
    with FileServer(script=[404]) as server, pytest.raises(DownloadError, match="answered 404 Not Found"):
        download(server.url, goal)
    assert len(server.requests) == 1
    assert not goal.exists()


def test_a_server_in_trouble_is_asked_again(goal):
    with FileServer(script=[503, 429]) as server:
        download(server.url, goal)
    assert goal.read_bytes() == BODY


def test_a_file_that_never_gets_as_long_as_announced_is_no_file(goal):
    with FileServer(ranges=False, script=[-10, -10, -10]) as server, pytest.raises(DownloadError):
        download(server.url, goal)
    assert not goal.exists()


def test_a_file_that_changed_in_between_is_fetched_from_its_start(goal):
    with FileServer(script=[-10_000, -5_000, 404]) as server:
        with pytest.raises(DownloadError):
            download(server.url, goal)
        server.body, server.etag = BODY.replace(b"Pelican", b"Penguin"), '"v2"'
        download(server.url, goal)
    assert goal.read_bytes() == server.body
    assert server.requests[-1]["if-range"] == '"v1"'


@pytest.mark.parametrize("size", [500, 5_000, len(BODY) + 1])
def test_without_a_validator_another_length_starts_again(goal, size):
    with FileServer(etag=None, script=[-1000, 404]) as server:
        with pytest.raises(DownloadError):
            download(server.url, goal)
        server.body = b"x" * size
        download(server.url, goal)
    assert goal.read_bytes() == server.body
    assert "if-range" not in server.requests[2]


def test_a_server_without_ranges_is_read_from_the_start(goal):
    with FileServer(ranges=False, script=[-10_000]) as server:
        download(server.url, goal)
    assert goal.read_bytes() == BODY


def test_a_server_that_does_not_say_the_length(goal):
    seen = []
    with FileServer(length=False) as server:
        download(server.url, goal, report=lambda done, total: seen.append((done, total)))
    assert goal.read_bytes() == BODY
    assert seen[0] == (0, None)
    assert seen[-1] == (len(BODY), None)


def test_progress_goes_on_from_where_a_resumed_download_was(goal):
    seen = []
    with FileServer(script=[-10_000]) as server:
        download(server.url, goal, report=lambda done, total: seen.append((done, total)))
    assert (10_000, len(BODY)) in seen
    assert seen[-1] == (len(BODY), len(BODY))
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


def test_the_part_of_one_address_is_not_taken_for_another(goal):
    with FileServer(script=[-10_000, 404]) as one, FileServer(body=b"[]") as other:
        with pytest.raises(DownloadError):
            download(one.url, goal)
        download(other.url, goal)
    assert goal.read_bytes() == b"[]"
    assert "range" not in other.requests[0]
