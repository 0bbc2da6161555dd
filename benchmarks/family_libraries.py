"""How each library makes the calls of family.py; like libraries.py, in that library's own worker process.

torch is called as pyconv is, but for what only one of them has: the methods beginning with ``_`` say what a user of
torch writes instead. Two columns are no peers but yardsticks: the same call in float32, and a matrix product.
"""

from __future__ import annotations

import importlib
import inspect
from typing import Any

import numpy as np

from .family import Call
from .libraries import Library, OnnxRuntime, Pyconv, Timed, Torch, UnsupportedError, onnx_model

HALVES = ("float16", "bfloat16")
YARDSTICKS = ("pyconv float32", "numpy product")


class PyconvFamily(Pyconv):
    """The project; weights that do not change are packed beforehand, unless raw ones are asked for."""

    variants = ("pyconv", "pyconv float32")

    def call(self, variant: str, call: Call, *arrays: np.ndarray) -> Timed:
        """Prepare a variant: 'pyconv', 'pyconv raw' and, for halves alone, 'pyconv float32'."""
        if variant == "pyconv float32":
            if call.dtype not in HALVES:
                raise UnsupportedError("for float16 and bfloat16")
            arrays = tuple(a.astype(np.float32) for a in arrays)
        function, given = self._function(call), dict(zip(call.shapes, arrays, strict=True))
        forced = {"algorithm": self.options.algorithm} if self.options.algorithm else {}
        if forced and "algorithm" not in inspect.signature(function).parameters:
            raise UnsupportedError("its algorithm can't be chosen")
        if call.packs and variant != "pyconv raw":
            given["weight"] = self.module.pack(given["weight"])
        arguments = {**call.arguments, **forced}
        if "out" not in given:
            return Timed(lambda: function(**given, **arguments), np.asarray)
        base = given.pop("out")
        return Timed(lambda: function(**given, **arguments, out=base.copy()), np.asarray)

    def _function(self, call: Call) -> Any:
        module, _, name = call.function.rpartition(".")
        home = {"": "pyconv.nn.functional", "grad": "pyconv.nn.grad", "quantized": "pyconv.quantized"}[module]
        return getattr(importlib.import_module(home), name)

    def reference(self, call: Call, *arrays: np.ndarray) -> np.ndarray:
        if call.function.startswith("quantized."):
            return quantized_reference(self.module.conv2d, call, *arrays)
        function, given = self._function(call), dict(zip(call.shapes, arrays, strict=True))
        if "algorithm" in inspect.signature(function).parameters:
            given["algorithm"] = "reference"
        return function(**given, **call.arguments)


class TorchFamily(Torch):
    """PyTorch, eager: gradients by torch.nn.grad, which calls what autograd's backward does."""

    variants = ("torch", "torch channels_last")

    def call(self, variant: str, call: Call, *arrays: np.ndarray) -> Timed:
        """Prepare a variant: 'torch' has its tensors in the call's own layout, 'torch channels_last' in that one."""
        torch = self.module
        tensors = [self._tensor(array) for array in arrays]
        if variant == "torch channels_last":
            if max(tensor.dim() for tensor in tensors) != 4:
                raise UnsupportedError("for images")
            tensors = [tensor.contiguous(memory_format=torch.channels_last) for tensor in tensors]
        return Timed(self._made(call, *tensors), self._array)

    def _tensor(self, array: np.ndarray) -> Any:
        if array.dtype.name == "bfloat16":
            return self._tensor(array.view(np.int16)).view(self.module.bfloat16)
        tensor = self.module.from_numpy(np.ascontiguousarray(array))
        return tensor if array.flags.c_contiguous else tensor.contiguous(memory_format=self.module.channels_last)

    def _array(self, tensor: Any) -> np.ndarray:
        return (tensor.float() if tensor.dtype == self.module.bfloat16 else tensor).numpy()

    def _made(self, call: Call, *tensors: Any) -> Any:
        """Return a function without arguments that makes the call."""
        if call.function.startswith("quantized."):
            raise UnsupportedError("it has other quantised operators than ONNX")
        if call.is_per_sample:
            return self._per_sample(call, *tensors)
        if call.function in ("conv1d", "conv2d"):
            return self._convolution(call, *tensors)
        module, _, name = call.function.rpartition(".")
        function = getattr(self.module.nn.grad if module else self.module.nn.functional, name)
        given = dict(zip(call.shapes, tensors, strict=True))
        return lambda: function(**given, **call.arguments)

    def _per_sample(self, call: Call, x: Any, w: Any) -> Any:
        """All samples as the groups of one image."""
        n, function = len(x), self.module.nn.functional.conv2d
        arguments = {**call.arguments, "groups": n * call.arguments.get("groups", 1)}

        def run() -> Any:
            y = function(x.reshape(1, -1, *x.shape[2:]), w.reshape(-1, *w.shape[2:]), **arguments)
            return y.reshape(n, -1, *y.shape[2:])

        return run

    def _convolution(self, call: Call, x: Any, w: Any, out: Any = None) -> Any:
        """Padding that the call doesn't have is a step before it, and the sum of two results one after it."""
        functional = self.module.nn.functional
        function, pads = getattr(functional, call.function), call.pads
        arguments = {name: call.arguments[name] for name in ("stride", "dilation", "groups") if name in call.arguments}
        mode = call.arguments.get("padding_mode", "constant")
        if mode == "constant" and not call.arguments.get("padding_value") and all(a == b for a, b in pads):
            arguments["padding"] = tuple(before for before, _ in pads)
            if out is None:
                return lambda: function(x, w, **arguments)
            return lambda: out + function(x, w, **arguments)
        flat = [number for pair in reversed(pads) for number in pair]
        value = call.arguments.get("padding_value")
        return lambda: function(functional.pad(x, flat, mode, value), w, **arguments)

    def reference(self, call: Call, *arrays: np.ndarray) -> np.ndarray:
        if call.function.startswith("quantized."):
            return quantized_reference(self._conv2d, call, *arrays)
        return self._array(self._made(call, *map(self._tensor, arrays))())

    def _conv2d(self, x: np.ndarray, w: np.ndarray, **arguments: Any) -> np.ndarray:
        return self.module.conv2d(self._tensor(x), self._tensor(w), **arguments).numpy()


