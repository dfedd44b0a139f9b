"""The part of a run that all episodes share."""

from __future__ import annotations

from dataclasses import dataclass

from memskill_cli.agent.env_runner import EnvRunner
from memskill_cli.config import JudgePrompt, MemoryConfig, RewardConfig
from memskill_cli.llm.client import LLMClient
from memskill_cli.memory.encoder_pair import EncoderPair


@dataclass(frozen=True)
class RolloutContext:
    """The models, the encoders and the settings that all episodes share. It does not change during a run."""

    llm: LLMClient
    encoders: EncoderPair
    memory: MemoryConfig
    reward: RewardConfig
    dataset: str
    env_runner: EnvRunner | None = None
    """Plays tasks; None for a dataset whose queries are questions."""
    judge_prompt: JudgePrompt = "category"
