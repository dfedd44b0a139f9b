"""Limits of the keys file on requests and tokens per minute (rpm, tpm), shared by all roles that use the key.

litellm's check counts each deployment by itself, so a key of four roles would get four times its limit.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from litellm.router_utils.pre_call_checks.model_rate_limit_check import ModelRateLimitingCheck

from memskill_cli.llm.keys import Deployment

__all__ = ["ModelRateLimitingCheck", "share_limits"]

_WINDOW = 60
"""Seconds for which a count is kept."""


class _SharedLimits(ModelRateLimitingCheck):
    """litellm's check, with one count for the deployments that have the same name in ``shared``."""

    shared: Mapping[str, str]

    def _get_cache_keys(self, deployment: dict[str, Any], current_minute: str) -> tuple[str, str]:
        return self._keys(deployment["model_info"]["id"], current_minute)

    def _keys(self, name: str, minute: str) -> tuple[str, str]:
        return f"{self.shared[name]}:tpm:{minute}", f"{self.shared[name]}:rpm:{minute}"

    async def async_log_success_event(self, kwargs: Any, response_obj: Any, start_time: Any, end_time: Any) -> None:
        """Count the tokens of a reply."""
        logged = kwargs.get("standard_logging_object") or {}
        name, tokens = str(logged.get("model_id")), logged.get("total_tokens")
        if name in self.shared and tokens:
            key, _ = self._keys(name, time.strftime("%H-%M", time.gmtime()))
            await self.dual_cache.async_increment_cache(key=key, value=tokens, ttl=_WINDOW)


def share_limits(check: ModelRateLimitingCheck, deployments: Mapping[str, Deployment]) -> None:
    """Make ``check``, which a Router has created and registered, count by key and not by deployment."""
    check.__class__ = _SharedLimits
    check.shared = {
        name: f"{d.label}@{d.api_base}:{d.params.get('rpm')}:{d.params.get('tpm')}" for name, d in deployments.items()
    }
