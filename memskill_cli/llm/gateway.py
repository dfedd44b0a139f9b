"""The one door to language models: roles, keys, retries, the cache, the ledger and the budget behind one method."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

import orjson

from memskill_cli.config import EMBEDDED, LimitsConfig, ModelsConfig
from memskill_cli.errors import MemskillError, UnreadableReplyError, UsageError
from memskill_cli.llm import failures
from memskill_cli.llm.cache import ResponseCache
from memskill_cli.llm.keys import Deployment, KeyRing
from memskill_cli.llm.ledger import Call, Ledger
from memskill_cli.llm.prices import Price
from memskill_cli.records import ROLES, Role

T = TypeVar("T")
Message = dict[str, str]
"""``{"role": "system" | "user" | "assistant", "content": text}``."""

_log = logging.getLogger(__name__)
_AGAIN = "Your last reply could not be read: {error}\nReply again, this time in exactly the form that was asked for."


@dataclass(frozen=True)
class Reply(Generic[T]):
    """What a model said: as parsed, as text, and whether it was paid for by this call."""

    value: T
    text: str
    cached: bool


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
        from memskill_cli.llm.router import PatientRouter

        self._models, self._keys, self._ledger, self._cache, self._notice = models, keys, ledger, cache, notice
        self._groups = {role: keys.deployments(role, getattr(models, role), models.api_base) for role in ROLES}
        self._embedded = {role for role in ROLES if all(d.label == EMBEDDED for d in self._groups[role])}
        self._prices = {id(d): Price(d) for group in self._groups.values() for d in group}
        self._flights: dict[str, asyncio.Task[Reply[Any]]] = {}
        if any(d.label == EMBEDDED for group in self._groups.values() for d in group):
            from memskill_cli.llm import embedded

            embedded.register()
        for text in keys.notices:
            notice(text)
        self._check_prices()
        self._router = PatientRouter(
            self._groups,
            retries=models.retries,
            timeout=models.timeout,
            concurrency=limits.concurrency,
            notice=notice,
            wasted=self._wasted,
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
            value = parse(text)
            self._record_cached(role)
            return Reply(value, text, cached=True)
        flight = self._flights[key] = asyncio.create_task(self._fetch(ask, parse, key))
        flight.add_done_callback(lambda task: self._landed(key, task))
        return await asyncio.shield(flight)  # an asker who gives up does not take the others' reply away

    async def aclose(self) -> None:
        """Give up what is in flight and let go of litellm."""
        for flight in list(self._flights.values()):
            flight.cancel()
        await asyncio.gather(*self._flights.values(), return_exceptions=True)
        self._router.discard()

    # --- a call that is paid for ---

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
        """One reply through the router, scrubbed, with its ledger entry (not recorded yet)."""
        start = time.monotonic()
        try:
            with self._ledger.reserve(ask.role, self._floor(ask)):
                reply = await self._router.acompletion(
                    model=ask.role,
                    messages=ask.messages,
                    temperature=self._models.temperature,
                    max_tokens=ask.max_tokens,
                    metadata={},
                    **({"num_retries": 0} if ask.role in self._embedded else {}),
                    **({"grammar": ask.grammar} if ask.grammar else {}),
                )
        except Exception as error:
            failure = self._failure(error, ask, time.monotonic() - start)
        else:
            call = self._billed(ask.role, reply, time.monotonic() - start)
            return call, self._keys.scrub_reply(reply.choices[0].message.content)
        raise failure  # out of the handler, so that litellm's error, which may carry a key, is not chained to it

    def _failure(self, error: Exception, ask: _Ask, seconds: float) -> MemskillError:
        """The error to raise for one of litellm's, after writing it down."""
        _log.debug("%s", self._keys.scrub(traceback.format_exc()))
        deployment = self._served(getattr(error, "failed_deployment_id", None), ask.role)
        failure = failures.explain(error, ask.role, deployment, self._keys.scrub)
        if failure.exit_code != 3:  # nothing was asked when the budget said no
            outcome = f"error:{type(failure).__name__}"
            self._ledger.record(Call(ask.role, deployment.model, deployment.label, outcome, seconds=seconds))
        return failure

    def _billed(self, role: str, reply: Any, seconds: float, outcome: str = "ok") -> Call:
        deployment = self._served(reply._hidden_params.get("model_id"), role)
        details = getattr(reply.usage, "prompt_tokens_details", None)
        return Call(
            role,
            deployment.model,
            deployment.label,
            outcome,
            prompt_tokens=reply.usage.prompt_tokens or 0,
            completion_tokens=reply.usage.completion_tokens or 0,
            cached_prompt_tokens=getattr(details, "cached_tokens", None) or 0,
            usd=self._prices[id(deployment)].of(reply),
            seconds=round(seconds, 4),
        )

    def _wasted(self, role: Role, reply: Any) -> None:
        """An empty reply is billed, too, before it is asked for again."""
        self._ledger.record(self._billed(role, reply, 0.0, "error:EmptyReply"))

    def _served(self, name: str | None, role: str) -> Deployment:
        """The deployment that litellm names; the role's first if it names none (the call reached no server)."""
        return self._router.deployments[name] if name else self._groups[role][0]  # type: ignore[index]

    # --- what was asked before ---

    def _stored(self, ask: _Ask, key: str, parse: Callable[[str], T]) -> Reply[T] | None:
        text = self._cache.get(key) if self._cache else None
        if text is None:
            return None
        try:
            value = parse(text)
        except UnreadableReplyError:
            return None  # stored by a more lenient parser: ask anew
        self._record_cached(ask.role)
        return Reply(value, text, cached=True)

    def _record_cached(self, role: Role) -> None:
        self._ledger.record(Call(role, self._groups[role][0].model, "", "ok", cached=True))

    def _digest(self, ask: _Ask) -> str:
        """Names a question. The key in use has no part in it, the models that might answer have."""
        served = sorted({(d.model, d.api_base) for d in self._groups[ask.role]})
        asked = [served, ask.messages, self._models.temperature, ask.max_tokens, ask.grammar]
        return hashlib.sha256(orjson.dumps(asked, option=orjson.OPT_SORT_KEYS)).hexdigest()

    def _landed(self, key: str, flight: asyncio.Task[Reply[Any]]) -> None:
        del self._flights[key]
        if not flight.cancelled():
            flight.exception()  # looked at, so that asyncio does not complain when all askers have given up

    # --- money ---

    def _check_prices(self) -> None:
        unknown = sorted({d.model for group in self._groups.values() for d in group if not self._prices[id(d)].known})
        if not unknown:
            return
        names = ", ".join(unknown)
        if self._ledger.max_cost:
            raise UsageError(
                f"--max-cost needs a price, and nobody knows what {names} costs",
                hint="give input_cost_per_token and output_cost_per_token in a --keys FILE.toml, or drop --max-cost",
            )
        self._notice(f"the price of {names} is not known: its calls count as $0")

    def _floor(self, ask: _Ask) -> float:
        tokens = sum(len(message["content"]) for message in ask.messages) // 4
        return (
            max(self._prices[id(d)].of_prompt(tokens) for d in self._groups[ask.role]) if self._ledger.max_cost else 0.0
        )

    def _longest(self, role: Role) -> int:
        return int(getattr(self._models, f"{role}_max_tokens"))


@dataclass(frozen=True)
class _Ask:
    """One question, all that names it in the cache."""

    role: Role
    messages: list[Message]
    grammar: str | None
    max_tokens: int
