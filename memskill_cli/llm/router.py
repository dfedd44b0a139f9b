"""litellm's Router, with outage back-off, priorities, an adaptive concurrency limit and deadlines.

The Router rotates over the deployments of a role, skips keys in cooldown and has the only retry loop.
:meth:`RetryingRouter.make_call` wraps one attempt and adds what the Router lacks (as of litellm 1.106):

- a 429 or a refused key does not count as a failed attempt while another key is left;
- calls wait while all keys are in cooldown, or while a server that did reply before is unreachable;
- calls are sent by priority, and no more at once than the servers accept;
- each attempt has a hard deadline.
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
from memskill_cli.errors import ModelError, RejectedPromptError, UnreadableReplyError
from memskill_cli.llm import import_litellm, rejections
from memskill_cli.llm.adaptive_limiter import AdaptiveLimiter
from memskill_cli.llm.key_cooldown import MAX_WAIT, CooldownRouter, failed_deployment
from memskill_cli.llm.keys import CallRole, Deployment
from memskill_cli.llm.reply_shapes import content_of, ordered_rows, read_stream, refusal_of
from memskill_cli.llm.transport import AttemptError, AttemptTrace, LocalLimitError, UnreachableError, track_attempt

litellm = import_litellm()

_MIN_BACKOFF, _MAX_BACKOFF = 0.5, 10.0  # seconds between two attempts during an outage
_NOTICE_AFTER = 2.0  # seconds of outage before the notice
_MAX_REFUSAL = 300  # characters of a refusal that are shown
_NOT_RETRYABLE = (litellm.BadRequestError, litellm.NotFoundError, litellm.UnprocessableEntityError, ModelError)


class RetryingRouter(CooldownRouter):
    """One model group per role.

    ``retries`` is the number of retries of a call, ``timeout`` the seconds of one attempt, ``concurrency`` the maximum
    number of calls in flight. The embedded model has no timeout and runs one call at a time. ``notice`` is called on
    refused keys (by label), when all keys are in cooldown, and on outages. ``on_empty_reply`` gets the empty replies,
    which are billed, too.
    """

    def __init__(
        self,
        groups: Mapping[CallRole, Sequence[Deployment]],
        *,
        retries: int,
        timeout: float,
        concurrency: int,
        notice: Callable[[str], None],
        on_empty_reply: Callable[[CallRole, Any], None],
    ) -> None:
        super().__init__(groups, retries=retries, timeout=timeout, notice=notice)
        self._on_empty_reply = on_empty_reply
        self._embedded = {role for role, group in groups.items() if all(d.label == EMBEDDED for d in group)}
        keys = {role: frozenset((d.label, d.api_base, d.model) for d in group) for role, group in groups.items()}
        self._remote_limiter, self._local_limiter = AdaptiveLimiter(concurrency, keys), AdaptiveLimiter(1, keys)
        self._deadline = timeout
        self._last_success: dict[str, float] = {}  # by api_base, monotonic time of the last good reply
        self._outage_noticed = 0.0
        self._in_flight_count, self._closing, self._idle = 0, False, asyncio.Event()

    async def make_call(self, original_function: Any, *args: Any, **kwargs: Any) -> Any:
        """One attempt of the retry loop, with any usable key.

        Raises litellm's errors, which the loop retries; AuthError when every key of the role was refused; ModelError
        when all keys are in cooldown, or the server is unreachable, for longer than :data:`MAX_WAIT`.
        """
        role, since = kwargs["model"], time.monotonic()
        limiter = self._local_limiter if role in self._embedded else self._remote_limiter
        failing_since, unreachable = math.inf, None
        is_internal_call.set(not self._limited)  # skips litellm's work for callbacks, which are not used
        while True:
            if unreachable:
                await self._outage_backoff(role, failing_since, unreachable)
            await self.wait_for_key(role, since)
            queued, trace, unreachable = time.monotonic(), track_attempt(), None
            async with limiter.slot(role) as slot:
                since += time.monotonic() - queued  # the wait for a slot is not a wait for a key
                try:
                    reply = await self._attempt(original_function, *args, **kwargs)
                except litellm.router.RouterRateLimitError:
                    pass  # the cooldown of the last usable key started while this call waited for its slot
                except Exception as error:
                    failing_since = min(failing_since, time.monotonic())  # no reply to any call since then: an outage
                    if self.adapt_request(trace, error) or self.rest(role, trace, error):
                        pass  # the next attempt is another request, or goes to another deployment
                    elif isinstance(trace.error, UnreachableError) and self._last_success_of(role) <= failing_since:
                        unreachable = trace.error
                    elif trace.error or not self.cool_down(error, trace):
                        raise self._to_retryable(error, trace, role) from None
                    elif self.seconds_until_key(role):
                        limiter.on_429(slot)
                else:
                    limiter.on_success(slot)
                    self._accept(reply, role, kwargs)
                    return reply

    @property
    def in_flight(self) -> int:
        """Number of calls sent and not yet answered, which will be billed. Excludes the embedded model."""
        return self._in_flight_count

    def stop_sending(self) -> None:
        """Stop sending: calls not yet sent, and retries, raise CancelledError."""
        self._closing = True

    async def drain(self) -> None:
        """Stop sending and wait for the replies in flight, each up to its own deadline."""
        self.stop_sending()
        if self._in_flight_count:
            self._notice(f"waiting for {self._in_flight_count} replies in flight, at most {self._deadline:g} s")
            await self._idle.wait()

    async def _attempt(self, original_function: Any, *args: Any, **kwargs: Any) -> Any:
        role, local = kwargs["model"], kwargs["model"] in self._embedded
        try:
            async with asyncio.timeout(None if local else self._deadline):
                with self._count_in_flight(local):
                    return await read_stream(await super().make_call(original_function, *args, **kwargs))
        except TimeoutError:
            message = f"no complete reply within {self._deadline:g} s"
            raise litellm.Timeout(message, model=role, llm_provider="") from None

    @contextmanager
    def _count_in_flight(self, local: bool) -> Iterator[None]:
        if self._closing:
            raise asyncio.CancelledError
        self._in_flight_count += not local
        try:
            yield
        finally:
            self._in_flight_count -= not local
            if self._closing and not self._in_flight_count:
                self._idle.set()

    def _last_success_of(self, role: CallRole) -> float:
        """When a server of the role last gave a good reply (monotonic seconds); infinity if never."""
        times = [self._last_success[d.api_base] for d in self._deployments_of(role) if d.api_base in self._last_success]
        return max(times, default=math.inf)

    async def _outage_backoff(self, role: CallRole, since: float, error: AttemptError) -> None:
        """Wait before the next attempt at a server that is unreachable since ``since``; each wait is longer.

        ModelError after :data:`MAX_WAIT`.
        """
        waited = time.monotonic() - since
        where = " or ".join(sorted({d.api_base or d.model for d in self._deployments_of(role)}))
        if waited > MAX_WAIT:
            raise ModelError(
                f"role {role}: no reply from {where} for {waited:.0f} s: {error}",
                hint="check that the server is running; then continue with --resume",
            )
        if waited > _NOTICE_AFTER and self._outage_noticed <= self._last_success_of(role):
            self._outage_noticed = time.monotonic()
            begun = time.strftime("%H:%M:%S", time.localtime(time.time() - waited))
            self._notice(f"{where} has not answered since {begun}; waiting, at most {MAX_WAIT / 60:g} min")
        await asyncio.sleep(min(_MAX_BACKOFF, max(_MIN_BACKOFF, waited / 2)))

    def _deployments_of(self, role: CallRole) -> list[Deployment]:
        return [d for name, d in self.deployments.items() if name.partition("/")[0] == role]

    def _to_retryable(self, error: Exception, trace: AttemptTrace, role: CallRole) -> Exception:
        """The error to raise to the retry loop for ``error``.

        For a broken connection it has our message, because litellm's message has no details. For an error inside a
        reply with status 200 it is retryable, whatever status litellm derives.
        """
        refused = trace.status == 200 and isinstance(error, _NOT_RETRYABLE) and not rejections.concerns_prompt(error)
        if not trace.error and not refused:
            return error
        if isinstance(trace.error, LocalLimitError) and trace.error.__cause__:
            limit = trace.error.__cause__
            limit.failed_deployment_id = failed_deployment(error)  # type: ignore[attr-defined]
            return limit  # type: ignore[return-value]
        retryable = _bad_gateway(str(trace.error or error), role)
        retryable.failed_deployment_id = failed_deployment(error)  # type: ignore[attr-defined]
        return retryable

    def should_retry_this_error(self, error: Exception, *_: Any, **__: Any) -> bool:
        """Raise errors that retries cannot fix. (litellm's own rule gives up when all keys are in cooldown.)"""
        if isinstance(error, _NOT_RETRYABLE) or rejections.concerns_prompt(error):
            raise error
        return True

    def _time_to_sleep_before_retry(self, e: Exception, remaining_retries: int, num_retries: int, **_: Any) -> float:
        """Back off before every retry, also when other keys are left; not after the last attempt."""
        if not remaining_retries:
            return 0.0
        return super()._time_to_sleep_before_retry(e, remaining_retries, num_retries)

    def _accept(self, reply: Any, role: CallRole, request: Mapping[str, Any]) -> None:
        """Record a reply; raise for an empty or invalid one, so that the loop retries."""
        name = reply._hidden_params["model_id"]
        deployment = self.deployments[name]
        self.record_reply(role, name)
        if invalid := _reply_error(reply, role, request):
            self._on_empty_reply(role, reply)
            raise invalid
        self.record_good_reply(name)
        self._last_success[deployment.api_base] = time.monotonic()


def _reply_error(reply: Any, role: CallRole, request: Mapping[str, Any]) -> Exception | None:
    """The error for an empty or invalid reply, else None."""
    if isinstance(reply, litellm.EmbeddingResponse):
        valid = _are_valid_vectors(reply.data, len(request["input"]))
        return None if valid else _bad_gateway("the reply does not have one valid vector per text", role)
    choice = reply.choices[0] if reply.choices else None
    if choice and content_of(choice.message).strip():
        return None
    if choice and (refusal := refusal_of(choice)):
        return RejectedPromptError(
            f"role {role}: the model refused to answer: {refusal[:_MAX_REFUSAL]}",
            hint="it is left out; another model may accept the prompt",
        )
    if choice and choice.finish_reason == "length":
        return UnreadableReplyError(
            f"role {role}: the model used all its tokens without an answer (is it a reasoning model?)",
            hint=f"raise the limit: --set models.{role}_max_tokens=4096",
        )
    return _bad_gateway("the reply is empty", role)


def _bad_gateway(message: str, role: CallRole) -> Exception:
    error: Exception = litellm.BadGatewayError(message, model=role, llm_provider="")
    return error


def _are_valid_vectors(data: Any, count: int) -> bool:
    """Whether ``data`` has ``count`` finite vectors of equal length, with the indices 0 … ``count`` − 1."""
    try:
        ordered = ordered_rows(data)
        complete = [row["index"] for row in ordered] == list(range(count))
        vectors = np.asarray([row["embedding"] for row in ordered], np.float64)
    except (KeyError, TypeError, ValueError):
        return False
    return complete and vectors.ndim == 2 and vectors.size > 0 and bool(np.isfinite(vectors).all())
