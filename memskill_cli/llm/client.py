"""LLM client: routing by role, retries, cache, ledger, budget."""

from __future__ import annotations

import asyncio
import hashlib
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Generic, TypeVar

import orjson

from memskill_cli.config import EMBEDDED, LimitsConfig, ModelsConfig
from memskill_cli.errors import UnreadableReplyError
from memskill_cli.llm.cache import ReplyCache, Stored
from memskill_cli.llm.keys import CallRole, Deployment, KeyRing
from memskill_cli.llm.ledger import Call, Ledger
from memskill_cli.llm.models import context_window
from memskill_cli.llm.reasoning import ReplyText, read_reply
from memskill_cli.llm.reply_shapes import content_of
from memskill_cli.types import ROLES, CallUsage, Role
from memskill_cli.utils.redaction import MASK

T = TypeVar("T")
Message = dict[str, str]
"""``{"role": "system" | "user" | "assistant", "content": text}``."""

STORE_TIMEOUT = 2.0
"""Seconds to store replies that arrive while a command stops."""
MAX_REPLY = 400_000
"""Characters of a reply that are kept, about 100,000 tokens. Only servers that ignore ``max_tokens`` send more."""
_RETRY = "Your last reply could not be read: {error}\nReply again, this time in exactly the form that was asked for."


@dataclass(frozen=True)
class Reply(Generic[T]):
    """A reply: the parsed value, the text without reasoning, whether it needed no call of its own, and what it took."""

    value: T
    text: ReplyText
    cached: bool
    usage: CallUsage = field(default=CallUsage())


@dataclass(frozen=True)
class Sampling:
    """Sampling parameters: temperature, and nucleus sampling's ``top_p`` (1.0: off)."""

    temperature: float
    top_p: float = 1.0


@dataclass(frozen=True)
class _Request:
    """One request, with everything that identifies it in the cache."""

    role: Role
    messages: list[Message]
    grammar: str | None
    max_tokens: int
    sampling: Sampling


@dataclass(frozen=True)
class _Parsed(Generic[T]):
    """A parsed reply and the text it was parsed from."""

    value: T
    text: ReplyText


def _parse_reply(parse: Callable[[ReplyText], T], text: str, cut: bool) -> _Parsed[T] | UnreadableReplyError:
    try:
        answer = read_reply(text, cut)
        return _Parsed(parse(answer), answer)
    except UnreadableReplyError as error:
        return error


def _retry_messages(text: str, error: UnreadableReplyError) -> list[Message]:
    """Messages to append after a reply that could not be parsed."""
    return [{"role": "assistant", "content": text}, {"role": "user", "content": _RETRY.format(error=error)}]


def _to_stderr(text: str) -> None:
    print(text, file=sys.stderr)


