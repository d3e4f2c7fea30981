"""A decoder-only language model over any attention layer."""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple, cast

from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from fwlight.checks import check_choice, check_probabilities, check_sizes
from fwlight.models.adaptive import AdaptiveSoftmax
from fwlight.models.blocks import DecoderBlock, make_norm
from fwlight.models.chunked import check_chunked, chunked_nll
from fwlight.models.cross_entropy import CrossEntropy
from fwlight.models.dropout import Dropout, follow_mixers, locked_dropout, word_dropout
from fwlight.models.positions import make_positions
from fwlight.models.stack import MixerFactory, Stack, between, pattern

OUTPUTS = ("dense", "adaptive", "chunked")
READ_OUTS = ("biased", "xavier")


class LMState(NamedTuple):
    """What a language model carries from one segment to the next."""

    layers: tuple[Any, ...]
    """One attention state per layer."""
    position: int
    """Number of tokens read so far."""


class DecoderLM(nn.Module):
    """The paper's language model: tied embeddings, N blocks, a linear read-out.

    Embeddings are scaled by sqrt(d_model); dropout follows embedding + position and the last
    block (Schlag et al. 2021b, app. F, and its reference code). With `n_outputs`,
    `scale_embedding=False` and `final_norm=False` it is the model of the algorithmic tasks of Irie
    et al. 2021 (arXiv 2106.06295), which has no dropout at either place. Over LSTMs, with `d_inner`
    and the four dropouts after it, it is AWD-LSTM (Merity et al. 2018, arXiv 1708.02182).

    Args:
        vocab_size: Number of token ids.
        n_outputs: Number of ids that are answered, the first of them, by a read-out of their own;
            None: all, tied to the embedding.
        read_out: What that is: "biased", as torch starts it, or "xavier", without a bias and Xavier
            normal at first, as of Schlag et al. 2021a.
        d_model: Width.
        n_layers: Number of blocks.
        n_heads: Heads per block.
        d_head: Size of a head.
        d_ff: Width of the feed-forward layers.
        dropout: Dropout probability.
        d_inner: Width between layers, all of which must be LSTMs then; None: `d_model`.
        word_dropout: Probability with which a word's embedding is dropped wherever it stands.
        input_dropout: Of what the first layer reads, the same numbers at every token of a row.
        hidden_dropout: Likewise, between layers.
        output_dropout: Likewise, of what the output layer reads.
        attention: Makes the mixer of a layer from (d_model, n_heads, d_head).
        alternate: Makes that of every `alternate_every`-th layer instead, for hybrids.
        alternate_every: See `fwlight.models.stack.pattern`.
        positions: "sinusoidal" (counting up), "sinusoidal_reversed" (down to 0 at the end of a
            segment, the reference code's), or "rotary" or "none", which add none.
        norm: "post" (the paper) or "pre".
        feed_forward: "relu", "gelu" or "swiglu".
        block_norm: "layernorm" or "rmsnorm".
        scaled_residuals: Divide the first weights of what blocks add to the residual stream by
            sqrt(2 n_layers) (Radford et al. 2019, sec. 2.3).
        output: "dense" (one softmax), "chunked" (the same, its loss computed for some positions at
            a time, see `fwlight.models.chunked`) or "adaptive" (`AdaptiveSoftmax`).
        untied_output: Whether the output has a table of its own, which the adaptive one cannot;
            else it is tied to the embedding.
        cutoffs: Of the adaptive softmax: the first word of every cluster, rising.
        scale_embedding: Whether embeddings are scaled.
        final_norm: Whether a norm follows the last block of a "pre" network.
        init_std: Standard deviation of every weight matrix, and of LayerNorm gains around 1; None:
            everything starts as torch starts it.
        embedding_range: The embedding starts uniform in +- this, and the output's bias at 0; None:
            as the rest.

    Raises:
        ValueError: If a size is below 1, an option unknown, or a probability none.
    """

    def __init__(
        self,
        *,
        vocab_size: int,
        n_outputs: int | None = None,
        read_out: str = "biased",
        d_model: int,
        n_layers: int,
        n_heads: int,
        d_head: int,
        d_ff: int,
        dropout: float,
        d_inner: int | None = None,
        word_dropout: float = 0.0,
        input_dropout: float = 0.0,
        hidden_dropout: float = 0.0,
        output_dropout: float = 0.0,
        attention: MixerFactory,
        alternate: MixerFactory | None = None,
        alternate_every: int = 4,
        positions: str = "sinusoidal",
        norm: str = "post",
        feed_forward: str = "relu",
        block_norm: str = "layernorm",
        scaled_residuals: bool = False,
        output: str = "dense",
        cutoffs: Sequence[int] = (),
        untied_output: bool = False,
        scale_embedding: bool = True,
        final_norm: bool = True,
        init_std: float | None = 0.02,
        embedding_range: float | None = None,
    ) -> None:
        super().__init__()
        check_probabilities(word_dropout=word_dropout, input_dropout=input_dropout)
        check_probabilities(hidden_dropout=hidden_dropout, output_dropout=output_dropout)
        check_sizes(vocab_size=vocab_size, n_layers=n_layers, d_ff=d_ff)
        check_choice("output", output, OUTPUTS)
        check_choice("read_out", read_out, READ_OUTS)
        if n_outputs is not None and (output != "dense" or not 1 <= n_outputs <= vocab_size):
            raise ValueError(
                f"n_outputs={n_outputs} must be at most vocab_size={vocab_size}, with output=dense"
            )
        if untied_output and output == "adaptive":
            raise ValueError("untied_output needs output=dense or chunked: adaptive is tied")
        self.d_model = d_model
        self._scale = math.sqrt(d_model) if scale_embedding else 1.0
        self.embedding = nn.Embedding(vocab_size, d_model)
        self.positions = make_positions(positions, d_model)
        self.dropout = Dropout(dropout)
        self.word_dropout, self.input_dropout = word_dropout, input_dropout
        self.output_dropout = output_dropout
        block = partial(
            DecoderBlock,
            d_model=d_model,
            n_heads=n_heads,
            d_head=d_head,
            d_ff=d_ff,
            dropout=dropout,
            norm=norm,
            feed_forward=feed_forward,
            block_norm=block_norm,
        )
        mixers = pattern(attention, alternate, alternate_every, n_layers=n_layers)
        if d_inner is not None:
            check_sizes(d_inner=d_inner)
            mixers = between(mixers, [d_model, *[d_inner] * (n_layers - 1), d_model])
        self.blocks = Stack(block, mixers, n_layers=n_layers, dropout=hidden_dropout)
        bare = all(block.bare for block in self.blocks.blocks())
        normed = norm == "pre" and final_norm and not bare
        self.final_norm = make_norm(block_norm, d_model) if normed else nn.Identity()
        self.chunked = output == "chunked"
        if output == "adaptive":
            table = cast(nn.Parameter, self.embedding.weight)
            self.output: nn.Module = AdaptiveSoftmax(table, cutoffs=cutoffs)
        else:
            if output == "chunked":
                check_chunked()
            biased = n_outputs is None or read_out == "biased"
            linear = nn.Linear(d_model, n_outputs or vocab_size, bias=biased)
            if n_outputs is None and not untied_output:
                linear.weight = self.embedding.weight
            self.output = linear
        self.cross_entropy = CrossEntropy()
        follow_mixers(self)
        if init_std is not None:
            self.apply(lambda module: initialise(module, init_std))
        if embedding_range is not None:
            nn.init.uniform_(self.embedding.weight, -embedding_range, embedding_range)
            if (bias := getattr(self.output, "bias", None)) is not None:
                nn.init.zeros_(bias)
        for block in self.blocks.blocks() if scaled_residuals else ():
            block.scale_residuals((2 * n_layers) ** -0.5)
        if n_outputs is not None and read_out == "xavier":
            nn.init.xavier_normal_(cast(nn.Linear, self.output).weight)

    @property
    def state_size(self) -> int | None:
        """Numbers carried for one sequence; None where they grow with its length."""
        return self.blocks.state_size

    def empty_state(self, sequences: int) -> LMState:
        """Return the state of so many sequences before their first token."""
        like = self.embedding.weight.new_zeros(sequences, 0, self.d_model)
        return LMState(self.blocks.empty_state(like), 0)

    def forward(
        self, tokens: Int[Tensor, "b t"], *, initial_state: LMState | None = None
    ) -> tuple[Float[Tensor, "b t n"], LMState]:
        """Return the logits of the next token at every position, and the state to go on from.

        Of an adaptive softmax they are log-probabilities.
        """
        h, state = self.features(tokens, initial_state=initial_state)
        return self.output(h), state

    def features(
        self,
        tokens: Int[Tensor, "b t"],
        *,
        initial_state: LMState | None = None,
        padding_mask: Bool[Tensor, "b t"] | None = None,
        starts: Bool[Tensor, "b t"] | None = None,
    ) -> tuple[Float[Tensor, "b t m"], LMState]:
        """Return what the output layer reads, and the state to go on from.

        Arguments as of `last_layer`, of whose vectors some numbers are dropped in training.
        """
        masks = {"padding_mask": padding_mask, "starts": starts}
        h, state = self.last_layer(tokens, initial_state=initial_state, **masks)
        return self.drop(h), state

    def drop(self, h: Float[Tensor, "b t m"]) -> Float[Tensor, "b t m"]:
        """Drop numbers of the last layer's vectors, in training."""
        return locked_dropout(self.dropout(h), self.output_dropout, training=self.training)

    def last_layer(
        self,
        tokens: Int[Tensor, "b t"],
        *,
        initial_state: LMState | None = None,
        padding_mask: Bool[Tensor, "b t"] | None = None,
        starts: Bool[Tensor, "b t"] | None = None,
    ) -> tuple[Float[Tensor, "b t m"], LMState]:
        """Return the vectors of the last layer, and the state to go on from.

        Args:
            tokens: Token ids.
            initial_state: The state to continue from; None is the start of a text.
            padding_mask: True where a position is padding: it writes nothing.
            starts: True at the first token of a sequence, which sees nothing before it; see
                `fwlight.packing`.

        Raises:
            ValueError: If there are starts and a mixer that does not know them, or positions and a
                state to continue from: it has one position for all its rows.
        """
        start = 0 if initial_state is None else initial_state.position
        if starts is not None:
            self.blocks.check_takes("starts")
        h = self.embedding(tokens) * self._scale
        n_words = self.embedding.num_embeddings
        h = word_dropout(h, tokens, self.word_dropout, n_words=n_words, training=self.training)
        if self.positions is not None:
            if starts is not None and start:
                raise ValueError(
                    "sequences that begin within a carried segment need model.positions=none: the "
                    "positions of the rows would differ"
                )
            h = h + self.positions(tokens.shape[1], start, starts=starts, device=h.device).to(h)
        h = locked_dropout(self.dropout(h), self.input_dropout, training=self.training)
        layers = None if initial_state is None else initial_state.layers
        masks = {"padding_mask": padding_mask, "starts": starts}
        h, layers = self.blocks(h, initial_state=layers, **masks)
        h = self.final_norm(h)
        return h, LMState(layers, start + tokens.shape[1])

    def nll(
        self, hidden: Float[Tensor, "b t m"], targets: Int[Tensor, "b t"]
    ) -> Float[Tensor, "b t"]:
        """Return -log p(target) per position in nats; 0 where the target is IGNORE_INDEX."""
        if isinstance(self.output, AdaptiveSoftmax):
            return self.output.nll(hidden, targets)
        if self.chunked:
            output = cast(nn.Linear, self.output)
            flat = chunked_nll(hidden.flatten(0, 1), output.weight, output.bias, targets.flatten())
            return flat.view(targets.shape)
        logits = self.output(hidden).flatten(0, 1)
        return self.cross_entropy(logits, targets.flatten()).view(targets.shape)


def initialise(module: nn.Module, std: float) -> None:
    """N(0, std) for matrices, 0 for biases, N(1, std) for LayerNorm gains (reference code)."""
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, 0.0, std)
    elif isinstance(module, nn.LayerNorm) and module.elementwise_affine:
        nn.init.normal_(module.weight, 1.0, std)
    if isinstance(module, nn.Linear | nn.LayerNorm) and module.bias is not None:
        nn.init.zeros_(module.bias)
