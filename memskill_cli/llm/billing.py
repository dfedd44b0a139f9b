"""The router with a meter: every call is in the budget before it is made, and becomes a bill or one of our errors."""

from __future__ import annotations

import logging
import time
import traceback
from collections.abc import Callable
from typing import Any, Literal

from memskill_cli.config import EMBEDDED, LimitsConfig, ModelsConfig
from memskill_cli.errors import BudgetExceededError, MemskillError
from memskill_cli.llm import error_mapping
from memskill_cli.llm.key_cooldown import failed_deployment
from memskill_cli.llm.keys import Deployment, KeyRing, Purpose
from memskill_cli.llm.ledger import Call, Ledger
from memskill_cli.llm.prices import Price, unpriced
from memskill_cli.llm.router import PatientRouter
from memskill_cli.utils import redaction

_log = logging.getLogger(__name__)


class MeteredRouter:
    """Calls by purpose, with money and errors seen to. Lives within one event loop.

    UsageError if there is a budget and nobody knows the price of one of the models.
    """

    def __init__(
        self,
        groups: dict[Purpose, list[Deployment]],
        models: ModelsConfig,
        limits: LimitsConfig,
        *,
        keys: KeyRing,
        ledger: Ledger,
        notice: Callable[[str], None],
    ) -> None:
        self._groups, self._keys, self._ledger = groups, keys, ledger
        self._prices = {id(d): Price(d) for group in groups.values() for d in group}
        self._tell = notice
        self._check_prices()
        if any(d.label == EMBEDDED for group in groups.values() for d in group):
            from memskill_cli.llm.local_model import register

            register(notice)
        self._router = PatientRouter(
            groups,
            retries=models.retries,
            timeout=models.timeout,
            concurrency=limits.concurrency,
            notice=self._notice,
            wasted=self._wasted,
        )

    async def call(
        self, kind: Literal["acompletion", "aembedding"], purpose: Purpose, characters: int, **params: Any
    ) -> tuple[Call, Any]:
        """litellm's reply and its entry for the ledger, which the caller records; a failure is recorded here.

        ``characters`` is the length of what is asked. Raises what :meth:`Gateway.ask` raises.
        """
        start = time.monotonic()
        ranges = [self._prices[id(d)].range(characters, params.get("max_tokens", 0)) for d in self._groups[purpose]]
        floor, ceiling = map(max, zip(*ranges, strict=True))
        try:
            async with self._ledger.reserve(purpose, floor, ceiling):
                reply = await getattr(self._router, kind)(model=purpose, metadata={}, **params)
        except BudgetExceededError:
            raise
        except Exception as error:
            failure = self._failure(error, purpose, time.monotonic() - start)
        else:
            return self._bill(purpose, reply, time.monotonic() - start), reply
        raise failure  # out of the handler, so that litellm's error, which may carry a key, is not chained to it

    @property
    def on_their_way(self) -> int:
        return self._router.on_their_way

    def hold(self) -> None:
        self._router.hold()

    async def drain(self) -> None:
        await self._router.drain()

    def close(self) -> None:
        self._router.discard()

    def _notice(self, text: str) -> None:
        """Tell the user, once in the life of the keys: encoding makes a router for every batch of texts."""
        if text not in self._keys.told:
            self._keys.told.add(text)
            self._tell(text)

    def _failure(self, error: Exception, purpose: Purpose, seconds: float) -> MemskillError:
        """The error to raise for one of litellm's, after writing it down."""
        _log.debug("%s", redaction.clean(traceback.format_exc()))
        deployment = self._served(failed_deployment(error), purpose)
        failure = error_mapping.explain(error, purpose, deployment, self._keys.scrub)
        outcome = f"error:{type(failure).__name__}"
        self._ledger.record(Call(purpose, deployment.model, deployment.label, outcome, seconds=round(seconds, 4)))
        return failure

    def _bill(self, purpose: Purpose, reply: Any, seconds: float, outcome: str = "ok") -> Call:
        deployment = self._served(reply._hidden_params["model_id"], purpose)
        return self._prices[id(deployment)].bill(purpose, reply, seconds, outcome)

    def _wasted(self, purpose: Purpose, reply: Any) -> None:
        """An empty reply is billed, too, before it is asked for again."""
        self._ledger.record(self._bill(purpose, reply, 0.0, "error:EmptyReply"))

    def _served(self, name: str, purpose: Purpose) -> Deployment:
        """The deployment that litellm names; the first if it names none (the call reached no server)."""
        return self._router.deployments[name] if name else self._groups[purpose][0]

    def _check_prices(self) -> None:
        names = unpriced((d for group in self._groups.values() for d in group), self._ledger.max_cost)
        if names:
            self._notice(f"the price of {names} is not known: its calls count as $0")
