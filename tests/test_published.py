"""The paper's language models as conf/ has them, against published and derived numbers."""

import math
import warnings

import pytest
import torch

from cli.building import build
from cli.composition import compose_config
from cli.rows import rows
from fwlight.mixers import KeyValues
from fwlight.models import DecoderLM
from fwlight.training.optim import OptimizerConfig, lr_factor

WIKITEXT103 = 267_735


def shapes(*arguments: str) -> DecoderLM:
    """The network with the vocabulary of WikiText-103, without memory for its parameters."""
    config = compose_config(arguments).config
    with torch.device("meta"):
        return build("network", config["network"], vocab_size=WIKITEXT103)


# Schlag et al. 2021b, table 4: 89.8 and 89.9 million for medium; the delta rule's write strengths
# are what tells them apart.
@pytest.mark.parametrize(
    ("size", "kind", "count"),
    [
        ("paper_small", "sum", 44_018_394),
        ("paper_small", "delta", 44_034_778),
        ("paper_medium", "sum", 89_833_434),
        ("paper_medium", "delta", 89_866_202),
    ],
)
def test_published_sizes_have_the_published_parameters(size: str, kind: str, count: int):
    models = {
        "sum": ("softmax", "linear", "performer", "sum_dpfp"),
        "delta": ("delta_linear", "delta_performer", "delta_dpfp"),
    }
    for model in models[kind]:
        network = shapes(f"size={size}", f"model={model}", "model.output=adaptive")
        assert all(p.is_meta for p in network.parameters())
        assert sum(p.numel() for p in network.parameters()) == count
        assert network.output.sizes == [20_000, 20_000, 160_000, 67_735]


def cosine(n: int) -> float:
    return (1 + math.cos(math.pi * n / 500_000)) / 2


# As published, and as in the reference code, which sets the rate after an update.
@pytest.mark.parametrize(
    ("n", "paper", "reference"),
    [
        (1, 1 / 2000, 1.0),
        (2, 2 / 2000, 1 / 2000),
        (2000, 1.0, 1999 / 2000),
        (2001, cosine(2001), cosine(2000)),
        (250_000, 0.5, cosine(249_999)),
        (500_000, 0.0, cosine(499_999)),
    ],
)
def test_published_learning_rate(n: int, paper: float, reference: float):
    for schedule, factor in (("cosine", paper), ("cosine_reference", reference)):
        config = OptimizerConfig(warmup_steps=2000, schedule=schedule)
        found = lr_factor(config, n, max_steps=500_000)
        assert found == pytest.approx(factor, rel=1e-12, abs=1e-15)


# Every language model of tables 2 to 5 but Transformer-XL
ROWS = {
    # row: map, features per head, update rule, read_norm, positions
    "small_softmax": None,
    "small_linear": ("EluFeatureMap", 16, "sum_rule", "output", True),
    "small_delta_linear": ("EluFeatureMap", 16, "delta_rule", "none", True),
    "small_performer": ("FAVORFeatureMap", 16, "sum_rule", "output", True),
    "small_delta_performer": ("FAVORFeatureMap", 16, "delta_rule", "none", True),
    "small_performer_m16": ("FAVORFeatureMap", 32, "sum_rule", "output", True),
    "small_delta_performer_m16": ("FAVORFeatureMap", 32, "delta_rule", "none", True),
    "small_sum_dpfp": ("DPFPFeatureMap", 32, "sum_rule", "output", True),
    "small_delta_dpfp": ("DPFPFeatureMap", 32, "delta_rule", "none", True),
    "medium_softmax": None,
    "medium_linear": ("EluFeatureMap", 32, "sum_rule", "output", True),
    "medium_delta_linear": ("EluFeatureMap", 32, "delta_rule", "none", True),
    "medium_performer": ("FAVORFeatureMap", 32, "sum_rule", "output", True),
    "medium_delta_performer": ("FAVORFeatureMap", 32, "delta_rule", "none", True),
    "medium_delta_linear_attention_norm": ("EluFeatureMap", 32, "delta_rule", "full", True),
    "medium_delta_linear_no_positions": ("EluFeatureMap", 32, "delta_rule", "none", False),
    "medium_delta_linear_no_positions_attention_norm": (
        *("EluFeatureMap", 32, "delta_rule", "full"),
        False,
    ),
    "medium_full_context_linear": ("EluFeatureMap", 32, "sum_rule", "output", False),
    "medium_full_context_linear_no_attention_norm": (
        *("EluFeatureMap", 32, "sum_rule", "none"),
        False,
    ),
    "medium_full_context_delta_linear": ("EluFeatureMap", 32, "delta_rule", "none", False),
}


def test_published_rows_are_those_of_the_experiments():
    names = {f"{size}_{row}" for size in ("small", "medium") for row in rows()[f"lm_wt103_{size}"]}
    assert names == set(ROWS)


