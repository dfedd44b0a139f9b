"""litellm's Router with cooldowns of rate-limited keys; refused keys are disabled for the run.

litellm's own cooldowns (as of 1.106) count failures, and its retry loop gives up when all keys are in cooldown. Here
the server decides: a key is in cooldown for as long as its 429 says, a refused key is not used again, and
:meth:`CooldownRouter.wait_for_key` waits while all keys are in cooldown.
"""

from __future__ import annotations

import asyncio
import email.utils
import re
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from typing import Any

from memskill_cli.errors import AuthError, ModelError
from memskill_cli.llm import import_litellm, rejections, request_parameters
from memskill_cli.llm.keys import CallRole, Deployment
from memskill_cli.llm.rate_limits import ModelRateLimitingCheck, share_limits
from memskill_cli.llm.request_parameters import Adaptation
from memskill_cli.llm.transport import AttemptTrace, current_attempt

litellm = import_litellm()

MAX_WAIT = 900.0
"""Maximum seconds that a call waits for a usable key or an unreachable server while no other call gets a reply."""
_FIRST_COOLDOWN, _MAX_COOLDOWN = 1.0, 60.0  # after a 429 without Retry-After: 1 s, doubled at each further one
_MAX_REST = 300.0  # seconds; longest pause of a deployment that fails while others of the role answer
_NOTICED_FAILURES = 3  # failures in a row after which there is a notice
_OF_ALL_MODELS = ("401", "not valid", "no credit left")
_RETRY_DELAY = re.compile(r"retryDelay\W{1,8}(\d+(?:\.\d+)?)s")
_MAX_RETRY_AFTER = 10 * 86_400.0  # seconds; upper bound of Retry-After


_FAILED: ContextVar[set[str]] = ContextVar("_FAILED")  # names of the deployments at which this task's call has failed


def begin_call() -> None:
    """To be called by each task before a call: no deployment has failed for it yet."""
    _FAILED.set(set())