class LLMClient:
    """Calls language models by role. Bound to one event loop.

    The constructor raises AuthError without a key, UnknownModelError for a model name that no provider has, and
    UsageError for a budget with a model of unknown price. The caller closes ``cache`` and ``ledger``.
    """

    def __init__(
        self,
        models: ModelsConfig,
        limits: LimitsConfig,
        *,
        keys: KeyRing,
        ledger: Ledger,
        cache: ReplyCache | None,
        notice: Callable[[str], None] = _to_stderr,
    ) -> None:
        from memskill_cli.llm.billing import BilledRouter

        self._models, self._keys, self._ledger, self._cache = models, keys, ledger, cache
        self._notice, self._masked_before = notice, keys.masked_replies
        self._groups: dict[CallRole, list[Deployment]] = {
            role: keys.deployments(role, getattr(models, role), models.api_base, models) for role in ROLES
        }
        self._embedded = {role for role, group in self._groups.items() if all(d.label == EMBEDDED for d in group)}
        self._pending: dict[str, asyncio.Task[Reply[Any]]] = {}
        self._router = BilledRouter(self._groups, models, limits, keys=keys, ledger=ledger, notice=notice)

    async def ask(
        self,
        role: Role,
        messages: list[Message],
        *,
        parse: Callable[[ReplyText], T] = str,  # type: ignore[assignment]
        grammar: str | None = None,
        max_tokens: int | None = None,
        sampling: Sampling | None = None,
        reuse_cached_error: bool = True,
    ) -> Reply[T]:
        """Send messages to the model of a role. Equal requests, concurrent or earlier, are paid for once.

        Reasoning is removed from the reply first (:mod:`memskill_cli.llm.reasoning`). ``parse`` parses the rest and
        may raise UnreadableReplyError. The model is then asked once more, with its reply and the error appended,
        before the error is raised. The same happens with a reply that ends inside its reasoning. Each reply is cached
        under its messages, also an unreadable one: the same request then raises the same error without a call. With
        ``reuse_cached_error`` False the model is called again instead. ``grammar`` (GBNF) constrains the embedded
        model; it is not sent to others. The defaults of ``max_tokens`` and ``sampling`` are the role's settings.

        Also raises: BudgetExceededError; AuthError when every key was refused; UnknownModelError; ModelError when
        the server does not answer after all retries.
        """
        grammar = grammar if role in self._embedded else None
        sampling = sampling or Sampling(self._models.temperature)
        ask = _Request(role, messages, grammar, max_tokens or self._max_tokens(role), sampling)
        if self._cache is None:
            return await self._fetch(ask, parse, reuse_cached_error)
        key, found = self._look_up(ask)
        if found and isinstance(parsed := _parse_reply(parse, found.text, found.cut), _Parsed):
            self._record_cached(role, found, "ok")
            return Reply(parsed.value, parsed.text, cached=True, usage=found.usage)
        if task := self._pending.get(key):
            shared = await asyncio.shield(task)
            text = shared.text
            self._record_cached(role, Stored(text), "ok")
            return Reply(parse(text), text, cached=True, usage=shared.usage._replace(seconds=0.0))
        task = self._pending[key] = asyncio.create_task(self._fetch(ask, parse, reuse_cached_error, (key, found)))
        task.add_done_callback(lambda task: self._on_done(key, task))
        return await asyncio.shield(task)  # a cancelled caller must not cancel the call for other callers

    def window(self, role: Role) -> int | None:
        """Context window, in tokens, that every model of a role has; None if unknown for one of them."""
        windows = [context_window(deployment.model) for deployment in self._groups[role]]
        known = [window for window in windows if window]
        return min(known) if len(known) == len(windows) else None

    @property
    def in_flight(self) -> int:
        """Number of calls sent and not yet answered, which will be billed. Excludes the embedded model."""
        return self._router.in_flight

    def stop_sending(self) -> None:
        """Stop sending: calls not yet sent, retries and repeated requests raise CancelledError."""
        self._router.stop_sending()

    async def aclose(self) -> None:
        """Wait for the replies in task, each up to its own deadline; cancel the other calls; release litellm.

        If this is cancelled, it stops waiting.
        """
        tasks = list(self._pending.values())
        if masked := self._keys.masked_replies - self._masked_before:
            self._notice(f"replies in which a key was replaced by {MASK}: {masked}")
        try:
            if tasks:
                await self._router.drain()
                await asyncio.wait(tasks, timeout=STORE_TIMEOUT)
        finally:
            for task in tasks:
                task.cancel()
            self._router.close()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _fetch(
        self,
        ask: _Request,
        parse: Callable[[ReplyText], T],
        reuse_cached_error: bool,
        known: tuple[str, Stored | None] | None = None,
        skip_cache: bool = False,
    ) -> Reply[T]:
        """The reply to ``ask``, or to the repeated request when the first reply is unreadable.

        ``known`` is the result of an earlier cache lookup for ``ask``. With ``skip_cache`` the cache is not read.
        """
        original, usage = ask, CallUsage()
        while True:
            key, found = known or self._look_up(ask, skip_cache)
            known = None
            call, text = (None, found.text) if found else await self._call(ask)
            cut = found.cut if found else bool(call and call.cut)
            usage = _added(usage, found.usage if found else _usage_of(call))
            outcome = "unreadable"
            try:
                parsed = _parse_reply(parse, text, cut)
                outcome = "ok" if isinstance(parsed, _Parsed) else outcome
            finally:
                if found:
                    self._record_cached(ask.role, found, outcome)
                elif call:
                    self._store(key, text, replace(call, outcome=outcome))
            if isinstance(parsed, _Parsed):
                return Reply(parsed.value, parsed.text, cached=found is not None, usage=usage)
            if ask is not original:
                if found and not reuse_cached_error:
                    return await self._fetch(original, parse, reuse_cached_error, skip_cache=True)
                parsed.prompt_tokens, parsed.completion_tokens, parsed.seconds = usage
                raise parsed
            ask = replace(ask, messages=[*ask.messages, *_retry_messages(text, parsed)])

    def _look_up(self, ask: _Request, skip_cache: bool = False) -> tuple[str, Stored | None]:
        """The cache key of a request and the stored reply; "" and None without a cache."""
        if self._cache is None:
            return "", None
        key = self._digest(ask)
        return key, None if skip_cache else self._cache.get(key)

    async def _call(self, ask: _Request) -> tuple[Call, str]:
        params: dict[str, Any] = {"temperature": ask.sampling.temperature, "max_tokens": ask.max_tokens}
        if ask.sampling.top_p < 1:
            params["top_p"] = ask.sampling.top_p
        if ask.role in self._embedded:
            params["num_retries"] = 0  # a failure in this process repeats
        if ask.grammar:
            params["grammar"] = ask.grammar
        characters = sum(len(message["content"]) for message in ask.messages)
        call, reply = await self._router.call("acompletion", ask.role, characters, messages=ask.messages, **params)
        choice = reply.choices[0]
        masked = self._keys.masked_replies
        text = self._keys.redact_reply(_sanitize(content_of(choice.message)))
        if not masked and self._keys.masked_replies:
            self._notice(f"a reply of role {ask.role} contains one of your keys: it is replaced by {MASK}")
        return replace(call, cut=choice.finish_reason == "length"), text

    def _store(self, key: str, text: str, call: Call) -> None:
        """Store a reply in the cache, then its line in the ledger.

        If the process is killed between the two, :meth:`_record_cached` writes the line later. Both run in the event
        loop: they take 0.2 ms, and handing them to another thread takes 1 ms.
        """
        bill = self._ledger.bill(call)
        try:
            if self._cache:
                self._cache.put(key, text, orjson.dumps(bill).decode())
        finally:
            self._ledger.write(bill)

    def _record_cached(self, role: Role, found: Stored, outcome: str) -> None:
        """Count a cached reply; or write the line of its call, if a killed process did not write it."""
        if found.bill and self._ledger.is_missing(bill := orjson.loads(found.bill)):
            self._ledger.rewrite(bill)
        else:
            self._ledger.record(Call(role, self._groups[role][0].model, "", outcome, cached=True))

    def _digest(self, ask: _Request) -> str:
        """Cache key of a request. It depends on the models that may answer, not on the API key."""
        models = sorted({(d.model, d.api_base) for d in self._groups[ask.role]})
        identity = [models, ask.messages, ask.sampling.temperature, ask.max_tokens, ask.grammar]
        if ask.sampling.top_p < 1:  # only then: keeps the keys of earlier versions
            identity.append(ask.sampling.top_p)
        parameters = [d.parameters for d in self._groups[ask.role] if d.parameters]
        if parameters:
            identity.append(sorted({orjson.dumps(each, option=orjson.OPT_SORT_KEYS).decode() for each in parameters}))
        return hashlib.sha256(orjson.dumps(identity, option=orjson.OPT_SORT_KEYS)).hexdigest()

    def _on_done(self, key: str, task: asyncio.Task[Reply[Any]]) -> None:
        del self._pending[key]
        if not task.cancelled():
            task.exception()  # retrieved: else asyncio logs it when all callers were cancelled

    def _max_tokens(self, role: Role) -> int:
        return int(getattr(self._models, f"{role}_max_tokens"))


def _usage_of(call: Call | None) -> CallUsage:
    return CallUsage(call.prompt_tokens, call.completion_tokens, call.seconds) if call else CallUsage()


def _added(one: CallUsage, other: CallUsage) -> CallUsage:
    tokens = one.prompt_tokens + other.prompt_tokens, one.completion_tokens + other.completion_tokens
    return CallUsage(*tokens, round(one.seconds + other.seconds, 4))


def _sanitize(text: str) -> str:
    """``text`` cut to :data:`MAX_REPLY`. Replaces lone surrogates (JSON can escape them): UTF-8 cannot encode them."""
    return text[:MAX_REPLY].encode("utf-8", "replace").decode()
