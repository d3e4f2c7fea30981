"""Models built from attention layers; no loss, no Lightning."""

from fwlight.models.actor_critic import ActorCritic
from fwlight.models.adaptive import AdaptiveSoftmax
from fwlight.models.auto_encoder import AutoEncoderLM
from fwlight.models.carried import (
    lanes_of,
    map_state,
    pack_state,
    unpack_state,
)
from fwlight.models.decoder_lm import DecoderLM, LMState
from fwlight.models.encoder_decoder import DecoderState, EncoderDecoder
from fwlight.models.generate import check_sampling, generate
from fwlight.models.image_baselines import MLP, ConvNet
from fwlight.models.retriever import Retriever
from fwlight.models.search import beam_search, greedy_search
from fwlight.models.stack import Stack, recompute_blocks
from fwlight.models.vision_transformer import VisionTransformer

__all__ = [
    "MLP",
    "ActorCritic",
    "AdaptiveSoftmax",
    "AutoEncoderLM",
    "ConvNet",
    "DecoderLM",
    "DecoderState",
    "EncoderDecoder",
    "LMState",
    "Retriever",
    "Stack",
    "VisionTransformer",
    "beam_search",
    "check_sampling",
    "generate",
    "greedy_search",
    "lanes_of",
    "map_state",
    "pack_state",
    "recompute_blocks",
    "unpack_state",
]
