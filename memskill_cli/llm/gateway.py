"""The one door to language models: roles, keys, retries, the cache, the ledger and the budget behind one method."""

from __future__ import annotations

import asyncio
import hashlib
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

import orjson

from memskill_cli.config import EMBEDDED, LimitsConfig, ModelsConfig
from memskill_cli.errors import UnreadableReplyError
from memskill_cli.llm.cache import ResponseCache
from memskill_cli.llm.keys import Deployment, KeyRing, Purpose
from memskill_cli.llm.ledger import Call, Ledger
from memskill_cli.llm.models import context_window
from memskill_cli.records import ROLES, Role

T = TypeVar("T")
Message = dict[str, str]
"""``{"role": "system" | "user" | "assistant", "content": text}``."""

GRACE = 10.0
"""Seconds that replies on their way are waited for when a command stops early: they are paid for, so they are kept."""
WRITE_DOWN = 0.5
"""Seconds for writing those replies down."""
MAX_REPLY = 400_000
"""Characters of a reply that are looked at, some 100,000 tokens; only a server that heeds no limit sends more."""
_AGAIN = "Your last reply could not be read: {error}\nReply again, this time in exactly the form that was asked for."


@dataclass(frozen=True)
class Reply(Generic[T]):
    """What a model said: as parsed, as text, and whether it came without a call of its own."""

    value: T
    text: str
    cached: bool


@dataclass(frozen=True)
class _Ask:
    """One question, with all that names it in the cache."""

    role: Role
    messages: list[Message]
    grammar: str | None
    max_tokens: int


def _to_stderr(text: str) -> None:
    print(text, file=sys.stderr)


