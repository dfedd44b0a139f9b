"""What a model's name means: which provider serves it, and which variable holds that provider's key."""

from __future__ import annotations

import difflib
import re
from typing import NamedTuple

from memskill_cli.config import EMBEDDED
from memskill_cli.errors import UnknownModelError
from memskill_cli.llm import load_litellm

EMBEDDED_PROVIDER = "memskill_embedded"
EMBEDDED_CONTEXT = 8192
"""Tokens of prompt and reply together that the embedded model takes. The whole window costs 0.23 GB."""
_VARIABLES = {
    "gemini": ("GEMINI_API_KEY", "GOOGLE_API_KEY"),
    "cohere_chat": ("COHERE_API_KEY", "CO_API_KEY"),
    "together_ai": ("TOGETHERAI_API_KEY", "TOGETHER_API_KEY"),
    "fireworks_ai": ("FIREWORKS_AI_API_KEY", "FIREWORKS_API_KEY"),
    "huggingface": ("HUGGINGFACE_API_KEY", "HF_TOKEN"),
    "perplexity": ("PERPLEXITYAI_API_KEY", "PERPLEXITY_API_KEY"),
}


class ModelName(NamedTuple):
    """A model as litellm wants it named, and who serves it."""

    name: str
    provider: str


def is_embedded(model: str) -> bool:
    return model == EMBEDDED or model.startswith(EMBEDDED + ":")


def place(model: str, api_base: str) -> ModelName:
    """Who serves ``model``. UnknownModelError (with the nearest name) if nobody does.

    Behind an ``api_base`` a name that starts with no provider is taken for an OpenAI-compatible server's own.
    """
    if is_embedded(model):
        return ModelName(f"{EMBEDDED_PROVIDER}/{model.partition(':')[2]}", EMBEDDED)
    litellm = load_litellm()
    if api_base and model.partition("/")[0] not in _providers():
        model = f"openai/{model}"
    try:
        _, provider, _, _ = litellm.get_llm_provider(model, api_base=api_base or None)
    except litellm.BadRequestError:
        raise UnknownModelError(f"no provider is known for the model {model}", hint=_suggest(model)) from None
    return ModelName(model, provider)


def key_variables(provider: str) -> tuple[str, ...]:
    """The environment variables that may hold a key of ``provider``, the usual one first."""
    return _VARIABLES.get(provider, (re.sub(r"\W", "_", provider).upper() + "_API_KEY",))


def needs_key(model: str) -> bool:
    """Whether litellm looks for an API key (and not for cloud credentials, or for nothing) to call ``model``."""
    missing = load_litellm().validate_environment(model)["missing_keys"]
    return any(name.endswith("_API_KEY") for name in missing)


def context_window(model: str) -> int | None:
    """Tokens of prompt and reply together that ``model`` takes, as litellm knows it; None if it doesn't."""
    if is_embedded(model):
        return EMBEDDED_CONTEXT
    litellm = load_litellm()
    try:
        window = litellm.get_model_info(model).get("max_input_tokens")
    except litellm.exceptions.ModelNotMappedError:
        return None
    return int(window) if window else None


def _providers() -> set[str]:
    return {str(getattr(provider, "value", provider)) for provider in load_litellm().provider_list}


def _suggest(model: str) -> str:
    known = {
        name if name.startswith(f"{facts['litellm_provider']}/") else f"{facts['litellm_provider']}/{name}"
        for name, facts in load_litellm().model_cost.items()
        if facts.get("mode") == "chat" and facts.get("litellm_provider")
    }
    near = difflib.get_close_matches(model, known, n=1, cutoff=0.5)
    if near:
        return f"did you mean {near[0]}? Names are provider/model; for your own server add --api-base URL"
    return "names are provider/model, as openai/gpt-4o-mini; for your own server add --api-base URL"
