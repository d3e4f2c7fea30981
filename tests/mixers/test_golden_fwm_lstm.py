"""The Fast Weight Memory against numbers of the authors' three programs, parallel and step by step.

The reference's input and hidden sizes differ; ours are both the larger one, and what is more in
width holds zeros, which change nothing.
"""

from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fwlight.mixers import fwm_lstm
from fwlight.mixers.fwm_lstm import FWMLSTM, FWMState
from fwlight.mixers.lstm import LSTMState
from fwlight.models import DecoderLM, map_state
from fwlight.models.decoder_lm import LMState
from fwlight.ops.fwm_reads import recurrent_fwm_reads
from tests.conftest import ROOT

FILE = ROOT.parent / "shared" / "reference" / "fast_weight_memory_golden.npz"
CATBABI = partial(FWMLSTM)
META_RL = partial(FWMLSTM, act_r="identity", residual=True, forget_bias=None)
LM = partial(FWMLSTM, write_scale=1.0, act_q="tanh", residual=True, forget_bias=None)
QUESTION, PAD = 3, 0
each_form = pytest.mark.parametrize("form", ["parallel", "step"])


def load(prefix: str) -> dict[str, Tensor]:
    with np.load(FILE) as file:
        names = [name for name in file.files if name.startswith(f"{prefix}/")]
        return {name.removeprefix(f"{prefix}/"): torch.from_numpy(file[name]) for name in names}


def close(found: Tensor, expected: Tensor) -> None:
    largest = expected.abs().max().item()
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12 * max(largest, 1e-300))


def parts(named: dict[str, Tensor], i: int, h: int) -> dict[str, Tensor]:
    """Return views of our parameters, or gradients, by the reference's names."""
    ih, hh = (named[f"lstm.lstm.weight_{x}_l0"].unflatten(0, (4, -1)) for x in ("ih", "hh"))
    found = {
        "W_write.weight": named["write_proj.weight"][:, :h],
        "W_write.bias": named["write_proj.bias"],
        "W_read.weight": named["read_proj.weight"][:, :h],
        "W_read.bias": named["read_proj.bias"],
        "linear.weight": named["out_proj.weight"][:h],
        "linear.bias": named["out_proj.bias"][:h],
    }
    if "lstm.lstm.bias_ih_l0" in named:
        found = {name if "linear" in name else f"fwm.{name}": x for name, x in found.items()}
        for x in ("ih", "hh"):
            bias = named[f"lstm.lstm.bias_{x}_l0"].unflatten(0, (4, -1))
            found[f"rnn.bias_{x}_l0"] = bias[:, :h]
        return found | {"rnn.weight_ih_l0": ih[:, :h, :i], "rnn.weight_hh_l0": hh[:, :h, :h]}
    of_lstm = {"W_ih": ih[:, :h, :i], "W_hh": hh[:, :h, :h], "bias": ih[:, :h, -1]}
    return found | {f"lstm.{name}": x for name, x in of_lstm.items()}


@torch.no_grad()
def fill(module: FWMLSTM, values: dict[str, Tensor], i: int, h: int) -> None:
    """Take over the reference's parameters, and leave zeros elsewhere."""
    named = dict(module.named_parameters())
    for x in named.values():
        x.zero_()
    wanted = parts(named, i, h)
    assert wanted.keys() == values.keys()
    for name, x in wanted.items():
        x.copy_(values[name].reshape(x.shape))
    if module.lstm.one_bias:  # theirs is added within the gate
        wanted["lstm.bias"][1] += 1


def check_gradients(module: nn.Module, values: dict[str, Tensor], i: int, h: int) -> None:
    found = parts({name: x.grad for name, x in module.named_parameters()}, i, h)
    for name, expected in values.items():
        close(found[name], expected.reshape(found[name].shape))


def group(golden: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): x for name, x in golden.items() if name.startswith(prefix)}


def use(form: str, monkeypatch) -> None:
    """Let the mixer run the specification, where that is asked for."""

    def loop(*inputs, initial_state, backend, empties):
        return recurrent_fwm_reads(*inputs, initial_state)

    if form == "step":
        monkeypatch.setattr(fwm_lstm, "fwm_reads", loop)


def widened(x: Tensor, width: int) -> Tensor:
    return F.pad(x, (0, width - x.shape[-1]))


