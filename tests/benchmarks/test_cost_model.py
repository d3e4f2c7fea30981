"""What a training step costs on paper, against what torch counts and against hand counts."""

import math
import subprocess
import sys

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import cost_model
from benchmarks.cost import (
    FLOAT,
    Cost,
    Machine,
    Network,
    Part,
    Stage,
    Work,
    cost_of,
    rule_operations,
    wire_bytes,
)
from benchmarks.cost_model import build_network, quantity
from benchmarks.ranks import Trained, parts
from benchmarks.scaling_out import foretell, on_paper
from cli.composition import compose_config
from fwlight.training.optim import build_optimizer
from fwlight.types import LMBatch

VOCAB, T = 50, 96
TINY = ("task=lm", "size=tiny", "size.dropout=0")
NOTHING = Network(float("inf"), 0.0)


def config_of(*arguments: str):
    return compose_config([*TINY, *arguments]).config


def counter() -> FlopCounterMode:
    """Count also products that are added in place, which torch leaves out."""

    def added(_, a, b, out_shape=None, **options):
        return 2 * math.prod(a) * b[-1]

    return FlopCounterMode(display=False, custom_mapping={torch.ops.aten.baddbmm_: added})


@pytest.mark.parametrize(
    "arguments",
    [
        ("model=delta_dpfp", "model.update_rule.backend=chunk", "model.feature_map.nu=2"),
        ("model=linear", "model.update_rule.backend=chunk", "block=modern"),
        ("model=performer", "model.update_rule.backend=chunk", "model.untied_output=true"),
        ("model=softmax",),
    ],
    ids=lambda arguments: arguments[0],
)
def test_operations_are_those_that_torch_counts(arguments):
    network = build_network(config_of(*arguments), VOCAB)
    cost = cost_of(network, T)
    assert cost.parameters == sum(p.numel() for p in network.parameters())
    tokens = torch.randint(VOCAB, (2, T))
    with sdpa_kernel(SDPBackend.MATH):
        with counter() as forward:
            hidden, _ = network.features(tokens)
            loss = network.nll(hidden, tokens).sum()
        with counter() as backward:
            loss.backward()
    every = [part for found in cost.parts().values() for part in found]
    # torch does not count triangular systems: two layers of two heads, values of 16, C = 48.
    solved = 2 * 2 * 16 * 48 * ("delta_dpfp" in arguments[0])
    assert forward.get_total_flops() == 2 * T * (sum(p.forward.operations for p in every) - solved)
    # Attention that keeps no weights computes q k^T once more, unlike torch's plain form.
    again = 2 * 2 * 2 * T * 16 * ("softmax" in arguments[0])
    counted = sum(p.backward.operations for p in every) - 2 * solved - again
    assert backward.get_total_flops() == 2 * T * counted


def test_operations_of_rules_by_hand():
    assert rule_operations("sum", 8, 4, 16) == (4 * 32 + 32 * 12, 10 * 32 + 16 * 64)
    assert rule_operations("delta", 8, 4, 16) == (6 * 32 + 16 * 44, 14 * 32 + 16 * 120)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["model=retnet"], "gates that forget"),
        (["model=deltanet"], "convolutions"),
        (["model=delta_rnn"], "layers of attention"),
        (["model.output=adaptive", "model.cutoffs=[10]"], "adaptive"),
        (["task=retrieval"], "language models"),
        (["model=delta"], "model=delta"),
        (["--bandwidth", "10Gbyte"], "10Gbyte is no number"),
    ],
)
def test_what_is_not_counted_is_refused_in_one_line(monkeypatch, capsys, arguments, words):
    monkeypatch.setattr(sys, "argv", ["cost_model", *TINY, "--vocab", "50", *arguments])
    with pytest.raises(SystemExit) as ended:
        cost_model.main()
    assert ended.value.code == 2
    assert words in capsys.readouterr().err.splitlines()[-1]


def test_quantities_have_prefixes_and_units():
    assert quantity("10Gbit", cost_model.BANDWIDTH) == quantity("1.25GB/s", cost_model.BANDWIDTH)
    assert quantity("2TB", cost_model.BYTES) == 2e12
    assert quantity("5us", cost_model.SECONDS) == pytest.approx(5e-6)


def test_ring_sends_its_bytes_in_steps():
    network = Network(bandwidth=1e6, latency=1e-3)
    assert wire_bytes(8e6, 4) == 12e6
    assert wire_bytes(8e6, 4, sharded=True) == 18e6
    assert network.all_reduce(8e6, 4) == pytest.approx(12.0 + 6 * 1e-3)
    assert network.all_reduce(8e6, 1) == 0