class CooldownRouter(litellm.Router):  # type: ignore[name-defined]
    """One model group per role.

    ``retries`` is the number of retries of a call, ``timeout`` the seconds of one attempt. ``notice`` is called when a
    key is refused and when all keys of a role are in cooldown. It gets key labels, never keys.
    """

    def __init__(
        self,
        groups: Mapping[CallRole, Sequence[Deployment]],
        *,
        retries: int,
        timeout: float,
        notice: Callable[[str], None],
    ) -> None:
        self.deployments = {f"{role}/{i}": d for role, group in groups.items() for i, d in enumerate(group)}
        self._notice = notice
        self._consecutive_429: Counter[str] = Counter()  # by key label
        self._cooldown_ends: dict[str, float] = {}  # by deployment, monotonic seconds
        self._refused: set[str] = set()  # key labels, each with a notice
        self._failures: Counter[str] = Counter()  # in a row, by the name of a deployment
        self._replied: set[str] = set()  # names of deployments
        self._adaptations: dict[tuple[str, str], Adaptation] = {}  # by model and api_base
        self._last_reply: dict[CallRole, float] = {}
        self._no_notice_before = 0.0
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
            disable_cooldowns=True,  # _start_cooldown does them
            optional_pre_call_checks=["enforce_model_rate_limits"] if self._limited else None,
        )
        for check in self.optional_callbacks or () if self._limited else ():
            if isinstance(check, ModelRateLimitingCheck):
                share_limits(check, self.deployments)

    async def async_get_available_deployment(self, model: str, *args: Any, **kwargs: Any) -> Any:
        """litellm's choice of a key. Skipped when there is one key: the choice takes a tenth of a call's time."""
        candidates = [entry for entry in self.model_list if entry["model_name"] == model]
        if len(candidates) == 1 and not self._limited and not self.seconds_until_key(model):  # type: ignore[arg-type]
            return candidates[0]
        return await super().async_get_available_deployment(model, *args, **kwargs)

    def _update_kwargs_with_deployment(self, deployment: Any, kwargs: dict[str, Any], *args: Any, **more: Any) -> None:
        """litellm calls this between its choice of a deployment and the call: the call's parameters are set here."""
        super()._update_kwargs_with_deployment(deployment, kwargs, *args, **more)
        name = deployment["model_info"]["id"]
        chosen, attempt = self.deployments[name], current_attempt()
        request_parameters.apply(chosen.parameters, self._adaptations.get(_server(chosen), Adaptation()), kwargs)
        attempt.deployment, attempt.sent = name, kwargs

    def adapt_request(self, attempt: AttemptTrace, error: Exception) -> bool:
        """Learn from a 400 that names a parameter: the next attempt goes without it. False for other errors."""
        chosen = self.deployments.get(attempt.deployment)
        if chosen is None or attempt.status not in (400, 422) or rejections.concerns_prompt(error):
            return False
        known = self._adaptations.get(_server(chosen), Adaptation())
        if (learned := known.learn(rejections.text_of(error), attempt.sent)) is None:
            return False
        self._adaptations[_server(chosen)], change = learned
        where = f"{chosen.model} at {chosen.api_base}" if chosen.api_base else chosen.model
        self._notice(f"{where} {change}")
        return True

    def rest(self, role: CallRole, attempt: AttemptTrace, error: Exception) -> bool:
        """Give a failing deployment a pause, longer after each failure, while another one of the role works.

        True if the call can go on with one that works: then this was no failed attempt of the call.
        """
        name, fault = attempt.deployment, _server_fault(attempt, error)
        others = [other for other in self.get_model_ids(model_name=role) if other != name]
        cooling = dict(self.cooldown_cache.get_active_cooldowns(model_ids=[name, *others], parent_otel_span=None))
        if not name or not fault or not others:
            return False
        self._failures[name] += name not in cooling  # several calls that fail at once are one failure
        failed = _FAILED.get()
        failed.add(name)
        working = [other for other in others if other in self._replied and not self._failures[other]]
        if name not in cooling and (working or any(other not in cooling for other in others)):
            pause = min(_MAX_REST, _FIRST_COOLDOWN * 2 ** (self._failures[name] - 1))
            self._cool(name, pause)
            if self._failures[name] == _NOTICED_FAILURES:
                d = self.deployments[name]
                where = f"{d.label} ({d.model}{f' at {d.api_base}' if d.api_base else ''})"
                self._notice(f"{where} fails ({fault}): it is asked less often while others answer")
        return not failed.issuperset(working)  # a prompt that fails everywhere runs out of attempts

    async def increment_deployment_usage_for_response(self, response: Any, request_kwargs: Any) -> None:
        """Count a call towards the limits on requests and tokens, if there are any."""
        if self._limited:
            await super().increment_deployment_usage_for_response(response, request_kwargs)

    async def wait_for_key(self, role: CallRole, since: float) -> None:
        """Wait until a key of the role is usable. ``since``: when the call was made (monotonic seconds).

        ModelError after :data:`MAX_WAIT`; AuthError as in :meth:`seconds_until_key`.
        """
        while wait := self.seconds_until_key(role):
            now = time.monotonic()
            if now - max(since, self._last_reply.get(role, since)) + wait > MAX_WAIT:
                raise ModelError(
                    f"every key for role {role} is rate-limited; the first one for another {wait:.0f} s",
                    hint="continue later with --resume, add keys with --api-key or --keys, or lower --concurrency",
                )
            if now > self._no_notice_before:
                until = time.strftime("%H:%M:%S", time.localtime(time.time() + wait))
                self._notice(f"every key for role {role} is rate-limited; waiting until {until}")
            self._no_notice_before = max(self._no_notice_before, now + wait + _MAX_COOLDOWN)
            await asyncio.sleep(wait)

    def seconds_until_key(self, role: CallRole) -> float:
        """Seconds until a key of the role is usable; 0 if one is now. AuthError if all keys were refused."""
        names = self.get_model_ids(model_name=role)
        if not names:
            raise AuthError(
                f"every key for role {role} was refused ({', '.join(sorted(self._refused))})",
                hint="check the key and its permissions: --api-key, --keys, or the provider's environment variable",
            )
        cooling = self._cooling(names)
        return min(cooling.values()) if len(cooling) == len(names) else 0.0

    def _cooling(self, names: Sequence[str]) -> dict[str, float]:
        """The deployments of ``names`` that are in cooldown, with the seconds left.

        litellm has the cooldowns too, for its choice of a key, but by the wall clock, which may be set back. So they
        are measured here, and litellm's entry is deleted at the end.
        """
        now, found = time.monotonic(), {}
        for name in names:
            if (until := self._cooldown_ends.get(name, now)) > now:
                found[name] = until - now
            elif self._cooldown_ends.pop(name, None) is not None:
                self._forget_cooldown(name)
        return found

    def _forget_cooldown(self, name: str) -> None:
        self.cooldown_cache.cooldown_store.delete_cache(self.cooldown_cache.get_cooldown_cache_key(name))

    def record_reply(self, role: CallRole, name: str) -> None:
        """Record that the deployment called ``name`` has just replied to ``role``."""
        self._last_reply[role] = time.monotonic()
        self._consecutive_429.pop(self.deployments[name].label, None)

    def record_good_reply(self, name: str) -> None:
        """Record that the deployment called ``name`` works."""
        self._failures.pop(name, None)
        self._replied.add(name)

    def cool_down(self, error: Any, attempt: AttemptTrace) -> bool:
        """Disable a key that was refused or can't pay, or start its cooldown after a 429; False for other errors."""
        status, name = attempt.status or rejections.status_of(error), failed_deployment(error) or attempt.deployment
        if not name or rejections.concerns_prompt(error):
            return False
        if reason := rejections.key_problem(error, status):
            self._disable_key(name, reason)
        elif status == 429:
            self._start_cooldown(name, retry_after(error))
        return bool(reason) or status == 429

    def _start_cooldown(self, name: str, seconds: float) -> None:
        """Put a key in cooldown, in every role that uses it for this model. ``seconds`` 0: exponential back-off."""
        limited = self.deployments[name]
        names = [name for name, d in self.deployments.items() if _is_same_key(d, limited) and d.model == limited.model]
        cooling = self._cooling(names)
        if not seconds:
            if cooling:
                return  # several calls got the same 429: count it once
            seconds = min(_MAX_COOLDOWN, _FIRST_COOLDOWN * 2 ** self._consecutive_429[limited.label])
        self._consecutive_429[limited.label] += not cooling
        if any(left >= seconds for left in cooling.values()):
            return  # an earlier 429 set a longer cooldown
        for name in names:
            self._cool(name, seconds)

    def _cool(self, name: str, seconds: float) -> None:
        self._cooldown_ends[name] = time.monotonic() + seconds
        self._forget_cooldown(name)  # litellm does not extend a cooldown that has started, so start a new one
        self.cooldown_cache.add_deployment_to_cooldown(name, RuntimeError("rate-limited"), 429, seconds)

    def _disable_key(self, name: str, reason: str) -> None:
        """Disable a key for the run: for all models if it is invalid or can't pay, else for this model only."""
        refused = self.deployments[name]
        for other, d in self.deployments.items():
            if _is_same_key(d, refused) and (reason in _OF_ALL_MODELS or d.model == refused.model):
                self.delete_deployment(other)
        if refused.label not in self._refused:
            self._refused.add(refused.label)
            self._notice(f"key {refused.label} was refused ({reason}) and is disabled for this run")


