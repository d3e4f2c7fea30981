"""What a key is, beside its type: said once, beside its type, in `cli.schema`."""

from enum import Enum, auto


class Kind(Enum):
    """What a key, or every key of a section, is to those that compare or store configurations.

    Of the first four one holds: that of a key goes before that of its section.
    """

    ARCHITECTURE = auto()
    """No checkpoint of another value is taken, to go on from or to use."""
    DATA = auto()
    """No training goes on with another value."""
    TRAINING = auto()
    """A training goes on with another value, which is told."""
    FREE = auto()
    """May change from start to start."""

    OF_A_START = auto()
    """From the command line alone, whatever a checkpoint was made with."""
    NO_RESULT = auto()
    """Changes no result of a run."""
    TEXT = auto()
    """Taken as typed: commas, quotes and = mean nothing in it."""
    DERIVED = auto()
    """Filled by other keys, not by hand."""
    SEVERAL = auto()
    """A group of which a list of options can be chosen."""


ONE_OF = frozenset({Kind.ARCHITECTURE, Kind.DATA, Kind.TRAINING, Kind.FREE})
