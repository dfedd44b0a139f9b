"""Model names: the provider that serves a model, and the environment variable of the provider's key."""

from __future__ import annotations

import difflib
import re
from typing import NamedTuple
from urllib.parse import urlsplit

from memskill_cli.config import EMBEDDED
from memskill_cli.errors import UnknownModelError
from memskill_cli.llm import load_litellm

EMBEDDED_PROVIDER = "memskill_embedded"
EMBEDDED_CONTEXT = 8192
"""Context window of the embedded model, in tokens. It takes 0.23 GB of memory."""
_VARIABLES = {
    "gemini": ("GEMINI_API_KEY", "GOOGLE_API_KEY"),
    "cohere_chat": ("COHERE_API_KEY", "CO_API_KEY"),
    "together_ai": ("TOGETHERAI_API_KEY", "TOGETHER_API_KEY"),
    "fireworks_ai": ("FIREWORKS_AI_API_KEY", "FIREWORKS_API_KEY"),
    "huggingface": ("HUGGINGFACE_API_KEY", "HF_TOKEN"),
    "perplexity": ("PERPLEXITYAI_API_KEY", "PERPLEXITY_API_KEY"),
}


CLOUD_PROVIDERS = ("bedrock", "bedrock_converse", "sagemaker", "sagemaker_chat", "vertex_ai", "vertex_ai_beta")
"""Providers whose requests are signed with credentials of a cloud. A key would replace the signature."""


class ModelName(NamedTuple):
    """litellm's name of a model, and its provider."""

    name: str
    provider: str


def is_embedded(model: str) -> bool:
    return model == EMBEDDED or model.startswith(EMBEDDED + ":")


def resolve_provider(model: str, api_base: str) -> ModelName:
    """The provider of ``model``. UnknownModelError (with the nearest name) if there is none.

    With an ``api_base``, a name without a provider prefix is a model of an OpenAI-compatible server.
    """
    if is_embedded(model):
        return ModelName(f"{EMBEDDED_PROVIDER}/{model.partition(':')[2]}", EMBEDDED)
    litellm = load_litellm()
    if api_base and model.partition("/")[0] not in provider_names():
        model = f"openai/{model}"
    try:
        _, provider, _, _ = litellm.get_llm_provider(model, api_base=api_base or None)
    except litellm.BadRequestError:
        raise UnknownModelError(f"unknown provider for the model {model}", hint=_suggest(model)) from None
    return ModelName(model, provider)


def key_variables(provider: str) -> tuple[str, ...]:
    """The environment variables that may contain a key of ``provider``, the usual one first."""
    return _VARIABLES.get(provider, (re.sub(r"\W", "_", provider).upper() + "_API_KEY",))


def is_own_server(provider: str, api_base: str) -> bool:
    """Whether ``api_base`` is an OpenAI-compatible server of someone else than OpenAI."""
    host = urlsplit(api_base).hostname or ""
    return bool(api_base) and provider == "openai" and host != "openai.com" and not host.endswith(".openai.com")


def needs_key(model: str) -> bool:
    """Whether litellm needs an API key for ``model``, not cloud credentials or nothing."""
    missing = load_litellm().validate_environment(model)["missing_keys"]
    return any(name.endswith("_API_KEY") for name in missing)


def context_window(model: str) -> int | None:
    """Context window of ``model`` in tokens, from litellm's list; None if the model is not listed."""
    if is_embedded(model):
        return EMBEDDED_CONTEXT
    litellm = load_litellm()
    try:
        window = litellm.get_model_info(model).get("max_input_tokens")
    except litellm.exceptions.ModelNotMappedError:
        return None
    return int(window) if window else None


def provider_names() -> set[str]:
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
    return "names are provider/model, for example openai/gpt-4o-mini; for your own server add --api-base URL"
