"""Every named model of conf/, its hybrid with softmax attention, and every choice for a slot."""

import copy
import functools

import pytest
import torch

from cli.building import build
from cli.composition import compose_config
from cli.folders import groups
from fwlight.models import DecoderLM, generate

SIZES = ["size.d_model=16", "size.n_layers=2", "size.n_heads=2", "size.d_head=8", "size.d_ff=16"]
HYBRID = ["model@alternate=softmax", "model.alternate_every=2"]
MODELS = {model: [f"model={model}"] for model in groups()["model"]}
SLOTS = ("update_rule", "feature_map", "decay", "erase", "write")
CHOICES = {
    # a gate has to do with a memory that takes all of them
    f"{slot} {option}": [
        "model=gated_deltanet2" if slot in SLOTS[2:] else "model=delta_linear",
        f"model/{slot}={option}",
    ]
    for slot in SLOTS
    for option in groups()[f"model/{slot}"]
    if option != "none"
}
CHOICES |= {
    f"kernel {option}": ["model=softmax", f"model/kernel={option}"]
    for option in groups()["model/kernel"]
}
PLAIN = MODELS | CHOICES
CASES = PLAIN | {f"{model} hybrid": [*made, *HYBRID] for model, made in MODELS.items()}
each_plain = pytest.mark.parametrize("model", PLAIN.values(), ids=PLAIN)
each_case = pytest.mark.parametrize("model", CASES.values(), ids=CASES)


@functools.cache
def composed(*arguments: str) -> dict:
    return compose_config(["task=lm", *SIZES, "size.dropout=0", *arguments]).config["network"]


def network(*arguments: str) -> DecoderLM:
    torch.manual_seed(0)
    config = {**composed(*arguments), "init_std": 0.3}
    return build("network", config, vocab_size=11).double()


def tokens(t: int, seed: int = 1) -> torch.Tensor:
    return torch.randint(11, (2, t), generator=torch.Generator().manual_seed(seed))


@each_case
@torch.no_grad()
def test_token_by_token_is_the_parallel_pass(model: list[str]) -> None:
    made, x = network(*model).eval(), tokens(9)
    expected, after = made(x)
    state, parts = made.empty_state(2), []
    for t in range(9):
        logits, state = made(x[:, t : t + 1], initial_state=state)
        parts.append(logits)
    torch.testing.assert_close(torch.cat(parts, 1), expected, rtol=1e-9, atol=1e-11)
    more = tokens(4, seed=2)
    ours, theirs = (made(more, initial_state=s)[0] for s in (state, after))
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-11)
    assert (made.state_size is None) == bool({"model=softmax", HYBRID[0]} & set(model))


@each_case
@torch.no_grad()
def test_what_is_generated_is_the_parallel_pass(model: list[str]) -> None:
    """A prompt of over a chunk, then states that are overwritten in place."""
    made, prompt, steps = network(*model).eval(), tokens(66), []
    hook = made.output.register_forward_pre_hook(lambda _, given: steps.append(given[0].clone()))
    text = generate(made, prompt, max_new_tokens=5, temperature=0.0)
    hook.remove()
    expected = made.features(text[:, :-1])[0][:, -5:]
    torch.testing.assert_close(torch.stack(steps, 1), expected, rtol=1e-9, atol=1e-11)
    assert torch.equal(text[:, -5:], made.output(expected).argmax(-1))


@each_plain
@torch.no_grad()
def test_padding_leaves_no_trace(model: list[str]) -> None:
    made, x = network(*model, "model.positions=none").eval(), tokens(12)
    padding = torch.zeros(2, 12, dtype=torch.bool)
    padding[0, [0, 5, 6]] = padding[1, 9:] = True
    # Maps that draw anew for every sequence make the same draw in a copy.
    hidden, _ = copy.deepcopy(made).features(x, padding_mask=padding)
    for row in range(2):
        real = ~padding[row]
        alone, _ = copy.deepcopy(made).features(x[row, real][None])
        torch.testing.assert_close(hidden[row, real], alone[0], rtol=1e-9, atol=1e-11)


@each_case
def test_every_parameter_learns(model: list[str]) -> None:
    made, x = network(*model), tokens(13)
    hidden, _ = made.features(x[:, :-1])
    made.nll(hidden, x[:, 1:]).sum().backward()
    for name, parameter in made.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() > 0, name


def test_generation_leaves_learnt_first_states_alone():
    """Decoding writes over states, also those of one sequence that starts from a parameter."""
    made = network("model=delta_delta", "model.slow_base_weights=true").eval()
    before = made.blocks[0].attention.base.clone()
    first, second = (generate(made, tokens(3)[:1], max_new_tokens=5, temperature=0.0) for _ in "ab")
    assert torch.equal(before, made.blocks[0].attention.base)
    assert torch.equal(first, second)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["model=linear", "model/decay=scalar"], "read_norm='output' beside a decay"),
        (["model=linear", "model/erase=sigmoid"], "sum_rule takes no erase"),
        (["model=fwm", "model/decay=scalar"], "fwm_rule takes no decay"),
        (["model=mamba2", "model.writes=2"], "need a beta each"),
        (["model=kda", "model.expand_v=0.3"], "not a whole number"),
        ([*HYBRID[:1], "model.alternate_every=9"], "alternate_every=9 with n_layers=2"),
        (["model/decay=scalar", "model.decay.a_range=[0,1]"], "a_range=[0"),
    ],
)
def test_what_does_not_fit_is_one_line(arguments: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message.replace("[", r"\[")):
        network(*arguments)
