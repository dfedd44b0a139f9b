"""litellm's Router, with manners for long runs.

The Router rotates over the deployments of a role, lets tired ones rest and holds the one retry loop. What it lacks
(seen in litellm 1.106) is added around a single attempt, :meth:`PatientRouter.make_call`: a 429 or a refused key is no
failed attempt as long as another key is left; when every key rests, or a server that did reply says nothing any more,
calls wait; an attempt has a deadline that holds.
"""

from __future__ import annotations

import asyncio
import email.utils
import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from litellm._internal_context import is_internal_call

from memskill_cli.config import EMBEDDED
from memskill_cli.errors import AuthError, ModelError
from memskill_cli.llm import load_litellm
from memskill_cli.llm.keys import Deployment, Purpose
from memskill_cli.llm.transport import SilentError, Wire, WireError, watch

litellm = load_litellm()

PATIENCE = 900.0
"""Seconds a call waits for keys to wake, or for a server to come back, while no other gets a reply either."""
_FIRST_REST, _LONGEST_REST = 1.0, 60.0  # a 429 without Retry-After: 1 s, doubled at each one that follows
_ABSURD = 10 * 86_400.0  # what a server asks for beyond this many seconds makes no difference
_SHORTEST_LULL, _LONGEST_LULL = 0.5, 10.0  # between two looks at whether a silent server is back
_TELL_AFTER = 2.0  # seconds of silence
_HOPELESS = (litellm.BadRequestError, litellm.NotFoundError, litellm.UnprocessableEntityError, ModelError)


