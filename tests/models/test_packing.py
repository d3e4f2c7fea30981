"""Several sequences in one row are read as if each stood alone, whatever its neighbours hold."""

import pytest
import torch
from torch import Tensor

from cli.building import build
from cli.composition import compose_config
from cli.folders import groups
from fwlight.models import DecoderLM, EncoderDecoder, map_state
from fwlight.ops import native
from fwlight.types import IGNORE_INDEX
from tasks.pairs import EncodedPairs

SIZES = ("size.d_model=16", "size.n_layers=2", "size.n_heads=2", "size.d_head=8", "size.d_ff=16")
MODELS = tuple(groups()["model"])
LENGTHS = (3, 70, 1, 2, 24)
"""The first goes on from what was before; another is longer than a chunk."""
HUGE = 1e6


def network(*arguments: str) -> DecoderLM:
    torch.manual_seed(0)
    config = compose_config(["task=lm", *SIZES, "size.dropout=0", *arguments]).config["network"]
    return build("network", {**config, "init_std": 0.3}, vocab_size=11).double().eval()


def with_every_back_end(model: str):
    """Yield what chooses the model with each back end that it has here."""
    chosen = compose_config(["task=lm", f"model={model}"]).config["model"]
    key = "update_rule.backend" if "update_rule" in chosen else "backend"
    if key.split(".")[0] not in chosen:
        yield (f"model={model}",)
        return
    for backend in ("recurrent", "chunk", "native"):
        if backend == "chunk" and (model == "fwm" or key == "backend"):
            continue  # there is none
        if backend == "native" and native.absence(torch.float64) is not None:
            continue
        yield f"model={model}", f"model.{key}={backend}"


def starts_of(lengths, rows: int = 2) -> Tensor:
    starts = torch.zeros(rows, sum(lengths), dtype=torch.bool)
    starts[:, torch.tensor(lengths).cumsum(0)[:-1]] = True
    return starts


@pytest.mark.parametrize("model", MODELS)
def test_no_sequence_of_a_row_sees_another(model):
    for chosen in with_every_back_end(model):
        check_that_no_sequence_sees_another(*chosen)


def check_that_no_sequence_sees_another(*chosen: str) -> None:
    layer = network(*chosen).blocks[0].attention
    generator = torch.Generator().manual_seed(1)
    earlier, x = (
        torch.randn(2, n, 16, generator=generator, dtype=torch.float64) for n in (7, sum(LENGTHS))
    )
    with torch.no_grad():
        _, state = layer(earlier)
    starts = starts_of(LENGTHS)
    parameters = [p for p in layer.parameters() if p.requires_grad]

    def run(x, **options):
        """Return outputs and what they give to inputs and parameters."""
        x = x.clone().requires_grad_()
        y, after = layer(x, **options)

        def gradients(part):
            loss = (y[:, part] * y[:, part].detach().cos()).sum()
            return torch.autograd.grad(loss, [x, *parameters], allow_unused=True)

        return y, gradients, after

    first = 0
    for i, length in enumerate(LENGTHS):
        own = slice(first, first + length)
        others = torch.full((sum(LENGTHS), 1), HUGE, dtype=x.dtype)
        others[own] = 1
        y, gradients, after = run(x * others, starts=starts, initial_state=state)
        alone, expected, left = run(x[:, own], initial_state=None if i else state)
        close(y[:, own], alone)
        of_x, *of_parameters = gradients(own)
        alone_x, *alone_parameters = expected(slice(None))
        close(of_x[:, own], alone_x)
        outside = of_x.clone()
        outside[:, own] = 0
        assert not outside.any()
        for found, wanted in zip(of_parameters, alone_parameters, strict=True):
            if wanted is None:
                assert found is None or not found.any()
            else:
                close(found, wanted)
        first += length
    # What the last one leaves is all that is carried on.
    more = torch.randn(2, 5, 16, generator=generator, dtype=torch.float64)
    with torch.no_grad():
        close(layer(more, initial_state=after)[0], layer(more, initial_state=left)[0])


def close(found: Tensor, expected: Tensor) -> None:
    largest = expected.abs().max().item()
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12 * max(largest, 1.0))


@pytest.mark.parametrize("positions", ["none", "sinusoidal", "sinusoidal_reversed"])
@pytest.mark.parametrize("model", ["delta_dpfp", "softmax", "deltaproduct"])
def test_network_reads_every_sequence_from_its_own_positions(model, positions):
    made = network(f"model={model}", f"model.positions={positions}")
    x = torch.randint(11, (2, sum(LENGTHS)), generator=torch.Generator().manual_seed(2))
    hidden, _ = made.features(x, starts=starts_of(LENGTHS))
    for part, found in zip(x.split(LENGTHS, 1), hidden.split(LENGTHS, 1), strict=True):
        close(found, made.features(part)[0])


