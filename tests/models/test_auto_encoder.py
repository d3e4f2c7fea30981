"""The network that rebuilds a sequence from what it knows after its last token."""

from functools import partial

import torch

from fwlight.mixers import KeyValues, MultiHeadAttention
from fwlight.models import AutoEncoderLM, DecoderLM

OPTIONS = {
    "vocab_size": 11,
    "d_model": 8,
    "n_layers": 2,
    "n_heads": 2,
    "d_head": 4,
    "d_ff": 8,
    "dropout": 0.0,
    "norm": "pre",
    "attention": partial(MultiHeadAttention, memory=KeyValues),
}
TOKENS = torch.tensor([[1, 2, 3, 4], [1, 2, 3, 5]])


def test_without_rebuilding_it_is_the_language_model():
    torch.manual_seed(0)
    plain = DecoderLM(**OPTIONS)
    torch.manual_seed(0)
    network = AutoEncoderLM(rebuild=False, **OPTIONS)
    assert network.state_dict().keys() == plain.state_dict().keys()
    assert torch.equal(network(TOKENS)[0], plain(TOKENS)[0])


def test_every_position_is_read_from_the_last_state():
    torch.manual_seed(0)
    network = AutoEncoderLM(rebuild=True, init_std=0.3, **OPTIONS)
    hidden, _ = network.features(TOKENS)
    # Only the last token differs, and so does what is rebuilt everywhere.
    assert ((hidden[0] - hidden[1]).abs() > 1e-4).any(-1).all()
    one, _ = super(AutoEncoderLM, network).features(TOKENS)
    again = network.decoder(one[:, -1:] + network.places(4).float())
    torch.testing.assert_close(hidden, again)
    assert not torch.allclose(hidden[:, 0], hidden[:, 1])  # places differ
