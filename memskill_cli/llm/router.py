"""litellm's Router, with manners for long runs.

The Router rotates over the deployments of a role, leaves out those that rest and holds the one retry loop. What it
lacks (seen in litellm 1.106) is added around a single attempt, :meth:`PatientRouter.make_call`: a 429 or a refused key
is no failed attempt as long as another key is left; when every key rests, or a server that did reply says nothing any
more, calls wait; what is sent goes in an order, and no more of it at once than the servers take; an attempt has a
deadline that holds.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from litellm._internal_context import is_internal_call

from memskill_cli.config import EMBEDDED
from memskill_cli.errors import ModelError, UnreadableReplyError
from memskill_cli.llm import load_litellm
from memskill_cli.llm.adaptive_limiter import Flow
from memskill_cli.llm.key_cooldown import PATIENCE, RestingRouter, failed_deployment
from memskill_cli.llm.keys import Deployment, Purpose
from memskill_cli.llm.transport import SilentError, Wire, WireError, watch

litellm = load_litellm()

_SHORTEST_LULL, _LONGEST_LULL = 0.5, 10.0  # between two looks at whether a silent server is back
_TELL_AFTER = 2.0  # seconds of silence
_HOPELESS = (litellm.BadRequestError, litellm.NotFoundError, litellm.UnprocessableEntityError, ModelError)


class PatientRouter(RestingRouter):
    """One model group for each role.

    ``retries`` is how often a failed attempt is repeated, ``timeout`` the seconds of one attempt, ``concurrency`` how
    many are in flight at most; the embedded model has all the time it needs, for one call at a time. ``notice`` is
    told when keys are refused and when all of them rest, by label; ``wasted`` is given replies that are empty and yet
    billed.
    """

    def __init__(
        self,
        groups: Mapping[Purpose, Sequence[Deployment]],
        *,
        retries: int,
        timeout: float,
        concurrency: int,
        notice: Callable[[str], None],
        wasted: Callable[[Purpose, Any], None],
    ) -> None:
        super().__init__(groups, retries=retries, timeout=timeout, notice=notice)
        self._wasted = wasted
        self._embedded = {role for role, group in groups.items() if all(d.label == EMBEDDED for d in group)}
        keys = {role: frozenset((d.label, d.api_base, d.model) for d in group) for role, group in groups.items()}
        self._afar, self._here = Flow(concurrency, keys), Flow(1, keys)
        self._deadline = timeout
        self._heard: dict[str, float] = {}  # by api_base, when it last gave a reply that says something
        self._silence_told = 0.0
        self._on_their_way, self._closing, self._idle = 0, False, asyncio.Event()

    async def make_call(self, original_function: Any, *args: Any, **kwargs: Any) -> Any:
        """One attempt of the retry loop, on whichever key is awake.

        Besides litellm's errors, which the loop retries: AuthError when every key of the role was refused, ModelError
        when all of them rest, or the server is silent, for longer than :data:`PATIENCE`.
        """
        role, since = kwargs["model"], time.monotonic()
        flow = self._here if role in self._embedded else self._afar
        failing_since, silent = math.inf, None
        is_internal_call.set(not self._limited)  # spares what litellm does for its callbacks, of which we have none
        while True:
            if silent:
                await self._lull(role, failing_since, silent)
            await self.until_awake(role, since)
            queued, wire, silent = time.monotonic(), watch(), None
            async with flow.place(role) as place:
                since += time.monotonic() - queued  # who stands in line is not waiting for a key
                try:
                    reply = await self._attempt(original_function, *args, **kwargs)
                except litellm.router.RouterRateLimitError:
                    pass  # the last key that was awake was put to rest while this call waited for its turn
                except Exception as error:
                    failing_since = min(failing_since, time.monotonic())  # no reply to anybody since then: an outage
                    if isinstance(wire.error, SilentError) and self._last_heard(role) <= failing_since:
                        silent = wire.error
                    elif wire.error or not self.hold_back(error):
                        raise self._passing(error, wire, role) from None
                    elif self.soonest(role):
                        flow.refused(place)
                else:
                    flow.answered(place)
                    self._accept(reply, role, kwargs)
                    return reply

    @property
    def on_their_way(self) -> int:
        """Replies that are waited for, and paid for whether they are read or not; not those of the embedded model."""
        return self._on_their_way

    def hold(self) -> None:
        """Send nothing any more: calls that have not left, and retries, end in CancelledError."""
        self._closing = True

    async def drain(self) -> None:
        """Send nothing any more, and wait for the replies that are on their way, each up to its own deadline."""
        self.hold()
        if self._on_their_way:
            self._notice(f"waiting for {self._on_their_way} replies on their way, {self._deadline:g} s at most")
            await self._idle.wait()

    async def _attempt(self, original_function: Any, *args: Any, **kwargs: Any) -> Any:
        role, here = kwargs["model"], kwargs["model"] in self._embedded
        try:
            async with asyncio.timeout(None if here else self._deadline):
                with self._sent(here):
                    return await super().make_call(original_function, *args, **kwargs)
        except TimeoutError:
            message = f"no whole reply within {self._deadline:g} s"
            raise litellm.Timeout(message, model=role, llm_provider="") from None

    @contextmanager
    def _sent(self, here: bool) -> Iterator[None]:
        if self._closing:
            raise asyncio.CancelledError
        self._on_their_way += not here
        try:
            yield
        finally:
            self._on_their_way -= not here
            if self._closing and not self._on_their_way:
                self._idle.set()

    def _last_heard(self, role: Purpose) -> float:
        """When a server of the role last gave a reply (monotonic seconds); infinity if none ever did."""
        heard = [self._heard[d.api_base] for d in self._serving(role) if d.api_base in self._heard]
        return max(heard, default=math.inf)

    async def _lull(self, role: Purpose, since: float, error: WireError) -> None:
        """Wait, each time longer, before a server that fell silent at ``since`` is asked again."""
        waited = time.monotonic() - since
        where = " or ".join(sorted({d.api_base or d.model for d in self._serving(role)}))
        if waited > PATIENCE:
            raise ModelError(
                f"role {role}: nothing is heard of {where} for {waited:.0f} s: {error}",
                hint="see whether the server is up; then go on with --resume",
            )
        if waited > _TELL_AFTER and self._silence_told <= self._last_heard(role):
            self._silence_told = time.monotonic()
            begun = time.strftime("%H:%M:%S", time.localtime(time.time() - waited))
            self._notice(f"{where} does not answer since {begun}; waiting, {PATIENCE / 60:g} min at most")
        await asyncio.sleep(min(_LONGEST_LULL, max(_SHORTEST_LULL, waited / 2)))

    def _serving(self, role: Purpose) -> list[Deployment]:
        return [d for name, d in self.deployments.items() if name.partition("/")[0] == role]

    def _passing(self, error: Exception, wire: Wire, role: Purpose) -> Exception:
        """``error`` as the retry loop should take it.

        Of a broken connection litellm says no more than that. An error inside a reply of status 200 is the server's
        trouble, whatever status litellm makes of it.
        """
        if not wire.error and not (wire.status == 200 and isinstance(error, _HOPELESS)):
            return error
        passing = _bad_gateway(str(wire.error or error), role)
        passing.failed_deployment_id = failed_deployment(error)  # type: ignore[attr-defined]
        return passing

    def should_retry_this_error(self, error: Exception, *_: Any, **__: Any) -> bool:
        """Raise what no retry can help. (litellm's own rule gives up when all keys rest at this moment.)"""
        if isinstance(error, _HOPELESS):
            raise error
        return True

    def _time_to_sleep_before_retry(self, e: Exception, remaining_retries: int, num_retries: int, **_: Any) -> float:
        """Back off before every retry, also from a struggling server that has several keys; not after the last one."""
        if not remaining_retries:
            return 0.0
        return super()._time_to_sleep_before_retry(e, remaining_retries, num_retries)

    def _accept(self, reply: Any, role: Purpose, asked: Mapping[str, Any]) -> None:
        """Take note of who replied; the retry loop sees to a reply that says nothing."""
        deployment = self.deployments[reply._hidden_params["model_id"]]
        self.served(role, deployment)
        if fault := _fault(reply, role, asked):
            self._wasted(role, reply)
            raise fault
        self._heard[deployment.api_base] = time.monotonic()


def _fault(reply: Any, role: Purpose, asked: Mapping[str, Any]) -> Exception | None:
    """The error to raise for a reply that does not say what was asked for."""
    if isinstance(reply, litellm.EmbeddingResponse):
        whole = _whole(reply.data, len(asked["input"]))
        return None if whole else _bad_gateway("not one vector for each text", role)
    choice = reply.choices[0] if reply.choices else None
    if choice and (choice.message.content or "").strip():
        return None
    if choice and choice.finish_reason == "length":
        return UnreadableReplyError(
            f"role {role}: the model used up its tokens without an answer (does it think first?)",
            hint=f"give it more: --set models.{role}_max_tokens=4096",
        )
    return _bad_gateway("the reply is empty", role)


def _bad_gateway(message: str, role: Purpose) -> Exception:
    error: Exception = litellm.BadGatewayError(message, model=role, llm_provider="")
    return error


def _whole(data: Any, count: int) -> bool:
    """Whether these are ``count`` vectors of finite numbers, of one length and each with its place."""
    try:
        rows = [row["embedding"] for row in sorted(data, key=lambda row: row["index"])]
        places = sorted(row["index"] for row in data) == list(range(count))
        vectors = np.asarray(rows, np.float64)
    except (KeyError, TypeError, ValueError):
        return False
    return places and vectors.ndim == 2 and vectors.size > 0 and bool(np.isfinite(vectors).all())
