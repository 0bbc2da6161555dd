"""The watershed: from what a user passed to one checked, plain ConvProblem.

Every check and every message about user input is here (:func:`fail` raises them all), and so is the arithmetic of
output shapes. After this module there are no strings, pairs, byte orders or missing axes any more.
"""

from __future__ import annotations

import cmath
import math
from collections.abc import Collection
from functools import lru_cache
from math import prod
from operator import index
from typing import Any, NamedTuple, NoReturn

import numpy as np

PAD_MODES = {"zeros": 0, "reflect": 1, "replicate": 2, "circular": 3, "constant": 4}  # CONV_PAD_* of src_c/conv.h
PAD_CONSTANT = PAD_MODES["constant"]
PAD_WORDS = ("valid", "same", "same_upper", "same_lower", "causal")
AXES = "dhw"
# Positions and element counts stay far below 2**63, so that no sum or product of them overflows in C.
LIMIT = 2**60


class ConvProblem(NamedTuple):
    """A convolution of any rank as a 3-D one; the fields of ``conv_problem`` in src_c/conv.h, and two of Python's own.

    ``ic`` and ``oc`` count the channels of one group, ``pad_*`` what lies before the first element. ``raw`` is 1
    where weights are packed for one call alone, ``rank`` the number of spatial axes the arrays have, ``dtype`` and
    ``out_dtype`` the NumPy names of the element types of x and y. ``activation`` is a number of activation.py.
    """

    n: int
    groups: int
    ic: int
    oc: int
    in_d: int
    in_h: int
    in_w: int
    out_d: int
    out_h: int
    out_w: int
    kernel_d: int
    kernel_h: int
    kernel_w: int
    stride_d: int
    stride_h: int
    stride_w: int
    dilation_d: int
    dilation_h: int
    dilation_w: int
    pad_d: int
    pad_h: int
    pad_w: int
    pad_mode: int
    exact: int
    raw: int
    rank: int
    dtype: str
    out_dtype: str
    pad_value: float = 0.0
    activation: int = 0
    activation_a: float = 0.0
    activation_b: float = 0.0

    @property
    def output_shape(self) -> tuple[int, ...]:
        """Shape of the batched result."""
        spatial = (self.out_d, self.out_h, self.out_w)[3 - self.rank :]
        return (self.n, self.groups * self.oc, *spatial)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of the batched input."""
        spatial = (self.in_d, self.in_h, self.in_w)[3 - self.rank :]
        return (self.n, self.groups * self.ic, *spatial)

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """Shape of the weight."""
        kernel = (self.kernel_d, self.kernel_h, self.kernel_w)[3 - self.rank :]
        return (self.groups * self.oc, self.ic, *kernel)


def sizes_by_kind(problem: ConvProblem, *kinds: str) -> list[list[int]]:
    """Return, for each kind of size ('in', 'kernel', ...), those of the axes that the arrays have."""
    letters = AXES[3 - problem.rank :]
    return [[getattr(problem, f"{kind}_{letter}") for letter in letters] for kind in kinds]


def fail(kind: type[Exception], function: str, argument: str, rule: str, got: object) -> NoReturn:
    """Raise `kind` with the one form that messages about user input have."""
    try:
        text = repr(got)
    except Exception:  # noqa: BLE001 - whatever an object does that was not asked for
        text = f"an object of {type(got)} without a repr"
    if len(text) > 200:
        text = text[:200] + "..."
    raise kind(f"{function}: argument '{argument}' {rule}, got {text}")


def choice(function: str, argument: str, value: Any, choices: Collection[str]) -> str:
    """Return `value` if it is one of `choices`."""
    if isinstance(value, str) and value in choices:
        return value
    rule = f"must be one of {', '.join(map(repr, choices))}"
    fail(ValueError if isinstance(value, str) else TypeError, function, argument, rule, value)


def plain_int(value: Any) -> int:
    """Return the int that an object is; TypeError if it is none, whatever the object itself raises."""
    try:
        return int(index(value))  # a subclass of int may compare as it likes
    except Exception as error:
        raise TypeError("no integer") from error


def plain_float(value: Any) -> float:
    """Return the float next to a number; ValueError if it has none."""
    try:
        return float(value)
    except Exception as error:
        raise ValueError("no number of float64") from error


def check_memory(function: str, argument: str, shape: tuple[int, ...]) -> None:
    """Check that an array of this shape has a size in bytes, empty axes or not: NumPy's own error names nobody."""
    if prod(max(n, 1) for n in shape) >= LIMIT // 2:
        fail(ValueError, function, argument, "makes an array larger than any memory", f"shape {shape}")


