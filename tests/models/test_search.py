import pytest
import torch

from fwlight.models import EncoderDecoder, beam_search, greedy_search
from fwlight.models.search import _at_home
from tests.models.test_encoder_decoder import PAD, make, tokens

BOS, EOS = 1, 2
IDS = {"bos_id": BOS, "eos_id": EOS}


def sources(seed: int = 1) -> torch.Tensor:
    source = tokens(5, 6, seed)
    for row, length in enumerate((6, 1, 4, 2, 5)):
        source[row, length:] = PAD
    return source


def limits(n: int = 5, length: int = 8) -> torch.Tensor:
    return torch.full((n,), length)


def sharp(attention: str, seed: int = 0) -> EncoderDecoder:
    """A model with a read-out of its own, whose sentences end early, late or not at all."""
    model = make(attention)
    with torch.no_grad():
        for block in model.decoder:
            block.cross.out_proj.weight.mul_(30.0)  # different sources, different translations
    generator = torch.Generator().manual_seed(seed)
    table = torch.randn(11, 8, generator=generator, dtype=torch.float64)
    table[EOS] *= 1.5
    model.__dict__["output"] = lambda hidden: hidden @ table.T
    return model


def log_p(model: EncoderDecoder, source: torch.Tensor, histories: list) -> torch.Tensor:
    inputs = torch.tensor([[BOS, *history] for history in histories])
    return model(source.expand(len(inputs), -1), inputs)[:, -1].log_softmax(-1)


def plain_beam_search(model, source, *, width: int, penalty: float, limit: int) -> list[int]:
    """The definition, for one sentence, rereading everything at every step."""
    source = source[source != PAD]
    beams, found = [(0.0, [])], []
    for step in range(1, limit + 1):
        rows = log_p(model, source, [history for _, history in beams]).tolist()
        grown = [
            (score + p, [*history, token])
            for (score, history), row in zip(beams, rows, strict=True)
            for token, p in enumerate(row)
        ]
        grown = sorted(grown, key=lambda item: -item[0])[: 2 * width]
        found += [
            (score / step**penalty, history[:-1] if history[-1] == EOS else history)
            for score, history in grown[:width]
            if history[-1] == EOS or step == limit
        ]
        if len(found) >= width:
            break
        beams = [item for item in grown if item[1][-1] != EOS][:width]
    return max(found, key=lambda item: item[0])[1]


@pytest.mark.parametrize("attention", ["softmax", "performer", "delta", "delta_conv"])
@torch.no_grad()
def test_greedy_search_equals_rereading_everything(attention: str) -> None:
    model = sharp(attention)
    found = greedy_search(model, sources(), max_length=limits(), **IDS)
    for source, translation in zip(sources(), found, strict=True):
        history: list[int] = []
        while len(history) < 8:
            token = int(log_p(model, source[source != PAD], [history]).argmax())
            if token == EOS:
                break
            history.append(token)
        assert translation == history


@pytest.mark.parametrize(
    ("attention", "width", "penalty"),
    [
        *(("softmax", 3, 0.0), ("softmax", 4, 1.0), ("performer", 4, 1.0), ("delta_conv", 3, 0.0)),
        pytest.param("performer", 3, 0.0, marks=pytest.mark.full),
        pytest.param("delta_conv", 4, 1.0, marks=pytest.mark.full),
    ],
)
@torch.no_grad()
def test_beam_search_equals_its_definition(attention: str, width: int, penalty: float) -> None:
    mixed = False
    for seed in range(3):
        model = sharp(attention, seed)
        found = beam_search(
            model, sources(seed), width=width, length_penalty=penalty, max_length=limits(), **IDS
        )
        for source, translation in zip(sources(seed), found, strict=True):
            expected = plain_beam_search(model, source, width=width, penalty=penalty, limit=8)
            assert translation == expected
        mixed |= len({len(translation) for translation in found}) > 1
    assert mixed  # sentences left a batch at different steps


def test_beam_of_one_is_greedy() -> None:
    for seed in range(4):
        model = sharp("delta", seed)
        greedy = greedy_search(model, sources(seed), max_length=limits(), **IDS)
        beam = beam_search(model, sources(seed), width=1, max_length=limits(), **IDS)
        assert beam == greedy


@pytest.mark.parametrize("attention", ["softmax", "performer", "delta"])
def test_batch_equals_one_by_one_under_limits_of_their_own(attention: str) -> None:
    model, source = sharp(attention), sources()
    limit = torch.tensor([1, 2, 9, 5, 3])
    together = beam_search(model, source, width=3, max_length=limit, **IDS)
    for row, translation in enumerate(together):
        alone = source[row : row + 1, : int((source[row] != PAD).sum())]
        [expected] = beam_search(model, alone, width=3, max_length=limit[row : row + 1], **IDS)
        assert translation == expected
        assert len(translation) <= limit[row]


def test_wider_than_the_vocabulary() -> None:
    model, source = sharp("delta"), sources()
    found = beam_search(model, source, width=20, max_length=limits(5, 3), **IDS)
    for translation, row in zip(found, source, strict=True):
        assert translation == plain_beam_search(model, row, width=20, penalty=0.6, limit=3)


def test_search_leaves_training_alone() -> None:
    model = make("performer").train()
    buffers = [b.clone() for b in model.buffers()]
    before = torch.get_rng_state()
    beam_search(model, sources(), width=2, max_length=limits(), **IDS)
    assert model.training
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(buffers, model.buffers(), strict=True))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"width": 0}, "width=0"),
        ({"length_penalty": -1.0}, "length_penalty=-1.0"),
        ({"max_length": limits(5, 0)}, "max_length=0"),
    ],
)
def test_bad_arguments_are_named(changes, message: str) -> None:
    options = {"width": 2, "max_length": limits(), **IDS} | changes
    with pytest.raises(ValueError, match=message):
        beam_search(make(), sources(), **options)


def test_the_first_beam_of_each_parent_stays_where_the_parent_was() -> None:
    parent = torch.randint(0, 5, (50, 5), generator=torch.Generator().manual_seed(0))
    order = _at_home(parent)
    assert torch.equal(order.sort(1).values, torch.arange(5).expand(50, 5))
    for before, after in zip(parent.tolist(), parent.gather(1, order).tolist(), strict=True):
        assert [after[p] for p in set(before)] == list(set(before))
