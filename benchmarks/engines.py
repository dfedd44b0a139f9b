"""What a Ray cluster costs on one machine, where it can bring nothing: the same commands here and with --engine ray.

    .venv/bin/python benchmarks/engines.py [--quick]

The cluster is one that the command starts on this machine: every worker, encoder and letter takes its time from the
same cores. So this is the price of the engine, not its use, which is in other machines' GPUs and cores. Compared, with
rule-made models that answer at once, the command in a process of its own and with empty caches:

- **wall**, from the first call to the last reply.
- **CPU milliseconds a call of the command's process**: what bounds how many calls a second a cluster can make, since
  all of them are the command's. Its workers' CPU is not in it, and with MiniLM neither is that of encoding.

Each round runs both in random order; shown are medians. Left out where Ray is not installed.
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import tempfile
from pathlib import Path

from common import Measure, compared, in_turns, markdown, number, save, server
from pipeline import ENCODERS, REAL, Load, evaluation, prepared, run

ENGINES = ("local", "ray")


def measure(load: Load, encoder: str, rounds: int) -> list[Measure]:
    """Lines of the table, Ray against local."""
    wall: dict[str, list[float]] = {engine: [] for engine in ENGINES}
    cpu: dict[str, list[float]] = {engine: [] for engine in ENGINES}
    with server(0.0) as url:
        for _, engine in in_turns(ENGINES, rounds):
            one = run(load._replace(sets=(*load.sets, f"engine={engine}")), url, encoder)
            wall[engine].append(one.wall)
            cpu[engine].append(1000 * one.cpu / len(one.calls))

    def line(what: str, unit: str, of: dict[str, list[float]]) -> Measure:
        local, ray = (statistics.median(of[engine]) for engine in ENGINES)
        return compared(f"{load.name}, {encoder}: {what} with Ray", ray, unit, "local", local)

    return [line("wall", "s", wall), line("CPU a call of the command", "ms", cpu)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="the sample only, once")
    parser.add_argument("--source", type=Path, default=REAL, help="the real locomo10.json, where it is")
    options = parser.parse_args()
    if importlib.util.find_spec("ray") is None:
        print("Ray is not installed: nothing to measure")
        return
    summary: list[Measure] = []
    with tempfile.TemporaryDirectory() as name:
        real = options.source.exists() and not options.quick
        source = ("--source", str(options.source)) if real else ("--sample",)
        title, chunk = ("eval of real LoCoMo test", 512) if real else ("eval of the sample", 64)
        load = evaluation(title, prepared(Path(name), *source), chunk)
        for encoder in ENCODERS:
            summary += measure(load, encoder, 1 if options.quick else 3)
    save("engines", summary)
    rows = [(one.measure, f"{number(one.value)} {one.unit}", one.against, f"{one.ratio:.2f} ×") for one in summary]
    print(markdown(("measure", "value", "against", "ratio"), rows))


if __name__ == "__main__":
    main()
