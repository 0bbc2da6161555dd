"""The matrix of an image's windows (im2col) and its adjoint (col2im), one strided copy or sum per tap of the filter.

columns[c, kh, kw, p] = image[c, p stride - padding + k dilation], 0 outside
image[c, i]           = sum over taps and positions with  p stride - padding + k dilation = i  of  columns[c, kh, kw, p]
"""

from __future__ import annotations

import numpy as np

from .fold_problem import Windows
from .reference import sums_dtype


def gather(image: np.ndarray, windows: Windows) -> np.ndarray:
    """Return the windows of an image (..., C, H, W), as a new array of shape (..., C, kh, kw, rows, columns)."""
    columns = np.empty((*image.shape[:-2], *windows.kernel, *windows.positions), image.dtype)
    if windows.are_tiles:
        _tiles(columns)[...] = _tiled(image, windows)
        return columns
    for tap, where, source in windows.taps() if columns.size else ():
        one = columns[(..., *tap, slice(None), slice(None))]
        for axis, met in enumerate(where):  # what meets padding: at the beginning and at the end of either axis
            edge = (slice(None),) * (1 - axis)
            one[(..., slice(0, met.start), *edge)] = 0
            one[(..., slice(met.stop, None), *edge)] = 0
        one[(..., *where)] = image[(..., *source)]
    return columns


def scatter_add(columns: np.ndarray, windows: Windows, image: np.ndarray) -> None:
    """Add columns of shape (..., C, kh, kw, rows, columns) to an image (..., C, H, W)."""
    for tap, where, source in windows.taps() if columns.size else ():
        one = image[(..., *source)]
        one += columns[(..., *tap, *where)]


def fold(columns: np.ndarray, windows: Windows) -> np.ndarray:
    """Return the image that columns (..., C, kh, kw, rows, columns) add up to; halves are added in float32."""
    dtype = columns.dtype
    if windows.are_tiles:
        image = np.empty((*columns.shape[:-4], *windows.size), dtype)
        _tiled(image, windows)[...] = _tiles(columns)
        return image
    image = np.zeros((*columns.shape[:-4], *windows.size), sums_dtype(dtype))
    with np.errstate(all="ignore"):  # Inf - Inf is NaN, as in the kernels
        scatter_add(columns, windows, image)
        return image.astype(dtype, copy=False)


def _tiled(image: np.ndarray, windows: Windows) -> np.ndarray:
    """Return a view of an image (..., H, W) as (..., rows, kh, columns, kw)."""
    (rows, columns), (high, wide) = windows.positions, windows.kernel
    return image.reshape(*image.shape[:-2], rows, high, columns, wide)


def _tiles(columns: np.ndarray) -> np.ndarray:
    """Return a view of columns (..., kh, kw, rows, columns) in the same order."""
    first = columns.ndim - 4
    return columns.transpose(*range(first), first + 2, first, first + 3, first + 1)
