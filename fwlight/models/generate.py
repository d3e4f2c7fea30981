"""Sampling from a language model, one token at a time."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from fwlight.checks import check_sizes
from fwlight.evaluation import evaluation_mode
from fwlight.mixers import overwriting_states
from fwlight.models.decoder_lm import DecoderLM


def generate(
    model: DecoderLM,
    prompt: Int[Tensor, "b t"],
    *,
    max_new_tokens: int,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    generator: torch.Generator | None = None,
) -> Int[Tensor, "b n"]:
    """Continue `prompt` with the carried state; returns prompt and continuation.

    The prompt is read in one pass, every further token in a step of constant cost (for models
    with a state of constant size). The model is in evaluation mode during the
    call, and afterwards as it was.

    Args:
        model: The language model.
        prompt: Token ids; at least one position.
        max_new_tokens: How many tokens to add.
        temperature: Divisor of the logits; 0 always takes the most likely token.
        top_k: Sample among the k most likely tokens only; 0 is all.
        top_p: Sample among the most likely tokens that together reach this probability.
        generator: Where randomness comes from.

    Raises:
        ValueError: If an argument is out of range or the prompt is empty.
    """
    check_sizes(prompt_length=prompt.shape[1])
    check_sampling(max_new_tokens=max_new_tokens, temperature=temperature, top_k=top_k, top_p=top_p)
    with evaluation_mode(model), overwriting_states():
        tokens, step, state = [prompt], prompt, None
        for _ in range(max_new_tokens):
            hidden, state = model.features(step, initial_state=state)
            logits = model.output(hidden[:, -1]).float()
            step = _sample(logits, temperature, top_k, top_p, generator)
            tokens.append(step)
    return torch.cat(tokens, dim=1)


def check_sampling(*, max_new_tokens: int, temperature: float, top_k: int, top_p: float) -> None:
    """Raise ValueError if `generate` cannot work with such values; float32 overflows below 1e-6."""
    check_sizes(max_new_tokens=max_new_tokens)
    if temperature != 0 and not 1e-6 <= temperature < float("inf"):
        raise ValueError(f"temperature={temperature} must be 0 or at least 1e-6, and finite")
    if top_k < 0 or not 1e-6 <= top_p <= 1:
        raise ValueError(f"top_k={top_k} must not be negative, top_p={top_p} lie in [1e-6, 1]")


def _sample(
    logits: Float[Tensor, "b n"],
    temperature: float,
    top_k: int,
    top_p: float,
    generator: torch.Generator | None,
) -> Int[Tensor, "b 1"]:
    if temperature == 0:
        return logits.argmax(-1, keepdim=True)
    logits, ids = (logits / temperature).sort(-1, descending=True)
    if top_k:
        logits[:, top_k:] = -torch.inf
    p = logits.softmax(-1)
    # A token stays while those before it have not reached top_p, so at least one stays.
    p = p.masked_fill(p.cumsum(-1) - p >= top_p, 0.0)
    choice = torch.multinomial(p, 1, generator=generator)
    return ids.gather(-1, choice)
