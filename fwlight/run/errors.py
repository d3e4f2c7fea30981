"""From an exception to an exit code and one line for the user."""

import pickle
import re
from types import TracebackType

from lightning import Callback
from lightning.fabric.utilities.exceptions import MisconfigurationException

from fwlight.errors import FwlightError, NumericalError, error_line
from fwlight.run.signals import Stopped

INTERRUPTED, UNEXPECTED = 130, 1


def exit_code_and_line(error: BaseException) -> tuple[int, str]:
    """Return the exit code of an exception and the line `error: ...` that explains it.

    0 done, 1 unexpected, 2 configuration or data, 3 numerical, 4 checkpoint, 5 input/output,
    128 + number for a signal. An exception raised from one of ours counts as that one.
    """
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED, "error: interrupted; resume=auto continues from the last checkpoint"
    stopped = _first_of(error, Stopped)
    if isinstance(stopped, Stopped):
        return stopped.exit_code, error_line(str(stopped))
    known = _first_of(error, FwlightError)
    if isinstance(known, FwlightError):
        return known.exit_code, error_line(str(known))
    if type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
        reason = str(error).strip().partition("\n")[0]
        return 2, error_line(f"compile=true fails ({reason}); set compile=false")
    for kinds, code in (
        (OSError, 5),
        (pickle.UnpicklingError, 4),
        ((ValueError, MisconfigurationException), 2),
    ):
        if (found := _first_of(error, kinds)) is not None:
            return code, error_line(str(found) or type(found).__name__)
    for words, where in _MISTAKES.items():
        if isinstance(error, RuntimeError) and words in str(error):
            return 2, error_line(f"{where}: {str(error).strip().partition(chr(10))[0]}")
    if isinstance(error, MemoryError) or _NO_MEMORY.search(str(error)):
        return 2, error_line(
            "the memory does not hold this: make size.*, task.batch_size= or task.eval_batch_size= "
            f"smaller ({error or type(error).__name__})"
        )
    if isinstance(error, RuntimeError) and _LOST_RANK.search(str(error)):
        return UNEXPECTED, error_line(
            "another rank is gone, or did not answer within rank_timeout= seconds; resume=auto "
            f"goes on from the last checkpoint ({_without_trace(error)})"
        )
    if isinstance(error, RuntimeError) and _NOT_A_NUMBER in str(error):
        return NumericalError.exit_code, error_line(f"trainer.detect_anomaly: {error}")
    callback = _callback_in(error.__traceback__)
    place = f" in the callback {callback}" if callback else ""
    return UNEXPECTED, error_line(
        f"unexpected {type(error).__name__}{place}: {error} (FWLIGHT_DEBUG=1 shows the traceback)"
    )


_MISTAKES = {
    "conditioned on metric": "callbacks",
    "multiple optimizers": "configure_optimizers must give one optimizer",
}
"""What Lightning says of a user's mistakes in a plain RuntimeError, and where they are made."""

_NO_MEMORY = re.compile(r"out of memory|can't allocate memory|Storage size calculation overflowed")
"""What torch says of it, on a CPU in a plain RuntimeError."""

_NOT_A_NUMBER = "returned nan values in its"
"""What torch says of the first one where it looks for it."""

_LOST_RANK = re.compile(
    r"gloo|NCCL|Connection (closed|reset)|wait.*timeout|TCPStore|clients joined|client socket",
    re.IGNORECASE,
)
"""What torch.distributed says of it; its errors have no types of their own."""


def _without_trace(error: BaseException) -> str:
    """Leave out the places in C++ that torch.distributed adds to what it says."""
    return re.split(r"\s*Exception raised from |\s*\[?frame #0", str(error))[0]


def _callback_in(traceback: TracebackType | None) -> str | None:
    """The innermost callback that an exception came through."""
    found = None
    while traceback is not None:
        owner = traceback.tb_frame.f_locals.get("self")
        if isinstance(owner, Callback):
            found = type(owner).__name__
        traceback = traceback.tb_next
    return found


def _first_of(
    error: BaseException, kinds: type[BaseException] | tuple[type[BaseException], ...]
) -> BaseException | None:
    """The exception itself or the nearest of its causes that is of these kinds."""
    current: BaseException | None = error
    while current is not None and not isinstance(current, kinds):
        current = current.__cause__
    return current
