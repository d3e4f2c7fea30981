"""LightningModules: loss, metrics, optimiser and logging around any network."""

from fwlight.training.lm import LanguageModelingModule
from fwlight.training.metrics import TokenLoss
from fwlight.training.module import TrainingModule
from fwlight.training.optim import (
    OptimizerConfig,
    build_optimizer,
    lr_factor,
    reference_warmup_cosine,
    warmup_cosine,
)
from fwlight.training.recall import RecallAccuracy, RecallModule
from fwlight.training.retrieval import RetrievalModule
from fwlight.training.supervised import SupervisedModule
from fwlight.training.translation import TranslationModule, score

__all__ = [
    "LanguageModelingModule",
    "OptimizerConfig",
    "RecallAccuracy",
    "RecallModule",
    "RetrievalModule",
    "SupervisedModule",
    "TokenLoss",
    "TrainingModule",
    "TranslationModule",
    "build_optimizer",
    "lr_factor",
    "reference_warmup_cosine",
    "score",
    "warmup_cosine",
]
