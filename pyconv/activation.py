"""The activations that a convolution can end with: names, numbers in src_c/conv.h, and what they compute."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .problem import fail, kind_of, plain_float

IDENTITY, CLAMP, LEAKY_RELU, HARDSWISH, SIGMOID, SILU, TANH, GELU, GELU_TANH = range(9)

# What `activation=` takes: number, a and b.
NAMES = {
    "relu": (CLAMP, 0.0, math.inf), "relu6": (CLAMP, 0.0, 6.0), "leaky_relu": (LEAKY_RELU, 0.01, 0.0),
    "silu": (SILU, 0.0, 0.0), "hardswish": (HARDSWISH, 0.0, 0.0), "gelu": (GELU, 0.0, 0.0),
    "gelu_tanh": (GELU_TANH, 0.0, 0.0), "sigmoid": (SIGMOID, 0.0, 0.0), "tanh": (TANH, 0.0, 0.0),
}  # fmt: skip
# With parameters.
FORMS = "('leaky_relu', negative_slope), ('clamp', min, max), ('gelu', 'none' or 'tanh')"

_erf = np.frompyfunc(math.erf, 1, 1)


FORMULAS = {
    CLAMP: lambda s, a, b: np.minimum(np.maximum(s, limit(a, s.dtype)), limit(b, s.dtype)),
    LEAKY_RELU: lambda s, a, _: np.where(s < 0, s.dtype.type(a) * s, s),
    HARDSWISH: lambda s, *_: s * np.clip(s + 3, 0, 6) / 6,
    SIGMOID: lambda s, *_: 1 / (1 + np.exp(-s)),
    SILU: lambda s, *_: s / (1 + np.exp(-s)),
    TANH: lambda s, *_: np.tanh(s),
    GELU: lambda s, *_: s * (1 + _erf(s * math.sqrt(0.5)).astype(s.dtype)) / 2,
    GELU_TANH: lambda s, *_: s * (1 + np.tanh(math.sqrt(2 / math.pi) * (s + 0.044715 * s**3))) / 2,
}


def activation_fields(function: str, value: Any, dtype: np.dtype | None = None) -> tuple[int, float, float]:
    """Return number, a and b (see src_c/conv.h) of an `activation=` argument; of any dtype if none is given."""
    if value is None:
        return IDENTITY, 0.0, 0.0
    name, *parameters = value if isinstance(value, (tuple, list)) and value else (value,)
    rule = f"must be None, {', '.join(map(repr, NAMES))} or one of {FORMS}"
    if not isinstance(name, str):
        fail(TypeError, function, "activation", rule, value)
    if name == "clamp" and len(parameters) == 2:
        low, high = parameters
        a = -math.inf if low is None else _parameter(function, low, value)
        b = math.inf if high is None else _parameter(function, high, value)
        if not a <= b:
            fail(ValueError, function, "activation", "must have min <= max", value)
        fields = CLAMP, a, b
    elif name == "leaky_relu" and len(parameters) == 1:
        fields = LEAKY_RELU, _parameter(function, parameters[0], value), 0.0
        if not math.isfinite(fields[1]):
            fail(ValueError, function, "activation", "must have a finite slope", value)
    elif name == "gelu" and parameters in (["none"], ["tanh"]):
        fields = NAMES["gelu" if parameters == ["none"] else "gelu_tanh"]
    elif name in NAMES and not parameters:
        fields = NAMES[name]
    else:
        fail(ValueError, function, "activation", rule, value)
    if dtype is not None and kind_of(dtype) != "f":
        fail(TypeError, function, "activation", f"must be None for {dtype}: it needs floating-point numbers", value)
    return fields


def _parameter(function: str, number: Any, value: Any) -> float:
    """Return one of an activation's parameters; `value` is the whole argument, for the message."""
    if not isinstance(number, (int, float, np.integer, np.floating)) or isinstance(number, bool):
        fail(TypeError, function, "activation", "must have real numbers as parameters", value)
    try:
        return plain_float(number)
    except ValueError:
        fail(ValueError, function, "activation", "must have parameters in the range of float64", value)


def limit(value: float, dtype: np.dtype):
    """Return a number, which may be infinite, as the nearest of a dtype."""
    if dtype.kind not in "iu":
        return dtype.type(value)
    info = np.iinfo(dtype)
    return dtype.type(int(min(max(value, info.min), info.max)))


def activate(number: int, a: float, b: float, s: np.ndarray) -> np.ndarray:
    """Return activation `number` of the sums `s`, in their dtype; a and b as in src_c/conv.h."""
    return FORMULAS[number](s, a, b)
