"""What a reply costs, as litellm's price list or the keys file says."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from memskill_cli.config import EMBEDDED
from memskill_cli.errors import UsageError
from memskill_cli.llm import load_litellm
from memskill_cli.llm.keys import Deployment
from memskill_cli.llm.ledger import Call

_MOST_TOKENS = 10**8
_CUSTOM = ("input_cost_per_token", "output_cost_per_token")


class Price:
    """The price of one deployment's model; ``known`` is False if neither litellm nor the keys file has it."""

    def __init__(self, deployment: Deployment) -> None:
        self._deployment = deployment
        self._free = deployment.label == EMBEDDED
        given = {name: deployment.params[name] for name in _CUSTOM if name in deployment.params}
        self._custom = {name: given.get(name, 0.0) for name in _CUSTOM} if given else None
        self.known = bool(self._free or self._custom or _listed(deployment.model))
        self._prompt_token, self._token = self._of_tokens() if self.known and not self._free else (0.0, 0.0)

    def range(self, characters: int, tokens: int) -> tuple[float, float]:
        """US dollars that a prompt of so many characters costs, roughly: with no reply, and with one of all
        ``tokens``."""
        floor = self._prompt_token * characters / 4
        return floor, floor + self._token * tokens

    def bill(self, role: str, reply: Any, seconds: float, outcome: str = "ok") -> Call:
        """The ledger's entry for a reply of litellm's (completion or embedding)."""
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
            usd=self._of(reply),
            seconds=round(seconds, 4),
        )

    def _of(self, reply: Any) -> float | None:
        if self._free or not self.known:
            return 0.0 if self._free else None
        cost = load_litellm().completion_cost
        return max(0.0, float(cost(reply, model=self._deployment.model, custom_cost_per_token=self._custom)))

    def _of_tokens(self) -> tuple[float, float]:
        """US dollars of a token that is asked, and of one that is answered."""
        cost = load_litellm().cost_per_token
        asked, answered = cost(self._deployment.model, 1000, 1000, custom_cost_per_token=self._custom)
        return float(asked) / 1000, float(answered) / 1000


def _count(tokens: Any) -> int:
    """Tokens as a server tells them, within reason: a bill is neither negative nor astronomical because one says so."""
    return min(max(0, int(tokens)), _MOST_TOKENS) if isinstance(tokens, int | float) and tokens == tokens else 0


def unpriced(deployments: Iterable[Deployment], max_cost: float) -> str:
    """The models whose price nobody knows, in words; "" if there is none.

    UsageError if there is such a model and a budget, which its calls would escape.
    """
    names = ", ".join(sorted({d.model for d in deployments if not Price(d).known}))
    if names and max_cost:
        raise UsageError(
            f"--max-cost needs a price, and nobody knows what {names} costs",
            hint="give input_cost_per_token and output_cost_per_token in a --keys FILE.toml, or drop --max-cost",
        )
    return names


def _listed(model: str) -> bool:
    litellm = load_litellm()
    try:
        return litellm.get_model_info(model).get("input_cost_per_token") is not None
    except litellm.exceptions.ModelNotMappedError:
        return False