def per_axis(function: str, argument: str, value: Any, rank: int, least: int) -> tuple[int, ...]:
    """Return one int per spatial axis from an int, or from a sequence of `rank` ints or of one."""
    values = value if isinstance(value, (tuple, list)) else (value,)
    if len(values) not in (1, rank):
        fail(ValueError, function, argument, f"must be an int or have {rank} of them", value)
    if any(isinstance(v, (bool, np.bool_)) for v in values):
        fail(TypeError, function, argument, "must be an int or a tuple of ints, not bool", value)
    try:
        ints = tuple(plain_int(v) for v in values)
    except TypeError:
        fail(TypeError, function, argument, "must be an int or a tuple of ints", value)
    if min(ints) < least:
        fail(ValueError, function, argument, f"must be >= {least} on every axis", value)
    return ints * rank if len(ints) == 1 else ints


def checked_shape(function: str, argument: str, value: Any, lengths: Collection[int]) -> tuple[int, ...]:
    """Return the shape of an array that could exist, given as a tuple or list of ints."""
    if not isinstance(value, (tuple, list)):
        fail(TypeError, function, argument, "must be a tuple or list of ints", value)
    if len(value) not in lengths:
        fail(ValueError, function, argument, f"must have {' or '.join(map(str, lengths))} of them", value)
    shape = per_axis(function, argument, tuple(value), len(value), 0)
    check_memory(function, argument, shape)
    return shape


def positive_int(function: str, argument: str, value: Any) -> int:
    """Return `value` as an int of at least 1."""
    if isinstance(value, (tuple, list)):
        fail(TypeError, function, argument, "must be an int", value)
    return per_axis(function, argument, value, 1, 1)[0]


def kind_of(dtype: np.dtype) -> str:
    """Return what NumPy calls the kind of a dtype; 'f' for ml_dtypes' bfloat16 too, whose own is 'V'."""
    return "f" if dtype.name == "bfloat16" else dtype.kind


def conv_problem(
    function: str, rank: int, x: np.ndarray, weight: np.ndarray, stride: Any, padding: Any, dilation: Any, groups: Any,
    padding_mode: str, exact: bool, raw: bool = False, padding_value: Any = 0,
    activation: tuple[int, float, float] = (0, 0.0, 0.0), names: tuple[str, str] = ("input", "weight"),
) -> ConvProblem:  # fmt: skip
    """Check the geometry of a convolution of arrays that :func:`check_arrays` returned.

    Ints pass as they are and everything else as a tuple of ints: the cache behind never takes True or 1.0 for 1. `raw`
    says that the weights will be packed for one call alone, which counts in the choice of the algorithm. `activation`
    is what :func:`~pyconv.activation.activation_fields` returned, `names` what the caller calls input and weight.
    """
    if type(stride) is not int or stride < 1:
        stride = per_axis(function, "stride", stride, rank, 1)
    if type(dilation) is not int or dilation < 1:
        dilation = per_axis(function, "dilation", dilation, rank, 1)
    if type(padding) is not int or padding < 0:
        padding = checked_padding(function, padding, rank)
    if type(groups) is not int or groups < 1:
        groups = positive_int(function, "groups", groups)
    choice(function, "padding_mode", padding_mode, PAD_MODES)
    value = checked_padding_value(function, padding_value, padding_mode, x.dtype)
    # Zeros are zeros, however they were asked for: every algorithm knows those.
    mode = "zeros" if padding_mode == "constant" and not value else padding_mode
    problem = _geometry(
        function, rank, x.shape, weight.shape, x.dtype, stride, padding, dilation, groups, mode, exact, raw, names
    )
    if not value and not activation[0]:
        return problem
    number, a, b = activation
    return problem._replace(pad_value=value, activation=number, activation_a=a, activation_b=b)


