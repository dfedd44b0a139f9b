"""Runs the benchmarks and puts what they found into one table: ``out/bench.json`` and ``out/bench.md``.

    .venv/bin/python benchmarks/run.py [--quick] [--all] [--gather] [NAME ...]

Each script runs in a process of its own, one after the other; it writes ``out/<name>.json``, and its exit code counts.
Without names: all but those that show what the method learns (``--all`` adds them, last; they take minutes each).
``--gather`` runs nothing and makes the table of what is in ``out/`` already. A line of the table holds a measure, its
value, what it is compared with in the same run, their ratio, the target if one was set, and whether it was reached.
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

from common import OUT, markdown, number

from memskill_cli.utils.files import write_atomic, write_json

FOLDER = Path(__file__).parent
SPEED = ("startup", "ppo", "retrieval", "encoders", "pipeline", "scaling", "engines")
LEARNING = ("learning", "evolution", "alfworld")
COLUMNS = ("measure", "value", "compared with", "ratio", "target", "reached")


def run(names: Sequence[str], quick: bool) -> list[str]:
    """Run scripts one after the other; the names of those that failed."""
    failed = []
    for name in names:
        print(f"--- {name}", flush=True)
        begin = time.monotonic()
        (OUT / f"{name}.json").unlink(missing_ok=True)  # a script that fails leaves a gap, and no older figures
        command = [sys.executable, str(FOLDER / f"{name}.py"), *(["--quick"] if quick else [])]
        code = subprocess.run(command, check=False).returncode
        print(f"--- {name}: {time.monotonic() - begin:.0f} s{f', failed ({code})' if code else ''}", flush=True)
        failed += [name] if code else []
    return failed


def gather(out: Path) -> dict[str, dict[str, Any]]:
    """By script, what it saved in ``out``: when and on what machine it was measured, and its summary."""
    found = {}
    for name in (*SPEED, *LEARNING):
        path = out / f"{name}.json"
        document = json.loads(path.read_text("utf-8")) if path.exists() else {}
        if "summary" in document:
            found[name] = {key: document[key] for key in ("measured", "flags", "machine", "summary")}
    return found


def table(found: dict[str, dict[str, Any]]) -> str:
    """All summaries in Markdown, a section a script."""
    rows = [row for part in found.values() for row in part["summary"] if row["reached"] is not None]
    parts = [f"# Benchmarks\n\n{sum(row['reached'] for row in rows)} of {len(rows)} targets reached.\n"]
    for name, part in found.items():
        flags = f" ({' '.join(part['flags'])})" if part["flags"] else ""
        parts.append(f"\n## {name}.py{flags}\n\n{described(part)}\n\n")
        parts.append(markdown(COLUMNS, map(cells, part["summary"])))
    return "".join(parts)


def described(part: dict[str, Any]) -> str:
    """When and on what it was measured, in a sentence."""
    machine = part["machine"]
    packages = ", ".join(f"{name} {version}" for name, version in machine["packages"].items())
    return (
        f"{part['measured']}, load {machine['load']} at the start; {machine['cpu']}, {machine['cores']} cores, "
        f"{machine['memory_gb']} GB, {machine['system']}; Python {machine['python']}, {packages}"
    )


def cells(row: dict[str, Any]) -> tuple[str, ...]:
    ratio = "" if row["ratio"] is None else f"{number(row['ratio'])} ×"
    reached = {True: "yes", False: "**no**", None: ""}[row["reached"]]
    value = f"{number(row['value'])} {row['unit']}".strip()
    return row["measure"], value, row["against"], ratio, row["target"], reached


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join([*SPEED, *LEARNING]))
    parser.add_argument("--quick", action="store_true", help="small sizes, few rounds: to see that it works")
    parser.add_argument("--all", action="store_true", help="also what the method learns")
    parser.add_argument("--gather", action="store_true", help="run nothing, make the table of what is there")
    arguments = parser.parse_args()
    if unknown := set(arguments.names) - {*SPEED, *LEARNING}:
        parser.error(f"no benchmark is called {', '.join(sorted(unknown))}")
    names = arguments.names or [*SPEED, *(LEARNING if arguments.all else ())]
    failed = [] if arguments.gather else run(names, arguments.quick)
    found = gather(OUT)
    text = table(found)
    write_json(OUT / "bench.json", found)
    write_atomic(OUT / "bench.md", text)
    print(text)
    print(OUT / "bench.md")
    raise SystemExit(f"failed: {', '.join(failed)}" if failed else 0)


if __name__ == "__main__":
    main()