@pytest.mark.parametrize("row", ROWS)
def test_published_rows_are_what_the_paper_trained(row: str):
    size, _, name = row.partition("_")
    arguments = (f"experiment=lm_wt103_{size}", f"row={name}", "task.path=FOLDER")
    composition = compose_config(arguments)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        config, model = composition.config, shapes(*arguments)
    memory = model.blocks[0].attention.memory
    if ROWS[row] is None:
        assert isinstance(memory, KeyValues)
    else:
        rule, positions = memory.update_rule.func.__name__, model.positions is not None
        slots = (type(memory.feature_map).__name__, memory.d_dot, rule, memory.read_norm, positions)
        assert slots == ROWS[row]
        assert memory.key_norm == ("sum" if rule == "delta_rule" else "none")
    told = {str(x.message) for x in caught if "un-normalised sum" in str(x.message)}
    assert len(told) == ("linear_no_attention_norm" in row)
    assert model.output.sizes == [20_000, 20_000, 160_000, 67_735]
    assert isinstance(model.final_norm, torch.nn.Identity)
    task, trainer = config["task"], config["trainer"]
    published = {"small": (128, 96, 256, 500_000), "medium": (256, 56, 384, 336_000)}
    lengths = (task["batch_size"], task["seq_len"], trainer["max_steps"])
    assert (model.d_model, *lengths) == published[row.split("_")[0]]
    assert (len(model.blocks), config["size"]["dropout"]) == (16, 0.1)
    carried = "full_context" in row
    assert (task["context"], task["eval"], task["eval_batch_size"]) == (
        ("carried", "carried", 1) if carried else ("segment", "segment", 10)
    )
    assert (task["data"], task["reset"]) == ("wikitext103", "never")
    adam = OptimizerConfig(**{k: v for k, v in config["optimizer"].items() if k != "_target_"})
    assert adam == OptimizerConfig(lr=2.5e-4, warmup_steps=2000)
    assert (trainer["gradient_clip_val"], trainer["precision"]) == (0.25, "32-true")


# Schlag et al. 2021a: vocabularies, and parameters as logged; without the memory as derived.
@pytest.mark.parametrize(
    ("text", "row", "words", "count"),
    [
        ("ptb", "fwm", 10_000, 24_325_025),
        ("ptb", "lstm", 10_000, 24_221_600),
        ("wikitext2", "fwm", 33_278, 33_659_503),
        ("wikitext2", "lstm", 33_278, 33_556_078),
    ],
)
def test_language_models_with_a_fast_weight_memory_are_as_published(text, row, words, count):
    config = compose_config([f"experiment=fwm_{text}", f"row={row}"]).config
    with torch.device("meta"):
        network = build("network", config["network"], vocab_size=words)
    assert sum(p.numel() for p in network.parameters()) == count
    *_, last = network.blocks
    assert network.output.weight is network.embedding.weight
    lstm = last.attention.lstm if row == "fwm" else last.attention
    dropped = (network.word_dropout, network.input_dropout, network.blocks.dropout)
    dropped = (*dropped, network.output_dropout, lstm.weight_dropout)
    published = {"ptb": (0.1, 0.5, 0.3, 0.4, 0.66), "wikitext2": (0.1, 0.7, 0.25, 0.4, 0.61)}
    assert dropped == published[text]
    if row == "fwm":
        cell = last.attention
        options = (cell.sizes, cell.reads, cell.write_scale, cell.act_q, cell.act_r, cell.residual)
        assert options == ((32, 32, 32), 3, 1.0, "tanh", "tanh", True)
    task, optimizer = config["task"], config["optimizer"]
    epochs = {"ptb": (20, 2.0, 900, 765), "wikitext2": (80, 0.5, 1600, 1371)}
    batch, rate, all_of_them, before = epochs[text]
    assert (task["batch_size"], task["seq_len"], optimizer["algorithm"]["sgd_lr"]) == (
        batch,
        70,
        rate,
    )
    share = optimizer["average_from"] / config["trainer"]["max_steps"]
    assert share == pytest.approx(before / all_of_them, abs=1e-4)


def test_the_small_models_with_and_without_a_memory_have_as_many_parameters():
    counts = []
    for row in ("lstm", "fwm"):
        config = compose_config(["experiment=fwm_words", f"row={row}"]).config
        with torch.device("meta"):
            network = build("network", config["network"], vocab_size=1)
        counts.append(sum(p.numel() for p in network.blocks.parameters()))
    assert counts == [608_396, 609_649]


def test_the_models_of_stories_are_as_large():
    counts = []
    for row in ("lstm", "fwm"):
        config = compose_config(["experiment=catbabi", f"row={row}"]).config
        with torch.device("meta"):
            network = build("network", config["network"], vocab_size=200, n_outputs=200)
        counts.append(sum(p.numel() for p in network.parameters()))
    assert counts == [692_280, 693_985]
