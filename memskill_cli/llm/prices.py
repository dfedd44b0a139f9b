"""Prices of replies, from litellm's price list or the keys file."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable
from typing import Any

from memskill_cli.config import EMBEDDED
from memskill_cli.config.settings import ModelsConfig
from memskill_cli.errors import UsageError
from memskill_cli.llm import load_litellm
from memskill_cli.llm.keys import Deployment, price_fields
from memskill_cli.llm.ledger import Call
from memskill_cli.llm.models import is_own_server, resolve_provider

_MAX_TOKENS = 10**8
_COST_HEADER = "x-litellm-response-cost"
_STATE_COSTS = ("openrouter",)
"""Providers whose replies state their cost."""
_CUSTOM = ("input_cost_per_token", "output_cost_per_token")


class Price:
    """The price of a deployment's model. ``known`` is False if neither litellm nor the keys file has it."""

    def __init__(self, deployment: Deployment) -> None:
        self._deployment = deployment
        self._free = deployment.label == EMBEDDED
        given = {name: deployment.params[name] for name in _CUSTOM if name in deployment.params}
        self._custom = {name: given.get(name, 0.0) for name in _CUSTOM} if given else None
        self._prompt_token, self._token = 0.0, 0.0
        listed = not is_own_server(deployment.provider, deployment.api_base) and _is_listed(deployment.model)
        self.known = bool(self._free or self._custom or listed)
        if self.known and not self._free:
            self.known = self._read_rates()

    @property
    def rates(self) -> tuple[float, float]:
        """US dollars for a token of a prompt, and of a reply; 0 if unknown."""
        return self._prompt_token, self._token

    def range(self, characters: int, tokens: int) -> tuple[float, float]:
        """Approximate cost in US dollars of a prompt of ``characters``: without a reply, and with a reply of
        ``tokens``."""
        floor = self._prompt_token * characters / 4
        return floor, floor + self._token * tokens

    def bill(self, role: str, reply: Any, seconds: float, outcome: str = "ok") -> Call:
        """The ledger entry for litellm's reply (completion or embedding)."""
        usage = getattr(reply, "usage", None)
        prompt, completion = (_count(getattr(usage, name, None)) for name in ("prompt_tokens", "completion_tokens"))
        if usage is not None:
            usage.prompt_tokens, usage.completion_tokens = prompt, completion
        details = getattr(usage, "prompt_tokens_details", None)
        return Call(
            role,
            self._deployment.model,
            self._deployment.label,
            outcome,
            prompt_tokens=prompt,
            completion_tokens=completion,
            cached_prompt_tokens=_count(getattr(details, "cached_tokens", None)),
            usd=self._usd(reply),
            seconds=round(seconds, 4),
        )

    def _usd(self, reply: Any) -> float | None:
        if self._free:
            return 0.0
        stated = None if self._custom else stated_cost(reply)
        if stated is not None:
            return stated
        if not self.known:
            return None
        cost = load_litellm().completion_cost
        try:
            usd = float(cost(reply, **self._model, custom_cost_per_token=self._custom))
        except Exception:  # litellm raises anything on odd replies; the call was paid, so its line must be written
            return None
        return max(0.0, usd) if math.isfinite(usd) else None

    @property
    def _model(self) -> dict[str, Any]:
        """The arguments that name the model for litellm's cost functions."""
        return {"model": self._deployment.model, "custom_llm_provider": self._deployment.provider}

    def _read_rates(self) -> bool:
        """Set US dollars per prompt token and per completion token; False if litellm does not know them after all.

        Its list of models and its cost functions look a name up in different ways.
        """
        litellm = load_litellm()
        try:
            prompt, completion = litellm.cost_per_token(
                prompt_tokens=1000, completion_tokens=1000, **self._model, custom_cost_per_token=self._custom
            )
        except Exception:  # one class for each provider; without rates the price is unknown
            return False
        self._prompt_token, self._token = float(prompt) / 1000, float(completion) / 1000
        return True


def _count(tokens: Any) -> int:
    """A server's token count, limited to 0 … 10⁸: servers can report any number."""
    return min(max(0, int(tokens)), _MAX_TOKENS) if isinstance(tokens, int | float) and tokens == tokens else 0


def unpriced(deployments: Iterable[Deployment], max_cost: float) -> str:
    """Names of the models of unknown price, joined by commas; "" if there are none.

    UsageError if there is such a model and a budget, because the budget cannot cover its calls.
    """
    unknown = [d for d in deployments if not Price(d).known]
    if max_cost and (unstated := sorted({d.model for d in unknown if d.provider not in _STATE_COSTS})):
        raise UsageError(
            f"--max-cost needs prices, but the price of {', '.join(unstated)} is unknown",
            hint="give US dollars per million tokens of prompts and of replies, for example: "
            f"--set prices.{unstated[0]}=0.15,0.60; or omit --max-cost",
        )
    return ", ".join(sorted({d.model for d in unknown}))


def stated_cost(reply: Any) -> float | None:
    """US dollars that the reply itself states: ``usage.cost`` (OpenRouter) or a header of a litellm proxy."""
    headers = (getattr(reply, "_hidden_params", None) or {}).get("additional_headers") or {}
    given = [getattr(getattr(reply, "usage", None), "cost", None)]
    given += [value for name, value in headers.items() if str(name).lower().endswith(_COST_HEADER)]
    for value in given:
        if isinstance(value, str | int | float) and not isinstance(value, bool):
            try:
                usd = float(value)
            except ValueError:
                continue
            if math.isfinite(usd) and usd >= 0:
                return usd
    return None


@functools.cache  # the first answer counts: a Router later adds the models that it serves to litellm's list
def _is_listed(model: str) -> bool:
    """Whether litellm's list has a price of ``model``. For an unknown model of a known family litellm guesses $0."""
    litellm = load_litellm()
    try:
        entry = litellm.model_cost.get(litellm.get_model_info(model)["key"], {})
    except litellm.exceptions.ModelNotMappedError:
        return False
    return entry.get("input_cost_per_token") is not None


def token_prices(model: str, settings: ModelsConfig) -> tuple[float, float] | None:
    """US dollars for a token of a prompt and of a reply: those in ``settings``, else litellm's; None if unknown."""
    name = resolve_provider(model, settings.api_base)
    fields = price_fields(settings.prices, model, name.name)
    price = Price(Deployment(name.provider, name.name, settings.api_base, fields))
    return price.rates if price.known else None
