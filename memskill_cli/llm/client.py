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
from memskill_cli.llm.cache import ResponseCache, Stored
from memskill_cli.llm.keys import Deployment, KeyRing, Purpose
from memskill_cli.llm.ledger import Call, Ledger
from memskill_cli.llm.models import context_window
from memskill_cli.llm.reasoning import ReplyText, read_reply
from memskill_cli.types import ROLES, Role

T = TypeVar("T")
Message = dict[str, str]
"""``{"role": "system" | "user" | "assistant", "content": text}``."""

WRITE_DOWN = 2.0
"""Seconds for writing down the replies that came while a command stops."""
MAX_REPLY = 400_000
"""Characters of a reply that are looked at, some 100,000 tokens; only a server that heeds no limit sends more."""
_AGAIN = "Your last reply could not be read: {error}\nReply again, this time in exactly the form that was asked for."


@dataclass(frozen=True)
class Reply(Generic[T]):
    """What a model said: as parsed, as text without reasoning, and whether it came without a call of its own."""

    value: T
    text: ReplyText
    cached: bool


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn: temperature, and the share of probability that is drawn from (1.0 is all of it)."""

    temperature: float
    top_p: float = 1.0


@dataclass(frozen=True)
class _Ask:
    """One question, with all that names it in the cache."""

    role: Role
    messages: list[Message]
    grammar: str | None
    max_tokens: int
    sampling: Sampling


@dataclass(frozen=True)
class _Readable(Generic[T]):
    """A reply as parsed, and the text that was parsed."""

    value: T
    text: ReplyText


def _read(parse: Callable[[ReplyText], T], text: str, cut: bool) -> _Readable[T] | UnreadableReplyError:
    try:
        said = read_reply(text, cut)
        return _Readable(parse(said), said)
    except UnreadableReplyError as error:
        return error


def _asking_again(text: str, error: UnreadableReplyError) -> list[Message]:
    """What is added to the messages after a reply that could not be read."""
    return [{"role": "assistant", "content": text}, {"role": "user", "content": _AGAIN.format(error=error)}]


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
        from memskill_cli.llm.billing import MeteredRouter

        self._models, self._keys, self._ledger, self._cache = models, keys, ledger, cache
        self._groups: dict[Purpose, list[Deployment]] = {
            role: keys.deployments(role, getattr(models, role), models.api_base) for role in ROLES
        }
        self._embedded = {role for role, group in self._groups.items() if all(d.label == EMBEDDED for d in group)}
        self._flights: dict[str, asyncio.Task[Reply[Any]]] = {}
        self._router = MeteredRouter(self._groups, models, limits, keys=keys, ledger=ledger, notice=notice)

    async def ask(
        self,
        role: Role,
        messages: list[Message],
        *,
        parse: Callable[[ReplyText], T] = str,  # type: ignore[assignment]
        grammar: str | None = None,
        max_tokens: int | None = None,
        sampling: Sampling | None = None,
        settled: bool = True,
    ) -> Reply[T]:
        """Ask the model of a role; equal questions asked at once or before are paid for once.

        Reasoning in the text is removed first, whatever marks it (:mod:`memskill_cli.llm.reasoning`).
        ``parse`` reads the rest and may raise UnreadableReplyError: the model is then asked once more, with its reply
        and the error before it, before the error goes to the caller. The same is done with a reply that ends inside
        its reasoning. Each reply is cached under the messages it answers, so an unreadable one is not paid for again
        either: asked again, the same error comes. With ``settled`` False an error that was stored is not the last
        word: the question is asked anew. ``grammar`` (GBNF) binds the embedded model; others are not told. Left out,
        ``max_tokens`` and ``sampling`` are the role's settings.

        Raises besides: BudgetExceededError; AuthError when every key was refused; UnknownModelError; ModelError when
        the server does not answer after all retries.
        """
        grammar = grammar if role in self._embedded else None
        sampling = sampling or Sampling(self._models.temperature)
        ask = _Ask(role, messages, grammar, max_tokens or self._longest(role), sampling)
        if self._cache is None:
            return await self._fetch(ask, parse, settled)
        key, found = self._look_up(ask)
        if found and isinstance(read := _read(parse, found.text, found.cut), _Readable):
            self._repeat(role, found, "ok")
            return Reply(read.value, read.text, cached=True)
        if flight := self._flights.get(key):
            text = (await asyncio.shield(flight)).text
            self._repeat(role, Stored(text), "ok")
            return Reply(parse(text), text, cached=True)
        flight = self._flights[key] = asyncio.create_task(self._fetch(ask, parse, settled, (key, found)))
        flight.add_done_callback(lambda task: self._landed(key, task))
        return await asyncio.shield(flight)  # an asker who gives up does not take the others' reply away

    def window(self, role: Role) -> int | None:
        """Tokens of prompt and reply together that every model of a role takes; None if that is not known of one."""
        windows = [context_window(deployment.model) for deployment in self._groups[role]]
        known = [window for window in windows if window]
        return min(known) if len(known) == len(windows) else None

    @property
    def on_their_way(self) -> int:
        """Replies that are waited for, and paid for whether they are read or not; not those of the embedded model."""
        return self._router.on_their_way

    def hold(self) -> None:
        """Send nothing any more: calls that have not left, retries and second asks end in CancelledError."""
        self._router.hold()

    async def aclose(self) -> None:
        """Let what was sent come back, each reply within its own deadline, give up the rest, and let go of litellm.

        Cancelled meanwhile, it gives up at once.
        """
        flights = list(self._flights.values())
        try:
            if flights:
                await self._router.drain()
                await asyncio.wait(flights, timeout=WRITE_DOWN)
        finally:
            for flight in flights:
                flight.cancel()
            self._router.close()
        await asyncio.gather(*flights, return_exceptions=True)

    async def _fetch(
        self,
        ask: _Ask,
        parse: Callable[[ReplyText], T],
        settled: bool,
        known: tuple[str, Stored | None] | None = None,
        anew: bool = False,
    ) -> Reply[T]:
        """The reply to ``ask``, or to the second question when the first reply is unreadable.

        ``known`` is what the cache was found to hold for ``ask``; with ``anew`` it is not asked.
        """
        first = ask
        while True:
            key, found = known or self._look_up(ask, anew)
            known = None
            call, text = (None, found.text) if found else await self._call(ask)
            cut = found.cut if found else bool(call and call.cut)
            outcome = "unreadable"
            try:
                read = _read(parse, text, cut)
                outcome = "ok" if isinstance(read, _Readable) else outcome
            finally:
                if found:
                    self._repeat(ask.role, found, outcome)
                elif call:
                    self._write_down(key, text, replace(call, outcome=outcome))
            if isinstance(read, _Readable):
                return Reply(read.value, read.text, cached=found is not None)
            if ask is not first:
                if found and not settled:
                    return await self._fetch(first, parse, settled, anew=True)
                raise read
            ask = replace(ask, messages=[*ask.messages, *_asking_again(text, read)])

    def _look_up(self, ask: _Ask, anew: bool = False) -> tuple[str, Stored | None]:
        """A question's name in the cache, and what is stored there; "" and None without a cache."""
        if self._cache is None:
            return "", None
        key = self._digest(ask)
        return key, None if anew else self._cache.get(key)

    async def _call(self, ask: _Ask) -> tuple[Call, str]:
        params: dict[str, Any] = {"temperature": ask.sampling.temperature, "max_tokens": ask.max_tokens}
        if ask.sampling.top_p < 1:
            params["top_p"] = ask.sampling.top_p
        if ask.role in self._embedded:
            params["num_retries"] = 0  # what fails in this process fails again
        if ask.grammar:
            params["grammar"] = ask.grammar
        characters = sum(len(message["content"]) for message in ask.messages)
        call, reply = await self._router.call("acompletion", ask.role, characters, messages=ask.messages, **params)
        choice = reply.choices[0]
        text = self._keys.scrub_reply(_storable(choice.message.content))
        return replace(call, cut=choice.finish_reason == "length"), text

    def _write_down(self, key: str, text: str, call: Call) -> None:
        """Keep a reply, then its line in the ledger: killed between the two, the line is written late (_repeat).

        Both at once and here: they take 0.2 ms, and to have another thread do them takes 1 ms.
        """
        bill = self._ledger.bill(call)
        try:
            if self._cache:
                self._cache.put(key, text, orjson.dumps(bill).decode())
        finally:
            self._ledger.write(bill)

    def _repeat(self, role: Role, found: Stored, outcome: str) -> None:
        """Count a reply that costs nothing; or the call that got it, if it was killed before its line was written."""
        if found.bill and self._ledger.lost(bill := orjson.loads(found.bill)):
            self._ledger.restore(bill)
        else:
            self._ledger.record(Call(role, self._groups[role][0].model, "", outcome, cached=True))

    def _digest(self, ask: _Ask) -> str:
        """Names a question. The key in use has no part in it; the models that might answer have."""
        served = sorted({(d.model, d.api_base) for d in self._groups[ask.role]})
        asked = [served, ask.messages, ask.sampling.temperature, ask.max_tokens, ask.grammar]
        if ask.sampling.top_p < 1:  # names of replies stored by versions before stay as they are
            asked.append(ask.sampling.top_p)
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
