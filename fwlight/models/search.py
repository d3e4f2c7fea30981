"""Greedy and beam search with an encoder-decoder, a batch of sources at a time."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from fwlight.checks import check_sizes
from fwlight.evaluation import evaluation_mode
from fwlight.mixers import overwriting_states
from fwlight.models.carried import map_state
from fwlight.models.encoder_decoder import DecoderState, EncoderDecoder


def greedy_search(
    model: EncoderDecoder,
    source: Int[Tensor, "b s"],
    *,
    bos_id: int,
    eos_id: int,
    max_length: Int[Tensor, " b"],
) -> list[list[int]]:
    """Take the likeliest token again and again; arguments and result as of `beam_search`."""
    check_sizes(max_length=int(max_length.min()))
    with evaluation_mode(model), overwriting_states():
        state = model.encode(source)
        found: list[list[int]] = [[] for _ in source]
        alive = torch.arange(len(source), device=source.device)
        last = torch.full_like(alive, bos_id)
        while len(alive):
            hidden, state = model.decode(last[:, None], state)
            last = model.output(hidden[:, -1]).argmax(-1)
            for row, token in zip(alive.tolist(), last.tolist(), strict=True):
                if token != eos_id:
                    found[row].append(token)
            goes_on = (last != eos_id) & (max_length[alive] > state.position)
            if not goes_on.all():
                kept = goes_on.nonzero().squeeze(1)
                alive, last, state = alive[kept], last[kept], _of_sources(state, kept, kept)
        return found


def beam_search(
    model: EncoderDecoder,
    source: Int[Tensor, "b s"],
    *,
    width: int,
    length_penalty: float = 0.6,
    bos_id: int,
    eos_id: int,
    max_length: Int[Tensor, " b"],
) -> list[list[int]]:
    """Return the best translation of every source among those that `width` beams meet.

    A translation y, its end token included, scores log p(y) / |y|^length_penalty. At each step the
    2 width likeliest continuations of a source's beams are looked at: those of the first `width`
    that end are translations found, the first `width` that go on are the new beams. A source is
    done, and takes part in nothing any more, when `width` translations are found or its
    `max_length` is reached, where a beam counts as it stands. What is carried is the state of the
    self-attention, reordered along the beams; the source's memory is there once for all beams.
    The model is in evaluation mode during the call, and afterwards as it was.

    Args:
        model: The model.
        source: Token ids, padded.
        width: Number of beams.
        length_penalty: Exponent of the length; 0 compares log p, 1 the mean per token.
        bos_id: What the decoder reads first.
        eos_id: What ends a translation.
        max_length: Most tokens of each translation, the end token not counted.

    Returns:
        Token ids of each translation, without start and end.

    Raises:
        ValueError: If `width` or a `max_length` is below 1, or `length_penalty` negative.
    """
    check_sizes(width=width, max_length=int(max_length.min()))
    if length_penalty < 0:
        raise ValueError(f"length_penalty={length_penalty} must not be negative")
    with evaluation_mode(model), overwriting_states():
        beams = _Beams(len(source), width, eos_id, length_penalty, source.device)
        state = model.encode(source)
        tokens = source.new_full((len(source), 1), bos_id)  # one beam before the first step
        while len(beams.alive):
            hidden, state = model.decode(tokens, state)
            logits = model.output(hidden[:, -1]).float()
            rows, tokens = beams.extend(logits, at_limit=max_length[beams.alive] <= state.position)
            sources = beams.drop_finished()
            if sources is not None:
                rows, tokens = rows[sources], tokens[sources]
            state = _of_sources(state, rows.flatten(), sources)
            tokens = tokens.view(-1, 1)
        return beams.best


class _Beams:
    """Hypotheses of the sources that are not finished, and the best ended one of each."""

    def __init__(
        self, sources: int, width: int, eos_id: int, length_penalty: float, device: torch.device
    ) -> None:
        self.width, self.eos_id, self.length_penalty = width, eos_id, length_penalty
        self.alive = torch.arange(sources, device=device)
        self.best: list[list[int]] = [[] for _ in range(sources)]
        self._best_score = torch.full((sources,), -torch.inf, device=device)
        self._found = torch.zeros(sources, dtype=torch.int64, device=device)
        self._scores = torch.zeros(sources, 1, device=device)
        self._tokens = torch.zeros(sources, 1, 0, dtype=torch.int64, device=device)

    def extend(
        self, logits: Float[Tensor, "r n"], *, at_limit: Bool[Tensor, " b"]
    ) -> tuple[Int[Tensor, "b w"], Int[Tensor, "b w"]]:
        """Add a token to every hypothesis.

        Args:
            logits: Of the next token, one row a beam.
            at_limit: Whose beams end here as they stand, without an end token.

        Returns:
            For every new beam the row it goes on from, and its token.
        """
        b, w = self._scores.shape
        n = min(2 * self.width, logits.shape[-1])
        top, token = logits.topk(n, dim=-1)  # of one beam no more can be among the best
        scores = self._scores.view(-1, 1) + top - logits.logsumexp(-1, keepdim=True)
        scores = scores.view(b, w * n)
        scores, order = scores.topk(min(2 * self.width, w * n), dim=-1)
        token, beam = token.view(b, w * n).gather(1, order), order // n
        ended = token == self.eos_id
        first = torch.arange(ended.shape[1], device=ended.device) < self.width
        self._collect(scores, beam, token, (ended | at_limit[:, None]) & first)
        # A stable sort keeps the order of the scores among those that go on.
        kept = ended.int().sort(dim=-1, stable=True).indices[:, : self.width]
        if kept.shape[1] == w:  # else there are more beams than before
            kept = kept.gather(1, _at_home(beam.gather(1, kept)))
        self._scores = scores.masked_fill(ended, -torch.inf).gather(1, kept)
        beam, token = beam.gather(1, kept), token.gather(1, kept)
        history = self._tokens.gather(1, beam[..., None].expand(-1, -1, self._tokens.shape[2]))
        self._tokens = torch.cat([history, token[..., None]], dim=2)
        self._found = self._found.masked_fill(at_limit, self.width)
        rows = torch.arange(b, device=beam.device)[:, None] * w + beam
        return rows, token

    def drop_finished(self) -> Int[Tensor, " b"] | None:
        """Forget finished sources; return which of the others there were, None where all are."""
        going = self._found < self.width
        if going.all():
            return None
        kept = going.nonzero().squeeze(1)
        self.alive, self._found = self.alive[kept], self._found[kept]
        self._best_score = self._best_score[kept]
        self._scores, self._tokens = self._scores[kept], self._tokens[kept]
        return kept

    def _collect(self, scores: Tensor, beam: Tensor, token: Tensor, ends: Tensor) -> None:
        self._found = self._found + ends.sum(1)
        length = self._tokens.shape[2] + 1
        normalised = (scores / length**self.length_penalty).masked_fill(~ends, -torch.inf)
        score, index = normalised.max(1)
        better = (score > self._best_score).nonzero().squeeze(1)
        self._best_score = torch.maximum(score, self._best_score)
        for row in better.tolist():
            i = int(index[row])
            history = self._tokens[row, int(beam[row, i])].tolist()
            last = int(token[row, i])
            self.best[int(self.alive[row])] = history + [last] * (last != self.eos_id)


def _at_home(parent: Int[Tensor, "b w"]) -> Int[Tensor, "b w"]:
    """Return an order of new beams in which the first of each parent stands where the parent did.

    Then only the states of the others have to move; the order of beams says nothing.
    """
    same = parent[:, :, None] == parent[:, None]
    first = ~same.tril(-1).any(-1)
    free = torch.ones_like(first).scatter(1, parent, False)
    place = parent.clone()
    place[~first] = free.nonzero()[:, 1]
    return place.argsort(1)


def _of_sources(state: DecoderState, rows: Tensor, sources: Tensor | None) -> DecoderState:
    """Return the state of the beams in `rows`, and of the sources that are left.

    It may reuse the memory of `state`, whose tensors decoding has made and nobody else holds.
    """
    if sources is not None:
        layers = map_state(lambda x: x.index_select(0, rows), state.layers)
        written = map_state(lambda x: x.index_select(0, sources), state.written)
        return state._replace(layers=layers, written=written, sources=len(sources))
    moved = (rows != torch.arange(len(rows), device=rows.device)).nonzero().squeeze(1)
    origins = rows[moved]

    def move(x: Tensor) -> Tensor:
        if len(x) != len(rows):  # more beams than before
            return x.index_select(0, rows)
        return x.index_copy_(0, moved, x.index_select(0, origins))

    return state._replace(layers=map_state(move, state.layers))
