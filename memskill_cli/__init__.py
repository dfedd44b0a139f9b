"""memskill: a long-term memory for LLM agents that learns how to remember.

An implementation of MemSkill (arXiv 2602.02474). As a library::

    from memskill_cli import SkillBank, evaluate, prepare, train

    prepare("locomo", sample=True)
    run = train("locomo", preset="demo", run="demo")
    for summary in evaluate(run="demo", methods=["memskill", "rag"]):
        print(summary["method"], summary["f1"])
    print(SkillBank.load(run.skill_bank).names)

The memory of your own agent, written with the skills of that run::

    from memskill_cli import Memory

    with Memory.open("mem/", skills="demo") as memory:
        memory.add("I moved to Leeds.", user_id="u-anna")

Names are imported on first use, so ``import memskill_cli`` is fast and has no side effects. To read the code, start at
:mod:`memskill_cli.training.trainer`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from memskill_cli.app.library import evaluate as evaluate
    from memskill_cli.app.library import evaluate_async as evaluate_async
    from memskill_cli.app.library import prepare as prepare
    from memskill_cli.app.library import prepare_async as prepare_async
    from memskill_cli.app.library import train as train
    from memskill_cli.app.library import train_async as train_async
    from memskill_cli.app.memory import AsyncMemory as AsyncMemory
    from memskill_cli.app.memory import Memory as Memory
    from memskill_cli.config.settings import Config as Config
    from memskill_cli.datasets.base import Dataset as Dataset
    from memskill_cli.datasets.base import PrepareOptions as PrepareOptions
    from memskill_cli.datasets.base import ReaderCallbacks as ReaderCallbacks
    from memskill_cli.datasets.base import SourceFile as SourceFile
    from memskill_cli.datasets.manifest import DatasetManifest as DatasetManifest
    from memskill_cli.datasets.paper import PaperResults as PaperResults
    from memskill_cli.datasets.registry import register_dataset as register_dataset
    from memskill_cli.envs.environment import Environment as Environment
    from memskill_cli.envs.environment import Observation as Observation
    from memskill_cli.envs.environment import register_environment as register_environment
    from memskill_cli.errors import AuthError as AuthError
    from memskill_cli.errors import BudgetExceededError as BudgetExceededError
    from memskill_cli.errors import CheckpointError as CheckpointError
    from memskill_cli.errors import DataError as DataError
    from memskill_cli.errors import DeviceError as DeviceError
    from memskill_cli.errors import DownloadError as DownloadError
    from memskill_cli.errors import EncoderError as EncoderError
    from memskill_cli.errors import GameError as GameError
    from memskill_cli.errors import MemoryBankError as MemoryBankError
    from memskill_cli.errors import MemskillError as MemskillError
    from memskill_cli.errors import ModelError as ModelError
    from memskill_cli.errors import PluginError as PluginError
    from memskill_cli.errors import RejectedPromptError as RejectedPromptError
    from memskill_cli.errors import RejectedRequestError as RejectedRequestError
    from memskill_cli.errors import ResourceLimitError as ResourceLimitError
    from memskill_cli.errors import RunError as RunError
    from memskill_cli.errors import RunLockedError as RunLockedError
    from memskill_cli.errors import SkillBankError as SkillBankError
    from memskill_cli.errors import StoppedError as StoppedError
    from memskill_cli.errors import TrackerError as TrackerError
    from memskill_cli.errors import UnknownModelError as UnknownModelError
    from memskill_cli.errors import UnreadableReplyError as UnreadableReplyError
    from memskill_cli.errors import UsageError as UsageError
    from memskill_cli.evaluation.methods import register_method as register_method
    from memskill_cli.evaluation.methods.base import Method as Method
    from memskill_cli.evaluation.methods.base import MethodMemory as MethodMemory
    from memskill_cli.live.records import AddResult as AddResult
    from memskill_cli.live.records import Change as Change
    from memskill_cli.live.records import Found as Found
    from memskill_cli.live.records import SourceTurn as SourceTurn
    from memskill_cli.live.records import Version as Version
    from memskill_cli.memory.encoder_specs import register_encoder as register_encoder
    from memskill_cli.memory.retrieval import register_retriever as register_retriever
    from memskill_cli.rollout.rewards import QueryCredit as QueryCredit
    from memskill_cli.rollout.rewards import Reward as Reward
    from memskill_cli.rollout.rewards import ScoredQuery as ScoredQuery
    from memskill_cli.rollout.rewards import register_credit as register_credit
    from memskill_cli.rollout.rewards import register_reward as register_reward
    from memskill_cli.runs.run_dir import RunDir as RunDir
    from memskill_cli.skills.bank import SkillBank as SkillBank
    from memskill_cli.skills.skill import Skill as Skill
    from memskill_cli.training.algorithms import register_algorithm as register_algorithm
    from memskill_cli.training.ppo import Batch as Batch
    from memskill_cli.training.ppo import PolicyUpdate as PolicyUpdate
    from memskill_cli.training.ppo import PPOStats as PPOStats
    from memskill_cli.types import MemoryItem as MemoryItem
    from memskill_cli.types import Query as Query
    from memskill_cli.types import QueryResult as QueryResult
    from memskill_cli.types import Retrieved as Retrieved
    from memskill_cli.types import Session as Session
    from memskill_cli.types import Span as Span
    from memskill_cli.types import Trace as Trace
    from memskill_cli.types import Turn as Turn
    from memskill_cli.utils.registry import load_plugins as load_plugins

__version__ = "0.1.0"

__all__ = [
    "AddResult",
    "AsyncMemory",
    "AuthError",
    "Batch",
    "BudgetExceededError",
    "Change",
    "CheckpointError",
    "Config",
    "DataError",
    "Dataset",
    "DatasetManifest",
    "DeviceError",
    "DownloadError",
    "EncoderError",
    "Environment",
    "Found",
    "GameError",
    "Memory",
    "MemoryBankError",
    "MemoryItem",
    "MemskillError",
    "Method",
    "MethodMemory",
    "ModelError",
    "Observation",
    "PPOStats",
    "PaperResults",
    "PluginError",
    "PolicyUpdate",
    "PrepareOptions",
    "Query",
    "QueryCredit",
    "QueryResult",
    "ReaderCallbacks",
    "RejectedPromptError",
    "RejectedRequestError",
    "ResourceLimitError",
    "Retrieved",
    "Reward",
    "RunDir",
    "RunError",
    "RunLockedError",
    "ScoredQuery",
    "Session",
    "Skill",
    "SkillBank",
    "SkillBankError",
    "SourceFile",
    "SourceTurn",
    "Span",
    "StoppedError",
    "Trace",
    "TrackerError",
    "Turn",
    "UnknownModelError",
    "UnreadableReplyError",
    "UsageError",
    "Version",
    "__version__",
    "evaluate",
    "evaluate_async",
    "load_plugins",
    "prepare",
    "prepare_async",
    "register_algorithm",
    "register_credit",
    "register_dataset",
    "register_encoder",
    "register_environment",
    "register_method",
    "register_retriever",
    "register_reward",
    "train",
    "train_async",
]

_MODULES = {
    "memory.retrieval": "register_retriever",
    "app.memory": "AsyncMemory Memory",
    "live.records": "AddResult Change Found SourceTurn Version",
    "app.library": "evaluate evaluate_async prepare prepare_async train train_async",
    "config.settings": "Config",
    "datasets.base": "Dataset PrepareOptions ReaderCallbacks SourceFile",
    "datasets.manifest": "DatasetManifest",
    "datasets.paper": "PaperResults",
    "datasets.registry": "register_dataset",
    "envs.environment": "Environment Observation register_environment",
    "errors": "AuthError BudgetExceededError CheckpointError DataError DeviceError DownloadError EncoderError"
    " GameError MemoryBankError MemskillError ModelError PluginError RejectedPromptError RejectedRequestError"
    " ResourceLimitError RunError RunLockedError"
    " SkillBankError StoppedError TrackerError UnknownModelError UnreadableReplyError UsageError",
    "evaluation.methods": "register_method",
    "evaluation.methods.base": "Method MethodMemory",
    "memory.encoder_specs": "register_encoder",
    "rollout.rewards": "QueryCredit Reward ScoredQuery register_credit register_reward",
    "runs.run_dir": "RunDir",
    "skills.bank": "SkillBank",
    "skills.skill": "Skill",
    "training.algorithms": "register_algorithm",
    "training.ppo": "Batch PPOStats PolicyUpdate",
    "types": "MemoryItem Query QueryResult Retrieved Session Span Trace Turn",
    "utils.registry": "load_plugins",
}
"""The modules that define the public names."""
_MODULE_OF = {name: f"{__name__}.{module}" for module, names in _MODULES.items() for name in names.split()}


if not TYPE_CHECKING:  # with a __getattr__, type checkers would accept any name

    def __getattr__(name: str) -> Any:
        if name not in _MODULE_OF:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        found = getattr(importlib.import_module(_MODULE_OF[name]), name)
        globals()[name] = found
        return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
