"""``--engine ray`` as typed: on a cluster it starts itself, and on one of several nodes on this machine."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import re
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from memskill_cli.runs.run_dir import RunDir
from memskill_cli.testing import rules
from memskill_cli.testing.server import Fault, MockLLMServer, Request

from ..conftest import Home, tiny
from .commands import FOREVER, SHORT, go_on, running, slow_after, usage
from .test_train import Run

pytestmark = [
    pytest.mark.extra,
    pytest.mark.slow,
    pytest.mark.timeout(280),
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs the extra ray"),
]
RAY = ["--engine", "ray"]
PRICED = ["--set", "prices.openai/gpt-4o-mini=0.15,0.60"]
SPANS = ["train.span_mode=fixed-length", "train.chunk_size=64", "train.chunk_overlap=8"]
LONG = [*SHORT[:4], "--batch-size", "4", "--no-evolve", *(part for one in SPANS for part in ("--set", one))]
"""One inner epoch of 58 short spans."""


@dataclass
class Nodes:
    """A Ray cluster whose nodes are processes of this machine. ``head`` has the command's process beside it."""

    environ: dict[str, str]
    folder: str
    address: str = ""
    raylets: list[int] = field(default_factory=list)
    stores: list[int] = field(default_factory=list)
    """Processes that know the cluster (its GCS)."""

    def add(self, cpus: int) -> None:
        """One more node, the head first."""
        head = ["--head", "--port", "0", "--temp-dir", self.folder, "--include-dashboard=false"]
        before = {*_pids("raylet", self.folder)}
        command = [Path(sys.executable).with_name("ray"), "start", "--num-cpus", str(cpus), "--disable-usage-stats"]
        command += ["--object-store-memory", "100000000", *(["--address", self.address] if self.address else head)]
        done = subprocess.run(command, env=self.environ, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        self.raylets += set(_pids("raylet", self.folder)) - before
        self.stores = _pids("gcs_server", self.folder)
        if not self.address:
            self.address = done.stdout.partition("--address='")[2].partition("'")[0]

    def kill(self, *processes: int) -> None:
        """Nodes are gone, with all that ran on them."""
        for pid in processes:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def jobs(self, raylet: int) -> int:
        """Workers of ours on a node, each with a trace in this test: Ray names a process by the method that it runs."""
        return sum(_parent(pid) == raylet for pid in _pids("ray::Worker."))


def _pids(name: str, among: str = "") -> list[int]:
    """Processes whose command begins with ``name`` (its last part, of a path) and has ``among`` in it."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            line = (entry / "cmdline").read_bytes().decode(errors="replace")
        except OSError:
            continue
        first = line.partition("\0")[0]
        if among in line and (first.startswith(name) or first.rpartition("/")[2] == name):
            found.append(int(entry.name))
    return found


def _parent(pid: int) -> int:
    try:
        return int((Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


@pytest.fixture
def nodes() -> Iterator[Nodes]:
    """A cluster of a small head and two nodes."""
    kept = {key: value for key, value in os.environ.items() if "API_KEY" not in key}
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    with tempfile.TemporaryDirectory(prefix="ms-ray-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        opened = Nodes({**kept, **token, "OMP_NUM_THREADS": "1"}, folder)
        try:
            for cpus in (1, 2, 2):
                opened.add(cpus)
            with pytest.MonkeyPatch.context() as patch:
                for name, value in token.items():
                    patch.setenv(name, value)
                yield opened
        finally:
            opened.kill(*opened.raylets, *opened.stores, *_pids("", folder))  # a killed node leaves some behind


def texts(requests: Sequence[Request]) -> Counter[str]:
    return Counter(json.dumps(request.messages) for request in requests)


def test_a_training_is_the_same_here_and_on_ray_at_any_concurrency(new_home: Callable[[], Home]) -> None:
    """With a cluster of its own and the embedded encoder, whose vectors come from another process."""
    flags = ["--run", "a", *SHORT[:2], "--inner-epochs", "2", "--batch-size", "4", "--no-evolve"]
    found, asked = [], []
    for engine in (["--concurrency", "1"], ["--concurrency", "32", *RAY]):
        home = new_home()
        with MockLLMServer() as server:
            to = ["--dataset", "locomo", "--model", "openai/rules", "--api-base", server.url]
            done = home.memskill("train", *to, *flags, "--json", *engine)
            assert done.code == 0, done.err
            json.loads(done.out)
            found.append(Run(home.path / "runs" / "a").learned())
            asked.append(texts(server.requests))
    assert found[0] == found[1]
    assert asked[0] == asked[1]
    assert max(asked[1].values()) == 1


def test_an_evaluation_and_a_resumed_training_are_the_same_on_ray(new_home: Callable[[], Home]) -> None:
    """A run may change its engine when it is resumed, and be evaluated on either."""
    rows, banks = [], []
    for before, after in ((RAY, ["--engine", "local"]), ([], RAY)):
        home = new_home()
        with MockLLMServer() as server:
            first = home.memskill("train", *tiny(server.url, *SHORT, "--run", "a"), *before)
            assert first.code == 0, first.err
            resumed = ["train", "--resume", "--run", "a", "--outer-epochs", "2", "--api-base", server.url]
            second = home.memskill(*resumed, *after)
            assert second.code == 0, second.err
            engine = ["--engine", "local" if after == RAY else "ray"]
            done = home.memskill("eval", *tiny(server.url, "--method", "memskill,rag", "--json"), *engine)
            assert done.code == 0, done.err
        banks.append(Run(home.path / "runs" / "a").learned())
        folders = [Path(one["folder"]) for one in json.loads(done.out)["evaluations"]]
        rows.append([(home.path / folder / "results.jsonl").read_text() for folder in folders])
    assert banks[0] == banks[1]
    assert rows[0] == rows[1]


@pytest.mark.skipif(importlib.util.find_spec("alfworld") is None, reason="needs the extra alfworld")
def test_games_are_played_on_ray_as_here(home: Home) -> None:
    done = home.memskill("prepare", "--dataset", "alfworld", "--sample", "--quiet")
    assert done.code == 0, done.err
    rows = []
    for engine in ("local", "ray"):
        with MockLLMServer() as server:
            flags = [*tiny(server.url), "--dataset", "alfworld", "--runs-dir", engine, "--engine", engine, "--json"]
            done = home.memskill("eval", *flags)
            assert done.code == 0, done.err
        summary = json.loads(done.out)
        rows.append((summary["success_rate"], (home.path / summary["folder"] / "results.jsonl").read_text()))
    assert rows[0] == rows[1]


def test_a_node_that_is_killed_costs_nothing(new_home: Callable[[], Home], nodes: Nodes) -> None:
    """Its traces are read again elsewhere; what they ask was answered before."""
    flags = [*LONG, "--run", "a", "--concurrency", "8"]
    calm = new_home()
    with MockLLMServer(latency=0.01) as server:
        done = calm.memskill("train", *tiny(server.url, *flags))
        assert done.code == 0, done.err
        expected = texts(server.requests)
    home = new_home()
    with MockLLMServer(latency=0.3) as server:
        there = [*RAY, "--ray-address", nodes.address, "--set", "ray.workers=4"]  # one for each trace
        command_line = tiny(server.url, *flags, *there)
        with running(home, "train", *command_line) as command:
            command.until(lambda: len(server.requests) > 12)
            killed = max(nodes.raylets[1:], key=nodes.jobs)
            assert nodes.jobs(killed) > 0
            nodes.kill(killed)
            assert command.end() == 0, command.err
        assert "is lost; its jobs will be retried from cache" in command.err
        assert "Raylet" not in command.err
        assert texts(server.requests) == expected, "every question was asked once, in both runs"
    assert Run(home.path / "runs" / "a").learned() == Run(calm.path / "runs" / "a").learned()


def test_workers_share_one_bound_one_budget_and_the_rests_of_keys(new_home: Callable[[], Home]) -> None:
    keys, home = ["key-number-one", "key-number-two"], new_home()
    limits = ["--set", "ray.workers=4", "--concurrency", "3", "--max-cost", "0.008"]
    limits += [part for key in keys for part in ("--api-key", key)]

    def think(request: Request) -> str | Fault:
        return Fault.rate_limit(0.3) if request.index in (15, 16, 17) else rules.reply(request)

    with MockLLMServer(think, keys=keys, latency=0.3) as server:
        flags = [*tiny(server.url, *LONG, "--run", "a", *RAY), "--model", "openai/gpt-4o-mini", *PRICED, *limits]
        done = home.memskill("train", *flags)
        assert done.code == 3, done.err
        assert "the budget of $0.008 is used up" in done.err
        assert server.max_in_flight == 3
        assert {request.key for request in server.requests} == set(keys)
    bills = [float(str(row["usd"] or 0)) for row in usage(home.path / "runs" / "a")]
    assert 0.004 < sum(bills) < 0.008 + max(bills), "one call may cost more than it was taken to"


def test_no_secret_goes_to_the_cluster(new_home: Callable[[], Home]) -> None:
    """Neither from the command line nor from the environment, to any process or file of Ray's."""
    home, canaries = new_home(), ("sk-canary-typed-12345678", "sk-canary-given-12345678")
    seen = []
    with slow_after(3, 0.5) as server:
        flags = tiny(server.url, *SHORT, "--run", "a", "--api-key", canaries[0], *RAY)
        with running(home, "train", *flags, OPENAI_API_KEY=canaries[1]) as command:
            command.until(lambda: len(server.requests) > 3)
            family = [pid for pid in command.family() if pid != command.process.pid]
            assert len(family) > 3
            for pid in family:
                seen += [(Path("/proc") / str(pid) / name).read_bytes() for name in ("environ", "cmdline")]
            (folder,) = {Path(found.decode()) for told in seen for found in re.findall(rb"/tmp/memskill-ray-\w+", told)}
            seen += [file.read_bytes() for file in folder.rglob("*") if file.is_file()]
            assert command.end() == 0, command.err
    assert not folder.exists()
    assert len(seen) > 20
    assert not any(canary.encode() in told for told in seen for canary in canaries)


@pytest.mark.parametrize("ways", [[signal.SIGINT], [signal.SIGTERM, signal.SIGTERM], [signal.SIGKILL]], ids=str)
def test_a_command_that_is_stopped_leaves_no_process_and_goes_on(
    new_home: Callable[[], Home], ways: list[signal.Signals]
) -> None:
    home, seconds = new_home(), 2.0 if len(ways) == 1 else FOREVER
    with MockLLMServer(latency=lambda request: seconds if request.index >= 6 else 0.0) as server:
        with running(home, "train", *tiny(server.url, *SHORT, "--run", "a", *RAY)) as command:
            command.until(lambda: len(server.requests) == 8)
            for count, number in enumerate(ways):
                os.killpg(command.process.pid, number) if number == signal.SIGINT else command.send(number)
                if count + 1 < len(ways):
                    command.until(lambda: "waiting for 2 replies" in command.err)
            assert command.end() == (-signal.SIGKILL if signal.SIGKILL in ways else 130), command.err
            assert "Traceback" not in command.err
            deadline = time.monotonic() + 20
            while (left := command.family()) and time.monotonic() < deadline:
                time.sleep(0.05)
            assert left == []
        seconds = 0.0
        if signal.SIGKILL in ways:
            done = home.memskill("train", "--run", "a", "--resume")
        else:
            assert command.err.splitlines()[-1] == "  → memskill train --run a --resume"
            done = go_on(home, command.err)
        assert done.code == 0, done.err
        if ways == [signal.SIGINT]:
            assert max(texts(server.requests).values()) == 1, "nothing is paid for twice"
    assert RunDir(home.path / "runs" / "a").status == "finished"


def test_a_cluster_that_is_not_there_is_said_to_be_so(home: Home, sample: Path) -> None:
    flags = tiny("http://127.0.0.1:9/v1", "--data-dir", str(sample), *SHORT)
    done = home.memskill("train", *flags, *RAY, "--ray-address", "127.0.0.1:9")
    assert done.code == 1
    assert "the Ray cluster at 127.0.0.1:9 cannot be reached" in done.err
    assert "Traceback" not in done.err
