"""LightningModules: loss, metrics, optimiser and logging around any network."""

from fwlight.training.lm import LanguageModelingModule
from fwlight.training.metrics import TokenLoss
from fwlight.training.module import TrainingModule
from fwlight.training.optim import OptimizerConfig, build_optimizer, lr_factor, warmup_cosine
from fwlight.training.recall import RecallAccuracy, RecallModule

__all__ = [
    "LanguageModelingModule",
    "OptimizerConfig",
    "RecallAccuracy",
    "RecallModule",
    "TokenLoss",
    "TrainingModule",
    "build_optimizer",
    "lr_factor",
    "warmup_cosine",
]
