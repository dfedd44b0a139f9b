"""litellm's Router with cooldowns of rate-limited keys; refused keys are disabled for the run.

litellm's own cooldowns (as of 1.106) count failures, and its retry loop gives up when all keys are in cooldown. Here
the server decides: a key is in cooldown for as long as its 429 says, a refused key is not used again, and
:meth:`CooldownRouter.wait_for_key` waits while all keys are in cooldown.
"""

from __future__ import annotations

import asyncio
import email.utils
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from memskill_cli.errors import AuthError, ModelError
from memskill_cli.llm import import_litellm
from memskill_cli.llm.keys import CallRole, Deployment

litellm = import_litellm()

MAX_WAIT = 900.0
"""Maximum seconds that a call waits for a usable key or an unreachable server while no other call gets a reply."""
_FIRST_COOLDOWN, _MAX_COOLDOWN = 1.0, 60.0  # after a 429 without Retry-After: 1 s, doubled at each further one
_MAX_RETRY_AFTER = 10 * 86_400.0  # seconds; upper bound of Retry-After


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

    async def async_get_available_deployment(self, model: str, *args: Any, **kwargs: Any) -> Any:
        """litellm's choice of a key. Skipped when there is one key: the choice takes a tenth of a call's time."""
        candidates = [entry for entry in self.model_list if entry["model_name"] == model]
        if len(candidates) == 1 and not self._limited and not self.seconds_until_key(model):  # type: ignore[arg-type]
            return candidates[0]
        return await super().async_get_available_deployment(model, *args, **kwargs)

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

    def record_reply(self, role: CallRole, deployment: Deployment) -> None:
        """Record that ``deployment`` has just replied to ``role``."""
        self._last_reply[role] = time.monotonic()
        self._consecutive_429.pop(deployment.label, None)

    def cool_down(self, error: Any) -> bool:
        """Disable the key after a 401 or 403, or start its cooldown after a 429; False for other errors."""
        status, name = getattr(error, "status_code", None), failed_deployment(error)
        if not name or status not in (401, 403, 429):
            return False
        if status != 429:
            self._disable_key(name, str(status))
        elif "insufficient_quota" in f"{error} {getattr(error, 'body', '')}":
            self._disable_key(name, "no quota left")
        else:
            self._start_cooldown(name, retry_after(error))
        return True

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
            self._cooldown_ends[name] = time.monotonic() + seconds
            self._forget_cooldown(name)  # litellm does not extend a cooldown that has started, so start a new one
            self.cooldown_cache.add_deployment_to_cooldown(name, RuntimeError("rate-limited"), 429, seconds)

    def _disable_key(self, name: str, reason: str) -> None:
        """Disable a key for the run: for all models if it is invalid (401), else for this model only."""
        refused = self.deployments[name]
        for other, d in self.deployments.items():
            if _is_same_key(d, refused) and (reason == "401" or d.model == refused.model):
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
    headers = getattr(error, "litellm_response_headers", None) or getattr(error.response, "headers", None) or {}
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
            return 0.0
    return min(_MAX_RETRY_AFTER, seconds) if seconds > 0 else 0.0


def _is_same_key(one: Deployment, other: Deployment) -> bool:
    return (one.label, one.api_base) == (other.label, other.api_base)