def quantized_reference(conv2d: Any, call: Call, x: np.ndarray, w: np.ndarray) -> np.ndarray:
    """Compute ONNX's definition in float64, in which all of it is exact."""
    known = call.arguments
    geometry = {name: known[name] for name in ("stride", "padding", "dilation", "groups") if name in known}
    sums = conv2d(x - known["x_zero_point"], w - known["w_zero_point"], **geometry)
    if call.function == "quantized.conv_integer":
        return sums
    scaled = sums * (known["x_scale"] * known["w_scale"] / known["y_scale"])
    return np.clip(np.rint(scaled) + known["y_zero_point"], 0, 255)


# Of a function: the operator, and the operator's inputs; what is no array is an initializer of that type.
ONNX = {
    "conv1d": ("Conv", {"input": None, "weight": None}),
    "conv2d": ("Conv", {"input": None, "weight": None}),
    **{f"conv_transpose{rank}d": ("ConvTranspose", {"input": None, "weight": None}) for rank in (1, 2, 3)},
    "quantized.conv_integer": ("ConvInteger", dict.fromkeys(("x", "w", "x_zero_point", "w_zero_point"), np.uint8)),
    "quantized.qlinear_conv": (
        "QLinearConv",
        {
            "x": None, "x_scale": np.float32, "x_zero_point": np.uint8,
            "w": None, "w_scale": np.float32, "w_zero_point": np.uint8,
            "y_scale": np.float32, "y_zero_point": np.uint8,
        },
    ),
}  # fmt: skip


class OnnxRuntimeFamily(OnnxRuntime):
    """A model of one node, its weights prepacked by the session."""

    def call(self, variant: str, call: Call, *arrays: np.ndarray) -> Timed:  # noqa: ARG002
        """Prepare a session as for a layer."""
        known = {"padding_mode", "padding_value", "accumulate"}
        if call.function not in ONNX or call.is_per_sample or known & call.arguments.keys():
            raise UnsupportedError("no such operator")
        if call.dtype not in ("float32", "uint8"):
            raise UnsupportedError("its CPU convolution is float32 only")
        kind, inputs = ONNX[call.function]
        values = {**call.arguments, **dict(zip(call.shapes, arrays, strict=True))}
        x, *rest = (np.asarray(values[name], dtype) for name, dtype in inputs.items())
        pads = [pad for side in zip(*call.pads, strict=True) for pad in side]
        attributes = {
            "kernel_shape": call.weight_shape[2:], "strides": call.per_axis("stride", 1), "pads": pads,
            "dilations": call.per_axis("dilation", 1), "group": call.arguments.get("groups", 1),
        }  # fmt: skip
        y_type = {"ConvInteger": np.int32, "QLinearConv": np.uint8}.get(kind, np.float32)
        model = onnx_model(kind, x, dict(zip("wabcdefg", rest)), y_type, attributes)
        return self.session(model, np.ascontiguousarray(x))


class NumPy(Library):
    """A matrix product of as many operations: what a transposed convolution costs before its sums are put in place."""

    name = "numpy"
    needs = ("numpy",)
    variants = ("numpy product",)

    @staticmethod
    def environment(options: Any) -> dict[str, str]:
        return Library.environment(options) | {"OPENBLAS_NUM_THREADS": str(options.threads)}

    def call(self, variant: str, call: Call, *arrays: np.ndarray) -> Timed:  # noqa: ARG002
        """Prepare the product: filters times channels, times channels times positions."""
        if call.group != "transposed" or "groups" in call.arguments:
            raise UnsupportedError("for transposed convolutions without groups")
        x, w = arrays
        columns = np.ascontiguousarray(np.moveaxis(x, 1, 0)).reshape(len(w), -1)
        filters = np.ascontiguousarray(w.reshape(len(w), -1).T)
        return Timed(lambda: filters @ columns, None)


FAMILY = {library.name: library for library in (PyconvFamily, TorchFamily, OnnxRuntimeFamily, NumPy)}
