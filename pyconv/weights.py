"""Weights in files: NumPy's .npz, and .safetensors where that package is installed. Never pickle.

>>> import pyconv
>>> from pyconv import nn
>>> path = getfixture("tmp_path") / "edges.npz"
>>> pyconv.save_weights(nn.Conv2d(3, 8, 3), path)
>>> {name: array.shape for name, array in pyconv.load_weights(path).items()}
{'weight': (8, 3, 3, 3), 'bias': (8,)}
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .arrays import as_array, contiguous
from .nn._layer import Layer
from .problem import fail

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["load_weights", "save_weights"]

FORMATS = (".npz", ".safetensors")
KINDS = "bfciu"
SAFETENSORS = {
    "BOOL": "bool", "F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64", "C64": "complex64",
    "I8": "int8", "U8": "uint8", "I16": "int16", "U16": "uint16", "I32": "int32", "U32": "uint32", "I64": "int64",
    "U64": "uint64",
}  # fmt: skip
MOST_BYTES = 2**33


def save_weights(weights: Layer | Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Write the parameters of layers, or any arrays by name, to a file.

    Parameters
    ----------
    weights : layer or mapping
        A layer, whose `state_dict` is written; or names with arrays of numbers (or bools), or with layers, whose
        parameters are called "name.weight" and "name.bias", as in torch. All dtypes are kept.
    path : str or path
        Ends with '.npz', which :func:`numpy.load` reads too, or '.safetensors', which needs the package of that name.
        The file is there as a whole or, after an error, as it was.

    Raises
    ------
    ValueError
        If the ending is another one, a name cannot be a name in such a file, or the format lacks a dtype.
    TypeError
        If `weights` or what is in it is of the wrong kind.
    ImportError
        If the package safetensors is wanted and missing.
    OSError
        If the file cannot be written.

    See Also
    --------
    load_weights : reads them.

    Examples
    --------
    >>> import numpy as np, pyconv
    >>> from pyconv import nn
    >>> net = {"conv1": nn.Conv2d(3, 8, 3), "conv2": nn.Conv2d(8, 8, 1, bias=False)}
    >>> path = getfixture("tmp_path") / "net.npz"
    >>> pyconv.save_weights(net, path)
    >>> weights = pyconv.load_weights(path)
    >>> list(weights)
    ['conv1.weight', 'conv1.bias', 'conv2.weight']
    >>> for name, layer in net.items():
    ...     print(layer.load_state_dict(weights, prefix=f"{name}."))
    <All keys matched successfully>
    <All keys matched successfully>
    """
    function = "save_weights"
    path, ending = _checked_path(function, path)
    arrays = _named_arrays(function, weights)
    if ending == ".npz":
        from . import npz  # and zipfile, which takes as long to import as most of pyconv

        for name in arrays:
            if not npz.is_name(name):
                fail(ValueError, function, "weights", f"must have names without paths: {npz.NAME_RULE}", name)
        _replace(path, lambda temporary: npz.write(temporary, arrays))
        return
    for name, array in arrays.items():
        if array.dtype.name not in SAFETENSORS.values():
            rule = f"must have dtypes that safetensors has ({', '.join(SAFETENSORS.values())}): {name!r}"
            fail(ValueError, function, "weights", rule, array.dtype)
    _safetensors(function)
    from safetensors import numpy as safetensors

    _replace(path, lambda temporary: safetensors.save_file(arrays, temporary))


