"""The memory of the Fast Weight Memory: `python -m benchmarks.fwm`, parallel against step form.

Both write and read the same tokens, forward and backward to everything they are given, in turns in
one process: `fwlight.ops.fwm_reads`, N calls of the compiled FWM rule over all tokens, and its
specification, which goes from token to token in torch. Memory at peak above what was there before
is measured in a process each.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time

import torch

from benchmarks.measuring import (
    Work,
    add_common,
    begin,
    conditions,
    forget_peak,
    markdown,
    resident,
)
from fwlight.ops.fwm_reads import fwm_reads, outer, recurrent_fwm_reads

BATCH, TOKENS, SIZE, READS = 32, 200, 32, 3
"""As the published catbAbI model trains."""
FORMS = ("parallel", "step")


def work(form: str, *, batch: int = BATCH, tokens: int = TOKENS, size: int = SIZE) -> Work:
    """Return a forward and backward pass of one form, to all that comes in but the first state."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(batch, 1, *shape, generator=generator)

    a, b, v = (normal(tokens, size).tanh() for _ in range(3))
    q, r = normal(tokens, size), normal(READS, tokens, size).tanh()
    beta = normal(tokens).sigmoid() / size
    inputs = [x.requires_grad_() for x in (q, r, a, b, v, beta)]
    S, d_o = torch.zeros(batch, 1, size**2, size), normal(tokens, size)

    def call() -> object:
        q, r, a, b, v, beta = inputs
        k = outer(a, b)
        if form == "step":
            o, _ = recurrent_fwm_reads(q, r, k, v, beta, S)
        else:
            o, _ = fwm_reads(q, r, k, v, beta, initial_state=S)
        return torch.autograd.grad(o, inputs, d_o)

    return call


def peak(form: str) -> int:
    """Return the bytes at peak of a pass above what was there before."""
    call = work(form)
    work(form, batch=1, tokens=16)()  # builds and warms up
    forget_peak()
    before = resident("VmRSS")
    kept = call()
    assert kept is not None
    return resident("VmHWM") - before


def _peak_in_a_process(form: str, threads: int) -> int:
    command = [sys.executable, "-m", "benchmarks.fwm", "--threads", str(threads), "--peak", form]
    # Large blocks go back to the system as soon as they are freed.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "131072"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return int(done.stdout.split()[-1])


def main() -> None:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fwm", description=__doc__)
    add_common(parser, seconds=60.0)
    parser.add_argument("--peak", choices=FORMS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peak is not None:  # before anything that keeps freed memory
        torch.set_num_threads(options.threads)
        print(peak(options.peak))
        return
    clock = begin(options)
    print(f"{conditions()}; B {BATCH}, T {TOKENS}, s = r = t = {SIZE}, N {READS}", flush=True)
    calls = {form: work(form) for form in FORMS}
    times: dict[str, list[float]] = {form: [] for form in FORMS}
    end = time.perf_counter() + options.seconds
    while len(times["step"]) < 3 or time.perf_counter() < end:
        for form in FORMS:
            start = clock()
            calls[form]()
            times[form].append(clock() - start)
    # The first turn brings code and memory.
    medians = {form: statistics.median(times[form][1:]) for form in FORMS}
    peaks = {form: _peak_in_a_process(form, torch.get_num_threads()) for form in FORMS}
    rows = [[form, f"{medians[form]:.3g}", f"{peaks[form] / 1e6:.0f}"] for form in FORMS]
    print(f"\n{markdown(['', 's', 'peak MB'], rows)}\n")
    print(f"time: step / parallel = {medians['step'] / medians['parallel']:.1f}")
    print(f"memory: parallel / step = {peaks['parallel'] / peaks['step']:.3f}")


if __name__ == "__main__":
    main()
