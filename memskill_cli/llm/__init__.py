"""Access to language models: client, router, keys, cache, ledger and local model.

Only this package imports litellm: through :func:`import_litellm` (modules that need its classes) and
:func:`load_litellm` (functions that are about to call it), which also configures it.
"""

from __future__ import annotations

import functools
import logging
from typing import Any

from memskill_cli.utils import process

_NOISY_LOGGERS = ("LiteLLM", "LiteLLM Router", "LiteLLM Proxy", "httpx", "httpcore", "openai", "aiohttp")
_VARIABLES = {"EXPERIMENTAL_OPENAI_BASE_LLM_HTTP_HANDLER": "true"}
"""Selects litellm's own HTTP handler. OpenAI's SDK, the default for OpenAI, parses each message five times."""


@functools.cache
def import_litellm() -> Any:
    """litellm, not configured. The first import takes 2–3 s. It reads the bundled price list: no download."""
    with process.variables(LITELLM_LOCAL_MODEL_COST_MAP="True"):
        import litellm
    return litellm


def load_litellm() -> Any:
    """litellm, configured: no telemetry, no hints, no logs (they can contain keys), and bounded connections.

    litellm has these settings only for the whole process. So :mod:`memskill_cli.utils.process` records each change,
    and a library call restores the old values when it ends. The changes are: the levels of the loggers
    of litellm and of its HTTP libraries; ``telemetry``, ``set_verbose``, ``suppress_debug_info``,
    ``disable_aiohttp_transport``, ``DEFAULT_MAX_RETRIES``; the function that creates transports
    (:mod:`memskill_cli.llm.transport`); the entries that a Router adds to ``model_cost``; a filter of warnings and one
    of asyncio's log; the variable that selects the HTTP handler.
    """
    litellm = import_litellm()
    if not process.changed("litellm"):
        _configure(litellm)
    return litellm


def _configure(litellm: Any) -> None:
    from memskill_cli.llm import transport

    for name in _NOISY_LOGGERS:
        process.silence(name)
    for name, value in _VARIABLES.items():
        process.set_variable(name, value)
    process.keep_variable("TIKTOKEN_CACHE_DIR")  # litellm sets it when it counts tokens for the first time
    for name, value in _attributes().items():
        process.set_attribute(litellm, name, value)
    if not process.is_borrowed():  # a caller of the library may need litellm's costs; this change is only for speed
        # prices.py computes costs. litellm would compute them again, and scan its whole price list for free models.
        logs = litellm.litellm_core_utils.litellm_logging.Logging
        logs.response_cost_calculator = logs._response_cost_calculator = _no_op
    process.ignore_warnings("Pydantic serializer warnings", UserWarning)  # they contain text of malformed replies
    process.filter_records("asyncio", _is_relevant)
    process.change("litellm prices", functools.partial(_track_price_list, litellm))
    transport.install()
    process.change("litellm", lambda: _no_op)  # last: marks that all changes above are made


def _attributes() -> dict[str, Any]:
    return {
        "telemetry": False,
        "set_verbose": False,  # True prints requests
        "suppress_debug_info": True,
        "disable_aiohttp_transport": False,  # httpx's own transport is slower
        "DEFAULT_MAX_RETRIES": 0,  # embedding calls read max_retries=0 as "use this default"
    }


def _track_price_list(litellm: Any) -> process.Undo:
    """The undo of what Routers will register: entries named after deployments, and changed fields of known models."""
    if not process.is_borrowed():
        return _no_op
    prices = litellm.model_cost
    before = {name: dict(facts) for name, facts in prices.items()}

    def undo() -> None:
        for name in [name for name in prices if name not in before]:
            del prices[name]
        for name, facts in before.items():
            if prices.get(name) != facts:
                prices[name] = facts
        litellm.utils._invalidate_model_cost_lowercase_map()  # its caches still hold the entries that are gone

    return undo


def _is_relevant(record: logging.LogRecord) -> bool:
    """False for asyncio's messages about what litellm leaves open when an event loop ends: an idle logging worker and
    connections of that loop."""
    message = record.getMessage()
    return not any(name in message for name in ("LoggingWorker", "Unclosed client session", "Unclosed connector"))


def _no_op(*_: Any, **__: Any) -> None:
    pass