def load_weights(path: str | os.PathLike[str], *, max_bytes: int = MOST_BYTES) -> dict[str, NDArray[Any]]:
    """Read named arrays from a file, which need not be trusted: nothing in it is executed.

    Parameters
    ----------
    path : str or path
        Ends with '.npz' or '.safetensors'; the latter needs the package of that name. What torch's users save with
        safetensors is read with the names it has there.
    max_bytes : int
        Files whose arrays take more memory than this altogether are refused before any is read; 8 GiB if not given.

    Returns
    -------
    dict
        Names with new arrays, in the dtypes they were saved in. bfloat16 needs ml_dtypes.

    Raises
    ------
    ValueError
        If the ending is another one; or the file is damaged, lies about its sizes, takes more than `max_bytes`, or
        holds anything but arrays of numbers and bools (pickled objects, records) with plain names.
    TypeError
        If an argument is of the wrong kind.
    ImportError
        If a package that the file needs is missing.
    OSError
        If the file cannot be read.

    See Also
    --------
    save_weights : writes them.
    pyconv.nn.Conv2d.load_state_dict : puts them into a layer; its `prefix` picks the layer's own out of a network's.

    Examples
    --------
    One layer out of a network's weights, and all of them by hand:

    >>> import numpy as np, pyconv
    >>> from pyconv import nn
    >>> path = getfixture("tmp_path") / "resnet.npz"
    >>> pyconv.save_weights({"layer1.0.conv1.weight": np.zeros((64, 64, 3, 3), np.float32)}, path)
    >>> weights = pyconv.load_weights(path)
    >>> conv = nn.Conv2d(64, 64, 3, padding=1, bias=False)
    >>> conv.load_state_dict(weights, prefix="layer1.0.conv1.")
    <All keys matched successfully>
    >>> own = {name.removeprefix("layer1.0.conv1."): array for name, array in weights.items()}
    >>> conv.load_state_dict(own)
    <All keys matched successfully>
    """
    function = "load_weights"
    path, ending = _checked_path(function, path)
    if isinstance(max_bytes, bool) or not isinstance(max_bytes, (int, np.integer)):
        fail(TypeError, function, "max_bytes", "must be an int", max_bytes)
    from . import npz

    if ending == ".npz":
        try:
            return npz.read(path, int(max_bytes))
        except npz.RefusedError as reason:
            fail(ValueError, function, "path", f"must be an honest .npz of arrays of numbers: {reason}", str(path))
    package = _safetensors(function)
    if path.stat().st_size > max_bytes:
        fail(ValueError, function, "path", f"must be a file of at most max_bytes = {max_bytes}", str(path))
    try:
        tensors = package.deserialize(path.read_bytes())
    except package.SafetensorError as reason:
        fail(ValueError, function, "path", f"must be a sound .safetensors file: {reason}", str(path))
    return {name: _array(name, tensor, path) for name, tensor in sorted(tensors, key=lambda named: named[0])}


def _checked_path(function: str, path: Any) -> tuple[Path, str]:
    try:
        text = os.fspath(path)
    except Exception:  # noqa: BLE001 - what an object's own __fspath__ raises, too
        text = None
    if not isinstance(text, str):
        fail(TypeError, function, "path", "must be a str or a path", path)
    if "\0" in text:
        fail(ValueError, function, "path", "must not hold a null character", path)
    path = Path(text)
    if path.suffix not in FORMATS:
        fail(ValueError, function, "path", f"must end with {' or '.join(map(repr, FORMATS))}", str(path))
    return path, path.suffix


def _named_arrays(function: str, weights: Any) -> dict[str, np.ndarray]:
    """Return what is to be written, by name: contiguous native arrays."""
    if isinstance(weights, Layer):
        weights = weights.state_dict()
    if not isinstance(weights, Mapping):
        fail(TypeError, function, "weights", "must be a layer or a mapping of names to arrays or layers", type(weights))
    named: dict[str, Any] = {}
    for name, value in weights.items():
        if not isinstance(name, str):
            fail(TypeError, function, "weights", "must have strings as names", name)
        more = value.state_dict(prefix=f"{name}.") if isinstance(value, Layer) else {name: value}
        for key in more:
            if key in named:
                fail(ValueError, function, "weights", "must not have two arrays of one name", key)
        named |= more
    return {name: contiguous(as_array(function, f"weights[{name!r}]", value, KINDS)) for name, value in named.items()}


def _replace(path: Path, write) -> None:
    """Let `write` write a file beside `path`, and then put it there."""
    temporary = path.with_name(f"{path.stem}.{os.urandom(8).hex()}{path.suffix}")
    try:
        write(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _safetensors(function: str):
    try:
        import safetensors
    except ImportError:
        raise ImportError(
            f"{function}: .safetensors files need the package safetensors: pip install 'pyconv-cpu[weights]'"
        ) from None
    return safetensors


def _array(name: str, tensor: Mapping[str, Any], path: Path) -> np.ndarray:
    """Return one tensor of a .safetensors file."""
    from .npz import bfloat16

    known = SAFETENSORS.get(tensor["dtype"])
    if known is None:
        rule = f"must hold numbers of {', '.join(SAFETENSORS)}: {name!r} has {tensor['dtype']}"
        fail(ValueError, "load_weights", "path", rule, str(path))
    if not tensor["data"]:
        return np.empty(tensor["shape"], bfloat16() if known == "bfloat16" else known)
    stored = np.dtype("u2" if known == "bfloat16" else known)
    array = np.frombuffer(tensor["data"], stored.newbyteorder("<")).astype(stored).reshape(tensor["shape"])
    return array.view(bfloat16()) if known == "bfloat16" else array
