"""What the tests share: a plain convolution that knows nothing of pyconv, its error bound, problems, array layouts.

The oracle pads the input with `numpy.pad`, walks over the kernel's taps and adds up products in a precision in which
the error does not count: float64 for float32 data (products are exact there), a compensated sum of exact products for
float64 data. Beside each result it gives the sum of the terms' magnitudes, which the error bound is a multiple of.
"""

from __future__ import annotations

import contextlib
import itertools
import sys
from dataclasses import dataclass, field, replace

import numpy as np
import pytest

from pyconv import config, nn
from pyconv.nn import functional as F

try:
    from pyconv import _core
except ImportError:  # built without a compiler: the reference path serves
    _core = None

needs_core = pytest.mark.skipif(_core is None, reason="pyconv._core is not built: only the reference path is here")

CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
MODULE = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
NUMPY_MODE = {"zeros": "constant", "reflect": "reflect", "replicate": "edge", "circular": "wrap"}
WIDE = {"f": np.float64, "c": np.complex128, "i": np.int64, "u": np.uint64}
DTYPES = (np.float32, np.float64)
# Dtypes that have compiled kernels, and their names there: each row's own, and of those stored narrow the ones whose
# copies and stores differ most (test_dtypes.py has the others).
KINDS = {"float32": "f32", "float64": "f64", "float16": "f32", "int8": "i32", "int32": "i32", "int64": "i64"}
FACTOR = {"fast": 16, "exact": 4}


def per_axis(value, nd):
    """`value` as a tuple of `nd` plain integers; a single number or a 1-tuple serves every axis."""
    values = tuple(int(v) for v in value) if isinstance(value, (tuple, list, np.ndarray)) else (int(value),)
    return values * nd if len(values) == 1 else values


