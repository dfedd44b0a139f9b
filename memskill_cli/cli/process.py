"""Settings of the command's own process. The library never changes its caller's process in this way."""

from __future__ import annotations

import gc
import os
import sys

from memskill_cli.utils import process, redaction

_VARIABLES = {
    # Threads that spin while they wait make torch and llama.cpp ten times slower on a busy machine.
    "OMP_WAIT_POLICY": "PASSIVE",
    # No telemetry, warnings or progress bars of libraries.
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
}


def own_process() -> None:
    """Keep libraries quiet, remove keys from stderr, and collect garbage less often. Later changes are permanent.

    (Signals are handled before this: :func:`memskill_cli.__main__.main`.)
    """
    process.own()
    sys.stderr = redaction.RedactingStream(sys.stderr)
    for name, value in _VARIABLES.items():
        os.environ.setdefault(name, value)
    os.environ["LITELLM_LOG"] = "CRITICAL"  # its logs can contain keys, and some go to stdout
    # Imports create a million objects that stay: with Python's 700, collection takes an eighth of the start-up time.
    gc.set_threshold(20_000)
