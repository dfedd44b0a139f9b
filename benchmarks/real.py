"""Memory written by the embedded model on real conversations (LoCoMo) against no memory and retrieval of raw turns.

    .venv/bin/python benchmarks/real.py [--file LOCOMO10.JSON] [--split val] [--limit N] [--cell NAME ...] [--quick]

Each cell is one evaluation by the installed command, with the embedded model in all roles and no judge. All cells show
the answering model at most the same number of tokens. A cell takes hours on two cores. If the script is stopped, the
same command goes on where it stopped: an evaluation resumes, and its replies are cached. Without ``--file`` the sample
is used. ``--quick`` asks the first 20 questions.

Choose settings on ``--split train`` and ``val``; run ``--split test`` once. Results: ``out/real-<split>.json``, with
the cost of each cell and its paired difference from the first one.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common import OUT, save
from rich.console import Console
from rich.table import Table

from memskill_cli.evaluation.comparison import differences
from memskill_cli.utils.files import read_jsonl

MEMSKILL = Path(sys.executable).with_name("memskill")
HOME = OUT / "real"
TURNS = ("--method", "rag", "--span-mode", "turn")
CELLS: dict[str, tuple[str, ...]] = {
    "turns, hybrid": (*TURNS, "--set", "memory.retriever=hybrid"),
    "turns, lexical": (*TURNS, "--set", "memory.retriever=lexical"),
    "turns, dense": (*TURNS, "--set", "memory.retriever=dense"),
    "no memory": ("--method", "no-memory"),
    "seed skills": ("--method", "seed-skills", "--set", "eval.num_skills=3"),
    "seed skills, published memory": (
        *("--method", "seed-skills", "--set", "eval.num_skills=3", "--set", "memory.retriever=dense"),
        *("--set", "memory.sources=false", "--set", "memory.protect=false", "--set", "memory.resolve_dates=false"),
    ),
}
"""By name, the flags of an evaluation. The first cell is the one that the others are compared with."""


def command(*parts: str) -> dict[str, Any]:
    """What ``memskill`` prints with ``--json``. Raises CalledProcessError if it fails; its messages are shown."""
    folders = ["--data-dir", str(HOME / "data"), "--json"]
    done = subprocess.run([str(MEMSKILL), *parts, *folders], check=True, stdout=subprocess.PIPE, text=True)
    document: dict[str, Any] = json.loads(done.stdout)
    return document


def evaluate(flags: Sequence[str], split: str, limit: int, tokens: int) -> dict[str, Any]:
    """The summary of one cell, and its rows."""
    shared = ["--dataset", "locomo", "--split", split, "--limit", str(limit), "--no-judge", "--model", "embedded"]
    shared += ["--set", f"memory.context_tokens={tokens}", "--set", "memory.num_memories=60"]
    runs = ["--runs-dir", str(HOME / "runs")]
    begin = time.monotonic()
    summary = command("eval", *shared, *runs, *flags)
    rows = list(read_jsonl(Path(summary["folder"]) / "results.jsonl"))
    return {"summary": summary, "rows": rows, "minutes": (time.monotonic() - begin) / 60}


def row_of(name: str, found: dict[str, Any], first: dict[str, Any]) -> dict[str, Any]:
    summary = found["summary"]
    gains = differences(first["rows"], found["rows"], resamples=2000, seed=0, scores=["f1"])
    kept = ("queries", "f1", "ci95", "by_category", "memories", "evidence_recall", "failures", "executor", "usage")
    return {"cell": name, "minutes": found["minutes"], "gain": gains[0] if gains else None} | {
        key: summary[key] for key in kept if key in summary
    }


def show(rows: Sequence[dict[str, Any]], split: str, tokens: int) -> Table:
    table = Table(title=f"LoCoMo {split}, embedded model, at most {tokens} tokens shown; F1 x 100")
    for column in ("memory", "questions", "F1", "difference from the first", "memories", "evidence @20"):
        table.add_column(column)
    for row in rows:
        low, high = (100 * end for end in row["ci95"]["f1"])
        gain = row["gain"]
        difference = f"{100 * gain['difference']:+.1f} ({100 * gain['ci95'][0]:+.1f} to {100 * gain['ci95'][1]:+.1f})"
        recall = row.get("evidence_recall", {}).get("20")
        table.add_row(
            row["cell"],
            str(row["queries"]),
            f"{100 * row['f1']:.1f} ({low:.1f} to {high:.1f})",
            difference,
            str(row["memories"]),
            f"{recall:.2f}" if recall is not None else "",
        )
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--file", type=Path, help="locomo10.json; without it, the sample")
    parser.add_argument("--split", default="val", choices=("train", "val", "test"))
    parser.add_argument("--limit", type=int, default=0, help="questions at most; 0 is all")
    parser.add_argument("--tokens", type=int, default=500, help="tokens of memories and sources in an answer prompt")
    parser.add_argument("--cell", action="append", choices=CELLS, help="only this cell; repeatable")
    parser.add_argument("--quick", action="store_true", help="the first 20 questions")
    options = parser.parse_args()
    limit = 20 if options.quick else options.limit
    source = ["--source", str(options.file)] if options.file else ["--sample"]
    command("prepare", "--dataset", "locomo", *source)
    rows: list[dict[str, Any]] = []
    first: dict[str, Any] | None = None
    for name in options.cell or CELLS:
        found = evaluate(CELLS[name], options.split, limit, options.tokens)
        first = first or found
        rows.append(row_of(name, found, first))
        save(f"real-{options.split}", [], rows=rows)
        Console(width=140).print(show(rows, options.split, options.tokens))


if __name__ == "__main__":
    main()
