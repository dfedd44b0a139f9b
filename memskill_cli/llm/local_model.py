"""Embedded language model: Qwen2.5-Coder-1.5B-Instruct in this process, as a litellm provider.

llama.cpp runs it, through xllamacpp. One worker thread handles one call at a time and uses up to eight cores. The first
call finds the model file (:mod:`memskill_cli.llm.model_file`) and loads it.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from memskill_cli.config import EMBEDDED
from memskill_cli.errors import ModelError
from memskill_cli.llm import import_litellm
from memskill_cli.llm.model_file import INSTALL, find_model
from memskill_cli.llm.models import EMBEDDED_CONTEXT, EMBEDDED_PROVIDER
from memskill_cli.utils import process

__all__ = ["EmbeddedLLM", "find_model", "register"]

litellm = import_litellm()

_BATCH = 256
"""Prompt tokens per batch. Cancellation is checked between batches. Larger ones are not faster on CPUs."""
_PREFIX_CACHE_MIB = 512
"""Memory for cached prompt prefixes, so that alternating roles keep theirs."""
_MAX_THREADS = 8
_log = logging.getLogger(__name__)


class _Completion(NamedTuple):
    text: str
    finish_reason: str
    usage: dict[str, Any]


class EmbeddedLLM(litellm.CustomLLM):  # type: ignore[name-defined]
    """litellm provider ``memskill_embedded``. The model name is the path of a GGUF file, or empty for the default.

    Supported parameters: ``temperature``, ``max_tokens``, ``top_p``, ``seed`` (default 0) and ``grammar`` (GBNF text).
    Cancelling a call stops the model within one token, or within 256 prompt tokens. There is no timeout: only
    ``max_tokens`` and the context window limit a reply, so that replies do not depend on the speed of the machine.

    Raises litellm.ContextWindowExceededError when the prompt does not fit into :data:`EMBEDDED_CONTEXT` tokens,
    ModelError when the model is missing or cannot be loaded.
    """

    def __init__(self) -> None:
        super().__init__()
        self.notice: Callable[[str], None] = _log.info
        self.folder: Path | None = None
        self._servers: dict[str, Any] = {}
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="embedded-model")

    def close(self) -> None:
        """Unload the models and stop the worker thread. The next call loads them again."""
        self._worker.shutdown(cancel_futures=True)
        self._servers.clear()
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="embedded-model")

    async def acompletion(
        self, model: str, messages: list[dict[str, str]], model_response: Any, optional_params: dict[str, Any], **_: Any
    ) -> Any:
        cancelled = threading.Event()
        try:
            done = await asyncio.wrap_future(self._submit(model, messages, optional_params, cancelled))
        finally:
            cancelled.set()
        return _fill_response(model_response, model, done)

    def completion(
        self, model: str, messages: list[dict[str, str]], model_response: Any, optional_params: dict[str, Any], **_: Any
    ) -> Any:
        cancelled = threading.Event()
        try:
            done = self._submit(model, messages, optional_params, cancelled).result()
        finally:
            cancelled.set()
        return _fill_response(model_response, model, done)

    def _submit(
        self, model: str, messages: list[dict[str, str]], params: dict[str, Any], cancelled: threading.Event
    ) -> Future[_Completion]:
        return self._worker.submit(self._complete, model, messages, params, cancelled)

    def _complete(
        self, model: str, messages: list[dict[str, str]], params: dict[str, Any], cancelled: threading.Event
    ) -> _Completion:
        """Runs in the worker thread: load the model if needed, generate, join the stream."""
        if model not in self._servers:
            self._servers[model] = self._load(model)
        chunks: list[dict[str, Any]] = []

        def on_chunk(chunk: dict[str, Any]) -> bool:
            chunks.append(chunk)
            return cancelled.is_set()  # True ends the stream

        self._servers[model].handle_chat_completions(_request(messages, params), on_chunk)
        return _join_chunks(chunks, model)

    def _load(self, model: str) -> Any:
        path = find_model(f"{EMBEDDED}:{model}" if model else EMBEDDED, notice=self.notice, folder=self.folder)
        # Threads that spin while they wait become very slow when another process uses a core. OpenMP reads this
        # variable once, when any library loads it.
        try:
            with process.variables(OMP_WAIT_POLICY="PASSIVE"):
                import xllamacpp
        except ImportError:
            raise ModelError("the embedded model needs xllamacpp, which is not installed", hint=INSTALL) from None
        self.notice(f"loading {path.name}")
        start = time.monotonic()
        try:
            server = xllamacpp.Server(_settings(xllamacpp.CommonParams(), str(path)))
        except RuntimeError as error:
            hint = "use another GGUF file with --model embedded:/path, or another model with --model"
            raise ModelError(f"{path}: llama.cpp cannot load this model: {error}", hint=hint) from None
        _log.info("loaded %s in %.1f s", path, time.monotonic() - start)
        return server


def _settings(params: Any, path: str) -> Any:
    """llama.cpp's settings: no output, one slot. It always starts a web server, so a random API key locks it."""
    params.model.path = path
    params.n_ctx = EMBEDDED_CONTEXT
    params.n_parallel = 1
    params.n_batch = params.n_ubatch = _BATCH
    params.cache_ram_mib = _PREFIX_CACHE_MIB
    params.fit_params = False
    params.verbosity = -1
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads()
    params.hostnames, params.port = ["127.0.0.1"], 0
    params.api_keys = [secrets.token_hex(32)]  # never disclosed
    params.ui = params.endpoint_slots = params.endpoint_props = params.endpoint_metrics = False
    return params


