"""Settings: what they are (settings.py), what they start from (presets.py), how a command gets them (loading.py)."""

from memskill_cli.config.loading import digest, from_dict, load, read_toml, setting_names, to_dict, to_toml
from memskill_cli.config.presets import DATASET_DEFAULTS, PRESETS
from memskill_cli.config.settings import (
    EMBEDDED,
    AlfworldConfig,
    Config,
    ControllerConfig,
    DesignerConfig,
    EncodersConfig,
    EvalConfig,
    LimitsConfig,
    MemoryConfig,
    ModelsConfig,
    PPOConfig,
    RayConfig,
    RewardConfig,
    SpanMode,
    TrainConfig,
)

__all__ = [
    "DATASET_DEFAULTS",
    "EMBEDDED",
    "PRESETS",
    "AlfworldConfig",
    "Config",
    "ControllerConfig",
    "DesignerConfig",
    "EncodersConfig",
    "EvalConfig",
    "LimitsConfig",
    "MemoryConfig",
    "ModelsConfig",
    "PPOConfig",
    "RayConfig",
    "RewardConfig",
    "SpanMode",
    "TrainConfig",
    "digest",
    "from_dict",
    "load",
    "read_toml",
    "setting_names",
    "to_dict",
    "to_toml",
]
