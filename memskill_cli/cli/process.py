"""What the command does to its own process, and the library never to that of its caller."""

from __future__ import annotations

import gc
import os
import sys

from memskill_cli.utils import process, redaction

_VARIABLES = {
    # Threads that spin while they wait make torch and llama.cpp ten times slower on a busy machine.
    "OMP_WAIT_POLICY": "PASSIVE",
    # Telemetry and progress bars of libraries are not ours to show.
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
}


def own_process() -> None:
    """Quiet libraries, no key on stderr, fewer searches for garbage; and what memskill changes from now on stays.

    (Signals are handled before this: :func:`memskill_cli.__main__.main`.)
    """
    process.own()
    sys.stderr = redaction.RedactingStream(sys.stderr)
    for name, value in _VARIABLES.items():
        os.environ.setdefault(name, value)
    os.environ["LITELLM_LOG"] = "CRITICAL"  # its logs can carry keys, and some go to stdout
    gc.set_threshold(20_000)  # libraries make a million objects that stay: Python's 700 is an eighth of starting up
