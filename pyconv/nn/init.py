"""Weight initialisation with torch.nn.init's names, arguments and distributions, on NumPy arrays.

The rules that all functions with a final ``_`` share:

tensor : filled in place and returned. An ndarray of a floating-point or complex dtype (uniform or normal draws fill a
    complex one as torch does: each part gets its own, the normal ones of half the variance), or anything that
    ``np.asarray`` views without a copy, such as ``conv.weight.data`` (an ndarray's memoryview) or a torch CPU tensor;
    for those the ndarray that views the same memory is returned.
generator : numpy.random.Generator, or None for the module-wide one that `manual_seed` replaces. Draws are made in
    float64 and then rounded, so a seed gives the same weights in every dtype; they are NumPy's numbers, not torch's.
TypeError : raised for what cannot be filled in place (a list), other dtypes, parameters that are not numbers.
ValueError : raised for a read-only array and for values out of range.
"""

from __future__ import annotations

import math
import numbers
import sys
import warnings
from typing import TYPE_CHECKING

import numpy as np

from ..problem import fail
from ._draws import (  # noqa: F401 - users find manual_seed here
    fans_of,
    fill_normal,
    fill_uniform,
    filled,
    generator_or_default,
    manual_seed,
    number,
    put,
    scale,
    truncated_normal,
    writable,
)

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

_LINEAR = "linear conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d sigmoid"
_GAINS = {**dict.fromkeys(_LINEAR.split(), 1), "tanh": 5.0 / 3, "relu": math.sqrt(2.0), "selu": 3.0 / 4}


def calculate_gain(nonlinearity: str, param: float | None = None) -> float:
    """Return the gain that keeps the variance of activations near 1 behind a nonlinearity.

    Parameters
    ----------
    nonlinearity : str
        'linear', 'conv1d' ... 'conv_transpose3d' and 'sigmoid' give 1, 'tanh' 5/3, 'relu' sqrt(2),
        'leaky_relu' sqrt(2 / (1 + param**2)), 'selu' 3/4; any other is a ValueError.
    param : float, optional
        The negative slope of 'leaky_relu', 0.01 if not given. ValueError if it is not a number (a bool is not one).

    Returns
    -------
    float
        As torch.nn.init.calculate_gain, which does not take every NumPy scalar for a number.

    Examples
    --------
    >>> from pyconv import nn
    >>> nn.init.calculate_gain("tanh")
    1.6666666666666667
    """
    return _gain("calculate_gain", nonlinearity, param, "param")


def uniform_(
    tensor: ArrayLike, a: float = 0.0, b: float = 1.0, generator: np.random.Generator | None = None
) -> np.ndarray:
    """Fill from the uniform distribution on [a, b), as torch.nn.init.uniform_ does.

    `a` and `b` are finite in the array's dtype and ``a <= b``, else ValueError. Rounding to the dtype may reach b.

    Examples
    --------
    >>> import numpy as np
    >>> from pyconv import nn
    >>> w = nn.init.uniform_(np.empty((3, 5), np.float32), -1, 1)
    >>> bool((np.abs(w) <= 1).all())
    True
    """
    array = writable("uniform_", tensor)
    a, b = number("uniform_", "a", a), number("uniform_", "b", b)
    known = np.float32 if array.dtype.name == "bfloat16" else array.dtype  # of the same range, but for a last bit
    largest = min(float(np.finfo(known).max), sys.float_info.max)
    for name, value in (("a", a), ("b", b)):
        if not abs(value) <= largest:
            fail(ValueError, "uniform_", name, f"must be finite in {array.dtype}", value)
    if not 0 <= b - a <= largest:
        fail(ValueError, "uniform_", "b", f"must be from a = {a} to a + {largest:.3g}", b)
    fill_uniform("uniform_", array, (a, b), generator)
    return filled(tensor, array)


def normal_(
    tensor: ArrayLike, mean: float = 0.0, std: float = 1.0, generator: np.random.Generator | None = None
) -> np.ndarray:
    """Fill from the normal distribution N(mean, std**2), std >= 0, as torch.nn.init.normal_ does.

    Examples
    --------
    >>> import numpy as np
    >>> from pyconv import nn
    >>> nn.init.normal_(np.empty(3), mean=2.0, std=0.0)
    array([2., 2., 2.])
    """
    array = writable("normal_", tensor)
    mean, std = number("normal_", "mean", mean), scale("normal_", "std", std)
    fill_normal("normal_", array, mean, std, generator)
    return filled(tensor, array)