def threads() -> int:
    """Number of cores that this process may use, at most eight."""
    return min(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1, _MAX_THREADS)


def _request(messages: list[dict[str, str]], params: dict[str, Any]) -> dict[str, Any]:
    request = {
        "messages": messages,
        "temperature": params.get("temperature") or 0.0,
        "max_tokens": params.get("max_tokens") or -1,
        "top_p": params.get("top_p") or 1.0,
        "seed": params.get("seed") or 0,
        "cache_prompt": True,
        "stream": True,
        "stream_options": {"include_usage": True},
        "return_progress": True,  # chunks while the prompt is processed: allows cancellation
    }
    return request | ({"grammar": params["grammar"]} if params.get("grammar") else {})


def _join_chunks(chunks: list[dict[str, Any]], model: str) -> _Completion:
    """Join the chunks of a stream into one completion; raise litellm's error for an error in them."""
    text: list[str] = []
    finish_reason, usage = "stop", dict[str, Any]()
    for chunk in chunks:
        if error := chunk.get("error"):
            raise _to_litellm_error(error, model)
        usage = chunk.get("usage") or usage
        for choice in chunk.get("choices", []):
            text.append(choice["delta"].get("content") or "")
            finish_reason = choice["finish_reason"] or finish_reason
    return _Completion("".join(text), finish_reason, usage)


def _to_litellm_error(error: dict[str, Any], model: str) -> Exception:
    message = str(error.get("message", error))
    kind = litellm.BadRequestError
    if error.get("type") == "exceed_context_size_error":
        kind = litellm.ContextWindowExceededError
    return kind(message=message, model=model or EMBEDDED, llm_provider=EMBEDDED_PROVIDER)


def _fill_response(response: Any, model: str, done: _Completion) -> Any:
    """Fill litellm's ModelResponse with the completion."""
    response.model = model or EMBEDDED
    response.created = int(time.time())
    response.choices[0].message.content = done.text
    response.choices[0].finish_reason = done.finish_reason
    response.usage = litellm.Usage(**done.usage)
    return response


_HANDLER = EmbeddedLLM()


def register(notice: Callable[[str], None] | None = None, folder: Path | None = None) -> None:
    """Register ``memskill_embedded/<path or nothing>`` with litellm. May be called repeatedly; there is one handler.

    ``notice`` is called when the model is downloaded, joined or loaded. ``folder`` is where its file is kept (None: no
    change; the default is :func:`memskill_cli.llm.model_file.cache_folder`).
    """
    if notice:
        _HANDLER.notice = notice
    if folder:
        _HANDLER.folder = folder
    process.change("embedded model", _add_provider)


def _add_provider() -> process.Undo:
    entry = {"provider": EMBEDDED_PROVIDER, "custom_handler": _HANDLER}
    litellm.custom_provider_map.append(entry)
    litellm.utils.custom_llm_setup()

    def undo() -> None:
        _HANDLER.close()
        _HANDLER.notice, _HANDLER.folder = _log.info, None
        litellm.custom_provider_map.remove(entry)
        for names in (litellm.provider_list, litellm._custom_providers):
            names.remove(EMBEDDED_PROVIDER)

    return undo
