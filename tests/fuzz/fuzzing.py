"""What the fuzzers share: a number of inputs, and what each of them may end in."""

import random
import resource
import time

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cli.main import exit_code_and_line
from fwlight.errors import DataError, FwlightError

SECONDS, MEGABYTES = 5.0, 600


def assert_is_one_line(error):
    """What the user gets to see, whatever is quoted in it."""
    assert isinstance(error, FwlightError)
    code, line = exit_code_and_line(error)
    assert code == error.exit_code
    assert line.startswith("error: ")
    assert len(line.splitlines()) == 1


def fuzz(read, inputs, request, *, short, full, errors=(DataError,)):
    """Call `read` with so many inputs: it returns, or raises one of `errors` with one line."""
    n, seen, slowest = full if request.config.getoption("--full") else short, 0, 0.0

    def check(value):
        nonlocal seen, slowest
        seen += 1
        began = time.monotonic()
        try:
            read(value)
        except errors as error:
            assert_is_one_line(error)
        slowest = max(slowest, time.monotonic() - began)

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    settings(max_examples=n, deadline=None, database=None, suppress_health_check=list(HealthCheck))(
        given(inputs)(check)
    )()
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert seen >= n
    assert slowest < SECONDS
    assert (after - before) / 1024 < MEGABYTES


def spoilt(content: bytes, seed: int, n: int) -> bytes:
    """Change, remove or insert a few bytes."""
    chance, changed = random.Random(seed), bytearray(content)
    for _ in range(n):
        place = chance.randrange(len(changed) + 1)
        kind = chance.randrange(4)
        if kind == 0:
            changed[place : place + 1] = bytes([chance.randrange(256)])
        elif kind == 1:
            del changed[place : place + chance.randrange(1, 9)]
        elif kind == 2:
            changed[place:place] = chance.randbytes(chance.randrange(1, 9))
        else:
            changed[place : place + 1] = bytes(
                b ^ 1 << chance.randrange(8) for b in changed[place : place + 1]
            )
    return bytes(changed)


def changes(contents, *, most=3):
    return st.builds(spoilt, contents, st.integers(0, 2**32), st.integers(0, most))