def run(module, x: Tensor, state: FWMState, form: str) -> tuple[Tensor, list[FWMState]]:
    """Return outputs, and the states: of all tokens step by step, else the last."""
    if form == "parallel":
        y, after = module(x, initial_state=state)
        return y, [after]
    outputs, states = [], []
    for x_t in x.split(1, dim=1):
        y, state = module(x_t, initial_state=state)
        outputs.append(y)
        states.append(state)
    return torch.cat(outputs, 1), states


def check_memory(states: list[FWMState], F_t: Tensor) -> None:
    for t in range(1, len(states) + 1):
        close(states[-t].S[:, 0], F_t[:, -t].flatten(1, 2))


@each_form
@pytest.mark.parametrize("case", range(5))
def test_catbabi_cell(case, form, monkeypatch, shared_dir):
    use(form, monkeypatch)
    golden = load(f"catbabi_cell/{case}")
    _, _, i, h, s, r, t, n = golden["dims"].tolist()
    d = max(i, h)
    module = CATBABI(d, 1, 1, sizes=(s, r, t), reads=n).double()
    fill(module, group(golden, "param/"), i, h)
    x = widened(golden["x"], d).requires_grad_()
    lstm = LSTMState(widened(golden["h0"], d), widened(golden["c0"], d))
    state = FWMState(lstm, golden["F0"].flatten(1, 2)[:, None])
    y, states = run(module, x, state, form)
    # Read is where any row of a column asks; the LSTM's output is added everywhere.
    y = y * golden["read_mask"].any(0)[:, None]
    if golden["residual"]:
        y = y + module.lstm(x, initial_state=lstm)[0]
    close(y[..., :h], golden["out"])
    check_memory(states, golden["F"])
    for t in range(1, len(states) + 1):
        close(states[-t].lstm.h[:, :h], golden["h"][:, -t])
        close(states[-t].lstm.c[:, :h], golden["c"][:, -t])
    (y[..., :h] * golden["proj"]).sum().backward()
    close(x.grad[..., :i], golden["grad_x"])
    check_gradients(module, group(golden, "grad_param/"), i, h)


@each_form
@pytest.mark.parametrize("case", range(3))
@pytest.mark.parametrize(("kind", "made"), [("meta_rl", META_RL), ("lm", LM)])
def test_cells_of_reinforcement_learning_and_language_models(
    kind, made, case, form, monkeypatch, shared_dir
):
    use(form, monkeypatch)
    golden = load(f"{kind}/{case}")
    _, _, i, h, s, r, t = golden["dims"].tolist()
    d = max(i, h)
    module = made(d, 1, 1, sizes=(s, r, t)).double()
    fill(module, group(golden, "param/"), i, h)

    def segment(golden, state):
        module.zero_grad()
        x = widened(golden["x"], d).requires_grad_()
        y, states = run(module, x, state, form)
        close(y[..., :h], golden["out"])
        close(states[-1].lstm.h[:, :h], golden["h_final"])
        close(states[-1].lstm.c[:, :h], golden["c_final"])
        (y[..., :h] * golden["proj"]).sum().backward()
        if "grad_x" in golden:
            close(x.grad[..., :i], golden["grad_x"])
        check_gradients(module, group(golden, "grad_param/"), i, h)
        return states

    states = segment(golden, module.empty_state(golden["x"]))
    check_memory(states, golden["F"])
    second = group(golden, "carry/")
    states = segment(second, map_state(Tensor.detach, states[-1]))
    close(states[-1].S[:, 0], second["F_final"].flatten(1, 2))


def network(golden: dict[str, Tensor]) -> DecoderLM:
    made = DecoderLM(
        vocab_size=9,
        n_outputs=9,
        read_out="xavier",
        d_model=6,
        n_layers=1,
        n_heads=1,
        d_head=1,
        d_ff=1,
        dropout=0.0,
        attention=partial(CATBABI, sizes=(4, 3, 4)),
        positions="none",
        scale_embedding=False,
        init_std=None,
    ).double()
    fill(made.blocks[0].attention, group(golden, "param/rnn.cells.0."), 5, 6)
    with torch.no_grad():
        made.embedding.weight.zero_()[:, :5] = golden["param/embedding.weight"]
        made.output.weight.copy_(golden["param/linear.weight"])
    return made


