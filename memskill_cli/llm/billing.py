"""Router with billing: reserves budget before each call, then returns a ledger entry or raises a memskill error."""

from __future__ import annotations

import logging
import time
import traceback
from collections.abc import Callable
from typing import Any, Literal

from memskill_cli.config import EMBEDDED, LimitsConfig, ModelsConfig
from memskill_cli.errors import BudgetExceededError, MemskillError
from memskill_cli.llm import error_mapping
from memskill_cli.llm.key_cooldown import begin_call, failed_deployment
from memskill_cli.llm.keys import CallRole, Deployment, KeyRing
from memskill_cli.llm.ledger import Call, Ledger
from memskill_cli.llm.prices import Price, unpriced
from memskill_cli.llm.router import RetryingRouter
from memskill_cli.utils import redaction

_log = logging.getLogger(__name__)


class BilledRouter:
    """Makes calls by role, with budget, billing and error mapping. Bound to one event loop.

    UsageError if there is a budget and the price of a model is unknown.
    """

    def __init__(
        self,
        groups: dict[CallRole, list[Deployment]],
        models: ModelsConfig,
        limits: LimitsConfig,
        *,
        keys: KeyRing,
        ledger: Ledger,
        notice: Callable[[str], None],
    ) -> None:
        self._groups, self._keys, self._ledger = groups, keys, ledger
        self._prices = {id(d): Price(d) for group in groups.values() for d in group}
        self._show = notice
        self._check_prices()
        if any(d.label == EMBEDDED for group in groups.values() for d in group):
            from memskill_cli.llm.local_model import register

            register(notice)
        self._router = RetryingRouter(
            groups,
            retries=models.retries,
            timeout=models.timeout,
            concurrency=limits.concurrency,
            notice=self._notice,
            on_empty_reply=self._bill_empty_reply,
        )

    async def call(
        self, kind: Literal["acompletion", "aembedding"], role: CallRole, characters: int, **params: Any
    ) -> tuple[Call, Any]:
        """Make a call: its ledger entry, which the caller records, and litellm's reply. Failures are recorded here.

        ``characters`` is the length of the prompt. Raises what :meth:`LLMClient.ask` raises.
        """
        begin_call()
        start = time.monotonic()
        ranges = [self._prices[id(d)].range(characters, params.get("max_tokens", 0)) for d in self._groups[role]]
        floor, ceiling = map(max, zip(*ranges, strict=True))
        try:
            async with self._ledger.reserve(role, floor, ceiling):
                reply = await getattr(self._router, kind)(model=role, metadata={}, **params)
        except BudgetExceededError:
            raise
        except Exception as error:
            failure = self._failure(error, role, time.monotonic() - start)
        else:
            return self._bill(role, reply, time.monotonic() - start), reply
        raise failure  # outside the handler: litellm's error may contain a key and must not be chained

    @property
    def in_flight(self) -> int:
        return self._router.in_flight

    def stop_sending(self) -> None:
        self._router.stop_sending()

    async def drain(self) -> None:
        await self._router.drain()

    def close(self) -> None:
        self._router.discard()

    def _notice(self, text: str) -> None:
        """Show a notice once per key ring, which several routers can share."""
        if text not in self._keys.shown_notices:
            self._keys.shown_notices.add(text)
            self._show(text)

    def _failure(self, error: Exception, role: CallRole, seconds: float) -> MemskillError:
        """Record a failed call; the error to raise for it."""
        _log.debug("%s", redaction.redact(traceback.format_exc()))
        deployment = self._deployment(failed_deployment(error), role)
        failure = error_mapping.explain(error, role, deployment, self._keys.redact)
        outcome = f"error:{type(failure).__name__}"
        self._ledger.record(Call(role, deployment.model, deployment.label, outcome, seconds=round(seconds, 4)))
        return failure

    def _bill(self, role: CallRole, reply: Any, seconds: float, outcome: str = "ok") -> Call:
        deployment = self._deployment(reply._hidden_params["model_id"], role)
        price = self._prices[id(deployment)]
        call = price.bill(role, reply, seconds, outcome)
        if call.usd is None and price.known:
            self._notice(f"the price of a reply of {deployment.model} cannot be computed: it counts as $0")
        return call

    def _bill_empty_reply(self, role: CallRole, reply: Any) -> None:
        """Bill an empty reply before the call is retried."""
        self._ledger.record(self._bill(role, reply, 0.0, "error:EmptyReply"))

    def _deployment(self, name: str, role: CallRole) -> Deployment:
        """The deployment called ``name``; the first of the role if it is "" (the call reached no server)."""
        return self._router.deployments[name] if name else self._groups[role][0]

    def _check_prices(self) -> None:
        names = unpriced((d for group in self._groups.values() for d in group), self._ledger.max_cost)
        if names:
            self._notice(f"the price of {names} is unknown: its calls count as $0")
