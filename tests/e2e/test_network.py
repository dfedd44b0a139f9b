"""A network at its worst: a fifth of all replies go wrong, or a server is down for a while; results are the same."""

from __future__ import annotations

import hashlib
import json
import threading
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from memskill_cli.testing.server import Fault, MockLLMServer, Request

from ..conftest import Home, tiny

LENGTH = ["--outer-epochs", "2", "--inner-epochs", "1", "--batch-size", "2", "--top-k", "2", "--no-evolve"]
KEYS = ["--api-key", "key-number-one", "--api-key", "key-number-two"]
SHARE = 20
"""Per cent of the requests that go wrong, unless a test wants more of them."""
KINDS = {
    "429": Fault.rate_limit("0.3"),
    "429 without a word": Fault.rate_limit(None),
    "500": Fault.server_error(500),
    "502": Fault.server_error(502),
    "503": Fault.error(503, "busy", headers={"Retry-After": "0.5"}),
    "529": Fault.server_error(529),
    "cut": Fault.cut(),
    "refuse": Fault.refuse(),
    "no body": Fault.empty(),
    "flood": Fault.flood(),
    "html": Fault(200, "<html>Sign in</html>", {"Content-Type": "text/html"}),
    "array": Fault(200, "[]", {"Content-Type": "application/json"}),
    "half of JSON": Fault(200, '{"id": "1", "choices": [{"mess', {"Content-Type": "application/json"}),
    "error in 200": Fault.error_in_200(),
    "redirect": Fault.redirect("http://127.0.0.1:9/v1/chat/completions"),
}
OF_THE_NETWORK = {"seconds", "cost_usd", "cached_calls", "llm_calls", "prompt_tokens", "completion_tokens"}
"""Metrics that tell of the calls made, not of what was learned."""


class Weather:
    """Which requests go wrong, and how: by what is asked and how often it was, so that a run can be repeated."""

    def __init__(self, share: int = SHARE) -> None:
        self.share = share
        self.seen: Counter[str] = Counter()
        self.played: Counter[str] = Counter()

    def __call__(self, request: Request) -> Fault | None:
        self.seen[request.text] += 1
        draw = zlib.crc32(f"{self.seen[request.text]} {request.text}".encode())
        if draw % 100 >= self.share:
            return None
        kind = list(KINDS)[draw // 100 % len(KINDS)]
        self.played[kind] += 1
        return KINDS[kind]


def learned(run: Path) -> dict[str, Any]:
    newest = sorted((run / "checkpoints").iterdir())[-1]
    files = [newest / "controller.safetensors", newest / "optimizer.safetensors", run / "skill_bank.json"]
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {
        "metrics": [{name: value for name, value in row.items() if name not in OF_THE_NETWORK} for row in rows],
        "digests": [hashlib.sha256(file.read_bytes()).hexdigest() for file in files],
    }


def scored(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_an_evaluation_in_bad_weather_has_the_same_scores(new_home: Callable[[], Home]) -> None:
    """It asks about thirty questions only, so more of them go wrong."""
    home, weather = new_home(), Weather(share=40)
    with MockLLMServer() as clear, MockLLMServer(faults=weather) as bad:
        calm, stormy = home.together(
            ["eval", *tiny(clear.url, *KEYS), "--runs-dir", "clear", "--json"],
            ["eval", *tiny(bad.url, *KEYS), "--runs-dir", "bad", "--json"],
        )
        good = len(clear.requests)
        assert len(bad.requests) == good + weather.played.total(), "each fault costs one request"
    for done in (calm, stormy):
        assert done.code == 0, done.err
        assert done.json["errors"] == {}
    assert weather.played.total() > 5, "there was weather"
    assert scored(home.path / stormy.json["folder"]) == scored(home.path / calm.json["folder"])
    assert [stormy.json[name] for name in ("f1", "judge", "queries")] == [
        calm.json[n] for n in ("f1", "judge", "queries")
    ]
    assert "Traceback" not in stormy.err


@pytest.mark.slow
def test_a_training_in_bad_weather_learns_the_same(new_home: Callable[[], Home]) -> None:
    home, weather = new_home(), Weather()
    with MockLLMServer() as clear, MockLLMServer(faults=weather) as bad:
        for done in home.together(
            ["train", "--run", "a", *tiny(clear.url, *LENGTH, *KEYS), "--quiet"],
            ["train", "--run", "b", *tiny(bad.url, *LENGTH, *KEYS), "--quiet"],
        ):
            assert done.code == 0, done.err
        assert len(bad.requests) == len(clear.requests) + weather.played.total()
    assert len(weather.played) > 5, "several kinds"
    assert learned(home.path / "runs" / "b") == learned(home.path / "runs" / "a")


@pytest.mark.slow
def test_a_server_that_is_down_in_the_middle_is_waited_for(new_home: Callable[[], Home]) -> None:
    """Longer than the one retry takes; connections are refused, as nobody listens.

    (One, for what was on its way when others were still answered: that is no outage yet.)
    """
    home = new_home()
    with MockLLMServer() as server:
        port = int(server.url.split(":")[2].partition("/")[0])
    up, stop = threading.Event(), threading.Event()
    counts: list[int] = []

    def faults(request: Request) -> Fault | None:
        if len(counts) == 0 and request.index >= 10:
            stop.set()
            return Fault.refuse()
        return None

    def serve() -> None:
        with MockLLMServer(faults=faults, port=port) as first:
            up.set()
            stop.wait(120)
        counts.append(len(first.requests))
        up.clear()
        threading.Event().wait(12)
        with MockLLMServer(faults=faults, port=port) as second:
            up.set()
            done.wait(200)
        counts.append(len(second.requests))

    done = threading.Event()
    thread = threading.Thread(target=serve)
    thread.start()
    up.wait(30)
    url = f"http://127.0.0.1:{port}/v1"
    try:
        result = home.memskill("eval", *tiny(url), "--api-key", "key-number-one", "--set", "models.retries=1", "--json")
    finally:
        stop.set()
        done.set()
        thread.join()
    assert result.code == 0, result.err
    assert result.json["errors"] == {}
    assert result.err.count("has not answered since") == 1
    assert counts[0] >= 10
    assert counts[1] > 0
