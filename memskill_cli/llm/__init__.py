"""The only way to a language model.

Nothing else in the project imports litellm, and this does through :func:`load_litellm`, which keeps it quiet.
"""

from __future__ import annotations

import logging
import os
from typing import Any

os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # its price map comes with it: no download on import

_TALKATIVE = ("LiteLLM", "LiteLLM Router", "LiteLLM Proxy", "httpx", "httpcore", "openai", "aiohttp")


def load_litellm() -> Any:
    """litellm (2–3 s the first time), with its telemetry, advice and logs off: they can carry keys."""
    import litellm

    litellm.telemetry = False
    litellm.suppress_debug_info = True
    litellm.disable_aiohttp_transport = True  # its connections complain on stderr when a loop ends; httpx does not
    for name in _TALKATIVE:
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)
    return litellm
