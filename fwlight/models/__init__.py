"""Models built from attention layers; no loss, no Lightning."""

from fwlight.models.decoder_lm import DecoderLM, LMState
from fwlight.models.generate import generate

__all__ = ["DecoderLM", "LMState", "generate"]
