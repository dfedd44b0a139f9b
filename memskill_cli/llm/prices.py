"""Prices of replies, from litellm's price list or the keys file."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from memskill_cli.config import EMBEDDED
from memskill_cli.errors import UsageError
from memskill_cli.llm import load_litellm
from memskill_cli.llm.keys import Deployment
from memskill_cli.llm.ledger import Call

_MAX_TOKENS = 10**8
_CUSTOM = ("input_cost_per_token", "output_cost_per_token")


class Price:
    """The price of a deployment's model. ``known`` is False if neither litellm nor the keys file has it."""

    def __init__(self, deployment: Deployment) -> None:
        self._deployment = deployment
        self._free = deployment.label == EMBEDDED
        given = {name: deployment.params[name] for name in _CUSTOM if name in deployment.params}
        self._custom = {name: given.get(name, 0.0) for name in _CUSTOM} if given else None
        self._prompt_token, self._token = 0.0, 0.0
        self.known = bool(self._free or self._custom or _is_listed(deployment.model))
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
        usage = reply.usage
        usage.prompt_tokens, usage.completion_tokens = _count(usage.prompt_tokens), _count(usage.completion_tokens)
        details = getattr(usage, "prompt_tokens_details", None)
        return Call(
            role,
            self._deployment.model,
            self._deployment.label,
            outcome,
            prompt_tokens=usage.prompt_tokens,
            completion_tokens=usage.completion_tokens,
            cached_prompt_tokens=_count(getattr(details, "cached_tokens", None)),
            usd=self._usd(reply),
            seconds=round(seconds, 4),
        )

    def _usd(self, reply: Any) -> float | None:
        if self._free or not self.known:
            return 0.0 if self._free else None
        cost = load_litellm().completion_cost
        return max(0.0, float(cost(reply, model=self._deployment.model, custom_cost_per_token=self._custom)))

    def _read_rates(self) -> bool:
        """Set US dollars per prompt token and per completion token; False if litellm does not know them after all.

        Its list of models and its cost functions look a name up in different ways.
        """
        litellm = load_litellm()
        try:
            prompt, completion = litellm.cost_per_token(
                self._deployment.model, 1000, 1000, custom_cost_per_token=self._custom
            )
        except litellm.exceptions.ModelNotMappedError:
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
    names = ", ".join(sorted({d.model for d in deployments if not Price(d).known}))
    if names and max_cost:
        raise UsageError(
            f"--max-cost needs prices, but the price of {names} is unknown",
            hint="set input_cost_per_token and output_cost_per_token in a --keys FILE.toml, or omit --max-cost",
        )
    return names


def _is_listed(model: str) -> bool:
    litellm = load_litellm()
    try:
        return litellm.get_model_info(model).get("input_cost_per_token") is not None
    except litellm.exceptions.ModelNotMappedError:
        return False


def token_prices(model: str) -> tuple[float, float] | None:
    """US dollars for a token of a prompt and of a reply, from litellm's price list; None if it has no price."""
    price = Price(Deployment("", model, "", {}))
    return price.rates if price.known else None
