"""The speed benchmarks, at small sizes: what they run, print and write."""

import csv
import sys

import pytest
import torch

from benchmarks import decode, measuring, ops, output_layer, scaling, step
from fwlight.ops import native

SMALL = ops.Shape(1, 2, 32, 8, 4)


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Small matrices for the machine's limits; the number of threads as it was."""
    monkeypatch.setattr(measuring, "MATRIX", 32)
    monkeypatch.setattr(measuring, "COPIED", 1 << 12)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def run(monkeypatch, module, *arguments):
    monkeypatch.setattr(sys, "argv", [module.__name__, "--seconds", "0.01", *map(str, arguments)])
    module.main()


def rows_of(path):
    with path.open() as file:
        return list(csv.DictReader(file))


def test_all_take_turns_and_slow_ones_are_left_out(monkeypatch):
    calls = {"quick": 0, "slow": 0}
    now = 0.0

    def work(name, seconds):
        def call():
            nonlocal now
            calls[name] += 1
            now += seconds

        return call

    functions = {"quick": work("quick", 0.01), "slow": work("slow", 2 * measuring.TOO_SLOW)}
    times = measuring.measure(functions, 0.0, clock=lambda: now)
    assert calls == {
        "quick": 7,
        "slow": 2,
    }  # one to try, two where it was slow, and in each of three rounds one uncounted
    assert list(times) == ["quick"]
    assert times["quick"] == pytest.approx([0.01] * 3)


def test_quantiles_are_the_middle_half():
    assert measuring.quantiles([3.0, 1.0, 2.0, 5.0, 4.0]) == (2.0, 3.0, 4.0)
    assert measuring.quantiles([3.0]) == (3.0, 3.0, 3.0)


def test_operations_are_those_of_the_chunkwise_algorithm():
    k, v, c = 32, 64, 16
    # Of a token: products with states, which take 2 K V, and, half of them, those within a chunk.
    with_states = {True: 3 + 6 + 1, False: 2 + 4 + 1}  # forward, backward, states again
    with_keys = {True: 2 + 2 + 4, False: 1 + 1 + 2}  # G and P, twice; gradients of them
    with_values = {True: 2 + 4, False: 1 + 2}
    for delta in (True, False):
        wanted = 2 * k * v * with_states[delta] + c * (
            k * with_keys[delta] + v * with_values[delta]
        )
        assert ops.Shape(1, 1, 1, k, v).operations(delta) == wanted
        assert ops.Shape(2, 3, 5, k, v).operations(delta) == 30 * wanted


def test_contenders_compute_the_same_gradients(monkeypatch):
    monkeypatch.setattr(ops.importlib.util, "find_spec", lambda name: None)
    found = ops.contenders("delta", SMALL, None)
    gates = [", decay", ", decay a channel", ", decay, erase key", ", decay a channel, erase key"]
    gates += [", 2 writes"]
    ours = [backend + gate for gate in ["", *gates] for backend in ("native", "chunk")]
    names = [*ours, "token loop", "SDPA"]
    assert list(found) == names
    pairs = [("native", "token loop"), ("chunk", "token loop")]
    pairs += [(f"native{gate}", f"chunk{gate}") for gate in gates]
    for name, other in pairs:
        for actual, expected in zip(found[name](), found[other](), strict=True):
            assert torch.allclose(actual, expected, atol=1e-5)


