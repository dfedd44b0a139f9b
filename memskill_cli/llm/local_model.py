"""The offline language model: Qwen2.5-Coder-1.5B-Instruct in this process, behind litellm like any other provider.

llama.cpp runs it through xllamacpp. One worker thread answers one call at a time, with every core; the model is found
(:mod:`memskill_cli.llm.model_file`) and loaded at the first call.
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
from memskill_cli.llm import load_litellm
from memskill_cli.llm.model_file import INSTALL, find_model
from memskill_cli.llm.models import EMBEDDED_CONTEXT, EMBEDDED_PROVIDER

__all__ = ["EmbeddedLLM", "find_model", "register"]

litellm = load_litellm()

_BATCH = 256
"""Prompt tokens read between two looks at whether the caller has given up; larger ones are no faster on CPUs."""
_PREFIX_CACHE_MIB = 512
"""Memory for the states of earlier prompts, so that roles that take turns keep their prefixes."""
_MAX_THREADS = 8
_log = logging.getLogger(__name__)


class _Completion(NamedTuple):
    text: str
    finish_reason: str
    usage: dict[str, Any]


class EmbeddedLLM(litellm.CustomLLM):  # type: ignore[name-defined]
    """litellm's provider ``memskill_embedded``; the model's name is a GGUF file's path, or empty for the default one.

    Understood parameters: ``temperature``, ``max_tokens``, ``seed`` (0 if not given) and ``grammar`` (GBNF text). A
    caller who is cancelled stops the model within a token, or within 256 tokens of prompt. There is no time limit: what
    ``max_tokens`` and the window allow is the limit, and a slow machine's replies are as good as a fast one's.

    Raises litellm.ContextWindowExceededError when the prompt doesn't fit into :data:`EMBEDDED_CONTEXT` tokens,
    ModelError when there is no model or it can't be loaded.
    """

    def __init__(self) -> None:
        super().__init__()
        self.notice: Callable[[str], None] = _log.info
        self.folder: Path | None = None
        self._servers: dict[str, Any] = {}
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="embedded-model")

    async def acompletion(
        self, model: str, messages: list[dict[str, str]], model_response: Any, optional_params: dict[str, Any], **_: Any
    ) -> Any:
        gone = threading.Event()
        try:
            done = await asyncio.wrap_future(self._submit(model, messages, optional_params, gone))
        finally:
            gone.set()
        return _filled(model_response, model, done)

    def completion(
        self, model: str, messages: list[dict[str, str]], model_response: Any, optional_params: dict[str, Any], **_: Any
    ) -> Any:
        gone = threading.Event()
        try:
            done = self._submit(model, messages, optional_params, gone).result()
        finally:
            gone.set()
        return _filled(model_response, model, done)

    def _submit(
        self, model: str, messages: list[dict[str, str]], params: dict[str, Any], gone: threading.Event
    ) -> Future[_Completion]:
        return self._worker.submit(self._complete, model, messages, params, gone)

    def _complete(
        self, model: str, messages: list[dict[str, str]], params: dict[str, Any], gone: threading.Event
    ) -> _Completion:
        """In the worker thread: load the model if it isn't, ask it, put its stream together."""
        if model not in self._servers:
            self._servers[model] = self._load(model)
        chunks: list[dict[str, Any]] = []

        def take(chunk: dict[str, Any]) -> bool:
            chunks.append(chunk)
            return gone.is_set()  # True ends the stream

        self._servers[model].handle_chat_completions(_request(messages, params), take)
        return _joined(chunks, model)

    def _load(self, model: str) -> Any:
        path = find_model(f"{EMBEDDED}:{model}" if model else EMBEDDED, notice=self.notice, folder=self.folder)
        # Two threads that spin while they wait for each other crawl as soon as another process wants a core; OpenMP
        # reads this when it is first loaded, by whomever.
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        try:
            import xllamacpp
        except ImportError:
            raise ModelError("the embedded model needs xllamacpp, which is not installed", hint=INSTALL) from None
        self.notice(f"loading {path.name}")
        start = time.monotonic()
        try:
            server = xllamacpp.Server(_settings(xllamacpp.CommonParams(), str(path)))
        except RuntimeError as error:
            hint = "give another GGUF file with --model embedded:/path, or another model with --model"
            raise ModelError(f"{path}: llama.cpp cannot load this model: {error}", hint=hint) from None
        _log.info("loaded %s in %.1f s", path, time.monotonic() - start)
        return server


def _settings(params: Any, path: str) -> Any:
    """How llama.cpp runs: silent, one slot, and with its own web server (which it insists on) shut to everyone."""
    params.model.path = path
    params.n_ctx = EMBEDDED_CONTEXT
    params.n_parallel = 1
    params.n_batch = params.n_ubatch = _BATCH
    params.cache_ram_mib = _PREFIX_CACHE_MIB
    params.fit_params = False
    params.verbosity = -1
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads()
    params.hostnames, params.port = ["127.0.0.1"], 0
    params.api_keys = [secrets.token_hex(32)]  # nobody is told
    params.ui = params.endpoint_slots = params.endpoint_props = params.endpoint_metrics = False
    return params


def threads() -> int:
    """The cores this process may use, at most eight."""
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
        "return_progress": True,  # chunks while the prompt is read: a chance to stop
    }
    return request | ({"grammar": params["grammar"]} if params.get("grammar") else {})


def _joined(chunks: list[dict[str, Any]], model: str) -> _Completion:
    """One completion from the chunks of a stream; litellm's error for the error they carry."""
    text: list[str] = []
    finish_reason, usage = "stop", dict[str, Any]()
    for chunk in chunks:
        if error := chunk.get("error"):
            raise _failure(error, model)
        usage = chunk.get("usage") or usage
        for choice in chunk.get("choices", []):
            text.append(choice["delta"].get("content") or "")
            finish_reason = choice["finish_reason"] or finish_reason
    return _Completion("".join(text), finish_reason, usage)


def _failure(error: dict[str, Any], model: str) -> Exception:
    message = str(error.get("message", error))
    wrong = litellm.BadRequestError
    if error.get("type") == "exceed_context_size_error":
        wrong = litellm.ContextWindowExceededError
    return wrong(message=message, model=model or EMBEDDED, llm_provider=EMBEDDED_PROVIDER)


def _filled(response: Any, model: str, done: _Completion) -> Any:
    """litellm's ModelResponse with the completion in it."""
    response.model = model or EMBEDDED
    response.created = int(time.time())
    response.choices[0].message.content = done.text
    response.choices[0].finish_reason = done.finish_reason
    response.usage = litellm.Usage(**done.usage)
    return response


_HANDLER = EmbeddedLLM()


def register(notice: Callable[[str], None] | None = None, folder: Path | None = None) -> None:
    """Make ``memskill_embedded/<path or nothing>`` a model that litellm knows. Any number of times, one handler.

    ``notice`` is told when the model is fetched, joined or loaded; ``folder`` is where its file is kept (None: as
    before, at first :func:`memskill_cli.llm.model_file.cache_folder`).
    """
    if notice:
        _HANDLER.notice = notice
    if folder:
        _HANDLER.folder = folder
    if all(entry["provider"] != EMBEDDED_PROVIDER for entry in litellm.custom_provider_map):
        litellm.custom_provider_map.append({"provider": EMBEDDED_PROVIDER, "custom_handler": _HANDLER})
    litellm.utils.custom_llm_setup()
