"""Run by tests in a process of its own: prints what library calls have changed in it, as JSON.

``python process_state.py FOLDER MODE`` with MODE ``sync``, ``async``, ``parallel`` or ``memory``. Libraries are
imported alone first, since what their imports do is theirs.
"""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import os
import signal
import sys
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from typing import Any

LIBRARIES = ("litellm", "litellm.router", "torch", "transformers", "sentence_transformers", "datasets", "chromadb",
             "tiktoken", "sklearn.cluster", "httpx", "aiohttp", "huggingface_hub", "pyarrow")  # fmt: skip
LENGTH = {"outer_epochs": 1, "inner_epochs": 1, "batch_size": 2, "evolve": False}
CALLERS_THREADS = 3
LAZY = {"model_cost", "in_memory_llm_clients_cache", "_async_client_cleanup_registered", "_encoding_cache"}
"""What litellm makes of itself when it is first used; its prices are compared entry by entry."""


def snapshot() -> dict[str, dict[str, Any]]:
    import litellm
    import litellm.litellm_core_utils.litellm_logging as litellm_logging
    import litellm.llms.custom_httpx.http_handler as http_handler
    import torch
    import transformers
    from huggingface_hub.utils import are_progress_bars_disabled

    return {
        "environ": dict(os.environ),
        "loggers": _loggers(),
        "litellm": _values(vars(litellm)),
        "litellm prices": {name: repr(facts) for name, facts in litellm.model_cost.items()},
        "litellm classes": _values({**vars(http_handler.AsyncHTTPHandler), **vars(litellm_logging.Logging)}),
        "litellm functions": _values(vars(http_handler)) | _values(vars(litellm.main)),
        "torch": {"threads": torch.get_num_threads(), "interop": torch.get_num_interop_threads(),
                  "new threads": _of_a_new_thread(torch.get_num_threads), "seed": torch.initial_seed()},
        "gc": {"frozen": gc.get_freeze_count(), "threshold": gc.get_threshold(), "enabled": gc.isenabled()},
        "signals": {str(number): repr(signal.getsignal(number)) for number in signal.valid_signals()},
        "sys": {name: id(getattr(sys, name)) for name in ("stdout", "stderr", "excepthook", "unraisablehook", "path")},
        "warnings": {"filters": [repr(entry) for entry in warnings.filters], "show": id(warnings.showwarning)},
        "threads": {"names": sorted(thread.name for thread in threading.enumerate())},
        "asyncio": {"policy": id(asyncio.get_event_loop_policy())},
        "progress bars": {"transformers": transformers.utils.logging.is_progress_bar_enabled(),
                          "hub": are_progress_bars_disabled()},
    }  # fmt: skip


def _loggers() -> dict[str, str]:
    found = {"root": logging.getLogger(), **logging.Logger.manager.loggerDict}
    return {
        name: repr((log.level, log.filters, log.handlers, log.propagate, log.disabled))
        for name, log in found.items()
        if isinstance(log, logging.Logger)
    }


def _values(names: dict[str, Any]) -> dict[str, str]:
    """Plain values and containers by what they are, everything else by its identity."""
    plain = (bool, int, float, str, bytes, type(None), list, set, tuple)
    return {
        name: repr(value) if isinstance(value, plain) else str(id(value))
        for name, value in names.items()
        if not name.startswith("__") and name not in LAZY
    }


def _of_a_new_thread(function: Any) -> Any:
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(function).result()


def differences(before: dict[str, dict[str, Any]], after: dict[str, dict[str, Any]]) -> list[str]:
    """New loggers and modules' lazily made names are no change; a value that was there, or a variable, is."""
    grows = ("loggers", "litellm", "litellm functions")
    found = []
    for part, values in before.items():
        names = values.keys() if part in grows else values.keys() | after[part].keys()
        for name in sorted(names):
            if values.get(name) != after[part].get(name):
                found.append(f"{part} {name}: {values.get(name)!r:.200} -> {after[part].get(name)!r:.200}")
    return found


def work(url: str, run: str) -> None:
    from memskill_cli import evaluate, train

    train("locomo", run=run, **LENGTH, **_models(url))
    evaluate(run=run, methods=["memskill", "rag"], limit=2, **_models(url))


async def work_async(url: str, run: str) -> None:
    from memskill_cli import evaluate_async, prepare_async, train_async

    await prepare_async("locomo", sample=True)
    await train_async("locomo", run=run, **LENGTH, **_models(url))
    await evaluate_async(run=run, methods=["memskill"], limit=2, **_models(url))


def use_memory(url: str) -> list[str]:
    """What is different while a memory is open and no call runs, besides its threads."""
    from memskill_cli import Memory

    before, found = snapshot(), list[str]()

    def compare(call: str) -> None:
        changed = differences(before, snapshot())
        found.extend(f"after {call}: {change}" for change in changed if not change.startswith("threads"))

    with Memory.open("mem", **_models(url), span_mode="turn", notice=lambda text: None) as memory:
        compare("open")
        memory.add("Yesterday I moved to a flat in Leeds near the harbour.", "anna")
        compare("add")
        memory.search("Leeds", "anna")
        compare("search")
        memory.context("Leeds", "anna")
        compare("context")
    return found


def _models(url: str) -> dict[str, Any]:
    return {"api_base": url, "model": "gpt-4o-mini", "api_key": ["sk-caller-0123456789abcdef"], "encoder": "minilm",
            "retriever": "litellm:text-embedding-3-small", "cache_dir": "cache"}  # fmt: skip


def main(mode: str) -> None:
    for library in LIBRARIES:
        __import__(library)
    import torch

    torch.set_num_threads(CALLERS_THREADS)
    before = snapshot()
    from memskill_cli import prepare
    from memskill_cli.testing.server import MockLLMServer

    found: list[str] = []
    with MockLLMServer() as server:
        if mode == "memory":
            found = use_memory(server.url)
        elif mode == "async":
            asyncio.run(work_async(server.url, "one"))
        else:
            prepare("locomo", sample=True)
            if mode == "sync":
                work(server.url, "one")
            else:
                threads = [threading.Thread(target=work, args=(server.url, run)) for run in ("one", "two")]
                for thread in threads:
                    thread.start()
                for thread in threads:
                    thread.join()
    print(json.dumps(found + differences(before, snapshot())))


if __name__ == "__main__":
    os.chdir(sys.argv[1])
    main(sys.argv[2])