class PatientRouter(litellm.Router):  # type: ignore[name-defined]
    """One model group for each role.

    ``retries`` is how often a failed attempt is repeated, ``timeout`` the seconds of one attempt, ``concurrency`` how
    many are in flight; the embedded model has all the time it needs, for one call at a time. ``notice`` is told when
    keys are refused and when all of them rest, by label; ``wasted`` is given replies that are empty and yet billed.
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
        self.deployments = {f"{role}/{i}": d for role, group in groups.items() for i, d in enumerate(group)}
        self._notice, self._wasted = notice, wasted
        self._embedded = {role for role, group in groups.items() if all(d.label == EMBEDDED for d in group)}
        self._slots, self._single = asyncio.Semaphore(concurrency), asyncio.Semaphore(1)
        self._deadline = timeout
        self._strikes: Counter[str] = Counter()  # 429s in a row, by label
        self._refused: set[str] = set()  # labels that were warned about
        self._last_reply: dict[Purpose, float] = {}
        self._heard: dict[str, float] = {}  # by api_base, when it last gave a reply that says something
        self._quiet_until = self._silence_told = 0.0
        self._on_their_way, self._closing, self._idle = 0, False, asyncio.Event()
        self._limited = any({"rpm", "tpm"} & d.params.keys() for d in self.deployments.values())
        super().__init__(
            model_list=[
                {
                    "model_name": name.partition("/")[0],
                    "litellm_params": {**d.params, "max_retries": 0, "drop_params": True},
                    "model_info": {"id": name},
                }
                for name, d in self.deployments.items()
            ],
            num_retries=retries,
            timeout=timeout,
            disable_cooldowns=True,  # who rests, and for how long, is decided in _rest
            optional_pre_call_checks=["enforce_model_rate_limits"] if self._limited else None,
        )

    async def make_call(self, original_function: Any, *args: Any, **kwargs: Any) -> Any:
        """One attempt of the retry loop, on whichever key is awake.

        Besides litellm's errors, which the loop retries: AuthError when every key of the role was refused, ModelError
        when all of them rest, or the server is silent, for longer than :data:`PATIENCE`.
        """
        role, since = kwargs["model"], time.monotonic()
        here, failing_since = role in self._embedded, math.inf
        is_internal_call.set(not self._limited)  # spares what litellm does for its callbacks, of which we have none
        while True:
            await self._until_awake(role, since)
            wire = watch()
            try:
                async with self._single if here else self._slots, asyncio.timeout(None if here else self._deadline):
                    with self._sent(here):
                        reply = await super().make_call(original_function, *args, **kwargs)
            except TimeoutError:
                message = f"no whole reply within {self._deadline:g} s"
                raise litellm.Timeout(message, model=role, llm_provider="") from None
            except litellm.router.RouterRateLimitError:
                continue  # the last key that was awake was put to rest while this call waited for its turn
            except Exception as error:
                failing_since = min(failing_since, time.monotonic())  # no reply to anybody since then: an outage
                if isinstance(wire.error, SilentError) and self._last_heard(role) <= failing_since:
                    await self._lull(role, failing_since, wire.error)
                elif wire.error or not self._hold_back(error):
                    raise self._passing(error, wire, role) from None
            else:
                served = self.deployments[reply._hidden_params["model_id"]]
                self._last_reply[role] = time.monotonic()
                self._strikes.pop(served.label, None)
                checked = self._checked(reply, role, kwargs)
                self._heard[served.api_base] = time.monotonic()
                return checked

    async def increment_deployment_usage_for_response(self, response: Any, request_kwargs: Any) -> None:
        """Count a call for limits on requests and tokens, where there are any."""
        if self._limited:
            await super().increment_deployment_usage_for_response(response, request_kwargs)

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
        passing: Exception = litellm.BadGatewayError(str(wire.error or error), model=role, llm_provider="")
        passing.failed_deployment_id = failed_deployment(error)  # type: ignore[attr-defined]
        return passing

    def _hold_back(self, error: Any) -> bool:
        """Keep the key of a 401, 403 or 429 back, for good or for a while; False if the error is none of these."""
        status, name = getattr(error, "status_code", None), failed_deployment(error)
        if not name or status not in (401, 403, 429):
            return False
        if status != 429:
            self._retire(name, str(status))
        elif "insufficient_quota" in str(getattr(error, "body", "")):
            self._retire(name, "no quota left")
        else:
            self._rest(name, retry_after(error))
        return True

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

    def _checked(self, reply: Any, role: Purpose, asked: Mapping[str, Any]) -> Any:
        """A reply that says something; the retry loop sees to one that does not."""
        if isinstance(reply, litellm.EmbeddingResponse):
            if not _whole(reply.data, len(asked["input"])):
                self._wasted(role, reply)
                raise litellm.BadGatewayError("not one vector for each text", model=role, llm_provider="")
            return reply
        choice = reply.choices[0] if reply.choices else None
        if choice and (choice.message.content or "").strip():
            return reply
        self._wasted(role, reply)
        if choice and choice.finish_reason == "length":
            raise ModelError(
                f"role {role}: the model used up its tokens without an answer (does it think first?)",
                hint=f"give it more: --set models.{role}_max_tokens=4096",
            )
        raise litellm.BadGatewayError("the reply is empty", model=role, llm_provider="")

    async def _until_awake(self, role: Purpose, since: float) -> None:
        """Wait until a key of the role is awake, for a call made at ``since`` (monotonic seconds)."""
        while wait := self._soonest(role):
            now = time.monotonic()
            if now - max(since, self._last_reply.get(role, since)) + wait > PATIENCE:
                raise ModelError(
                    f"every key for role {role} is rate-limited, the first for {wait:.0f} s more",
                    hint="go on later with --resume, add keys with --api-key or --keys, or lower --concurrency",
                )
            if now > self._quiet_until:
                until = time.strftime("%H:%M:%S", time.localtime(time.time() + wait))
                self._notice(f"every key for role {role} is rate-limited; waiting until {until}")
            self._quiet_until = max(self._quiet_until, now + wait + _LONGEST_REST)
            await asyncio.sleep(wait)

    def _soonest(self, role: Purpose) -> float:
        """Seconds until the first key of the role wakes; 0 if one is awake. AuthError if none is left."""
        names = self.get_model_ids(model_name=role)
        if not names:
            raise AuthError(
                f"every key for role {role} was refused ({', '.join(sorted(self._refused))})",
                hint="check the key and what it may use: --api-key, --keys, or the provider's variable",
            )
        resting = self.cooldown_cache.get_active_cooldowns(model_ids=names, parent_otel_span=None)
        if len(resting) < len(names):
            return 0.0
        # never 0 here: litellm keeps an entry for as long as its clock says, which may be a hair longer
        return max(0.01, min(rest["timestamp"] + rest["cooldown_time"] for _, rest in resting) - time.time())

    def _rest(self, name: str, seconds: float) -> None:
        """Let a key rest, in every role that uses it for this model, for as long as the server asks (0: guess)."""
        tired = self.deployments[name]
        names = [name for name, d in self.deployments.items() if _same(d, tired) and d.model == tired.model]
        resting = dict(self.cooldown_cache.get_active_cooldowns(model_ids=names, parent_otel_span=None))
        if not seconds:
            if resting:
                return  # several calls met the same limit: one strike
            seconds = min(_LONGEST_REST, _FIRST_REST * 2 ** self._strikes[tired.label])
        self._strikes[tired.label] += not resting
        if any(rest["timestamp"] + rest["cooldown_time"] >= time.time() + seconds for rest in resting.values()):
            return  # told earlier to rest for longer
        for name in names:
            # a rest that has begun is not lengthened by litellm, so it has to begin anew
            self.cooldown_cache.cooldown_store.delete_cache(self.cooldown_cache.get_cooldown_cache_key(name))
            self.cooldown_cache.add_deployment_to_cooldown(name, RuntimeError("rate-limited"), 429, seconds)

    def _retire(self, name: str, reason: str) -> None:
        """Take a key out for the run: a wrong one (401) for every model, one that may not use a model for that one."""
        bad = self.deployments[name]
        for other, d in self.deployments.items():
            if _same(d, bad) and (reason == "401" or d.model == bad.model):
                self.delete_deployment(other)
        if bad.label not in self._refused:
            self._refused.add(bad.label)
            self._notice(f"key {bad.label} was refused ({reason}) and is out for this run")


def _same(one: Deployment, other: Deployment) -> bool:
    return (one.label, one.api_base) == (other.label, other.api_base)


def _whole(data: Any, count: int) -> bool:
    """Whether these are ``count`` vectors of finite numbers, of one length and each with its place."""
    try:
        rows = [row["embedding"] for row in sorted(data, key=lambda row: row["index"])]
        places = sorted(row["index"] for row in data) == list(range(count))
        vectors = np.asarray(rows, np.float64)
    except (KeyError, TypeError, ValueError):
        return False
    return places and vectors.ndim == 2 and vectors.size > 0 and bool(np.isfinite(vectors).all())


def failed_deployment(error: Any) -> str:
    """The name of the deployment that an error of litellm's comes from; "" if the call reached none."""
    found = getattr(error, "failed_deployment_id", "") or getattr(error, "retry_skip_deployment_id", "")
    return str(found or "")


def retry_after(error: Any) -> float:
    """Seconds that a 429 asks to wait (its Retry-After: a number or an HTTP date); 0 if it does not say."""
    headers = getattr(error, "litellm_response_headers", None) or getattr(error.response, "headers", None) or {}
    text = headers.get("retry-after", "")
    try:
        seconds = float(text)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(text).timestamp() - time.time()
        except (ValueError, OverflowError):
            return 0.0
    return min(_ABSURD, seconds) if seconds > 0 else 0.0
