"""fwlight: fast weight programmers for PyTorch Lightning.

Letters in shape annotations: `b` batch, `h` heads, `t` (or `s`) positions, `d` head size before
the feature map, `k` feature size (d_dot), `v` value size, `m` model width.
"""

__version__ = "0.1.0"
