"""Comparisons with other methods and other libraries; imported by nothing else."""

"""Measurements beside the library; nothing imports this package."""
