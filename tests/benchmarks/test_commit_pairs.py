"""Ratios of two commits: their interval, and the names that rows are found by."""

import math

import pytest

from benchmarks.pairs import _name, interval


def test_interval_is_students_of_the_logarithms():
    middle, low, high = interval([1.0, 1.1, 1.21])
    assert middle == pytest.approx(1.1)
    reach = 4.303 * math.log(1.1) / math.sqrt(3)  # t of two degrees of freedom
    assert (low, high) == pytest.approx((1.1 * math.exp(-reach), 1.1 * math.exp(reach)), rel=1e-4)


def test_a_row_is_named_by_what_stands_before_its_quartiles():
    assert _name({"table": "delta B2", "name": "native", "q1": "1", "median": "2"}) == (
        "delta B2, native"
    )
    assert _name({"d_key": "32", "d_value": "16", "name": "sum", "q1_us": "3"}) == "32, 16, sum"