def trunc_normal_(
    tensor: ArrayLike,
    mean: float = 0.0,
    std: float = 1.0,
    a: float = -2.0,
    b: float = 2.0,
    generator: np.random.Generator | None = None,
) -> np.ndarray:
    """Fill from the normal distribution N(mean, std**2) restricted to [a, b], as torch.nn.init.trunc_normal_ does.

    Parameters
    ----------
    tensor, generator
        See the module; here floating-point arrays only.
    mean, std : float
        Of the normal distribution before it is cut; std > 0.
    a, b : float
        The cuts, a <= b; either may be infinite. They are rounded to the array's dtype as the values are.

    Notes
    -----
    NumPy has no inverse error function, so values are drawn and rejected: from the normal distribution itself where
    at least 30 % of it lie in [a, b], elsewhere from a uniform or, in a tail, an exponential density over [a, b]
    (C. P. Robert, "Simulation of truncated normal variables", Statistics and Computing 5, 1995). Some 30 % of the
    draws or more are kept and the distribution is right however far [a, b] lies from the mean, so torch's warning
    about that is not given.

    Examples
    --------
    >>> import numpy as np
    >>> from pyconv import nn
    >>> w = nn.init.trunc_normal_(np.empty(1000), std=0.5, a=-0.25, b=1.0)
    >>> bool((w >= -0.25).all() and (w <= 1).all())
    True
    """
    name = "trunc_normal_"
    array = writable(name, tensor, kinds="f")
    mean, a, b = number(name, "mean", mean), number(name, "a", a), number(name, "b", b)
    if scale(name, "std", std) == 0:
        fail(ValueError, name, "std", "must be > 0", std)
    if not math.isfinite(mean):
        fail(ValueError, name, "mean", "must be finite", mean)
    if not a < math.inf:
        fail(ValueError, name, "a", "must be below infinity", a)
    if not max(a, -sys.float_info.max) <= b:
        fail(ValueError, name, "b", f"must be >= a = {a} and above minus infinity", b)
    cuts = (a - mean) / float(std), (b - mean) / float(std)
    values = truncated_normal(generator_or_default(name, generator), array.size, *cuts) * float(std) + mean
    # Scaling back may overstep the cuts by a rounding error.
    put(array, np.clip(values, a, b).reshape(array.shape))
    return filled(tensor, array)


def constant_(tensor: ArrayLike, val: float) -> np.ndarray:
    """Fill with `val`, as torch.nn.init.constant_ does.

    Examples
    --------
    >>> import numpy as np
    >>> from pyconv import nn
    >>> nn.init.constant_(np.empty(3), 0.5)
    array([0.5, 0.5, 0.5])
    """
    array = writable("constant_", tensor)
    if not (array.dtype.kind == "c" and isinstance(val, numbers.Complex)):
        val = number("constant_", "val", val)
    put(array, val)
    return filled(tensor, array)


def ones_(tensor: ArrayLike) -> np.ndarray:
    """Fill with 1, as torch.nn.init.ones_ does."""
    array = writable("ones_", tensor)
    array[...] = 1
    return filled(tensor, array)


def zeros_(tensor: ArrayLike) -> np.ndarray:
    """Fill with 0, as torch.nn.init.zeros_ does."""
    array = writable("zeros_", tensor)
    array[...] = 0
    return filled(tensor, array)


