"""What a reply costs, as litellm's price list or the keys file says."""

from __future__ import annotations

from typing import Any

from memskill_cli.llm import load_litellm
from memskill_cli.llm.keys import Deployment
from memskill_cli.llm.models import EMBEDDED_PROVIDER

_CUSTOM = ("input_cost_per_token", "output_cost_per_token")


class Price:
    """The price of one deployment's model; ``known`` is False if neither litellm nor the keys file has it."""

    def __init__(self, deployment: Deployment) -> None:
        self._model = deployment.model
        self._free = deployment.model.startswith(EMBEDDED_PROVIDER)
        given = {name: deployment.params[name] for name in _CUSTOM if name in deployment.params}
        self._custom = {name: given.get(name, 0.0) for name in _CUSTOM} if given else None
        self.known = bool(self._free or self._custom or _listed(self._model))

    def of(self, reply: Any) -> float | None:
        """US dollars that a reply (completion or embedding) cost; None if the price is not known."""
        if self._free or not self.known:
            return 0.0 if self._free else None
        custom = self._custom
        cost = load_litellm().completion_cost(reply, model=self._model, custom_cost_per_token=custom)
        return float(cost)

    def of_prompt(self, tokens: int) -> float:
        """US dollars that ``tokens`` of prompt cost, before anything is answered; 0 if the price is not known."""
        if self._free or not self.known:
            return 0.0
        cost, _ = load_litellm().cost_per_token(self._model, tokens, 0, custom_cost_per_token=self._custom)
        return float(cost)


def _listed(model: str) -> bool:
    litellm = load_litellm()
    try:
        return litellm.get_model_info(model).get("input_cost_per_token") is not None
    except litellm.exceptions.ModelNotMappedError:
        return False
