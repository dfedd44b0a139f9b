"""Run the property tests with random examples for a while: ``make fuzz``, or ``python tests/fuzz/properties.py``.

Rounds of all quick tests that use hypothesis, each with a seed of its own, which is printed. A further round begins
only if the time left is enough for one as long as the last. Ends with the first round that fails, and shows how to
repeat it; its input belongs into an ``@example`` of the test, since ``make test`` draws the same examples every time.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
QUICK = "hypothesis and not slow and not extra"  # the marker "hypothesis" is set by hypothesis itself


def options(seed: int) -> list[str]:
    return ["--hypothesis-profile=fuzz", f"--hypothesis-seed={seed}"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=int, default=240, help="for all rounds together; the first is always made")
    parser.add_argument("--seed", type=int, help="of the first round; random if left out")
    asked = parser.parse_args()
    end, length, number = time.monotonic() + asked.seconds, 0.0, 0
    while not number or time.monotonic() + length < end:
        number += 1
        seed = asked.seed if asked.seed is not None and number == 1 else random.SystemRandom().randrange(2**32)
        print(f"round {number}: {' '.join(options(seed))}", flush=True)
        begun = time.monotonic()
        command = [sys.executable, "-m", "pytest", "-n", "2", "--dist", "loadfile", "-m", QUICK, *options(seed)]
        code = subprocess.run(command, cwd=ROOT).returncode
        length = time.monotonic() - begun
        if code:
            print(f"a finding; to repeat it: {Path(sys.executable).parent}/pytest {' '.join(options(seed))} TEST")
            return code
    print(f"nothing found in {number} rounds")
    return 0


if __name__ == "__main__":
    sys.exit(main())