def pads_of(padding, kernel, dilation):
    """The (before, after) padding of each axis; 'same' puts the odd element after."""
    if isinstance(padding, str):
        totals = [d * (k - 1) if padding == "same" else 0 for d, k in zip(dilation, kernel)]
        return [(total // 2, total - total // 2) for total in totals]
    return [(p, p) for p in per_axis(padding, len(kernel))]


def output_size(size, pads, kernel, stride, dilation):
    """The tutorial's size formula, per axis."""
    axes = zip(size, pads, kernel, stride, dilation)
    return tuple((n + sum(p) - d * (k - 1) - 1) // s + 1 for n, p, k, s, d in axes)


class _Sum:
    """Adds up sum_c w[g, k, c] * patch[n, g, c, pixel] over the taps, and the same of the magnitudes."""

    def __init__(self, shape, x, w):
        self.wide = WIDE[x.dtype.kind]
        self.compensated = x.dtype == np.float64 and bool(np.isfinite(x).all() and np.isfinite(w).all())
        self.value = np.zeros(shape, self.wide)
        self.error = np.zeros(shape, self.wide)
        self.magnitude = np.zeros(shape, np.float64)

    def add(self, patch, taps):
        patch, taps = patch.astype(self.wide), taps.astype(self.wide)
        self.magnitude += np.matmul(np.abs(taps).astype(np.float64), np.abs(patch).astype(np.float64))
        if not self.compensated:
            self.value += np.matmul(taps, patch)
            return
        for channel in range(patch.shape[2]):
            self._add_exactly(taps[None, :, :, channel, None], patch[:, :, None, channel])

    def _add_exactly(self, a, b):
        """Two halves of 26 and 27 bits per factor: their products are exact but for the last, 2**-105 of the whole."""
        a_high, b_high = ((v.view(np.int64) & ~((1 << 27) - 1)).view(np.float64) for v in (a.copy(), b.copy()))
        a_low, b_low = a - a_high, b - b_high
        term = a_high * b_high
        total = self.value + term
        other = total - self.value  # Knuth's two-sum: what the addition lost
        self.error += (self.value - (total - other)) + (term - other)
        self.error += a_high * b_low + a_low * b_high + a_low * b_low
        self.value = total


def convolve(x, w, bias=None, stride=1, padding=0, dilation=1, groups=1, padding_mode="zeros"):
    """Cross-correlation of x (N, C, ...) or (C, ...) with w (K, C/groups, ...), and its terms' magnitudes, summed."""
    nd, kernel = w.ndim - 2, w.shape[2:]
    batch = x if x.ndim == nd + 2 else x[None]
    stride, dilation = per_axis(stride, nd), per_axis(dilation, nd)
    pads = pads_of(padding, kernel, dilation)
    size = output_size(batch.shape[2:], pads, kernel, stride, dilation)
    padded = np.pad(batch, [(0, 0), (0, 0), *pads], mode=NUMPY_MODE[padding_mode])
    padded = padded.reshape(len(batch), groups, w.shape[1], *padded.shape[2:])
    taps = w.reshape(groups, w.shape[0] // groups, *w.shape[1:])
    total = _Sum((len(batch), groups, taps.shape[1], int(np.prod(size))), x, w)
    for tap in itertools.product(*map(range, kernel)):
        window = tuple(slice(t * d, t * d + (o - 1) * s + 1, s) for t, d, o, s in zip(tap, dilation, size, stride))
        patch = padded[(slice(None), slice(None), slice(None), *window)]
        total.add(patch.reshape(*patch.shape[:3], total.value.shape[3]), taps[(Ellipsis, *tap)])
    shape = (len(batch), w.shape[0], *size)
    y, magnitude = (total.value + total.error).reshape(shape), total.magnitude.reshape(shape)
    if bias is not None:
        column = bias.astype(y.dtype).reshape(-1, *[1] * nd)
        y, magnitude = y + column, magnitude + np.abs(column)
    return (y, magnitude) if x.ndim == nd + 2 else (y[0], magnitude[0])


@dataclass(repr=False)
class Case:
    """One call: its arrays and arguments. `seed` tells hypothesis' reports what the data came from."""

    x: np.ndarray
    w: np.ndarray
    bias: np.ndarray | None = None
    stride: object = 1
    padding: object = 0
    dilation: object = 1
    groups: int = 1
    padding_mode: str = "zeros"
    seed: int | None = None
    _known: list = field(default_factory=list, repr=False, compare=False)

    @property
    def nd(self):
        return self.w.ndim - 2

    def __repr__(self):
        named = ("stride", "padding", "dilation", "groups", "padding_mode", "seed")
        return (
            f"x {self.x.dtype} {self.x.shape} strides {self.x.strides}, w {self.w.shape}, "
            f"bias {self.bias is not None}, " + ", ".join(f"{name}={getattr(self, name)!r}" for name in named)
        )

    def run(self, **extra):
        """pyconv's functional call."""
        arguments = (self.x, self.w, self.bias, self.stride, self.padding, self.dilation, self.groups)
        return CONV[self.nd](*arguments, **extra)

    def module(self, **extra):
        """The layer with this case's weight and bias."""
        channels, kernel = self.w.shape[1] * self.groups, self.w.shape[2:]
        layer = MODULE[self.nd](
            channels, self.w.shape[0], kernel, self.stride, self.padding, self.dilation, self.groups,
            self.bias is not None, self.padding_mode, dtype=self.w.dtype, **extra,
        )  # fmt: skip
        layer.weight[...] = self.w
        if self.bias is not None:
            layer.bias[...] = self.bias
        return layer

    def expected(self):
        """The oracle's result and magnitudes, computed once."""
        if not self._known:
            arrays = (native(self.x), native(self.w), None if self.bias is None else native(self.bias))
            options = (self.stride, self.padding, self.dilation, self.groups, self.padding_mode)
            self._known.extend(convolve(*arrays, *options))
        return self._known[0], self._known[1]

    def with_arrays(self, **arrays):
        """The same call on other arrays."""
        return replace(self, _known=[], **arrays)


def native(array):
    """A plain C-contiguous copy in the machine's byte order."""
    return np.array(array, dtype=array.dtype.newbyteorder("="), order="C", subok=False)


def bound(case, factor):
    """|error| <= factor * u * sum |x * w|, and a subnormal per term, since 'fast' flushes them.

    Half precision sums in single and rounds once to a unit of 2**-10, 2**-24 at least; integers are exact.
    """
    dtype = np.dtype(case.x.dtype).newbyteorder("=")
    if dtype.kind in "iu":
        return np.zeros(case.expected()[0].shape)
    if dtype == np.float16:
        single = bound(case.with_arrays(x=case.x.astype(np.float32)), factor)
        return single + np.maximum((np.abs(case.expected()[0]) + single) * 2.0**-11, 2.0**-25)
    info = np.finfo(dtype)
    terms = int(np.prod(case.w.shape[1:])) + 2
    flushed = info.tiny if factor > FACTOR["exact"] else info.smallest_subnormal
    return factor * (float(info.eps) / 2) * case.expected()[1] + terms * float(flushed)


def check(y, case, accuracy=None, factor=None):
    """`y` is a fresh array with the right type and shape, and within the error bound of `accuracy`.

    The bound of 'exact' holds for signs that are random: of very many sums a few are the exception, by less than twice.
    """
    expected, _ = case.expected()
    assert type(y) is np.ndarray
    assert y.dtype == native(case.x).dtype, case
    assert y.shape == expected.shape, case
    factor = factor or FACTOR[accuracy or config_accuracy()]
    if y.dtype.kind in "iu":
        np.testing.assert_array_equal(y, expected.astype(y.dtype), err_msg=str(case))
        return
    limit = bound(case, factor)
    error = np.abs(y.astype(np.float64) - expected)
    wrong = ~(error <= limit)  # NaN counts as wrong
    exceptions = 1 + y.size // 10**5 if factor <= FACTOR["exact"] else 0
    if wrong.sum() > exceptions or (wrong & ~(error <= 2 * limit)).any():
        at = tuple(int(i) for i in np.argwhere(wrong)[0])
        message = f"{int(wrong.sum())} of {wrong.size} wrong, first at {at}: {y[at]!r} for {expected[at]!r}"
        raise AssertionError(f"{message} (bound {limit[at]:.3g}, got {error[at]:.3g})\n{case}")


def config_accuracy():
    """The accuracy that a call without `accuracy=` has now."""
    return config.get_accuracy()


def fill(rng, shape, dtype, integers=False):
    """Zero-mean data; with `integers`, whole numbers whose sums of products stay exact.

    Integer types take all values they have, so that sums wrap around.
    """
    if integers:
        return rng.integers(-4, 5, shape).astype(dtype)
    if np.issubdtype(dtype, np.integer):
        info = np.iinfo(dtype)
        return rng.integers(info.min, info.max, shape, dtype, endpoint=True)
    return rng.standard_normal(shape).astype(dtype)


def make_case(rng, x_shape, w_shape, dtype=np.float32, bias=True, integers=False, **arguments):
    """A case of the given shapes on random data."""
    x, w = fill(rng, x_shape, dtype, integers), fill(rng, w_shape, dtype, integers)
    return Case(x, w, fill(rng, w_shape[0], dtype, integers) if bias else None, **arguments)


def build_case(integer, dtype, nd=None, modes=("zeros",), integers=False):
    """A case of any parameters; `integer(low, high)` is where choices come from: hypothesis, or a random generator."""

    def choose(options):
        return options[integer(0, len(options) - 1)]

    def form(values):
        """The forms in which an argument can come: a number, a 1-tuple, a tuple, a list, NumPy integers."""
        forms = [tuple(values), list(values), tuple(np.int64(v) for v in values)]
        if len(set(values)) == 1:
            forms += [values[0], np.int32(values[0]), (values[0],)]
        return choose(forms)

    nd = nd or integer(1, 3)
    mode = choose(modes)
    kernel = [integer(1, {1: 9, 2: 5, 3: 3}[nd]) for _ in range(nd)]
    dilation = [integer(1, 3) for _ in range(nd)]
    style = choose(["numbers", "numbers", "same", "valid"])
    stride = [1 if style == "same" else integer(1, 4) for _ in range(nd)]
    pads = [integer(0, {"zeros": 7, "replicate": 7}.get(mode, 3)) for _ in range(nd)]
    padding = form(pads) if style == "numbers" else style
    size = []
    for axis, (before, after) in enumerate(pads_of(padding, kernel, dilation)):
        least = max(1, dilation[axis] * (kernel[axis] - 1) + 1 - before - after)
        if mode in ("reflect", "circular"):  # a reflected border is narrower than the input
            least = max(least, before + 1, after + 1)
        size.append(least + integer(0, {1: 40, 2: 12, 3: 6}[nd]))
    groups, ic, oc = choose([1, 1, 2, 3, 5]), integer(1, 9), integer(1, 9)
    batch = choose([(1,), (1,), (2,), (3,), ()])
    seed = integer(0, 2**31)
    return make_case(
        np.random.default_rng(seed), (*batch, groups * ic, *size), (groups * oc, ic, *kernel), dtype,
        bool(integer(0, 1)), integers, stride=form(stride), padding=padding, dilation=form(dilation),
        groups=choose([groups, np.int64(groups)]), padding_mode=mode, seed=seed,
    )  # fmt: skip


def random_case(rng, dtype, **options):
    """`build_case` with choices from a NumPy generator."""
    return build_case(lambda low, high: int(rng.integers(low, high, endpoint=True)), dtype, **options)


class Tagged(np.ndarray):
    """A subclass with nothing of its own."""


LAYOUTS = (
    "plain", "fortran", "channels_last", "reversed", "sliced", "broadcast", "unaligned", "readonly", "swapped",
    "subclass", "memmap", "field",
)  # fmt: skip


def relayout(a, layout, folder=None):
    """`a` in another layout; the same values, but for 'broadcast', which repeats its first column."""
    if layout == "fortran":
        return np.asfortranarray(a)
    if layout == "channels_last":
        axis = 1 if a.ndim > 1 else 0
        return np.moveaxis(np.ascontiguousarray(np.moveaxis(a, axis, -1)), -1, axis)
    if layout == "reversed":
        flip = (slice(None, None, -1),) * a.ndim
        return np.ascontiguousarray(a[flip])[flip]
    if layout == "sliced":
        around = np.iinfo(a.dtype).max if a.dtype.kind in "iu" else np.nan
        roomy = np.full([2 * n + 3 for n in a.shape], around, a.dtype)
        view = roomy[tuple(slice(1, 2 * n + 1, 2) for n in a.shape)]
        view[...] = a
        return view
    if layout == "broadcast":
        return np.broadcast_to(a[..., :1], a.shape)
    if layout == "unaligned":
        raw = np.zeros(a.nbytes + 1, np.uint8)[1:].view(a.dtype).reshape(a.shape)
        raw[...] = a
        return raw
    return _wrapped(a, layout, folder)


def _wrapped(a, layout, folder):
    if layout == "readonly":
        locked = a.copy()
        locked.flags.writeable = False
        return locked
    if layout == "swapped":
        return a.astype(a.dtype.newbyteorder("S"))
    if layout == "subclass":
        return a.copy().view(Tagged)
    if layout == "field":  # of a packed record: no stride is a multiple of the element
        records = np.zeros(a.shape, np.dtype([("byte", np.uint8), ("value", a.dtype)]))
        records["value"] = a
        return records["value"]
    if layout == "memmap" and folder is not None and a.size:
        path = folder / f"array{len(list(folder.iterdir()))}"
        np.memmap(path, a.dtype, "w+", shape=a.shape)[...] = a
        return np.memmap(path, a.dtype, "r", shape=a.shape)
    return a.copy()


def rows():
    """Every (isa, algorithm, dtype) of the compiled table that this machine can run."""
    if _core is None:
        return []
    return [(isa, name, kind) for isa in config.isas_available() for kind in KINDS for name in algorithms(isa, kind)]


def algorithms(isa, kind):
    """The names in the table of one ISA and dtype."""
    return tuple(_core.algorithms(isa, KINDS[kind]))


def takes_nothing(row):
    """Winograd's transforms need vectors of four lanes: with two its row of the table refuses every problem."""
    isa, algorithm, kind = row
    return algorithm in ("winograd", "winograd_1d") and _core.vector_bytes(isa) // np.dtype(kind).itemsize < 4


@contextlib.contextmanager
def setting(isa=None, threads=None, accuracy=None):
    """Another ISA, thread count or accuracy for the time of a `with` block."""
    before = config.isa(), config.get_num_threads(), config.get_accuracy()
    try:
        if isa is not None:
            config._set_isa(isa)
        if threads is not None:
            config.set_num_threads(threads)
        if accuracy is not None:
            config.set_accuracy(accuracy)
        yield
    finally:
        if isa is not None:
            config._set_isa(before[0])
        config.set_num_threads(before[1])
        config.set_accuracy(before[2])


def cpu_flags():
    """The feature words of /proc/cpuinfo, an empty set where there is none."""
    if not sys.platform.startswith("linux"):
        return set()
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        lines = [line for line in file if line.lower().startswith(("flags", "features"))]
    return set(lines[0].split(":", 1)[1].split()) if lines else set()


@contextlib.contextmanager
def refusal_skips(algorithm):
    """Skip the test where a row of the table does not take its shapes."""
    try:
        yield
    except ValueError as error:
        if "must accept" not in str(error):
            raise
        pytest.skip(f"{algorithm} does not take these shapes")