def checked_padding(function: str, padding: Any, rank: int) -> str | tuple:
    """Return the padding as a word, a tuple of one int per axis, or one of (before, after) pairs."""
    form = "an int, a tuple of ints or a tuple of (before, after) pairs"
    if isinstance(padding, str):
        if padding not in PAD_WORDS:
            fail(ValueError, function, "padding", f"must be one of {', '.join(map(repr, PAD_WORDS))}, {form}", padding)
        if padding == "causal" and rank > 1:
            rule = "cannot be 'causal' on more than one axis; (before, after) pairs can say which one is time"
            fail(ValueError, function, "padding", rule, padding)
        return padding
    if not isinstance(padding, (tuple, list)) or not any(isinstance(p, (tuple, list)) for p in padding):
        return per_axis(function, "padding", padding, rank, 0)
    if not all(isinstance(p, (tuple, list)) for p in padding):
        fail(TypeError, function, "padding", f"must be {form}", padding)
    if len(padding) not in (1, rank) or any(len(p) != 2 for p in padding):
        fail(ValueError, function, "padding", f"must have {rank} pairs (before, after), or one for all axes", padding)
    pairs = tuple(per_axis(function, "padding", pair, 2, 0) for pair in padding)
    return pairs * rank if len(pairs) == 1 else pairs


def checked_padding_value(function: str, value: Any, mode: str, dtype: np.dtype) -> complex:
    """Return what padding_mode 'constant' pads with, as a number that `dtype` holds; NaN is always the same object."""
    if type(value) is int and value == 0:
        return 0.0
    kind, argument = kind_of(dtype), "padding_value"
    if isinstance(value, np.integer):
        value = int(value)  # NumPy would compare it with a double as a double
    number = hasattr(value, "__float__") and not isinstance(value, (bool, np.bool_, np.ndarray))
    if isinstance(value, (complex, np.complexfloating)):
        number = kind == "c"
    if not number:
        fail(TypeError, function, argument, f"must be a number that {dtype} can hold", value)
    if mode != "constant" and value != 0:
        fail(ValueError, function, argument, "must be 0 unless padding_mode is 'constant'", value)
    try:
        given = complex(value)
        with np.errstate(all="ignore"):
            kept = complex(dtype.type(given if kind == "c" else given.real))
        fits = cmath.isfinite(kept) or not cmath.isfinite(given)
    except (OverflowError, ValueError):  # what integers cannot hold
        fits = False
    # Integers travel as doubles, and are what was given or refused.
    if not fits or (kind in "iu" and (kept != given or value != given)):
        rule = f"must be in the range of {dtype}" if kind in "fc" else f"must be a number of {dtype} and of float64"
        fail(ValueError, function, argument, rule, value)
    if cmath.isnan(kept):
        return math.nan
    return kept if kept.imag else kept.real


@lru_cache(maxsize=1024)
def _geometry(
    function, rank, x_shape, weight_shape, dtype, stride, padding, dilation, groups, padding_mode, exact, raw, names
) -> ConvProblem:
    """Do the shape arithmetic of :func:`conv_problem`; raises on what does not fit together."""
    n, channels, *size = x_shape if len(x_shape) == rank + 2 else (1, *x_shape)
    out_channels, ic, *kernel = weight_shape
    check_channels(function, names, groups, channels, out_channels, ic)
    if 0 in size:
        fail(ValueError, function, names[0], "must not have an empty spatial axis", f"shape {x_shape}")
    if 0 in kernel:
        fail(ValueError, function, names[1], "must not have an empty kernel axis", f"shape {weight_shape}")
    strides = stride if isinstance(stride, tuple) else (stride,) * rank
    dilations = dilation if isinstance(dilation, tuple) else (dilation,) * rank
    if padding == "same" and strides != (1,) * rank:
        rule = "cannot be 'same' with a stride other than 1 ('same_upper' and 'same_lower' can)"
        fail(ValueError, function, "padding", rule, f"stride {stride}")
    pads = [pads_of(padding, a, size[a], kernel[a], strides[a], dilations[a]) for a in range(rank)]
    out = [
        output_extent(function, names[1], padding_mode, size[a], kernel[a], strides[a], dilations[a], pads[a])
        for a in range(rank)
    ]
    if out_channels * prod(out) * max(n, 1) >= LIMIT:
        fail(ValueError, function, "padding", "makes the output larger than any memory", f"output size {tuple(out)}")
    counts = n, groups, ic, out_channels // groups
    axes = list(zip(size, out, kernel, strides, dilations, (before for before, _ in pads), strict=True))
    return plain_problem(rank, dtype, counts, axes, PAD_MODES[padding_mode], exact, raw)