def check_network(made: DecoderLM, values: dict[str, Tensor]) -> None:
    check_gradients(made.blocks[0].attention, group(values, "rnn.cells.0."), 5, 6)
    close(made.embedding.weight.grad[:, :5], values["embedding.weight"])
    close(made.output.weight.grad, values["linear.weight"])


def steps_with_padding(
    made: DecoderLM, tokens: Tensor, lengths: Tensor, state: LMState
) -> tuple[Tensor, LMState]:
    """Run as the reference does: padding is computed like a token, and its state taken back.

    Of rows that are over so many are computed still that there are four.
    """
    outputs = []
    for t in range(tokens.shape[1]):
        logits, after = made(tokens[:, t : t + 1], initial_state=state)
        padded = tokens[:, t] == PAD

        def kept(new: Tensor, old: Tensor, padded: Tensor = padded) -> Tensor:
            return torch.where(padded.view(-1, *[1] * (new.ndim - 1)), old, new)

        (before,), (layer,) = state.layers, after.layers
        lstm = LSTMState(*map(kept, layer.lstm, before.lstm))
        state = LMState((FWMState(lstm, kept(layer.S, before.S)),), after.position)
        computed = torch.arange(len(tokens)) < max(4, int((lengths > t).sum()))
        outputs.append(logits * computed[:, None, None])
    return torch.cat(outputs, 1), state


def check_state(state: LMState, golden: dict[str, Tensor], segment: int) -> None:
    (layer,) = state.layers
    close(layer.lstm.h, golden[f"h{segment}"])
    close(layer.lstm.c, golden[f"c{segment}"])
    close(layer.S[:, 0], golden[f"F{segment}"].flatten(1, 2))


def asked(tokens: Tensor, mode: str) -> Tensor:
    """Return which columns the reference reads."""
    wanted = tokens == QUESTION if mode == "qm" else tokens != PAD
    return wanted.any(0)[:, None]


@pytest.mark.parametrize("mode", ["qm", "lm"])
def test_catbabi_model(mode, shared_dir):
    golden = load(f"catbabi_model/{mode}")
    made, tokens = network(golden), golden["tokens1"]
    first = made.empty_state(5)
    logits, state = steps_with_padding(made, tokens, golden["lengths1"], first)
    logits = logits * asked(tokens, mode)
    close(logits, golden["logits1"])
    check_state(state, golden, 1)
    (logits * golden["proj1"]).sum().backward()
    check_network(made, group(golden, "grad_param1/"))

    # In parallel padding says nothing, and nothing is asked of it.
    real = (tokens != PAD)[..., None] & asked(tokens, mode)
    made.zero_grad()
    expected = steps_with_padding(made, tokens, golden["lengths1"], first)[0] * real
    (expected * golden["proj1"]).sum().backward()
    stepped = {name: x.grad.clone() for name, x in made.named_parameters()}
    made.zero_grad()
    hidden, state = made.features(tokens, padding_mask=tokens == PAD)
    logits = made.output(hidden) * real
    close(logits, golden["logits1"] * real)
    check_state(state, golden, 1)
    (logits * golden["proj1"]).sum().backward()
    for name, x in made.named_parameters():
        close(x.grad, stepped[name])

    made.zero_grad()
    tokens = golden["tokens2"]
    logits, state = made(tokens, initial_state=map_state(Tensor.detach, state))
    logits = logits * asked(tokens, mode)
    close(logits, golden["logits2"])
    check_state(state, golden, 2)
    (logits * golden["proj2"]).sum().backward()
    check_network(made, group(golden, "grad_param2/"))


def test_sizes_of_the_published_models():
    def count(module: nn.Module) -> int:
        return sum(p.numel() for p in module.parameters())

    with torch.device("meta"):
        sizes = {"n_layers": 1, "n_heads": 1, "d_head": 32, "d_ff": 1, "dropout": 0.0}
        sizes |= {"read_out": "xavier", "positions": "none", "d_model": 256}
        for vocabulary, expected in ((200, 693_985), (180, 683_745)):
            words = {"vocab_size": vocabulary, "n_outputs": vocabulary}
            assert count(DecoderLM(**words, **sizes, attention=CATBABI)) == expected
