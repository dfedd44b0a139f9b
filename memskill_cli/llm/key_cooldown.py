"""litellm's Router over keys that rest after a 429, or are out for the run.

litellm's own cooldowns (seen in 1.106) count failures, and its retry loop gives up when all keys rest. Here it is the
server's word that counts: a key rests for as long as its 429 says, one that is refused is not asked again, and
:meth:`RestingRouter.until_awake` waits while all of them rest.
"""

from __future__ import annotations

import asyncio
import email.utils
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from memskill_cli.errors import AuthError, ModelError
from memskill_cli.llm import load_litellm
from memskill_cli.llm.keys import Deployment, Purpose

litellm = load_litellm()

PATIENCE = 900.0
"""Seconds a call waits for keys to wake, or for a server to come back, while no other gets a reply either."""
_FIRST_REST, _LONGEST_REST = 1.0, 60.0  # a 429 without Retry-After: 1 s, doubled at each one that follows
_ABSURD = 10 * 86_400.0  # what a server asks for beyond this many seconds makes no difference


class RestingRouter(litellm.Router):  # type: ignore[name-defined]
    """One model group for each role.

    ``retries`` is how often a failed attempt is repeated, ``timeout`` the seconds of one attempt. ``notice`` is told
    when keys are refused and when all of them rest, by label.
    """

    def __init__(
        self,
        groups: Mapping[Purpose, Sequence[Deployment]],
        *,
        retries: int,
        timeout: float,
        notice: Callable[[str], None],
    ) -> None:
        self.deployments = {f"{role}/{i}": d for role, group in groups.items() for i, d in enumerate(group)}
        self._notice = notice
        self._strikes: Counter[str] = Counter()  # 429s in a row, by label
        self._refused: set[str] = set()  # labels that were warned about
        self._last_reply: dict[Purpose, float] = {}
        self._quiet_until = 0.0
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

    async def async_get_available_deployment(self, model: str, *args: Any, **kwargs: Any) -> Any:
        """litellm's choice, which takes it a tenth of a call's time; not where there is nothing to choose."""
        left = [entry for entry in self.model_list if entry["model_name"] == model]
        if len(left) == 1 and not self._limited and not self.soonest(model):  # type: ignore[arg-type]
            return left[0]
        return await super().async_get_available_deployment(model, *args, **kwargs)

    async def increment_deployment_usage_for_response(self, response: Any, request_kwargs: Any) -> None:
        """Count a call for limits on requests and tokens, where there are any."""
        if self._limited:
            await super().increment_deployment_usage_for_response(response, request_kwargs)

    async def until_awake(self, role: Purpose, since: float) -> None:
        """Wait until a key of the role is awake, for a call made at ``since`` (monotonic seconds)."""
        while wait := self.soonest(role):
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

    def soonest(self, role: Purpose) -> float:
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

    def served(self, role: Purpose, deployment: Deployment) -> None:
        """``deployment`` has just replied to ``role``."""
        self._last_reply[role] = time.monotonic()
        self._strikes.pop(deployment.label, None)

    def hold_back(self, error: Any) -> bool:
        """Keep the key of a 401, 403 or 429 back, for good or for a while; False if the error is none of these."""
        status, name = getattr(error, "status_code", None), failed_deployment(error)
        if not name or status not in (401, 403, 429):
            return False
        if status != 429:
            self._retire(name, str(status))
        elif "insufficient_quota" in f"{error} {getattr(error, 'body', '')}":
            self._retire(name, "no quota left")
        else:
            self._rest(name, retry_after(error))
        return True

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


def _same(one: Deployment, other: Deployment) -> bool:
    return (one.label, one.api_base) == (other.label, other.api_base)
