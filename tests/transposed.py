"""What the tests of transposed convolutions and gradients share: oracles that go other ways than pyconv does.

The transposed convolution puts zeros between the elements of the input and convolves that with the flipped filters; the
gradients go through the taps one by one, as the chain rule has it.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
from oracle import Case, convolve, fill, native, output_size, per_axis

from pyconv import nn
from pyconv.nn import functional as F

TRANSPOSED = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}
LAYERS = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
GRADIENTS = {nd: (getattr(nn.grad, f"conv{nd}d_input"), getattr(nn.grad, f"conv{nd}d_weight")) for nd in (1, 2, 3)}


def convolve_transposed(x, w, bias=None, stride=1, padding=0, output_padding=0, groups=1, dilation=1):
    """The transposed convolution of x (N, C, ...) or (C, ...) with w (C, K/groups, ...), and its terms' magnitudes."""
    nd, kernel = w.ndim - 2, w.shape[2:]
    stride, padding, output_padding, dilation = (per_axis(v, nd) for v in (stride, padding, output_padding, dilation))
    leading = x.shape[: x.ndim - nd]
    spread = np.zeros((*leading, *((n - 1) * s + 1 for n, s in zip(x.shape[-nd:], stride))), x.dtype)
    spread[(..., *(slice(None, None, s) for s in stride))] = x
    around = [(d * (k - 1) - p, d * (k - 1) - p + o) for d, k, p, o in zip(dilation, kernel, padding, output_padding)]
    spread = np.pad(spread, [(0, 0)] * len(leading) + [tuple(max(a, 0) for a in pair) for pair in around])
    cut = (slice(max(-a, 0), n - max(-b, 0)) for (a, b), n in zip(around, spread.shape[-nd:]))
    filters = np.flip(w, tuple(range(2, w.ndim))).reshape(groups, w.shape[0] // groups, *w.shape[1:])
    filters = filters.swapaxes(1, 2).reshape(groups * w.shape[1], w.shape[0] // groups, *kernel)
    return convolve(spread[(..., *cut)], filters, bias, 1, 0, dilation, groups)


def gradients(x, w, dy, stride, padding, dilation, groups):
    """((input's gradient, magnitudes), (weight's gradient, magnitudes)) of a convolution, in float64."""
    nd, kernel = w.ndim - 2, w.shape[2:]
    stride, padding, dilation = (per_axis(v, nd) for v in (stride, padding, dilation))
    size = output_size(x.shape[2:], [(p, p) for p in padding], kernel, stride, dilation)
    n, out = len(x), (slice(None),) * 3
    padded = np.pad(x, [(0, 0), (0, 0), *((p, p) for p in padding)]).astype(np.float64)
    padded = padded.reshape(n, groups, w.shape[1], *padded.shape[2:])
    filters = w.reshape(groups, -1, *w.shape[1:]).astype(np.float64)
    dy = dy.reshape(n, groups, filters.shape[1], *size).astype(np.float64)
    results = []
    for sign in (lambda a: a, np.abs):
        dx, dw = np.zeros_like(padded), np.zeros_like(filters)
        for tap in itertools.product(*map(range, kernel)):
            window = tuple(slice(t * d, t * d + (o - 1) * s + 1, s) for t, d, o, s in zip(tap, dilation, size, stride))
            dx[(*out, *window)] += np.einsum("gmc,ngm...->ngc...", sign(filters[(*out, *tap)]), sign(dy))
            patch = sign(padded[(*out, *window)]).reshape(n, groups, w.shape[1], -1)
            dw[(*out, *tap)] = np.einsum("ngcp,ngmp->gmc", patch, sign(dy).reshape(*dy.shape[:3], -1))
        inner = tuple(slice(p, p + e) for p, e in zip(padding, x.shape[2:]))
        results.append((dx[(*out, *inner)].reshape(x.shape), dw.reshape(w.shape)))
    return tuple(zip(*results))


@dataclass(repr=False)
class TransposedCase(Case):
    """One call of a transposed convolution."""

    output_padding: object = 0

    def __repr__(self):
        return f"{super().__repr__()}, output_padding={self.output_padding!r}"

    @property
    def arguments(self):
        return self.stride, self.padding, self.output_padding, self.groups, self.dilation

    def run(self, **extra):
        return TRANSPOSED[self.nd](self.x, self.w, self.bias, *self.arguments, **extra)

    def module(self, **extra):
        layer = LAYERS[self.nd](
            self.w.shape[0], self.w.shape[1] * self.groups, self.w.shape[2:], self.stride, self.padding,
            self.output_padding, self.groups, self.bias is not None, self.dilation, dtype=self.w.dtype, **extra,
        )  # fmt: skip
        layer.weight[...] = self.w
        if self.bias is not None:
            layer.bias[...] = self.bias
        return layer

    def expected(self):
        if not self._known:
            arrays = (native(self.x), native(self.w), None if self.bias is None else native(self.bias))
            self._known.extend(convolve_transposed(*arrays, *self.arguments))
        return self._known[0], self._known[1]


def make_transposed(rng, x_shape, w_shape, dtype=np.float32, bias=True, integers=False, **arguments):
    """A case of the given shapes on random data."""
    channels = w_shape[1] * int(arguments.get("groups", 1))
    x, w = fill(rng, x_shape, dtype, integers), fill(rng, w_shape, dtype, integers)
    return TransposedCase(x, w, fill(rng, channels, dtype, integers) if bias else None, **arguments)


def build_transposed(integer, dtype, nd=None, integers=False):
    """A case of any parameters; `integer(low, high)` is where choices come from, as in oracle.build_case."""

    def form(values):
        forms = [tuple(values), list(values), tuple(np.int64(v) for v in values)]
        if len(set(values)) == 1:
            forms += [values[0], np.int32(values[0]), (values[0],)]
        return forms[integer(0, len(forms) - 1)]

    nd = nd or integer(1, 3)
    kernel = [integer(1, {1: 20, 2: 5, 3: 3}[nd]) for _ in range(nd)]
    stride = [integer(1, {1: 20, 2: 5, 3: 3}[nd]) for _ in range(nd)]
    dilation = [integer(1, 4) for _ in range(nd)]
    added = [integer(0, max(s, d) - 1) for s, d in zip(stride, dilation)]
    size = [integer(1, {1: 30, 2: 8, 3: 5}[nd]) for _ in range(nd)]
    most = [(n - 1) * s + d * (k - 1) + o for n, s, d, k, o in zip(size, stride, dilation, kernel, added)]
    padding = [integer(0, min(m // 2, 9)) for m in most]
    groups, ic, oc = (1, 1, 2, 3)[integer(0, 3)], integer(1, 9), (1, 1, 2, 5, 9)[integer(0, 4)]
    batch = ((1,), (2,), (3,), ())[integer(0, 3)]
    seed = integer(0, 2**31)
    return make_transposed(
        np.random.default_rng(seed), (*batch, groups * ic, *size), (groups * ic, oc, *kernel), dtype,
        bool(integer(0, 1)), integers, stride=form(stride), padding=form(padding), output_padding=form(added),
        dilation=form(dilation), groups=groups, seed=seed,
    )  # fmt: skip
