"""A network that reads a sequence and rebuilds it from its last state."""

from typing import Any

from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from fwlight.models.decoder_lm import DecoderLM, LMState, initialise
from fwlight.models.positions import SinusoidalPositions


class AutoEncoderLM(DecoderLM):
    """A `DecoderLM` that can, instead of predicting, rebuild all tokens from the last one's state.

    Every token is read out of the last block's output at the last position, to which the
    sinusoidal encoding of the token's own position is added, through two layers of width d_model
    (compression in MAD: Poli et al. 2024, arXiv 2403.17844).

    Args:
        rebuild: False: no other network than `DecoderLM`.
        init_std: As of `DecoderLM`.
        options: As of `DecoderLM`.
    """

    def __init__(self, *, rebuild: bool = False, init_std: float = 0.02, **options: Any) -> None:
        super().__init__(init_std=init_std, **options)
        self.decoder: nn.Sequential | None = None
        if rebuild:
            width = self.d_model
            self.places = SinusoidalPositions(width)
            self.decoder = nn.Sequential(
                nn.LayerNorm(width),
                nn.Linear(width, width),
                nn.GELU(),
                nn.LayerNorm(width),
                nn.Linear(width, width),
                nn.GELU(),
            )
            self.decoder.apply(lambda module: initialise(module, init_std))

    def features(
        self,
        tokens: Int[Tensor, "b t"],
        *,
        initial_state: LMState | None = None,
        padding_mask: Bool[Tensor, "b t"] | None = None,
        starts: Bool[Tensor, "b t"] | None = None,
    ) -> tuple[Float[Tensor, "b t m"], LMState]:
        """Return what the output layer reads of every position, and the state to go on from.

        Arguments as in `DecoderLM.features`; to rebuild, the last position must not be padding.
        """
        if self.decoder is not None and starts is not None:
            raise ValueError("a row that is rebuilt from its last position is one sequence")
        options = {"padding_mask": padding_mask, "starts": starts}
        h, state = super().features(tokens, initial_state=initial_state, **options)
        if self.decoder is None:
            return h, state
        places = self.places(tokens.shape[1], device=h.device).to(h.dtype)
        return self.decoder(h[:, -1:] + places), state
