"""Fuzz what reads foreign text, guided by coverage: ``python tests/fuzz/run.py [--seconds 60] [target …]``.

With ``--seed`` and ``--runs`` the same inputs are tried each time, which is how the tests call it.
Needs atheris (``pip install "memskill[fuzz]"``, Linux). Each target runs in a process of its own, which ends with the
time or with the first finding; a finding is printed, and its input is left in the folder named with ``--findings``.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

SLOWEST = 20
"""Seconds that one input may take."""
MEMORY = 2048
"""MB that a target may use."""
INSTRUMENTED = [f"memskill_cli.{part}" for part in ("agent", "skills", "evaluation", "llm.reasoning")]
"""Modules whose coverage guides the fuzzer."""


def fuzz(name: str, seconds: int, findings: Path, seed: int = 0, runs: int = -1) -> tuple[int, str]:
    """Exit code and what the fuzzer said of one target.

    ``seed`` 0 is a random one; ``runs`` -1 is as many inputs as there is time for.
    """
    with tempfile.TemporaryDirectory() as corpus:
        from targets import SEEDS, WORDS

        for number, text in enumerate(SEEDS[name]):
            (Path(corpus) / str(number)).write_text(text, "utf-8")
        words = Path(corpus).with_suffix(".dict")
        words.write_text("\n".join(f'"{_escaped(word)}"' for word in WORDS), "utf-8")
        options = [
            f"-max_total_time={seconds}", f"-timeout={SLOWEST}", f"-rss_limit_mb={MEMORY}", "-max_len=20000",
            f"-dict={words}", f"-artifact_prefix={findings}/{name}-", "-print_final_stats=1", f"-seed={seed}",
            f"-runs={runs}",
        ]  # fmt: skip
        command = [sys.executable, __file__, "--inside", name, corpus, *options]
        environ = {**os.environ, **({"PYTHONHASHSEED": str(seed)} if seed else {})}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        done = subprocess.run(command, **pipes, text=True, errors="replace", env=environ)
        words.unlink()
        return done.returncode, done.stdout


def inside(name: str, arguments: list[str]) -> None:
    """The fuzzer itself; does not return."""
    import atheris

    with atheris.instrument_imports(include=INSTRUMENTED):
        from targets import TARGETS

    target = TARGETS[name]

    def one(data: bytes) -> None:
        target(data.decode("utf-8", "replace"))

    atheris.Setup([sys.argv[0], *arguments], one)
    atheris.Fuzz()


def _escaped(word: str) -> str:
    return "".join(c if c.isalnum() else f"\\x{ord(c):02x}" for c in word)


def main() -> int:
    from targets import TARGETS

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("targets", nargs="*", default=list(TARGETS), metavar="target", help=", ".join(TARGETS))
    parser.add_argument("--seconds", type=int, default=60, help="for each target")
    parser.add_argument("--seed", type=int, default=0, help="of the fuzzer; 0 is a random one")
    parser.add_argument("--runs", type=int, default=-1, help="inputs for each target at most")
    parser.add_argument("--findings", type=Path, default=Path(tempfile.gettempdir()))
    options = parser.parse_args()
    options.findings.mkdir(parents=True, exist_ok=True)
    failed = 0
    for name in options.targets:
        code, said = fuzz(name, options.seconds, options.findings, options.seed, options.runs)
        runs = re.search(r"number_of_executed_units: *(\d+)", said)
        print(f"{name}: {runs[1] if runs else '?'} inputs, {'a finding' if code else 'nothing found'}", flush=True)
        if code:
            failed = 1
            print(said[-4000:])
    return failed


if __name__ == "__main__":
    if sys.argv[1:2] == ["--inside"]:
        inside(sys.argv[2], sys.argv[3:])
    sys.exit(main())
