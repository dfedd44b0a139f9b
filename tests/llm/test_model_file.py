"""Where the embedded model's file is looked for, and what is let through."""

from __future__ import annotations

import hashlib
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from filelock import FileLock

from memskill_cli.errors import ModelError
from memskill_cli.llm.model_file import ModelFile, find_model, installed_parts

CONTENT = b"GGUF" + bytes(range(256)) * 400
WANTED = ModelFile(
    "tiny.gguf", hashlib.sha256(CONTENT).hexdigest(), len(CONTENT), "someone/tiny/resolve/abc123/tiny.gguf"
)


class Hub:
    """A Hub that serves one file, with ranges; the first ``breaks`` replies are cut off in the middle."""

    def __init__(self, content: bytes, breaks: int = 0) -> None:
        self.asked: list[tuple[str, str | None]] = []
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                ranged = self.headers.get("Range")
                hub.asked.append((self.path, ranged))
                start = int(ranged.removeprefix("bytes=").removesuffix("-")) if ranged else 0
                self.send_response(206 if ranged else 200)
                self.send_header("ETag", '"v1"')
                self.send_header("Content-Length", str(len(content) - start))
                if ranged:
                    self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
                self.end_headers()
                cut = len(hub.asked) <= breaks
                self.wfile.write(content[start : start + (len(content) - start) // 2] if cut else content[start:])

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"


@contextmanager
def _hub(content: bytes = CONTENT, breaks: int = 0) -> Iterator[Hub]:
    hub = Hub(content, breaks)
    thread = threading.Thread(target=hub.server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield hub
    finally:
        hub.server.shutdown()
        hub.server.server_close()
        thread.join()


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No Hub: its address is a port that nobody listens on, and that nobody else can take meanwhile."""
    for name in (
        "HF_HUB_OFFLINE",
        "HF_ENDPOINT",
        "http_proxy",
        "https_proxy",
        "HTTP_PROXY",
        "HTTPS_PROXY",
        "all_proxy",
    ):
        monkeypatch.delenv(name, raising=False)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        monkeypatch.setenv("MEMSKILL_HF_ENDPOINT", f"http://127.0.0.1:{free.getsockname()[1]}")
        yield


@pytest.fixture
def parts(tmp_path: Path) -> list[Path]:
    """The content in twelve parts, of which the tenth would come second in the order of letters."""
    folder = tmp_path / "parts"
    folder.mkdir()
    step = -(-len(CONTENT) // 12)
    for number in range(12):
        (folder / f"part{number + 1}.bin").write_bytes(CONTENT[number * step : (number + 1) * step])
    return [folder / f"part{number + 1}.bin" for number in range(12)]


def _find(tmp_path: Path, said: list[str], parts: list[Path] | None = None, spec: str = "embedded") -> Path:
    return find_model(spec, notice=said.append, wanted=WANTED, folder=tmp_path / "models", parts=lambda: parts or [])


def test_the_parts_are_joined_once(tmp_path: Path, parts: list[Path]):
    said: list[str] = []
    found = _find(tmp_path, said, parts)
    assert found.read_bytes() == CONTENT
    assert any("12 installed parts" in line for line in said)
    said.clear()
    assert _find(tmp_path, said, []) == found  # neither parts nor network are needed any more
    assert said == []


def test_parts_that_make_another_file_are_refused(tmp_path: Path, parts: list[Path]):
    parts[3].write_bytes(b"not what it was")
    with pytest.raises(ModelError, match="sha256 differs") as caught:
        _find(tmp_path, [], parts)
    assert "memskill[embedded]" in caught.value.hint
    assert [path.name for path in (tmp_path / "models").glob("tiny*")] == ["tiny.gguf.lock"]


def test_the_hub_comes_before_the_parts(tmp_path: Path, parts: list[Path], monkeypatch: pytest.MonkeyPatch):
    with _hub() as hub:
        monkeypatch.setenv("MEMSKILL_HF_ENDPOINT", hub.url)
        found = _find(tmp_path, [], parts)
        assert found.read_bytes() == CONTENT
        assert hub.asked == [(f"/{WANTED.hub}", None)]
        _find(tmp_path, [], parts)
        assert len(hub.asked) == 1  # the cache comes before the Hub


def test_a_broken_download_is_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with _hub(breaks=1) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        monkeypatch.delenv("MEMSKILL_HF_ENDPOINT")
        assert _find(tmp_path, []).read_bytes() == CONTENT
        assert [ranged for _, ranged in hub.asked] == [None, f"bytes={len(CONTENT) // 2}-"]


def test_another_file_from_the_hub_is_deleted_and_the_parts_are_taken(
    tmp_path: Path, parts: list[Path], monkeypatch: pytest.MonkeyPatch
):
    said: list[str] = []
    with _hub(CONTENT[:-1] + b"!") as hub:
        monkeypatch.setenv("MEMSKILL_HF_ENDPOINT", hub.url)
        assert _find(tmp_path, said, parts).read_bytes() == CONTENT
        assert any("not the official file" in line for line in said)
        with pytest.raises(ModelError, match="sent a different file"):
            find_model(notice=said.append, wanted=WANTED, folder=tmp_path / "other", parts=list)
        assert not list((tmp_path / "other").glob("*.fetched"))


def test_offline_asks_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with _hub() as hub:
        monkeypatch.setenv("MEMSKILL_HF_ENDPOINT", hub.url)
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        with pytest.raises(ModelError, match="HF_HUB_OFFLINE") as caught:
            _find(tmp_path, [])
        assert "--model" in caught.value.hint
        assert hub.asked == []


def test_a_network_that_swallows_everything_is_given_up_soon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen(0)
        port = deaf.getsockname()[1]
        fill = [socket.socket() for _ in range(3)]  # a full queue: further connections get no answer at all
        for one in fill:
            one.setblocking(False)
            one.connect_ex(("127.0.0.1", port))
        monkeypatch.setenv("MEMSKILL_HF_ENDPOINT", f"http://127.0.0.1:{port}")
        with pytest.raises(ModelError, match="cannot be reached"):
            _find(tmp_path, [])
        for one in fill:
            one.close()


@pytest.mark.parametrize("harm", ["shorter", "changed"])
def test_a_damaged_file_in_the_cache_is_replaced(tmp_path: Path, parts: list[Path], harm: str):
    said: list[str] = []
    found = _find(tmp_path, [], parts)
    found.write_bytes(CONTENT[:-5] if harm == "shorter" else CONTENT[:-1] + b"!")
    os.utime(found, ns=(0, 0))
    assert _find(tmp_path, said, parts).read_bytes() == CONTENT
    assert any("damaged" in line for line in said)


def test_a_good_file_put_into_the_cache_by_hand_is_taken(tmp_path: Path):
    goal = tmp_path / "models" / WANTED.name
    goal.parent.mkdir()
    goal.write_bytes(CONTENT)
    assert _find(tmp_path, []) == goal


def test_a_path_of_ones_own(tmp_path: Path, parts: list[Path]):
    own = tmp_path / "own.gguf"
    own.write_bytes(b"GGUF but mine")
    said: list[str] = []
    assert _find(tmp_path, said, parts, spec=f"embedded:{own}") == own
    assert hashlib.sha256(b"GGUF but mine").hexdigest() in said[0]
    own.write_bytes(CONTENT)
    said.clear()
    assert _find(tmp_path, said, parts, spec=f"embedded:{own}") == own
    assert said == []


@pytest.mark.parametrize(
    ("content", "why"), [(None, "No such file"), (b"PK\x03\x04", "not a GGUF file"), (b"", "not a GGUF")]
)
def test_a_path_that_is_no_model(tmp_path: Path, content: bytes | None, why: str):
    own = tmp_path / "own.gguf"
    if content is not None:
        own.write_bytes(content)
    with pytest.raises(ModelError, match=why) as caught:
        _find(tmp_path, [], spec=f"embedded:{own}")
    assert str(own) in caught.value.message


def test_one_process_brings_the_model_and_the_others_wait(tmp_path: Path, parts: list[Path]):
    said: list[str] = []
    (tmp_path / "models").mkdir()
    lock = FileLock(tmp_path / "models" / f"{WANTED.name}.lock", thread_local=False)
    lock.acquire()
    found: list[Path] = []
    other = threading.Thread(target=lambda: found.append(_find(tmp_path, said, parts)))
    other.start()
    while not said:
        time.sleep(0.01)
    assert said == ["another process is fetching the embedded model; waiting for it"]
    (tmp_path / "models" / WANTED.name).write_bytes(CONTENT)
    lock.release()
    other.join()
    assert found == [tmp_path / "models" / WANTED.name]
    assert len(said) == 1  # nothing was joined a second time


def test_a_full_disk_is_named(tmp_path: Path, parts: list[Path]):
    class Full(type(parts[0])):
        def open(self, *_: object, **__: object):
            raise OSError(28, "No space left on device")

    with pytest.raises(ModelError, match="No space left") as caught:
        _find(tmp_path, [], [Full(parts[0])])
    assert "MEMSKILL_CACHE_DIR" in caught.value.hint


def test_the_cache_folder_follows_the_environment(tmp_path: Path, parts: list[Path], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MEMSKILL_CACHE_DIR", str(tmp_path / "elsewhere"))
    found = find_model(notice=print, wanted=WANTED, parts=lambda: parts)
    assert found == tmp_path / "elsewhere" / "models" / WANTED.name


def test_installed_parts_are_in_the_order_of_their_numbers():
    names = [path.name for path in installed_parts()]
    assert names in ([], [f"part{number:02d}.bin" for number in range(1, 23)])
