"""What the benchmarks share: fair rounds, commands and servers as processes, the machine, one form of result.

A script measures, prints a table of its own, and saves rows and a summary with :func:`save`; ``run.py`` gathers the
summaries of all scripts into one table.
"""

from __future__ import annotations

import math
import os
import platform
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

import psutil

from memskill_cli.utils.files import write_json

OUT = Path(__file__).parent / "out"
MEMSKILL = str(Path(sys.executable).with_name("memskill"))
"""The installed command."""
WORDS = (  # noqa: SIM905
    "the a my his her we they went moved likes bought lost found called met at in to from with after before new old "
    "cat dog sister house garden bridge school train summer winter coffee guitar book letter friend doctor city lake "
    "yesterday monday may seven three always never maybe really because although picture birthday job plan weekend"
).split()
"""What synthetic texts are made of."""
PACKAGES = ("memskill", "numpy", "torch", "litellm", "chromadb", "sentence-transformers", "faiss-cpu", "ray")
LOAD_AT_START = os.getloadavg()[0]
Done = TypeVar("Done")


# --- results -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Measure:
    """One line of the table of all benchmarks. ``ratio`` is the value ÷ that of what it is held ``against``."""

    measure: str
    value: float
    unit: str
    against: str = ""
    ratio: float | None = None
    target: str = ""
    reached: bool | None = None
    """None where nothing was to be reached."""


def compared(
    measure: str,
    value: float,
    unit: str,
    name: str,
    other: float,
    *,
    at_most: float | None = None,
    more_than: float | None = None,
) -> Measure:
    """``value`` against ``other``, the one of ``name``, in the same unit; what their ratio is to be, if anything."""
    ratio, target, reached = value / other if other else math.inf, "", None
    if at_most is not None:
        target, reached = f"≤ {at_most:g} ×", ratio <= at_most
    elif more_than is not None:
        target, reached = f"> {more_than:g} ×", ratio > more_than
    return Measure(measure, value, unit, f"{name}: {number(other)} {unit}".strip(), ratio, target, reached)


def limited(measure: str, value: float, unit: str, at_most: float) -> Measure:
    """``value``, which is to be no more than ``at_most``."""
    return Measure(measure, value, unit, target=f"≤ {at_most:g} {unit}", reached=value <= at_most)


def save(name: str, summary: Sequence[Measure], **parts: Any) -> Path:
    """Write ``out/<name>.json``: when and on what it was measured, its part of the whole table, and ``parts``."""
    document = {
        "measured": datetime.now(UTC).isoformat(timespec="seconds"),
        "flags": sys.argv[1:],
        "machine": machine(),
        "summary": [asdict(measure) for measure in summary],
        **parts,
    }
    path = OUT / f"{name}.json"
    write_json(path, document)
    return path


def machine() -> dict[str, Any]:
    """What the figures depend on. ``load`` is how many processes wanted a core in the minute before this one."""
    return {
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "memory_gb": round(psutil.virtual_memory().total / 2**30, 1),
        "system": platform.platform(terse=True),
        "python": platform.python_version(),
        "packages": {name: version for name in PACKAGES if (version := _version(name))},
        "load": round(LOAD_AT_START, 2),
    }


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


# --- time --------------------------------------------------------------------------------------------------------


def in_turns(names: Iterable[str], rounds: int, seed: int = 0) -> Iterator[tuple[int, str]]:
    """(round, contestant): each round has all of them in a random order, so that a busy machine disturbs all alike."""
    rng, names = random.Random(seed), list(names)
    for turn in range(rounds):
        for name in rng.sample(names, len(names)):
            yield turn, name


def clock(times: list[float], work: Callable[[], Done]) -> Done:
    """Do ``work``, add the seconds it took to ``times``, and give back what it gave."""
    begin = time.perf_counter()
    done = work()
    times.append(time.perf_counter() - begin)
    return done


# --- processes ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ran:
    """A command that has ended: seconds by the clock and of all cores, its most memory in MB, and what it wrote."""

    wall: float
    cpu: float
    peak_mb: float
    out: str
    err: str


def run_command(arguments: Sequence[str], *, cwd: Path | None = None) -> Ran:
    """Run a command to its end. SystemExit, with what it said, if it failed: there is nothing to measure then."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        begin = time.perf_counter()
        process = subprocess.Popen(arguments, cwd=cwd, env=environ(), stdout=out, stderr=err)
        _, status, used = os.wait4(process.pid, 0)
        wall = time.perf_counter() - begin
        process.returncode = os.waitstatus_to_exitcode(status)  # it has been waited for here
        out.seek(0), err.seek(0)
        said = out.read().decode(), err.read().decode(errors="replace")
    if process.returncode:
        raise SystemExit(f"{' '.join(arguments)} failed ({process.returncode}):\n{said[1][-2000:]}")
    return Ran(wall, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024, *said)


def environ() -> dict[str, str]:
    """The environment without anyone's settings and keys, and without a network to look for models in."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("MEMSKILL_") and "API_KEY" not in key}
    return {**kept, "HF_HUB_OFFLINE": "1"}


@contextmanager
def server(latency: float = 0.0, log: Path | None = None) -> Iterator[str]:
    """The address of rule-made models behind HTTP, in a process of their own, ``latency`` seconds away.

    ``log`` is where it writes down its calls.
    """
    command = [sys.executable, "-m", "memskill_cli.testing.server", "--latency", str(latency)]
    command += ["--log", str(log)] if log else []
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip()
        finally:
            process.terminate()


# --- tables ------------------------------------------------------------------------------------------------------


def number(value: float) -> str:
    """Three digits that mean something, or all of a longer whole number."""
    return f"{value:,.0f}" if value == int(value) or abs(value) >= 1000 else f"{value:.3g}"


def markdown(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |\n" for line in lines)
