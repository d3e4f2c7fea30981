from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import nll_loss

from fwlight.feature_maps import DPFPFeatureMap
from fwlight.mixers import FastWeights, MultiHeadAttention
from fwlight.models import AdaptiveSoftmax, DecoderLM, generate
from fwlight.ops import delta_rule
from fwlight.types import IGNORE_INDEX

VOCAB, WIDTH, CUTOFFS = 23, 6, (7, 12, 20)


def make(cutoffs: tuple[int, ...] = CUTOFFS) -> AdaptiveSoftmax:
    torch.manual_seed(0)
    layer = AdaptiveSoftmax(nn.Parameter(torch.randn(VOCAB, WIDTH)), cutoffs=cutoffs).double()
    nn.init.normal_(layer.bias)
    return layer


def inputs(n_words: int = VOCAB) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(3, 20, WIDTH, generator=generator, dtype=torch.float64)
    return hidden.requires_grad_(), torch.randint(n_words, (3, 20), generator=generator)


def dense(layer: AdaptiveSoftmax, hidden: Tensor) -> Tensor:
    """Log-probabilities from all logits at once, as the formula stands, with plain sums of exp."""
    words = hidden @ layer.weight.T + layer.bias
    clusters = hidden @ layer.clusters.weight.T + layer.clusters.bias
    first = layer.sizes[0]
    normaliser = (words[..., :first].exp().sum(-1) + clusters.exp().sum(-1)).log()
    columns = [words[..., w] - normaliser for w in range(first)]
    start = first
    for i, size in enumerate(layer.sizes[1:]):
        inner = words[..., start : start + size]
        rest = clusters[..., i] - normaliser - inner.exp().sum(-1).log()
        columns += [inner[..., w] + rest for w in range(size)]
        start += size
    return torch.stack(columns, -1)


@pytest.mark.parametrize("cutoffs", [CUTOFFS, (1,), (1, 2, 22), (22,)])
def test_values_and_gradients_are_those_of_the_dense_formula(cutoffs: tuple[int, ...]) -> None:
    layer, (hidden, targets) = make(cutoffs), inputs()
    targets[1, 4:7] = IGNORE_INDEX
    weights = torch.rand(targets.shape, dtype=torch.float64)
    log_p = dense(layer, hidden)
    kept = targets.clamp(min=0)
    expected = -log_p.gather(-1, kept[..., None])[..., 0] * (targets != IGNORE_INDEX)
    nll = layer.nll(hidden, targets)
    close = partial(torch.testing.assert_close, rtol=1e-9, atol=1e-12)
    close(nll, expected)
    close(layer(hidden), log_p)
    leaves = [hidden, *layer.parameters()]
    assert len(leaves) == 5
    wanted = torch.autograd.grad((expected * weights).sum(), leaves, retain_graph=True)
    for found, gradient in zip(
        torch.autograd.grad((nll * weights).sum(), leaves), wanted, strict=True
    ):
        close(found, gradient)


def test_ignored_targets_cost_nothing() -> None:
    layer, (hidden, targets) = make(), inputs()
    nll = layer.nll(hidden, torch.full_like(targets, IGNORE_INDEX))
    assert torch.equal(nll, torch.zeros_like(nll))
    for gradient in torch.autograd.grad(nll.sum(), [hidden, *layer.parameters()]):
        assert not gradient.any()


def test_clusters_without_targets_get_no_gradient() -> None:
    layer, (hidden, targets) = make(), inputs(n_words=CUTOFFS[0])
    nll = layer.nll(hidden, targets)
    torch.testing.assert_close(nll, nll_loss_of(layer(hidden), targets), rtol=1e-9, atol=1e-12)
    (gradient,) = torch.autograd.grad(nll.sum(), layer.weight)
    assert gradient[: CUTOFFS[0]].any(-1).all()
    assert not gradient[CUTOFFS[0] :].any()


def nll_loss_of(log_p: Tensor, targets: Tensor) -> Tensor:
    return nll_loss(log_p.flatten(0, 1), targets.flatten(), reduction="none").view(targets.shape)


def test_a_cluster_is_computed_where_its_words_are_targets_only(monkeypatch) -> None:
    layer, (hidden, targets) = make(), inputs()
    rows, linear = {}, torch.nn.functional.linear

    def counting(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        rows[len(weight)] = len(x)
        return linear(x, weight, bias)

    monkeypatch.setattr(torch.nn.functional, "linear", counting)
    layer.nll(hidden, targets)
    parts = torch.bucketize(targets, torch.tensor(CUTOFFS), right=True).flatten()
    _, *counts = parts.bincount(minlength=4).tolist()
    assert rows == {7 + 3: targets.numel(), 5: counts[0], 8: counts[1], 3: counts[2]}


@pytest.mark.parametrize("targets", ["all", "frequent"])
def test_autocast_sums_in_float32(targets: str) -> None:
    layer = make().float()
    hidden, words = inputs(VOCAB if targets == "all" else 2)
    hidden = hidden.detach().float().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        nll, log_p = layer.nll(hidden, words), layer(hidden)
    assert nll.dtype == log_p.dtype == torch.float32
    torch.testing.assert_close(log_p.exp().sum(-1), torch.ones(3, 20))
    torch.testing.assert_close(nll, nll_loss_of(log_p, words))
    assert torch.autograd.grad(nll.sum(), layer.weight)[0].dtype == torch.float32


@pytest.mark.parametrize("cutoffs", [(), (0, 5), (5, 5), (9, 5), (5, 23), (24,)])
def test_cutoffs_that_leave_a_part_empty_are_refused(cutoffs: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="must rise and lie between 1 and 22"):
        make(cutoffs)


def language_model() -> DecoderLM:
    torch.manual_seed(0)
    memory = partial(FastWeights, feature_map=DPFPFeatureMap, update_rule=delta_rule)
    return DecoderLM(
        vocab_size=VOCAB,
        d_model=WIDTH,
        n_layers=1,
        n_heads=1,
        d_head=WIDTH,
        d_ff=8,
        dropout=0.0,
        attention=partial(MultiHeadAttention, memory=partial(memory, key_norm="sum")),
        output="adaptive",
        cutoffs=CUTOFFS,
        init_std=0.5,
    )


def test_language_model_ties_it_and_initialises_its_clusters() -> None:
    model = language_model()
    assert model.output.weight is model.embedding.weight
    assert model.output.clusters.weight.std() > 0.2
    assert not model.output.clusters.bias.any()
    assert not model.output.bias.any()


def test_sampling_follows_probabilities_that_sum_to_one() -> None:
    model = language_model().double().eval()
    prompt = torch.tensor([[3, 8, 21]])
    p = model(prompt)[0][0, -1].softmax(-1)
    logits = model(prompt)[0]
    torch.testing.assert_close(logits.exp().sum(-1), torch.ones(1, 3, dtype=torch.float64))
    torch.testing.assert_close(p, logits[0, -1].exp())
    many = generate(
        model,
        prompt.expand(20_000, -1),
        max_new_tokens=1,
        generator=torch.Generator().manual_seed(2),
    )
    frequency = many[:, -1].bincount(minlength=VOCAB) / len(many)
    assert (frequency - p).abs().max() < 0.02
    targets = torch.tensor([[8, 21, 0]])
    hidden, _ = model.features(prompt)
    torch.testing.assert_close(model.nll(hidden, targets), nll_loss_of(logits, targets))
