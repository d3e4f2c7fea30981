"""Blocks that are computed again in the backward pass give the same numbers, to the last bit."""

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from cli.building import build, build_parts
from cli.composition import compose_config
from fwlight.errors import ConfigError
from fwlight.models import map_state, recompute_blocks

SIZES = ("size.d_model=16", "size.n_layers=3", "size.n_heads=2", "size.d_head=8", "size.d_ff=16")
DROPOUT = "size.dropout=0.3"
MODELS = {
    "delta_dpfp": (),
    "delta_performer": ("model/feature_map=favor_lm",),  # draws anew in training
    "performer": ("model/feature_map=favor_synthetic",),  # and at every sequence's start
    "softmax": ("model.attention_dropout=0.3",),
    "gated_deltanet": ("model@alternate=softmax", "model.alternate_every=3"),
    "deltaproduct": ("model.update_rule.backend=chunk",),
    "delta_rnn": (),
    "srwm": (),
}


def network(*arguments: str, **sizes: int):
    torch.manual_seed(0)
    config = compose_config([*SIZES, DROPOUT, *arguments]).config
    return build("network", config["network"], vocab_size=11, **sizes).train()


def tokens(t: int, seed: int) -> Tensor:
    return torch.randint(11, (2, t), generator=torch.Generator().manual_seed(seed))


def gradients(network, hidden: Tensor) -> list[Tensor | None]:
    """Return those of a loss, and take them away."""
    (hidden * hidden.detach().cos()).sum().backward()
    found = [p.grad for p in network.parameters()]
    network.zero_grad()
    return found


def assert_same(found: list, expected: list) -> None:
    for one, other in zip(tree_leaves(found), tree_leaves(expected), strict=True):
        assert torch.equal(one, other) if isinstance(one, Tensor) else one == other


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("packed", [False, True], ids=["carried", "packed"])
def test_same_numbers(model, packed):
    starts = torch.zeros(2, 70, dtype=torch.bool)
    starts[0, [3, 67]] = starts[1, 65] = True

    def steps(again: bool) -> list:
        made = network("task=lm", f"model={model}", "model.positions=none", *MODELS[model])
        if again:
            recompute_blocks(made)
        torch.manual_seed(1)
        found, state = [], None
        for number, length in enumerate((70, 70, 1)):
            options = {"starts": starts} if packed and length == 70 else {}
            carried = None if made.state_size is None else state
            hidden, state = made.features(tokens(length, number), initial_state=carried, **options)
            found += [hidden, gradients(made, hidden), *tree_leaves(state)]
            state = map_state(Tensor.detach, state)
        # Draws go on as if nothing had been computed again.
        return [*found, torch.rand(1), list(made.buffers())]

    assert_same(steps(again=True), steps(again=False))


@pytest.mark.parametrize("model", ["delta_dpfp", "softmax"])
@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
def test_same_numbers_of_an_encoder_and_a_decoder(model, packed):
    source, target = tokens(20, 0), tokens(15, 1)
    starts = None
    if packed:
        starts = torch.zeros(2, 20, dtype=torch.bool), torch.zeros(2, 15, dtype=torch.bool)
        starts[0][:, 9] = starts[1][:, 4] = True
    else:
        source[1, 12:] = 0  # padding

    def step(again: bool) -> list:
        made = network("task=translation", f"model={model}", pad_id=0)
        if again:
            recompute_blocks(made)
        torch.manual_seed(1)
        hidden = made.features(source.clamp(min=1) if packed else source, target, starts=starts)
        return [hidden, gradients(made, hidden), torch.rand(1)]

    assert_same(step(again=True), step(again=False))


def test_less_is_kept():
    def kept(again: bool) -> int:
        made = network("task=lm", "model=deltanet")
        if again:
            recompute_blocks(made)
        sizes = []

        def pack(x: Tensor) -> None:
            sizes.append(x.nbytes)

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda _: torch.empty(0)):
            made.features(tokens(70, 0))
        return sum(sizes)

    assert 3 * kept(again=True) < kept(again=False)


def test_network_without_blocks_is_refused():
    config = compose_config(["task=retrieval", "model=deltanet", "model.recompute=true"]).config
    with pytest.raises(ConfigError, match=r"model\.recompute=true: Retriever has no blocks"):
        build_parts(config)