def test_fla_is_read_without_its_package(monkeypatch, tmp_path):
    path = tmp_path / "fla/ops/delta_rule/naive.py"
    path.parent.mkdir(parents=True)
    (tmp_path / "fla/__init__.py").write_text("raise RuntimeError('no Triton')")
    path.write_text(
        "from fwlight.ops import delta_rule\n"
        "def delta_rule_chunkwise(q, k, v, beta, chunk_size):\n"
        "    assert chunk_size == 32\n"
        "    return delta_rule(q, k, v, beta)\n"
    )
    (tmp_path / "einops.py").write_text("")
    monkeypatch.delitem(sys.modules, "fla", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(ops.peers, "transformers_chunk", lambda *arguments: lambda: None)
    found = ops.contenders("delta", SMALL, None)
    for actual, expected in zip(found["fla naive"](), found["native"](), strict=True):
        assert torch.equal(actual, expected)
    assert "fla naive" not in ops.contenders("delta", ops.Shape(1, 2, 33, 8, 4), None)


def test_ops_writes_table_numbers_and_plot(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(ops, "SHAPES", {"small": SMALL})
    monkeypatch.setattr(ops.importlib.util, "find_spec", lambda name: None)
    missing = tmp_path / "missing.cpp"
    table, plot = tmp_path / "a/ops.csv", tmp_path / "b/ops.png"
    arguments = ("--shapes", "small", "--fast-transformers", missing, "--csv", table)
    run(monkeypatch, ops, *arguments, "--plot", plot)
    out = capsys.readouterr().out
    assert "without pytorch-fast-transformers" in out
    assert "### delta B1 H2 T32 K8 V4; matrix product" in out
    assert "### sum B1 H2 T32 K8 V4; matrix product" in out
    rows = rows_of(table)
    assert [row["name"] for row in rows if row["share"]] == ["native", "chunk"] * 2
    assert len(rows) == 22
    assert all(float(row["median"]) > 0 for row in rows)
    assert plot.stat().st_size > 1000


def test_decode_reports_every_context(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(decode, "CONTEXTS", (4, 1024))
    run(monkeypatch, decode, "--csv", tmp_path / "decode.csv")
    rows = rows_of(tmp_path / "decode.csv")
    assert len(rows) == 2 * 2 * 3
    assert all(float(row["of_copy"]) > 0 for row in rows)
    assert "| SDPA, after 1,024 |" in capsys.readouterr().out
    moved = {name: count for name, (_, count) in decode.steps(128, 64).items()}
    assert moved["delta, after 1,024"] == 4 * 8 * 2 * 128 * 64
    assert moved["SDPA, after 1,024"] == 4 * 8 * 2 * 1024 * 64


def test_scaling_fits_exponents_and_measures_peaks(monkeypatch, tmp_path, capsys):
    assert scaling.exponent([1, 2, 4], [3.0, 12.0, 48.0]) == pytest.approx(2.0)
    monkeypatch.setattr(scaling, "LENGTHS", (64, 128))
    # A process that is started takes most of the time: that of a half is taken for half of it.
    whole = scaling._peak_in_a_process("chunk", 128, 1)
    monkeypatch.setattr(scaling, "_peak_in_a_process", lambda _, tokens, __: whole * tokens // 128)
    table, plot = tmp_path / "scaling.csv", tmp_path / "scaling.png"
    run(monkeypatch, scaling, "--names", "chunk", "--csv", table, "--plot", plot)
    assert "chunk: time T^" in capsys.readouterr().out
    rows = rows_of(table)
    assert [int(row["tokens"]) for row in rows] == [64, 128]
    # At least the four gradients and o.
    for row in rows:
        assert float(row["peak_bytes"]) >= 4 * 8 * int(row["tokens"]) * (2 * 64 + 2 * 128)
        assert float(row["of_matrix"]) > 0
    assert plot.stat().st_size > 1000


@pytest.mark.skipif(not native.can_run(torch.zeros(1)), reason="no kernels to compare with")
def test_step_compares_with_and_without_kernels(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(
        step.TASKS, "retrieval", ["task=retrieval", "task.setting=update", "task.n_keys=8"]
    )
    table = tmp_path / "step.csv"
    arguments = ("--tasks", "retrieval", "--models", "delta_linear", "softmax", "--steps", "2")
    run(monkeypatch, step, *arguments, "--csv", table)
    (row,) = rows_of(table)
    assert float(row["loss_difference"]) < 1e-5
    assert float(row["targets_per_second"]) > 0
    assert float(row["of_matrix"]) > 0
    assert sum(float(row[part]) for part in [*step.PARTS, "rest"]) == pytest.approx(1.0)
    run(monkeypatch, step, *arguments[:4], "--steps", "2", "--losses")
    assert "| retrieval | delta_linear |" in capsys.readouterr().out


def test_matrix_operations_of_a_step_are_counted():
    a, b = torch.ones(2, 3), torch.ones(3, 4)
    assert step.matrix_operations(lambda: (a @ b).sum() + a.sum()) == 2 * 2 * 3 * 4


def test_output_layer_compares_time_and_memory(monkeypatch, capsys):
    monkeypatch.setattr(output_layer, "VOCAB", 3000)
    monkeypatch.setattr(output_layer, "CUTOFFS", (100, 300, 1000))
    monkeypatch.setattr(sys, "argv", ["output_layer", "--steps", "1"])
    output_layer.main()
    out = capsys.readouterr().out
    assert "2048 targets" in out
    adaptive, dense = out.splitlines()[-2:]
    assert adaptive.startswith("| adaptive |")
    assert dense.startswith("| dense |")


def test_output_layer_has_no_ratio_to_a_peak_that_was_not_seen(monkeypatch, capsys):
    peaks = iter([0, 57_000_000])
    monkeypatch.setattr(output_layer, "build", lambda output: torch.nn.Module())
    monkeypatch.setattr(output_layer, "step", lambda *_: (0.5, next(peaks)))
    monkeypatch.setattr(sys, "argv", ["output_layer", "--steps", "1"])
    output_layer.main()
    assert capsys.readouterr().out.splitlines()[-2:] == [
        "| adaptive | 0.500 | 0 | 1.00 | - |",
        "| dense | 0.500 | 57 | 1.00 | - |",
    ]