class Gateway:
    """Language models by role. Lives within one event loop.

    Raises, before anything is asked: AuthError without a key, UnknownModelError for a name no provider has, UsageError
    for a budget on a model whose price nobody knows. ``cache`` and ``ledger`` stay the caller's, to close.
    """

    def __init__(
        self,
        models: ModelsConfig,
        limits: LimitsConfig,
        *,
        keys: KeyRing,
        ledger: Ledger,
        cache: ResponseCache | None,
        notice: Callable[[str], None] = _to_stderr,
    ) -> None:
        from memskill_cli.llm.metered import MeteredRouter

        self._models, self._keys, self._ledger, self._cache = models, keys, ledger, cache
        self._groups: dict[Purpose, list[Deployment]] = {
            role: keys.deployments(role, getattr(models, role), models.api_base) for role in ROLES
        }
        self._embedded = {role for role, group in self._groups.items() if all(d.label == EMBEDDED for d in group)}
        self._flights: dict[str, asyncio.Task[Reply[Any]]] = {}
        self._router = MeteredRouter(
            self._groups,
            retries=models.retries,
            timeout=models.timeout,
            concurrency=limits.concurrency,
            keys=keys,
            ledger=ledger,
            notice=notice,
        )

    async def ask(
        self,
        role: Role,
        messages: list[Message],
        *,
        parse: Callable[[str], T] = str,  # type: ignore[assignment]
        grammar: str | None = None,
        max_tokens: int | None = None,
    ) -> Reply[T]:
        """Ask the model of a role; equal questions asked at once or before are paid for once.

        ``parse`` reads the reply and may raise UnreadableReplyError: the model is then asked once more, with its reply
        and the error before it, before the error goes to the caller. Only a reply that was read is cached.
        ``grammar`` (GBNF) binds the embedded model; others are not told. ``max_tokens``: as the role's setting.

        Raises besides: BudgetExceededError; AuthError when every key was refused; UnknownModelError; ModelError when
        the server does not answer after all retries.
        """
        ask = _Ask(role, messages, grammar if role in self._embedded else None, max_tokens or self._longest(role))
        if self._cache is None:
            return await self._fetch(ask, parse, "")
        key = self._digest(ask)
        if (found := self._stored(ask, key, parse)) is not None:
            return found
        if flight := self._flights.get(key):
            text = (await asyncio.shield(flight)).text
            return self._free(role, text, parse(text))
        flight = self._flights[key] = asyncio.create_task(self._fetch(ask, parse, key))
        flight.add_done_callback(lambda task: self._landed(key, task))
        return await asyncio.shield(flight)  # an asker who gives up does not take the others' reply away

    def window(self, role: Role) -> int | None:
        """Tokens of prompt and reply together that every model of a role takes; None if that is not known of one."""
        windows = [context_window(deployment.model) for deployment in self._groups[role]]
        known = [window for window in windows if window]
        return min(known) if len(known) == len(windows) else None

    async def aclose(self) -> None:
        """Let what was sent come back (:data:`GRACE`), give up the rest, and let go of litellm."""
        flights = list(self._flights.values())
        if flights:
            await self._router.drain(GRACE)
            await asyncio.wait(flights, timeout=WRITE_DOWN)
        for flight in flights:
            flight.cancel()
        await asyncio.gather(*flights, return_exceptions=True)
        self._router.close()

    async def _fetch(self, ask: _Ask, parse: Callable[[str], T], key: str) -> Reply[T]:
        first = True
        while True:
            call, text = await self._call(ask)
            outcome = "unreadable"
            try:
                value = parse(text)
                outcome = "ok"
            except UnreadableReplyError as error:
                if not first:
                    raise
                again = _AGAIN.format(error=error)
                shown = [{"role": "assistant", "content": text}, {"role": "user", "content": again}]
                ask, first = replace(ask, messages=[*ask.messages, *shown]), False
                continue
            finally:
                self._ledger.record(replace(call, outcome=outcome))
            if self._cache is not None:
                await asyncio.to_thread(self._cache.put, key, text)
            return Reply(value, text, cached=False)

    async def _call(self, ask: _Ask) -> tuple[Call, str]:
        params: dict[str, Any] = {"temperature": self._models.temperature, "max_tokens": ask.max_tokens}
        if ask.role in self._embedded:
            params["num_retries"] = 0  # what fails in this process fails again
        if ask.grammar:
            params["grammar"] = ask.grammar
        characters = sum(len(message["content"]) for message in ask.messages)
        call, reply = await self._router.call("acompletion", ask.role, characters, messages=ask.messages, **params)
        return call, self._keys.scrub_reply(_storable(reply.choices[0].message.content))

    def _stored(self, ask: _Ask, key: str, parse: Callable[[str], T]) -> Reply[T] | None:
        text = self._cache.get(key) if self._cache else None
        if text is None:
            return None
        try:
            return self._free(ask.role, text, parse(text))
        except UnreadableReplyError:
            return None  # stored for a more lenient parser: ask anew

    def _free(self, role: Role, text: str, value: T) -> Reply[T]:
        self._ledger.record(Call(role, self._groups[role][0].model, "", "ok", cached=True))
        return Reply(value, text, cached=True)

    def _digest(self, ask: _Ask) -> str:
        """Names a question. The key in use has no part in it; the models that might answer have."""
        served = sorted({(d.model, d.api_base) for d in self._groups[ask.role]})
        asked = [served, ask.messages, self._models.temperature, ask.max_tokens, ask.grammar]
        return hashlib.sha256(orjson.dumps(asked, option=orjson.OPT_SORT_KEYS)).hexdigest()

    def _landed(self, key: str, flight: asyncio.Task[Reply[Any]]) -> None:
        del self._flights[key]
        if not flight.cancelled():
            flight.exception()  # looked at, so that asyncio does not complain when all askers have given up

    def _longest(self, role: Role) -> int:
        return int(getattr(self._models, f"{role}_max_tokens"))


def _storable(text: str) -> str:
    """``text``, bounded, and without halves of surrogate pairs (JSON can escape them), which no file takes."""
    return text[:MAX_REPLY].encode("utf-8", "replace").decode()
