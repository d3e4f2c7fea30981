"""Keys that are optional for one task alone are asked for by the others, before torch."""

import pytest

from cli.composition import compose_config
from cli.early import check_files
from fwlight.types import DataError


@pytest.mark.parametrize(
    ("task", "key"),
    [
        ("lm", "seq_len"),
        ("mqar", "seq_len"),
        ("mqar", "vocab_size"),
        ("translation", "vocab_size"),
    ],
)
def test_a_number_that_a_task_needs_is_asked_for(task, key):
    with pytest.raises(DataError, match=f"task.{key}=null"):
        check_files(compose_config([f"task={task}", f"task.{key}=null"]).config)


@pytest.mark.parametrize("arguments", [["task=mad"], ["task=retrieval"]])
def test_others_have_one_of_their_own(arguments):
    check_files(compose_config([*arguments, "task.seq_len=null"]).config)
