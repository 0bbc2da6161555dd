"""Each allocation of a call fails once: MemoryError, nothing lost, and the same objects compute the same afterwards.

A child process runs with tests/failing_malloc.c preloaded, which lets the n-th allocation fail: the core's own and
those of NumPy and of bytes objects alike. Nothing of that is in the package.
"""

import ctypes
import gc
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import REFERENCE_RUN

import pyconv
from pyconv import nn, quantized
from pyconv.nn import functional as F

SOURCE = Path(__file__).with_name("failing_malloc.c")
# Bytes. OpenMP ends the process when it gets no memory for its own, smaller, records, and NumPy 2.4 crashes where the
# buffers of 32 KiB of a ufunc or a cast fail.
LEAST = 65536
RNG = np.random.default_rng(0)
X, W, B = (RNG.integers(-3, 4, shape).astype(np.float32) for shape in ((1, 32, 30, 30), (64, 32, 3, 3), (64,)))
WIDE_X, WIDE_W = np.ones((1, 256, 3, 3), np.float32), np.ones((300, 256, 3, 3), np.float32)


def calls(folder):
    """Calls by name: each a function of nothing that returns an array."""
    plain, frozen, packed = nn.Conv2d(32, 64, 3), nn.Conv2d(32, 64, 3).eval(), pyconv.pack(W, B)
    out = np.zeros((1, 64, 28, 28), np.float32)
    y = F.conv2d(X, W, B)
    path = folder / "weights.npz"
    pyconv.save_weights({"w": W}, path)
    byte = X.astype(np.int8), W.astype(np.int8)
    return {
        "conv2d": lambda: F.conv2d(X, W, B),
        "conv2d, strided": lambda: F.conv2d(X, W, B, stride=2, padding=1),
        "conv2d into out": lambda: F.conv2d(X, W, B, out=out).copy(),
        "conv2d, residual": lambda: F.conv2d(X, W, B, residual=y[..., ::-1]),
        "conv2d, float16": lambda: F.conv2d(X.astype("f2"), W.astype("f2")),
        "conv2d, integers": lambda: F.conv2d(X.astype("i4"), W.astype("i4")),
        "conv2d, complex": lambda: F.conv2d(X.astype("c8"), W.astype("c8")),
        "conv2d, more than 2 MiB of weights": lambda: F.conv2d(WIDE_X, WIDE_W.copy()),
        "conv2d, per sample": lambda: F.conv2d(X, W[None]),
        "depthwise": lambda: F.conv2d(X, W[:32, :1], groups=32),
        "packed": lambda: F.conv2d(X, packed),
        "pack": lambda: F.conv2d(X, pyconv.pack(W, B, X.shape)),
        "layer in train mode": lambda: plain(X),
        "layer in eval mode": lambda: frozen(X),
        "layer, frozen anew": lambda: plain.train().eval()(X),
        "layer, loaded": lambda: loaded(plain.train())(X),
        "transposed": lambda: F.conv_transpose2d(X, W.swapaxes(0, 1).copy(), stride=2),
        "gradient of the input": lambda: nn.grad.conv2d_input(X.shape, W, y),
        "gradient of the weight": lambda: nn.grad.conv2d_weight(X, W.shape, y),
        "conv_integer": lambda: quantized.conv_integer(*byte, x_zero_point=3),
        "unfold": lambda: F.unfold(X, 3),
        "fold": lambda: F.fold(np.ones((1, 288, 784), np.float32), 30, 3),
        "load_weights": lambda: pyconv.load_weights(path)["w"],
    }


def loaded(layer):
    layer.load_state_dict({"weight": W, "bias": B})
    return layer


def fails_at(call, n, expected):
    """Let the n-th allocation fail; tell whether there are so many, and how many blocks are in use afterwards."""
    library = ctypes.CDLL(None)
    refused = False
    library.malloc_fail_at(ctypes.c_long(n), ctypes.c_size_t(LEAST))
    try:
        call()
    except MemoryError:
        refused = True
    reached = library.malloc_until_failure() == 0
    library.malloc_fail_at(ctypes.c_long(0), ctypes.c_size_t(LEAST))
    assert refused == reached, f"allocation {n} failed and nothing was said"
    np.testing.assert_array_equal(call(), expected)
    gc.collect()
    return reached, library.malloc_live()


def let_each_fail(call):
    """Return how many allocations there are, each of which failed; more than once, to see whether blocks are lost."""
    expected, n = call(), 0
    while True:
        n += 1
        (reached, _), (_, before), *_, (_, after) = (fails_at(call, n, expected) for _ in range(5))
        if not reached:
            return n - 1
        assert after == before, f"allocation {n}: {after - before} blocks lost in 3 failures"


def main(folder):
    for threads in (1, 2):
        pyconv.set_num_threads(threads)
        for name, call in calls(Path(folder)).items():
            print(f"{name}, {threads} threads: {let_each_fail(call)}", flush=True)


@pytest.mark.skipif(REFERENCE_RUN, reason="this run tests the reference path")
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs LD_PRELOAD and glibc")
def test_each_allocation_fails_once(tmp_path, c_compiler):
    library = tmp_path / "failing.so"
    command = [c_compiler, "-O1", "-shared", "-fPIC", "-fno-builtin", "-o", str(library), str(SOURCE)]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    if "__libc_" in built.stderr:
        pytest.skip("no glibc")
    assert built.returncode == 0, built.stderr
    done = subprocess.run(
        [sys.executable, __file__, str(tmp_path)], env={**os.environ, "LD_PRELOAD": str(library)}, capture_output=True,
        text=True, timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    counts = {line.rpartition(": ")[0]: int(line.rpartition(": ")[2]) for line in done.stdout.splitlines()}
    assert len(counts) == 46
    assert min(counts.values()) >= 1, counts  # of each call some allocation did fail


if __name__ == "__main__":
    main(sys.argv[1])