def failed_deployment(error: Any) -> str:
    """The name of the deployment that a litellm error comes from; "" if the call reached none."""
    found = getattr(error, "failed_deployment_id", "") or getattr(error, "retry_skip_deployment_id", "")
    return str(found or "")


def retry_after(error: Any) -> float:
    """Seconds to wait after a 429 (from Retry-After: a number or an HTTP date); 0 without a valid Retry-After."""
    headers = getattr(error, "litellm_response_headers", None)
    headers = headers or getattr(getattr(error, "response", None), "headers", None) or {}
    text = headers.get("retry-after", "")
    try:
        seconds = float(text)
    except ValueError:
        try:
            until = email.utils.parsedate_to_datetime(text)
            # by the server's clock, if the reply says what it shows: that of this machine may be wrong
            sent = headers.get("date", "")
            now = email.utils.parsedate_to_datetime(sent).timestamp() if sent else time.time()
            seconds = until.timestamp() - now
        except (ValueError, OverflowError):
            stated = _RETRY_DELAY.search(rejections.text_of(error))  # in the body of Gemini's 429
            seconds = float(stated[1]) if stated else 0.0
    return min(_MAX_RETRY_AFTER, seconds) if seconds > 0 else 0.0


def _server(deployment: Deployment) -> tuple[str, str]:
    return deployment.model, deployment.api_base


def _server_fault(attempt: AttemptTrace, error: Exception) -> str:
    """Why the server is at fault for a failed attempt; "" if it is not, or not surely."""
    if attempt.error:
        return str(attempt.error)
    if isinstance(error, litellm.Timeout):
        return "no reply in time"
    return f"HTTP {attempt.status}" if attempt.status >= 500 else ""


def _is_same_key(one: Deployment, other: Deployment) -> bool:
    return (one.label, one.api_base) == (other.label, other.api_base)