def test_rows_may_be_cut_at_different_places():
    made = network("model=gated_deltanet", "model.positions=sinusoidal")
    x = torch.randint(11, (3, 20), generator=torch.Generator().manual_seed(2))
    starts = torch.zeros(3, 20, dtype=torch.bool)
    starts[0, [0, 4, 5]] = starts[2, 19] = True
    hidden, state = made.features(x, starts=starts)
    for row, cuts in enumerate(([4, 1, 15], [20], [19, 1])):
        parts = zip(x[row].split(cuts), hidden[row].split(cuts), strict=True)
        for part, found in parts:
            expected, left = made.features(part[None])
            close(found[None], expected)
        own = map_state(lambda s, row=row: s[row : row + 1], state).layers
        for found, wanted in zip(own, left.layers, strict=True):
            close(found.memory.weights, wanted.memory.weights)
            close(found.tail, wanted.tail)


def translator(*arguments: str) -> EncoderDecoder:
    torch.manual_seed(0)
    sizes = (*SIZES, "size.dropout=0", "task.data=cldr")
    config = compose_config(["task=translation", *sizes, *arguments]).config["network"]
    return build("network", config, vocab_size=11, pad_id=0).double().eval()


PAIRS = ((3, 2), (1, 5), (70, 66), (4, 1), (2, 9))
"""Lengths of sources and targets; the first two share a row with the last."""


def encodes(model: str) -> bool:
    made = network(f"model={model}")
    return hasattr(made.blocks[0].attention, "write")


@pytest.mark.parametrize("model", MODELS)
def test_pairs_in_rows_are_translated_as_if_alone(model):
    # A recurrent net is the decoder of a translation and no more.
    others = () if encodes(model) else ("model@encoder=deltanet", "model@cross=deltanet")
    made = translator(f"model={model}", *others)
    generator = torch.Generator().manual_seed(3)
    pairs = [tuple(torch.randint(3, 11, (n,), generator=generator) for n in x) for x in PAIRS]
    ends = torch.tensor([[0, *(torch.tensor(x).cumsum(0))] for x in zip(*PAIRS, strict=True)])
    encoded = EncodedPairs(
        *(
            x
            for side, end in zip(zip(*pairs, strict=True), ends, strict=True)
            for x in (torch.cat(side).int(), end)
        )
    )
    batch = encoded.packed(torch.tensor([0, 1, 2, 3, 4]), row_tokens=75, pad=0, bos=1, eos=2)
    assert len(batch.source) == 3
    starts = batch.source_starts, batch.input_starts
    parameters = list(made.parameters())

    def loss(hidden):
        return (hidden * hidden.detach().cos()).sum()

    hidden = made.features(batch.source, batch.inputs, starts=starts)
    real = batch.targets != IGNORE_INDEX
    found = torch.autograd.grad(loss(hidden[real]), parameters, allow_unused=True)
    alone = encoded.batch(torch.arange(5), pad=0, bos=1, eos=2)
    parts, total = [], 0
    for source, inputs, targets in zip(*alone[:3], strict=True):
        own = targets != IGNORE_INDEX
        parts.append(made.features(source[None, source != 0], inputs[None, own])[0])
        total = total + loss(parts[-1])
    close(hidden[real], torch.cat(parts))
    expected = torch.autograd.grad(total, parameters, allow_unused=True)
    for one, other in zip(found, expected, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            close(one, other)


def test_sources_and_targets_of_rows_must_be_as_many():
    ones, starts = torch.ones(1, 4, dtype=torch.int64), torch.tensor([[True, False, True, False]])
    with pytest.raises(ValueError, match="1 targets stand in these rows beside 2 sources"):
        translator().features(ones, ones, starts=(starts, torch.zeros_like(starts)))


def test_rule_without_a_decay_is_named():
    from functools import partial

    from fwlight.feature_maps import EluFeatureMap
    from fwlight.mixers import FastWeights
    from fwlight.ops import sum_rule

    def plain_rule(q, k, v, beta=None, *, initial_state=None):
        return sum_rule(q, k, v, beta, initial_state=initial_state)

    memory = FastWeights(
        4, feature_map=partial(EluFeatureMap), update_rule=plain_rule, read_norm="output"
    )
    x = torch.randn(1, 1, 3, 4)
    with pytest.raises(ValueError, match="plain_rule takes no decay"):
        memory(x, x, x, starts=torch.tensor([[False, True, False]]))


def test_mixer_that_knows_no_starts_is_named():
    made = network("model=delta_dpfp")

    class Old(type(made.blocks[1].attention)):
        def forward(self, x, *, causal=True, padding_mask=None, initial_state=None):
            return super().forward(x, initial_state=initial_state)

    made.blocks[1].attention.__class__ = Old
    x = torch.zeros(2, 5, dtype=torch.int64)
    made.features(x)
    with pytest.raises(ValueError, match=r"Old\.forward takes no starts"):
        made.features(x, starts=torch.zeros(2, 5, dtype=torch.bool))