MEBI = 1 << 20
# One second forward and two backward for each stage and token, at one operation a second.
THREE = Cost(
    tuple(
        Stage((Part(name, Work(1, 0), Work(2, 0)),), gradients)
        for name, gradients in (
            ("embedding", (MEBI,)),
            ("layer", (MEBI // 8, MEBI // 2)),
            ("output", (MEBI // 16,)),
        )
    )
)
SLOW = Machine(1.0, float("inf"))


def test_gradients_go_when_their_bucket_is_complete():
    # The output's quarter of a MiB waits for the layer's last tensor; the rest for the end.
    first, second = THREE.buckets([2.0, 2.0, 2.0])
    assert first == (FLOAT * (MEBI // 16 + MEBI // 2), 4.0)
    assert second == (FLOAT * (MEBI + MEBI // 8), 6.0)
    network = Network(bandwidth=float(MEBI), latency=0.0)  # two ranks send each byte once
    apart = THREE.step(1, SLOW, network, ranks=2, overlap=False)
    assert apart == pytest.approx(9 + 2.25 + 4.5)
    # The first bucket, 2.25 s, has 2 s of the backward pass to itself.
    assert THREE.step(1, SLOW, network, ranks=2) == pytest.approx(9 + 0.25 + 4.5)
    assert THREE.step(1, SLOW, NOTHING, ranks=512) == pytest.approx(9)


def test_sharded_weights_are_gathered_while_something_is_computed():
    network = Network(bandwidth=float(MEBI), latency=0.0)
    gathered = THREE.gradient_bytes / 2 / MEBI
    found = THREE.sharded_step(1, SLOW, network, ranks=2)
    assert found == pytest.approx(max(3.0, gathered) + max(6.0, 2 * gathered))


def test_tables_show_what_more_ranks_and_less_bandwidth_cost(monkeypatch, capsys):
    arguments = ["--vocab", "50", "--ranks", "2,8", "--bandwidth", "1kbit,1Pbit", "--latency", "0s"]
    monkeypatch.setattr(sys, "argv", ["cost_model", *TINY, "task.batch_size=4", *arguments])
    cost_model.main()
    lines = capsys.readouterr().out.splitlines()
    cells = [[x.strip() for x in line.strip("|").split("|")] for line in lines if "bit |" in line]
    assert [row[:2] for row in cells] == [[b, n] for b in ("1kbit", "1Pbit") for n in ("2", "8")]
    assert cells[0][3] == "0%"
    assert cells[2][3] == cells[3][3] == "100%"
    assert cells[2][9].endswith("%")
    assert cells[3][8:] == ["", ""]  # four sequences leave half of eight ranks without any


def test_step_is_foretold_from_parts():
    parts = {"mixer": 2.0, "mixer: update rule": 1.0, "optimiser": 1.0, "buckets": 0.5}
    assert foretell(parts, {}, share=1, buckets=[100]) == 3.0
    # 0.1 s, and 0.01 s a byte.
    found = foretell(parts, {10: 0.2, 110: 1.2}, share=2, buckets=[100, 50])
    assert found == pytest.approx(2 * 3.5 + (0.1 + 1.0) + (0.1 + 0.5))


@pytest.mark.parametrize("model", ["delta_dpfp", "softmax"])
def test_every_part_of_a_step_is_measured(model):
    config = config_of(f"model={model}", "task.batch_size=2", "task.seq_len=16")
    module = Trained(config, VOCAB).module
    before = [p.clone() for p in module.parameters()]
    tokens = torch.randint(VOCAB, (2, 17))
    batch = LMBatch(tokens[:, :-1], tokens[:, 1:])
    found = parts(module.network, batch, build_optimizer(module, module.optimizer_config))
    for work in found.values():
        work()
    # The update is one of them.
    assert any(not torch.equal(p, q) for p, q in zip(before, module.parameters(), strict=True))
    paper = on_paper(cost_of(module.network, 16), 32, Machine(1e9, 1e9))
    assert found.keys() - paper.keys() == {"buckets"}
    assert paper.keys() - found.keys() == {"heads", "mixer: heads"} | {
        name for name in paper if f"mixer: {name}" in paper
    }


@pytest.mark.full
def test_processes_are_measured_and_foretold(tmp_path):
    command = [sys.executable, "-m", "benchmarks.scaling_out", "--seconds", "1", "--vocab", "50"]
    command += ["--csv", str(tmp_path / "all.csv"), "size=tiny"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    lines = [
        line for line in done.stdout.splitlines() if line.startswith(("| 1 |", "| 2 |", "| 4"))
    ]
    assert len(lines) == 3
    for line in lines:
        foretold, measured = (float(x) for x in line.split("|")[2:4])
        assert foretold > 0 < measured
    assert "step,4,step," in (tmp_path / "all.csv").read_text()
