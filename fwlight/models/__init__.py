"""Models built from attention layers; no loss, no Lightning."""

from fwlight.models.adaptive import AdaptiveSoftmax
from fwlight.models.decoder_lm import DecoderLM, LMState
from fwlight.models.generate import generate
from fwlight.models.retriever import Retriever

__all__ = ["AdaptiveSoftmax", "DecoderLM", "LMState", "Retriever", "generate"]
