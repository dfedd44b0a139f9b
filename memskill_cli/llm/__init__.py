"""The only way to a language model.

Nothing else in the project imports litellm, and this does through :func:`load_litellm`, which keeps it quiet.
"""

from __future__ import annotations

import functools
import logging
import os
import warnings
from typing import Any

os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # its price map comes with it: no download on import
# OpenAI's SDK turns each message over five times; litellm's own handler, which most of its providers have, does not.
os.environ.setdefault("EXPERIMENTAL_OPENAI_BASE_LLM_HTTP_HANDLER", "true")
os.environ["LITELLM_LOG"] = "CRITICAL"  # its logs can carry keys, and some go to stdout

_TALKATIVE = ("LiteLLM", "LiteLLM Router", "LiteLLM Proxy", "httpx", "httpcore", "openai", "aiohttp")


@functools.cache
def load_litellm() -> Any:
    """litellm (2–3 s the first time), with its telemetry, advice and logs off: they can carry keys."""
    import litellm

    from memskill_cli.llm import transport

    transport.install()
    litellm.telemetry = False
    litellm.suppress_debug_info = True
    litellm.disable_aiohttp_transport = True  # the transport above is in its place
    # Costs are counted in prices.py. litellm would do it, too, and search all its prices for why a call was free.
    logs = litellm.litellm_core_utils.litellm_logging.Logging
    logs.response_cost_calculator = logs._response_cost_calculator = _nothing
    litellm.DEFAULT_MAX_RETRIES = 0  # what embeddings take a max_retries of 0 for
    warnings.filterwarnings("ignore", "Pydantic serializer warnings", UserWarning)  # they quote malformed replies
    logging.getLogger("asyncio").addFilter(lambda record: not _left_behind(record.getMessage()))
    for name in _TALKATIVE:
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)
    return litellm


def _left_behind(complaint: str) -> bool:
    """Whether asyncio complains of what litellm leaves to an event loop that ends: a worker that has nothing to log,
    connections that go with the loop."""
    return any(name in complaint for name in ("LoggingWorker", "Unclosed client session", "Unclosed connector"))


def _nothing(*_: Any, **__: Any) -> None:
    pass
