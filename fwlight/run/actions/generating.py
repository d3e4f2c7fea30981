"""Continue a text with a checkpoint."""

from typing import Any, cast

import torch

from fwlight.errors import ConfigError
from fwlight.models import DecoderLM
from fwlight.models import generate as generate_tokens
from fwlight.run.actions import Restored
from fwlight.run.text import read_lines


def generate(
    of: Restored,
    *,
    prompt: str | None,
    input: str | None = None,
    max_new_tokens: int,
    temperature: float,
    top_k: int,
    top_p: float,
    seed: int,
) -> dict[str, Any]:
    """Continue a prompt with the model of a checkpoint.

    Args:
        of: Whose network can be sampled from, and whose data has `encode(text) -> ids` and
            `decode(ids) -> text` of the checkpoint's vocabulary.
        prompt: Text to continue.
        input: The file that holds it, if that is None.
        max_new_tokens: How many tokens to add.
        temperature: Divisor of the logits; 0 always takes the most likely token.
        top_k: Sample among the k most likely tokens only; 0 is all.
        top_p: Sample among the most likely tokens that together reach this probability.
        seed: The same seed gives the same text.

    Returns:
        As "text", prompt and continuation and a line end.
    """
    text = "\n".join(read_lines(input)) if prompt is None else prompt
    if not hasattr(of.data, "encode"):
        raise ConfigError("action=generate continues a text; the task of this checkpoint has none")
    ids = of.data.encode(text)
    if not ids:
        raise ConfigError("prompt= is empty; give some text to continue")
    device = of.module.device
    tokens = generate_tokens(
        cast(DecoderLM, of.module.network),
        torch.tensor([ids], device=device),
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        generator=torch.Generator(device).manual_seed(seed),
    )
    return {"text": of.data.decode(tokens[0].tolist()) + "\n"}
