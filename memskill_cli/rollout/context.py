"""What every episode shares."""

from __future__ import annotations

from dataclasses import dataclass

from memskill_cli.agent.env_runner import EnvRunner
from memskill_cli.config import JudgePrompt, MemoryConfig, RewardConfig
from memskill_cli.llm.client import LLMClient
from memskill_cli.memory.encoder_pair import EncoderPair


@dataclass(frozen=True)
class RolloutContext:
    """What every episode shares: the models, the encoders and the settings. Nothing in it changes."""

    llm: LLMClient
    encoders: EncoderPair
    memory: MemoryConfig
    reward: RewardConfig
    dataset: str
    env_runner: EnvRunner | None = None
    """Where queries are played, of a benchmark whose queries are tasks."""
    judge_prompt: JudgePrompt = "category"
