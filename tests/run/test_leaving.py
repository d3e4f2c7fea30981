"""How a process ends, also where other threads are at work."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# Threads in code that gives Python up and takes it back stand for those of gloo.
SCRIPT = """
import atexit, sys, threading
import torch
from torch import distributed
from fwlight.run import leave

def compute():
    x = torch.ones(100)
    while True:
        x + x

if "several" in sys.argv:
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    for _ in range(2):
        threading.Thread(target=compute, daemon=True).start()
atexit.register(lambda: print("last words"))
leave(3)
"""


@pytest.mark.parametrize("processes", ["one", "several"])
def test_process_leaves_with_its_code_and_after_exit_handlers(processes):
    command = [sys.executable, "-c", SCRIPT, processes]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (3, "last words\n"), done.stderr
