"""A sequence-to-sequence model over any attention layers."""

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from fwlight.checks import check_sizes
from fwlight.models.blocks import Block, CrossDecoderBlock, EncoderBlock, make_norm
from fwlight.models.cross_entropy import CrossEntropy
from fwlight.models.dropout import Dropout, follow_mixers
from fwlight.models.positions import make_positions
from fwlight.models.stack import MixerFactory, Stack, pattern, total_size


class DecoderState(NamedTuple):
    """What decoding carries from one token to the next."""

    written: tuple[Any, ...]
    """What the sources left in the cross-attention of every decoder layer."""
    sources: int
    """How many sources that are."""
    layers: tuple[Any, ...]
    """The state of the self-attention of every decoder layer; None before the first token."""
    position: int
    """Number of tokens read so far."""


class EncoderDecoder(nn.Module):
    """The transformer of Vaswani et al. (2017) with any memory in each of its three attentions.

    The encoder's self-attention writes the whole sentence, then reads it with every token; the
    decoder's is causal; cross-attention writes the encoder's output once and reads it at every
    step. Source embedding, target embedding and read-out are one table, scaled by sqrt(d_model) as
    embedding. Matrices start by Xavier's rule, embeddings with variance 1 / d_model.

    Args:
        vocab_size: Number of token ids, of both languages.
        pad_id: Where a source holds this id, and after, is padding. Targets need none: nothing
            reads what comes later.
        d_model: Width.
        n_layers: Number of blocks of the encoder, and of the decoder.
        n_heads: Heads per attention.
        d_head: Size of a head.
        d_ff: Width of the feed-forward layers.
        dropout: Dropout probability.
        encoder: Makes an attention layer of the encoder from (d_model, n_heads, d_head).
        decoder: Makes a self-attention layer of the decoder.
        cross: Makes a cross-attention layer.
        alternate: Makes the self-attention of every `alternate_every`-th layer of both stacks
            instead, for hybrids.
        alternate_every: See `fwlight.models.stack.pattern`.
        positions: "sinusoidal" (counting up), or "rotary" or "none", which add none.
        norm: "post" (the paper) or "pre".
        feed_forward: "relu", "gelu" or "swiglu".
        block_norm: "layernorm" or "rmsnorm".

    Raises:
        ValueError: If a size is below 1 or an option unknown; also for positions that count down
            to the end, which padding would move.
    """

    def __init__(
        self,
        *,
        vocab_size: int,
        pad_id: int,
        d_model: int,
        n_layers: int,
        n_heads: int,
        d_head: int,
        d_ff: int,
        dropout: float,
        encoder: MixerFactory,
        decoder: MixerFactory,
        cross: MixerFactory,
        alternate: MixerFactory | None = None,
        alternate_every: int = 4,
        positions: str = "sinusoidal",
        norm: str = "post",
        feed_forward: str = "relu",
        block_norm: str = "layernorm",
    ) -> None:
        super().__init__()
        check_sizes(vocab_size=vocab_size, n_layers=n_layers, d_ff=d_ff)
        if positions == "sinusoidal_reversed":
            raise ValueError(
                "positions=sinusoidal_reversed counts from a sentence's end, which padding moves; "
                "choose sinusoidal or none"
            )
        self.d_model, self.pad_id = d_model, pad_id
        self.embedding = nn.Embedding(vocab_size, d_model)
        self.positions = make_positions(positions, d_model)
        self.dropout = Dropout(dropout)

        sizes: dict[str, Any] = {"d_model": d_model, "n_heads": n_heads, "d_head": d_head}
        sizes |= {"d_ff": d_ff, "dropout": dropout, "norm": norm}
        sizes |= {"feed_forward": feed_forward, "block_norm": block_norm}

        def stack(block: Callable[..., Block], mixer: MixerFactory) -> Stack:
            mixers = pattern(mixer, alternate, alternate_every, n_layers=n_layers)
            return Stack(partial(block, **sizes), mixers, n_layers=n_layers)

        self.encoder = stack(EncoderBlock, encoder)
        self.decoder = stack(partial(CrossDecoderBlock, cross=cross), decoder)
        _check_writes("encoder", (block.attention for block in self.encoder.blocks()))
        _check_writes("cross", (block.cross for block in self.decoder.blocks()))
        pre = norm == "pre"
        self.encoder_norm = make_norm(block_norm, d_model) if pre else nn.Identity()
        self.decoder_norm = make_norm(block_norm, d_model) if pre else nn.Identity()
        self.cross_entropy = CrossEntropy()
        follow_mixers(self)
        self.apply(_initialise)

    @property
    def state_size(self) -> int | None:
        """Numbers carried in decoding one sentence; None where they grow with a length."""
        return total_size(
            layer.state_size
            for block in self.decoder.blocks()
            for layer in (block.attention, block.cross)
        )

    def forward(
        self, source: Int[Tensor, "b s"], inputs: Int[Tensor, "b t"]
    ) -> Float[Tensor, "b t n"]:
        """Return the logits of the next target token after each of `inputs`."""
        return self.output(self.features(source, inputs))

    def features(
        self,
        source: Int[Tensor, "b s"],
        inputs: Int[Tensor, "b t"],
        *,
        starts: tuple[Bool[Tensor, "b s"], Bool[Tensor, "b t"]] | None = None,
    ) -> Float[Tensor, "b t m"]:
        """Return what the output layer reads.

        Args:
            source: Token ids.
            inputs: Token ids.
            starts: True at the first token of every source and of every target, where a row holds
                several: row after row, the n-th target is of the n-th source. Such rows have no
                padding; what fills them up is a sequence like the others.

        Raises:
            ValueError: If there are not as many targets as sources, or a mixer knows no starts.
        """
        if starts is None:
            return self.decode(inputs, self.encode(source))[0]
        self.encoder.check_takes("starts")
        self.decoder.check_takes("starts")
        sources, targets = (int(F.pad(x[:, 1:], (1, 0), value=True).sum()) for x in starts)
        if sources != targets:
            raise ValueError(f"{targets} targets stand in these rows beside {sources} sources")
        return self.decode(inputs, self.encode(source, starts[0]), starts[1])[0]

    def output(self, hidden: Float[Tensor, "*batch m"]) -> Float[Tensor, "*batch n"]:
        """Return the logits of every token."""
        return F.linear(hidden, self.embedding.weight)

    def nll(
        self,
        hidden: Float[Tensor, "n m"],
        targets: Int[Tensor, " n"],
        *,
        label_smoothing: float = 0.0,
    ) -> Float[Tensor, " n"]:
        """Return the loss of every target in nats.

        -(1 - s) log p(target) - s / V sum_w log p(w) with s the label smoothing and V the size of
        the vocabulary (Szegedy et al. 2016, sec. 7).
        """
        return self.cross_entropy(self.output(hidden), targets, label_smoothing=label_smoothing)

    def encode(
        self, source: Int[Tensor, "b s"], starts: Bool[Tensor, "b s"] | None = None
    ) -> DecoderState:
        """Read the sources and write them into the cross-attention of every decoder layer.

        Args:
            source: At least one real token each.
            starts: See `features`.
        """
        mask = {"padding_mask": source == self.pad_id} if starts is None else {"starts": starts}
        h = self._embed(source, 0, starts)
        for block in self.encoder:
            h = self.encoder.run(block, h, **mask)
        h = self.encoder_norm(h)
        written = tuple(block.write(h, **mask) for block in self.decoder.blocks())
        return DecoderState(written, len(source), (None,) * len(written), 0)

    def decode(
        self,
        tokens: Int[Tensor, "b t"],
        state: DecoderState,
        starts: Bool[Tensor, "b t"] | None = None,
    ) -> tuple[Float[Tensor, "b t m"], DecoderState]:
        """Read the next target tokens; return what the output layer reads, and the state after.

        Args:
            tokens: A multiple of the sources in rows; rows of one source stand together.
            state: From `encode` or from here.
            starts: See `features`; such rows are decoded at once.
        """
        h = self._embed(tokens, state.position, starts)
        layers, options = [], {"sources": state.sources, "starts": starts}
        for block, written, layer in zip(self.decoder, state.written, state.layers, strict=True):
            options |= {"written": written, "initial_state": layer}
            h, layer = self.decoder.run(block, h, **options)
            layers.append(layer)
        h = self.dropout(self.decoder_norm(h))
        position = state.position + tokens.shape[1]
        return h, state._replace(layers=tuple(layers), position=position)

    def _embed(self, tokens: Tensor, start: int, starts: Tensor | None) -> Tensor:
        h = self.embedding(tokens) * math.sqrt(self.d_model)
        if self.positions is not None:
            h = h + self.positions(tokens.shape[1], start, starts=starts, device=h.device).to(h)
        return self.dropout(h)


def _check_writes(place: str, mixers: Iterator[nn.Module]) -> None:
    """Raise ValueError for a mixer that cannot be written whole before it is read."""
    for mixer in mixers:
        if not hasattr(mixer, "write"):
            raise ValueError(
                f"{type(mixer).__name__} sees no later tokens, which the {place} asks for; give it "
                f"another model: model@{place}=deltanet"
            )


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Embedding):
        nn.init.normal_(module.weight, 0.0, module.embedding_dim**-0.5)
    elif isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
