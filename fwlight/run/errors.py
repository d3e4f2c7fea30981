"""From an exception to an exit code and one line for the user."""

import pickle

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.exceptions import SIGTERMException

from fwlight.errors import FwlightError

INTERRUPTED, TERMINATED, UNEXPECTED = 130, 143, 1


def exit_code_and_line(error: BaseException) -> tuple[int, str]:
    """Return the exit code of an exception and the line `error: ...` that explains it.

    0 done, 1 unexpected, 2 configuration or data, 3 numerical, 4 checkpoint, 5 input/output,
    130 and 143 signals. An exception raised from one of ours counts as that one.
    """
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED, "error: interrupted; resume=auto continues from the last checkpoint"
    if _first_of(error, SIGTERMException) is not None:
        return TERMINATED, "error: terminated; resume=auto continues from the last checkpoint"
    known = _first_of(error, FwlightError)
    if isinstance(known, FwlightError):
        return known.exit_code, _line(str(known))
    for kinds, code in (
        (OSError, 5),
        (pickle.UnpicklingError, 4),
        ((ValueError, MisconfigurationException), 2),
    ):
        if (found := _first_of(error, kinds)) is not None:
            return code, _line(str(found) or type(found).__name__)
    return UNEXPECTED, _line(
        f"unexpected {type(error).__name__}: {error} (FWLIGHT_DEBUG=1 shows the traceback)"
    )


def _first_of(
    error: BaseException, kinds: type[BaseException] | tuple[type[BaseException], ...]
) -> BaseException | None:
    """The exception itself or the nearest of its causes that is of these kinds."""
    current: BaseException | None = error
    while current is not None and not isinstance(current, kinds):
        current = current.__cause__
    return current


def _line(message: str) -> str:
    return "error: " + " ".join(message.split())
