"""Memory that stays flat over 10,000 shapes, and tensors of more than 2**31 elements."""

from __future__ import annotations

import os
import sys

import numpy as np
from proofs.job import ROOT

SHAPES = 10_000
GIB = 2**30


def shapes(job):
    job.run(sys.executable, "-W", "error", __file__, "shapes", PYTHONPATH=f"{ROOT}{os.pathsep}{ROOT / 'tests'}")


def large(job):
    """8 GiB are used: skipped where they are not free."""
    with open("/proc/meminfo", encoding="ascii") as file:
        free = next(int(line.split()[1]) * 1024 for line in file if line.startswith("MemAvailable"))
    if free < 10 * GIB:
        job.skip(f"{free // GIB} GiB of memory available, 10 needed")
        return
    job.run(sys.executable, "-W", "error", __file__, "large", PYTHONPATH=f"{ROOT}{os.pathsep}{ROOT / 'tests'}")


def resident():
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def compute_shapes():
    """Different shapes through functions and a frozen layer; what is kept of them must not grow."""
    from pyconv import nn
    from pyconv.nn import functional as F

    layer = nn.Conv2d(3, 8, 3, padding=1).eval()
    rng = np.random.default_rng(0)
    before = 0
    for number in range(SHAPES):
        high, wide = 1 + number // 100, 1 + number % 100
        x = rng.standard_normal((1, 3, high, wide), np.float32)
        w = rng.standard_normal((1 + number % 17, 3, 1, 1), np.float32)
        y = layer(x), F.conv2d(x, w), F.conv_transpose2d(x, w.swapaxes(0, 1).copy(), stride=2)
        assert all(np.isfinite(one).all() for one in y)
        if number == SHAPES // 4:  # the caches are full by now
            before = resident()
    grown = resident() - before
    print(f"{SHAPES} shapes: {before / 2**20:.0f} MiB resident after a quarter, {grown / 2**20:+.1f} MiB at the end")
    assert grown < 8 * 2**20, "memory grows with the number of shapes"


def compute_large():
    """More than 2**31 elements in, and more than 2**31 out; int8, so that it fits; sums of known rows of numbers."""
    from pyconv.nn import functional as F

    length = 2**31 + 2**16
    x = np.resize(np.arange(7, dtype=np.int8), length).reshape(1, 1, length)
    w = np.array([[[1, 2, 3]]], np.int8)
    y = F.conv1d(x, w)
    assert y.shape == (1, 1, length - 2)
    for first in range(0, length - 2, 2**26):
        last = min(first + 2**26, length - 2)
        parts = (x[0, 0, first + k : last + k] for k in range(3))
        expected = sum(weight * part for weight, part in zip((1, 2, 3), parts))
        np.testing.assert_array_equal(y[0, 0, first:last], expected)
    print(f"{length} elements in, {y.size} out: right")
    strided = F.conv1d(x, w, stride=2**28)  # what lies beyond 2**31 is read through strides, too
    np.testing.assert_array_equal(strided[0, 0], y[0, 0, :: 2**28])
    del y, strided
    # Rows of 2**16 + 1, so that offsets in an image pass 2**31 as well, and a channel of which the last rows count.
    square = x.ravel()[: 2**15 * (2**16 + 1)].reshape(1, 1, 2**15, 2**16 + 1)
    y = F.conv2d(square, np.ones((1, 1, 2, 2), np.int8), stride=(2**14 - 1, 1))
    for out, row in enumerate(range(0, 2**15 - 1, 2**14 - 1)):
        pair = square[0, 0, row] + square[0, 0, row + 1]
        np.testing.assert_array_equal(y[0, 0, out], pair[:-1] + pair[1:])
    print(f"{square.shape} in, {y.shape} out: right")


if __name__ == "__main__":
    {"shapes": compute_shapes, "large": compute_large}[sys.argv[1]]()
