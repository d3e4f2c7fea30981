"""Text that the model writes while it learns."""

from collections.abc import Sequence
from typing import Any, cast

import torch
from lightning import Callback, LightningModule, Trainer

from fwlight.models import DecoderLM, check_sampling, generate
from fwlight.sharding import gathered
from fwlight.training.module import TrainingModule

_LINES = 2


class TextSamples(Callback):
    """Shows a continuation of each prompt after every evaluation, as text in TensorBoard.

    The data module gives `encode`, `decode` and `prompts`. Randomness comes from a generator of its
    own, so training is the same with and without samples, and the same step shows the same text
    again.

    Args:
        prompts: What to continue; None for the beginnings of two lines of the validation split.
        max_new_tokens: Length of a continuation.
        temperature: Divisor of the logits; 0 always takes the most likely token.
        top_k: Sample among the k most likely tokens only; 0 is all.
        top_p: Sample among the most likely tokens that together reach this probability.
        seed: Seed of the samples.

    Raises:
        ValueError: A value is out of range, or at the start of training: no word is in a prompt.
    """

    def __init__(
        self,
        *,
        prompts: Sequence[str] | None = None,
        max_new_tokens: int = 40,
        temperature: float = 0.8,
        top_k: int = 0,
        top_p: float = 0.95,
        seed: int = 0,
    ) -> None:
        check_sampling(
            max_new_tokens=max_new_tokens, temperature=temperature, top_k=top_k, top_p=top_p
        )
        if prompts is not None and (
            isinstance(prompts, str) or not all(isinstance(text, str) for text in prompts)
        ):
            raise ValueError(f"prompts={prompts!r} must be a list of texts")
        self.prompts = None if prompts is None else tuple(prompts)
        self.max_new_tokens = max_new_tokens
        self.temperature = temperature
        self.top_k = top_k
        self.top_p = top_p
        self.seed = seed

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look at the prompts while nothing is lost yet."""
        # Lightning sets it where pyright does not see it.
        data: Any = trainer.datamodule  # pyright: ignore[reportAttributeAccessIssue]
        for prompt in self.prompts or ():
            if not data.encode(prompt):
                raise ValueError(f"callbacks.text_samples.prompts: there is no word in {prompt!r}")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Sample and show."""
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        module = cast(TrainingModule, pl_module)
        with gathered(module):
            if trainer.is_global_zero:
                self._show(trainer, module)

    def _show(self, trainer: Trainer, module: TrainingModule) -> None:
        # Lightning sets it where pyright does not see it.
        data: Any = trainer.datamodule  # pyright: ignore[reportAttributeAccessIssue]
        given = self.prompts
        prompts = data.prompts(_LINES) if given is None else [data.encode(text) for text in given]
        for number, prompt in enumerate(prompts):
            tokens = generate(
                cast(DecoderLM, module.network),
                torch.tensor([prompt], device=module.device),
                max_new_tokens=self.max_new_tokens,
                temperature=self.temperature,
                top_k=self.top_k,
                top_p=self.top_p,
                generator=torch.Generator(module.device).manual_seed(self.seed),
            )
            text = data.decode(tokens[0].tolist())
            module.log_text(f"samples/{number}", text, trainer.global_step)
