"""What the tests of padding, activations, residuals and layouts share: their own formulas, and cases of any of them.

The input is padded with `numpy.pad` and convolved by the oracle without padding; then the residual is added and the
activation applied in float64.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from oracle import CONV, NUMPY_MODE, Case, convolve, fill, native, output_size, per_axis
from transposed import TRANSPOSED, TransposedCase, build_transposed

MODES = ("zeros", "constant", "reflect", "replicate", "circular")
_erf = np.vectorize(math.erf, otypes=[np.float64])


def sigmoid(s):
    return np.exp(-np.logaddexp(0, -s))


# What `activation=` takes: the function, and by how much at most it makes an error larger.
ACTIVATIONS = {
    None: (lambda s: s, 1),
    "relu": (lambda s: s.clip(0), 1),
    "relu6": (lambda s: s.clip(0, 6), 1),
    "leaky_relu": (lambda s: np.where(s > 0, s, s * 0.01), 1),
    ("leaky_relu", 0.25): (lambda s: np.where(s > 0, s, s / 4), 1),
    ("leaky_relu", -2): (lambda s: np.where(s > 0, s, s * -2), 2),
    "silu": (lambda s: s * sigmoid(s), 1.1),
    "hardswish": (lambda s: s * (s + 3).clip(0, 6) / 6, 1.5),
    "gelu": (lambda s: s * (1 + _erf(s / math.sqrt(2))) / 2, 1.13),
    ("gelu", "none"): (lambda s: s * (1 + _erf(s / math.sqrt(2))) / 2, 1.13),
    "gelu_tanh": (lambda s: s * (1 + np.tanh(math.sqrt(2 / math.pi) * (s + 0.044715 * s**3))) / 2, 1.13),
    ("gelu", "tanh"): (lambda s: s * (1 + np.tanh(math.sqrt(2 / math.pi) * (s + 0.044715 * s**3))) / 2, 1.13),
    "sigmoid": (sigmoid, 0.25),
    "tanh": (np.tanh, 1),
    ("clamp", -1, 2.5): (lambda s: s.clip(-1, 2.5), 1),
    ("clamp", None, 0.5): (lambda s: s.clip(None, 0.5), 1),
    ("clamp", -0.5, None): (lambda s: s.clip(-0.5), 1),
}


def finish(y, magnitude, activation, residual):
    """Add the residual and apply the activation: the result, and what the error bound is a multiple of.

    The activations themselves are good for 1e-6 of their value in float32 and 1e-14 in float64, or 8 units of
    rounding.
    """
    if residual is not None:
        y, magnitude = y + residual.astype(y.dtype), magnitude + np.abs(residual).astype(np.float64)
    if activation is None:
        return y, magnitude
    function, growth = ACTIVATIONS[activation]
    y = function(y)
    return y, growth * magnitude + 8 * np.abs(y)


def pads_of(padding, size, kernel, stride, dilation):
    """(before, after) of each axis, for every form that `padding` has."""
    nd = len(size)
    if padding == "valid":
        return [(0, 0)] * nd
    if padding == "causal":
        return [(dilation[0] * (kernel[0] - 1), 0)]
    if isinstance(padding, str):  # as many outputs as every `stride`-th element of the input
        pads = []
        for n, k, s, d in zip(size, kernel, stride, dilation):
            last = len(range(0, n, s)) - 1
            total = max(last * s + d * (k - 1) + 1 - n, 0)
            pads.append(((total + 1) // 2, total // 2) if padding == "same_lower" else (total // 2, (total + 1) // 2))
        return pads
    if isinstance(padding, (tuple, list)) and isinstance(padding[0], (tuple, list)):
        pairs = [(int(before), int(after)) for before, after in padding]
        return pairs * nd if len(pairs) == 1 else pairs
    return [(p, p) for p in per_axis(padding, nd)]


@dataclass(repr=False)
class EndedCase(Case):
    """One call with any padding, an activation and a residual."""

    padding_value: float = 0
    activation: object = None
    residual: np.ndarray | None = None

    def __repr__(self):
        more = f"padding_value={self.padding_value!r}, activation={self.activation!r}"
        residual = None if self.residual is None else self.residual.strides
        return f"{super().__repr__()}, {more}, residual strides {residual}"

    def run(self, **extra):
        options = {"padding_mode": self.padding_mode, "padding_value": self.padding_value}
        options |= {"activation": self.activation, "residual": self.residual, **extra}
        arguments = (self.x, self.w, self.bias, self.stride, self.padding, self.dilation, self.groups)
        return CONV[self.nd](*arguments, **options)

    def module(self, **extra):
        return super().module(activation=self.activation, **extra)

    def expected(self):
        if not self._known:
            x, w, bias = (None if a is None else native(a) for a in (self.x, self.w, self.bias))
            stride, dilation = per_axis(self.stride, self.nd), per_axis(self.dilation, self.nd)
            pads = pads_of(self.padding, x.shape[-self.nd :], w.shape[2:], stride, dilation)
            value = {"constant_values": self.padding_value} if self.padding_mode == "constant" else {}
            mode = "constant" if value else NUMPY_MODE[self.padding_mode]
            x = np.pad(x, [(0, 0)] * (x.ndim - self.nd) + pads, mode=mode, **value)
            y, magnitude = convolve(x, w, bias, stride, 0, dilation, self.groups)
            self._known.extend(finish(y, magnitude, self.activation, self.residual))
        return self._known[0], self._known[1]


@dataclass(repr=False)
class EndedTransposed(TransposedCase):
    """A transposed convolution with an activation and a residual."""

    activation: object = None
    residual: np.ndarray | None = None

    def run(self, **extra):
        options = {"activation": self.activation, "residual": self.residual, **extra}
        return TRANSPOSED[self.nd](self.x, self.w, self.bias, *self.arguments, **options)

    def module(self, **extra):
        return super().module(activation=self.activation, **extra)

    def expected(self):
        if not self._known:
            y, magnitude = super().expected()
            self._known[:] = finish(y, magnitude, self.activation, self.residual)
        return self._known[0], self._known[1]


def _with_ending(case, integer, dtype):
    """Give a case an activation and a residual of the right shape, or neither."""
    rng = np.random.default_rng(case.seed)
    activation = list(ACTIVATIONS)[integer(0, len(ACTIVATIONS) - 1)]
    shape = case.with_arrays(activation=None, residual=None).expected()[0].shape
    residual = fill(rng, shape, dtype) if integer(0, 1) else None
    return case.with_arrays(activation=activation, residual=residual)


def build_ended(integer, dtype, nd=None):
    """A case of any parameters; `integer(low, high)` is where choices come from, as in oracle.build_case."""

    def choose(options):
        return options[integer(0, len(options) - 1)]

    nd = nd or integer(1, 3)
    mode = choose(MODES)
    kernel = [integer(1, {1: 9, 2: 5, 3: 3}[nd]) for _ in range(nd)]
    stride, dilation = ([integer(1, 3) for _ in range(nd)] for _ in range(2))
    pads = [(integer(0, 5), integer(0, 5)) for _ in range(nd)]
    words = ["valid", "same_upper", "same_lower", "same", *(["causal"] if nd == 1 else [])]
    padding = choose([tuple(pads), [list(pad) for pad in pads], (pads[0],), *words])
    if padding == "same":
        stride = [1] * nd
    size = []
    for axis in range(nd):
        span = dilation[axis] * (kernel[axis] - 1) + 1
        before, after = (span - 1, span - 1) if isinstance(padding, str) else pads[axis % len(padding)]
        least = 1 if padding in ("same", "same_upper", "same_lower", "causal") else max(1, span - before - after)
        least = span if padding == "valid" else least
        if mode in ("reflect", "circular"):
            least = max(least, before + 1, after + 1)
        size.append(least + integer(0, {1: 30, 2: 10, 3: 5}[nd]))
    groups, ic, oc = choose([1, 1, 2, 3]), integer(1, 9), integer(1, 20)
    batch = choose([(1,), (2,), (3,), ()])
    seed = integer(0, 2**31)
    rng = np.random.default_rng(seed)
    x, w = fill(rng, (*batch, groups * ic, *size), dtype), fill(rng, (groups * oc, ic, *kernel), dtype)
    bias = fill(rng, groups * oc, dtype) if integer(0, 1) else None
    value = choose([0, 1.5, -2]) if mode == "constant" else 0
    assert min(output_size(size, pads_of(padding, size, kernel, stride, dilation), kernel, stride, dilation)) > 0
    case = EndedCase(x, w, bias, tuple(stride), padding, tuple(dilation), groups, mode, seed, padding_value=value)
    return _with_ending(case, integer, dtype)


def build_ended_transposed(integer, dtype, nd=None):
    """The same of transposed convolutions."""
    plain = build_transposed(integer, dtype, nd)
    fields = {name: getattr(plain, name) for name in "x w bias stride padding dilation groups seed".split()}
    case = EndedTransposed(**fields, output_padding=plain.output_padding)
    return _with_ending(case, integer, dtype)