def dirac_(tensor: ArrayLike, groups: int = 1) -> np.ndarray:
    """Fill a weight with the Dirac delta, so that each output channel copies one input channel (torch.nn.init.dirac_).

    Parameters
    ----------
    tensor : ndarray, shape (out_channels, in_channels / groups, kernel...), 3 to 5 dimensions
        See the module. Channels beyond the smaller of the two sides stay 0.
    groups : int
        The convolution's groups, which must divide out_channels; each of them keeps its own channels.

    Examples
    --------
    >>> import numpy as np
    >>> from pyconv import nn
    >>> nn.init.dirac_(np.empty((2, 1, 3)), groups=2).tolist()
    [[[0.0, 1.0, 0.0]], [[0.0, 1.0, 0.0]]]
    """
    array = writable("dirac_", tensor)
    if array.ndim not in (3, 4, 5):
        fail(ValueError, "dirac_", "tensor", "must have 3, 4 or 5 dimensions", array.shape)
    if not isinstance(groups, numbers.Integral):
        fail(TypeError, "dirac_", "groups", "must be an integer", groups)
    if groups < 1 or array.shape[0] % groups:
        fail(ValueError, "dirac_", "groups", f"must be >= 1 and divide dimension 0 = {array.shape[0]}", groups)
    array[...] = 0
    if array.size:
        per_group = array.shape[0] // groups
        centre = tuple(extent // 2 for extent in array.shape[2:])
        for channel in range(min(per_group, array.shape[1])):
            array[(slice(channel, None, per_group), channel, *centre)] = 1
    return filled(tensor, array)


def xavier_uniform_(tensor: ArrayLike, gain: float = 1.0, generator: np.random.Generator | None = None) -> np.ndarray:
    """Fill from U(-a, a), a = gain * sqrt(6 / (fan_in + fan_out)), as torch.nn.init.xavier_uniform_ does.

    Parameters
    ----------
    tensor, generator
        See the module; at least 2 dimensions (else ValueError). fan_in is shape[1] and fan_out shape[0], each times
        the elements of the kernel.
    gain : float
        A factor >= 0, see `calculate_gain`.

    Notes
    -----
    X. Glorot and Y. Bengio, "Understanding the difficulty of training deep feedforward neural networks", 2010.

    Examples
    --------
    >>> from pyconv import nn
    >>> conv = nn.Conv2d(3, 6, 7, groups=3, bias=False)
    >>> w = nn.init.xavier_uniform_(conv.weight.data, gain=nn.init.calculate_gain("relu"))
    >>> bool((w == conv.weight).all())
    True
    """
    array, std = _xavier("xavier_uniform_", tensor, gain)
    bound = math.sqrt(3.0) * std
    if 2 * bound == math.inf:
        fail(ValueError, "xavier_uniform_", "gain", "must keep the bounds in the range of float64", gain)
    fill_uniform("xavier_uniform_", array, (-bound, bound), generator)
    return filled(tensor, array)


def xavier_normal_(tensor: ArrayLike, gain: float = 1.0, generator: np.random.Generator | None = None) -> np.ndarray:
    """Fill from N(0, std**2), std = gain * sqrt(2 / (fan_in + fan_out)), as torch.nn.init.xavier_normal_ does.

    Arguments, errors and source as `xavier_uniform_`.
    """
    array, std = _xavier("xavier_normal_", tensor, gain)
    fill_normal("xavier_normal_", array, 0.0, std, generator)
    return filled(tensor, array)


def kaiming_uniform_(
    tensor: ArrayLike,
    a: float = 0,
    mode: str = "fan_in",
    nonlinearity: str = "leaky_relu",
    generator: np.random.Generator | None = None,
) -> np.ndarray:
    """Fill from U(-bound, bound), bound = gain * sqrt(3 / fan), as torch.nn.init.kaiming_uniform_ does.

    Parameters
    ----------
    tensor, generator
        See the module; at least 2 dimensions (else ValueError). An empty one is left alone with a warning, as in torch.
    a : float
        The negative slope of the rectifier that follows; used with ``nonlinearity='leaky_relu'`` only.
    mode : {'fan_in', 'fan_out'}
        Keep the variance in the forward or in the backward pass; anything else is a ValueError.
    nonlinearity : str
        See `calculate_gain`.

    Notes
    -----
    K. He et al., "Delving deep into rectifiers: surpassing human-level performance on ImageNet classification", 2015.

    Examples
    --------
    >>> import numpy as np
    >>> from pyconv import nn
    >>> w = nn.init.kaiming_uniform_(np.empty((8, 6, 1, 1)), nonlinearity="relu")
    >>> bool((np.abs(w) <= 1).all())
    True
    """
    array, std = _kaiming("kaiming_uniform_", tensor, a, mode, nonlinearity)
    fill_uniform("kaiming_uniform_", array, (-math.sqrt(3.0) * std, math.sqrt(3.0) * std), generator)
    return filled(tensor, array)


def kaiming_normal_(
    tensor: ArrayLike,
    a: float = 0,
    mode: str = "fan_in",
    nonlinearity: str = "leaky_relu",
    generator: np.random.Generator | None = None,
) -> np.ndarray:
    """Fill from N(0, std**2), std = gain / sqrt(fan), as torch.nn.init.kaiming_normal_ does.

    Arguments, errors and source as `kaiming_uniform_`.
    """
    array, std = _kaiming("kaiming_normal_", tensor, a, mode, nonlinearity)
    fill_normal("kaiming_normal_", array, 0.0, std, generator)
    return filled(tensor, array)


def orthogonal_(tensor: ArrayLike, gain: float = 1, generator: np.random.Generator | None = None) -> np.ndarray:
    """Fill with a matrix of orthonormal rows (or columns if there are more rows), as torch.nn.init.orthogonal_ does.

    Parameters
    ----------
    tensor, generator
        See the module; floating-point, at least 2 dimensions (else ValueError), all after the first taken as one.
    gain : float
        A factor on the result.

    Notes
    -----
    A. Saxe et al., "Exact solutions to the nonlinear dynamics of learning in deep linear neural networks", 2013.

    Examples
    --------
    >>> import numpy as np
    >>> from pyconv import nn
    >>> w = nn.init.orthogonal_(np.empty((3, 5)))
    >>> bool(np.allclose(w @ w.T, np.eye(3)))
    True
    """
    array = writable("orthogonal_", tensor, kinds="f")
    gain = number("orthogonal_", "gain", gain)
    if array.ndim < 2:
        fail(ValueError, "orthogonal_", "tensor", "must have at least 2 dimensions", array.shape)
    if array.size == 0:
        return filled(tensor, array)
    rows, columns = array.shape[0], array.size // array.shape[0]
    rng = generator_or_default("orthogonal_", generator)
    q, r = np.linalg.qr(rng.standard_normal((max(rows, columns), min(rows, columns))))
    # QR leaves the signs to the library; with those of R's diagonal taken out, Q is uniform over the orthogonal
    # matrices (F. Mezzadri, arXiv math-ph/0609050).
    q *= np.where(np.diagonal(r) < 0, -1.0, 1.0)
    put(array, (gain * (q.T if rows < columns else q)).reshape(array.shape))
    return filled(tensor, array)


def _gain(function: str, nonlinearity: str, param: float | None, argument: str) -> float:
    if isinstance(nonlinearity, str) and nonlinearity in _GAINS:
        return _GAINS[nonlinearity]
    if not isinstance(nonlinearity, str) or nonlinearity != "leaky_relu":
        fail(ValueError, function, "nonlinearity", f"must be one of {', '.join(_GAINS)}, leaky_relu", nonlinearity)
    slope = 0.01 if param is None else param
    if isinstance(slope, bool) or not isinstance(slope, numbers.Real):
        fail(ValueError, function, argument, "must be a number, the negative slope", param)
    slope = number(function, argument, slope)
    if math.isnan(slope):
        fail(ValueError, function, argument, "must not be NaN", param)
    return math.sqrt(2.0 / (1 + slope * slope))


def _xavier(function: str, tensor: ArrayLike, gain: float) -> tuple[np.ndarray, float]:
    array = writable(function, tensor)
    fans = sum(fans_of(function, array))
    return array, scale(function, "gain", gain) * math.sqrt(2.0 / fans) if fans else 0.0


def _kaiming(function: str, tensor: ArrayLike, slope: float, mode: str, nonlinearity: str) -> tuple[np.ndarray, float]:
    array = writable(function, tensor)
    if array.size == 0:
        warnings.warn("Initializing zero-element tensors is a no-op", stacklevel=3)
        return array, 0.0
    if not isinstance(mode, str) or mode.lower() not in ("fan_in", "fan_out"):
        fail(ValueError, function, "mode", "must be 'fan_in' or 'fan_out'", mode)
    fan = fans_of(function, array)[mode.lower() == "fan_out"]
    return array, _gain(function, nonlinearity, slope, "a") / math.sqrt(fan)