def plain_problem(
    rank: int, dtype: np.dtype, counts, axes, pad_mode: int, exact: bool, raw: bool = False
) -> ConvProblem:
    """Return the problem with `counts` (n, groups, ic, oc) and, per axis, (in, out, kernel, stride, dilation, pad)."""
    fields = dict(zip(("n", "groups", "ic", "oc"), counts, strict=True))
    for axis, letter in enumerate(AXES, start=rank - 3):
        # The leading axes of a lower rank have extents of 1.
        size, out, kernel, stride, dilation, pad = axes[axis] if axis >= 0 else (1, 1, 1, 1, 1, 0)
        fields[f"in_{letter}"] = size
        fields[f"out_{letter}"] = out
        fields[f"kernel_{letter}"] = kernel
        # What a stride or a dilation steps over does not exist where there is one position only.
        fields[f"stride_{letter}"] = stride if out > 1 else 1
        fields[f"dilation_{letter}"] = dilation if kernel > 1 else 1
        fields[f"pad_{letter}"] = pad
    return ConvProblem(
        **fields, pad_mode=pad_mode, exact=int(exact), raw=int(raw), rank=rank, dtype=dtype.name, out_dtype=dtype.name
    )


def check_channels(
    function: str, names: tuple[str, str], groups: int, channels: int, out_channels: int, ic: int
) -> None:
    """Check that channels, groups and the weight's first two axes belong together."""
    if out_channels == 0:
        fail(ValueError, function, names[1], "must have at least one output channel", out_channels)
    if out_channels % groups:
        fail(ValueError, function, "groups", f"must divide the {out_channels} output channels", groups)
    if channels != ic * groups:
        rule = f"must have {ic * groups} channels ({names[1]}.shape[1] {ic} x groups {groups})"
        fail(ValueError, function, names[0], rule, channels)


def pads_of(padding: Any, axis: int, size: int, kernel: int, stride: int, dilation: int) -> tuple[int, int]:
    """Return the padding (before, after) of one axis.

    The odd one of 'same' and 'same_upper' (ONNX's, and TensorFlow's SAME) comes after, of 'same_lower' before.
    """
    if padding == "valid":
        return 0, 0
    if padding == "causal":
        return dilation * (kernel - 1), 0
    if isinstance(padding, str):
        total = max(0, (-(-size // stride) - 1) * stride + dilation * (kernel - 1) + 1 - size)
        less, more = total // 2, total - total // 2
        return (more, less) if padding == "same_lower" else (less, more)
    one = padding[axis] if isinstance(padding, tuple) else padding
    return one if isinstance(one, tuple) else (one, one)


def output_extent(
    function: str, weight: str, mode: str, size: int, kernel: int, stride: int, dilation: int, pads
) -> int:
    """Return floor((size + padding - dilation (kernel - 1) - 1) / stride) + 1, checked; `weight` is its name."""
    before, after = pads
    padded, span = size + before + after, dilation * (kernel - 1) + 1
    if padded >= LIMIT:
        fail(ValueError, function, "padding", f"must keep the padded input below {LIMIT} positions", pads)
    if span > padded:
        rule = f"must not exceed the padded input: dilation {dilation} x (kernel {kernel} - 1) + 1 = {span} > {padded}"
        fail(ValueError, function, weight, rule, f"kernel size {kernel}")
    most = {"reflect": size - 1, "circular": size}.get(mode)
    if most is not None and max(pads) > most:
        fail(ValueError, function, "padding", f"must be at most {most} with padding_mode '{mode}'", max(pads))
    return (padded - span) // stride + 1
