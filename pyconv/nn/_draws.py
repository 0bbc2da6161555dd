"""What `init` builds on: arrays that can be filled in place, the generator in use, the draws themselves, and fans."""

from __future__ import annotations

import math
import numbers
from typing import TYPE_CHECKING, Any

import numpy as np

from ..problem import fail, kind_of, plain_float, plain_int

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

_default: list[np.random.Generator] = []  # holds one at most, made on first use: numpy.random costs import time


def manual_seed(seed: int) -> np.random.Generator:
    """Seed the generator that pyconv.nn.init and the layers' default initialisation draw from.

    Parameters
    ----------
    seed : int
        From -2**63 to 2**64 - 1 as in torch.manual_seed (else ValueError); a negative one means ``2**64 + seed``.

    Returns
    -------
    numpy.random.Generator
        The new module-wide generator.

    Examples
    --------
    >>> from pyconv import nn
    >>> first = nn.init.manual_seed(0).random()
    >>> first == nn.init.manual_seed(0).random()
    True
    """
    try:
        number = plain_int(seed)
    except TypeError:
        fail(TypeError, "manual_seed", "seed", "must be an integer", seed)
    if not -(2**63) <= number < 2**64:
        fail(ValueError, "manual_seed", "seed", "must be from -2**63 to 2**64 - 1", seed)
    _default[:] = [np.random.default_rng(number % 2**64)]
    return _default[0]


def generator_or_default(function: str, generator: np.random.Generator | None) -> np.random.Generator:
    """Return `generator` or, for None, the module-wide one."""
    if generator is None:
        if not _default:
            _default.append(np.random.default_rng())
        return _default[0]
    if not isinstance(generator, np.random.Generator):
        fail(TypeError, function, "generator", "must be a numpy.random.Generator or None", generator)
    return generator


def writable(function: str, tensor: ArrayLike, kinds: str = "fc") -> np.ndarray:
    """Return the plain ndarray that views the memory of `tensor`, checked to be of the right kind and writable."""
    try:
        array = np.asarray(tensor)
        # A list, say, is copied: filling the copy would be lost.
        in_place = isinstance(tensor, np.ndarray) or np.may_share_memory(array, np.asarray(tensor))
    except Exception:  # noqa: BLE001 - what an object's own __array__ raises, too
        in_place = False
    if not in_place:
        fail(TypeError, function, "tensor", "must be an array that can be filled in place", type(tensor))
    if kind_of(array.dtype) not in kinds:
        rule = "must be of a floating-point dtype" if kinds == "f" else "must be of a floating-point or complex dtype"
        fail(TypeError, function, "tensor", rule, array.dtype)
    if not array.flags.writeable:
        rule = "must be writable (a layer in eval mode is frozen: call its train() first)"
        fail(ValueError, function, "tensor", rule, "a read-only array")
    return array


def filled(tensor: ArrayLike, array: np.ndarray) -> np.ndarray:
    """Return what an init function returns: its argument, or the array that views it."""
    return tensor if isinstance(tensor, np.ndarray) else array


def number(function: str, argument: str, value: float) -> float:
    """Return `value` as a float; TypeError for what is no real number."""
    if not isinstance(value, numbers.Real):
        fail(TypeError, function, argument, "must be a number", value)
    try:
        return plain_float(value)
    except ValueError:
        fail(ValueError, function, argument, "must be in the range of float64", value)


def scale(function: str, argument: str, value: float) -> float:
    """Return `value` as a float, checked to be one that can multiply a spread."""
    plain = number(function, argument, value)
    if not 0 <= plain < math.inf:
        fail(ValueError, function, argument, "must be finite and >= 0", value)
    return plain


def fill_uniform(
    function: str, array: np.ndarray, bounds: tuple[float, float], generator: np.random.Generator | None
) -> None:
    """Fill from the uniform distribution between the bounds, both parts of a complex array."""
    rng = generator_or_default(function, generator)
    for part in (array.real, array.imag) if array.dtype.kind == "c" else (array,):
        put(part, rng.uniform(*bounds, part.shape))


def fill_normal(
    function: str, array: np.ndarray, mean: float, std: float, generator: np.random.Generator | None
) -> None:
    """Fill from N(mean, std**2), a complex array with half the variance in each part."""
    rng = generator_or_default(function, generator)
    if array.dtype.kind == "c":
        std /= math.sqrt(2.0)
        put(array.imag, rng.normal(0.0, std, array.shape))
        array = array.real
    put(array, rng.normal(mean, std, array.shape))


def put(array: np.ndarray, values: Any) -> None:
    """Fill the array; what its dtype cannot hold becomes infinite, as in torch."""
    with np.errstate(over="ignore"):
        array[...] = values


def truncated_normal(rng: np.random.Generator, count: int, low: float, high: float) -> np.ndarray:
    """Return `count` draws from the standard normal distribution restricted to [low, high]; see `trunc_normal_`."""
    if high < 0:
        return -truncated_normal(rng, count, -high, -low)
    # Nothing overflows with these ends, and as cuts they are as good as infinite ones.
    low, high = max(low, -1e150), min(high, 1e150)
    low = min(low, high)
    is_common = (math.erf(high / math.sqrt(2.0)) - math.erf(low / math.sqrt(2.0))) / 2 >= 0.3
    rate = max(low, 0.0)  # of the exponential: the slope of the log-density at the near end, 0 (uniform) at the peak
    decay = rate * (high - low)
    values = np.empty(count)
    pending = np.arange(count)
    while pending.size:
        if is_common:
            draw = rng.standard_normal(pending.size)
            accepted = (draw >= low) & (draw <= high)
        else:
            u = rng.random(pending.size)
            # The inverse of the exponential's distribution function, which for a small decay is a straight line.
            step = u * (high - low) if decay < 1e-8 else -np.log1p(u * math.expm1(-decay)) / rate
            draw = low + step
            offset = draw if rate == 0 else step
            accepted = np.log1p(-rng.random(pending.size)) <= -0.5 * offset * offset
        values[pending[accepted]] = draw[accepted]
        pending = pending[~accepted]
    return values


def fans_of(function: str, array: np.ndarray) -> tuple[int, int]:
    """Return (fan_in, fan_out): how many inputs one output sums, and how many outputs one input reaches."""
    if array.ndim < 2:
        fail(ValueError, function, "tensor", "must have at least 2 dimensions", array.shape)
    receptive_field = math.prod(array.shape[2:])
    return array.shape[1] * receptive_field, array.shape[0] * receptive_field
