"""The second table of the benchmark, ``python -m benchmarks --family``: every kind of call beside plain convolution.

`calls` is the one list of them. A call is the name of a function that pyconv shares with torch, the shapes of its
arrays and its other arguments, so both libraries are given the same line; family_libraries.py says what the others do.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from math import prod
from typing import Any, ClassVar

import numpy as np

from .layers import Layer, read_layers

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Call:
    """One call: ``function(**arrays of these shapes, **arguments)``; the name begins with the class of the summary."""

    name: str
    function: str  # of nn.functional, nn.grad ("grad.conv2d_input") or quantized ("quantized.conv_integer")
    shapes: dict[str, Shape]
    arguments: dict[str, Any] = field(default_factory=dict)
    dtype: str = "float32"
    channels_last: bool = False

    op: ClassVar[str] = "call"
    is_twin: ClassVar[bool] = False
    groups: ClassVar[int] = 1  # no dense twin is wanted of any

    @property
    def group(self) -> str:
        """The class it is summed up in."""
        return self.name.partition(".")[0]

    @property
    def weight_shape(self) -> Shape:
        """Shape of one sample's filters; empty where there are none."""
        shape = self.shapes.get("weight") or self.shapes.get("w") or self.arguments.get("weight_size") or ()
        return tuple(shape[1:] if self.is_per_sample else shape)

    @property
    def is_per_sample(self) -> bool:
        """Whether every sample has filters of its own."""
        return "input" in self.shapes and len(self.shapes.get("weight", ())) > len(self.shapes["input"])

    @property
    def packs(self) -> bool:
        """Whether a user would pack its weights once: they are given, and the same for every sample."""
        return self.function.startswith("conv") and not self.is_per_sample

    def per_axis(self, name: str, default: int) -> Shape:
        """An argument of one number for all axes, or one for each."""
        value = self.arguments.get(name, default)
        rank = len(self.weight_shape) - 2
        return (value,) * rank if isinstance(value, int) else tuple(value)

    @property
    def pads(self) -> list[Shape]:
        """The padding before and after each axis."""
        padding = self.arguments.get("padding", 0)
        if not isinstance(padding, str):
            return [(p, p) if isinstance(p, int) else tuple(p) for p in self.per_axis("padding", 0)]
        sizes = zip(self.input_shape[2:], self.weight_shape[2:], self.per_axis("stride", 1), strict=True)
        totals = [max(0, (-(-size // s) - 1) * s + k - size) for size, k, s in sizes]
        return [(total, 0) if padding == "causal" else (total // 2, total - total // 2) for total in totals]

    @property
    def input_shape(self) -> Shape:
        """Shape of what a convolution reads."""
        return tuple(self.shapes.get("input") or self.shapes["x"])

    @property
    def extents(self) -> list[int]:
        """Spatial size of a convolution's result."""
        steps = self.per_axis("stride", 1), self.per_axis("dilation", 1)
        sizes = zip(self.input_shape[2:], self.weight_shape[2:], *steps, self.pads, strict=True)
        return [(n + sum(pad) - d * (k - 1) - 1) // s + 1 for n, k, s, d, pad in sizes]

    @property
    def flop(self) -> int:
        """Additions and multiplications of the definition: two for each tap and input of each output of a convolution.

        Of a transposed one and of gradients, the convolution is the one they belong to. 0 for unfold and fold.
        """
        if not self.weight_shape:
            return 0
        if "transpose" in self.function:
            outputs = prod(self.input_shape)
        elif self.function.startswith("grad."):
            outputs = prod(self.shapes["grad_output"])
        else:
            outputs = self.input_shape[0] * self.weight_shape[0] * prod(self.extents)
        return 2 * outputs * prod(self.weight_shape[1:])

    def data(self, dtype: str = "", *, bias: bool = False) -> tuple[np.ndarray, ...]:  # noqa: ARG002 (as a Layer's)
        """Its arrays, the same in every process: normal numbers, bytes, or whole numbers whose sums fit a byte."""
        rng = np.random.default_rng(zlib.crc32(self.name.encode()))
        arrays = []
        for shape in self.shapes.values():
            if self.dtype == "uint8":
                array = rng.integers(0, 256, shape, np.uint8)
            elif np.issubdtype(number_type(self.dtype), np.integer):
                array = rng.integers(-1, 2, shape).astype(self.dtype)
            else:
                array = rng.standard_normal(shape, np.float32).astype(number_type(self.dtype))
            if self.channels_last and array.ndim == 4:
                array = np.ascontiguousarray(array.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
            arrays.append(array)
        return tuple(arrays)

    def to_dict(self) -> dict[str, Any]:
        """Its fields, ``Call(**fields)`` being the way back."""
        return asdict(self)


def number_type(name: str) -> np.dtype:
    """NumPy's dtype of a name; bfloat16 is ml_dtypes'."""
    if name == "bfloat16":
        import ml_dtypes

        return np.dtype(ml_dtypes.bfloat16)
    return np.dtype(name)


def described(columns: dict[str, Any]) -> Layer | Call:
    """Make a Layer or a Call of what its `to_dict` returned."""
    return Call(**columns) if "function" in columns else Layer(**columns)


def calls() -> list[Call]:
    """Every call that is timed."""
    kinds = transposed, gradients, halves, formats, paddings, quantized, windows, per_sample
    return [call for kind in kinds for call in kind()]


def transposed() -> Iterator[Call]:
    """DCGAN's and U-Net's layers, upsampling of audio, an inverse STFT, depthwise (bilinear) upsampling."""
    rows = {
        "dcgan_100_512": ((16, 100, 1, 1), (512, 4, 4), {}),
        "unet_1024_512": ((1, 1024, 28, 28), (512, 2, 2), {"stride": 2}),
        "unet_512_256": ((1, 512, 56, 56), (256, 2, 2), {"stride": 2}),
        "unet_256_128": ((1, 256, 104, 104), (128, 2, 2), {"stride": 2}),
        "unet_128_64": ((1, 128, 200, 200), (64, 2, 2), {"stride": 2}),
        "istft_1024_256": ((1, 1026, 256), (1, 1024), {"stride": 256}),
        "hifigan_512_256": ((1, 512, 64), (256, 16), {"stride": 8, "padding": 4}),
        "hifigan_128_64": ((1, 128, 4096), (64, 4), {"stride": 2, "padding": 1}),
        "vnet_128_64": ((1, 128, 16, 16, 16), (64, 2, 2, 2), {"stride": 2}),
        "dw4x4_64": ((1, 64, 64, 64), (1, 4, 4), {"stride": 2, "padding": 1, "groups": 64}),
    }
    for c_in, c_out, size in ((512, 256, 4), (256, 128, 8), (128, 64, 16), (64, 3, 32)):
        for n in (1, 16):
            name = f"dcgan_{c_in}_{c_out}" + (".b16" if n > 1 else "")
            rows[name] = (n, c_in, size, size), (c_out, 4, 4), {"stride": 2, "padding": 1}
    for name, (x, filters, arguments) in rows.items():
        function = f"conv_transpose{len(x) - 2}d"
        yield Call(f"transposed.{name}", function, {"input": x, "weight": (x[1], *filters)}, arguments)


# Of ResNet-50: channels in and out, kernel, stride, size of the input.
RESNET50 = (
    (64, 64, 1, 1, 56), (64, 64, 3, 1, 56), (64, 256, 1, 1, 56), (256, 64, 1, 1, 56), (256, 128, 1, 1, 56),
    (128, 128, 3, 2, 56), (128, 512, 1, 1, 28), (256, 512, 1, 2, 56), (512, 128, 1, 1, 28), (128, 128, 3, 1, 28),
    (512, 256, 1, 1, 28), (256, 256, 3, 2, 28), (256, 1024, 1, 1, 14), (512, 1024, 1, 2, 28), (1024, 256, 1, 1, 14),
    (256, 256, 3, 1, 14), (1024, 512, 1, 1, 14), (512, 512, 3, 2, 14), (512, 2048, 1, 1, 7), (1024, 2048, 1, 2, 14),
    (2048, 512, 1, 1, 7), (512, 512, 3, 1, 7),
)  # fmt: skip


def gradients() -> Iterator[Call]:
    """Both gradients of ResNet-50's 1x1 and 3x3 layers at batch 16, and of one layer each that is not of two axes."""
    layers = {}
    for c_in, c_out, k, s, size in RESNET50:
        name = f"rn50.{k}x{k}s{s}_{c_in}_{c_out}"
        layers[name] = (16, c_in, size, size), (c_out, c_in, k, k), {"stride": s, "padding": k // 2}
    layers["other.dw3x3_144"] = (16, 144, 56, 56), (144, 1, 3, 3), {"padding": 1, "groups": 144}
    layers["other.c1d_k3_d4"] = (4, 64, 16000), (128, 64, 3), {"padding": 4, "dilation": 4}
    layers["other.c3d_32_32"] = (2, 32, 16, 28, 28), (32, 32, 3, 3, 3), {"padding": 1}
    for name, (x, w, arguments) in layers.items():
        forward = Call(name, "conv", {"input": x, "weight": w}, arguments)
        y = (x[0], w[0], *forward.extents)
        function = f"grad.conv{len(x) - 2}d"
        family, _, short = name.partition(".")
        yield Call(
            f"input gradient {family}.{short}", f"{function}_input", {"weight": w, "grad_output": y},
            {"input_size": x, **arguments},
        )  # fmt: skip
        yield Call(
            f"weight gradient {family}.{short}", f"{function}_weight", {"input": x, "grad_output": y},
            {"weight_size": w, **arguments},
        )  # fmt: skip


def halves() -> Iterator[Call]:
    """The layers of layers.csv in float16 and bfloat16."""
    for dtype in ("float16", "bfloat16"):
        for one in read_layers():
            cut = slice(-one.ndim, None)
            shapes = {name: (*s[:2], *s[2:][cut]) for name, s in (("input", one.x_shape), ("weight", one.w_shape))}
            geometry = {"stride": one.stride[cut], "padding": one.padding[cut], "dilation": one.dilation[cut]}
            name = f"{dtype}.{one.name}"
            yield Call(name, f"conv{one.ndim}d", shapes, {**geometry, "groups": one.groups}, dtype)


def formats() -> Iterator[Call]:
    """One layer in the other number formats."""
    for dtype in ("int8", "int16", "int32", "int64", "complex64", "complex128"):
        shapes = {"input": (1, 64, 28, 28), "weight": (64, 64, 3, 3)}
        yield Call(f"formats.{dtype}", "conv2d", shapes, {"padding": 1}, dtype)


def paddings() -> Iterator[Call]:
    """One layer with each kind of padding, channels-last, and added to a result."""
    shapes = {"input": (1, 64, 56, 56), "weight": (64, 64, 3, 3)}
    for mode in ("reflect", "replicate", "circular", "constant"):
        more = {"padding_value": 0.5} if mode == "constant" else {}
        yield Call(f"padding.{mode}", "conv2d", shapes, {"padding": 1, "padding_mode": mode, **more})
    depthwise = {"input": (1, 96, 112, 112), "weight": (96, 1, 3, 3)}
    yield Call("padding.same_upper_dw", "conv2d", depthwise, {"stride": 2, "padding": "same_upper", "groups": 96})
    yield Call("padding.pairs", "conv2d", shapes, {"padding": ((2, 0), (0, 2))})
    wave = {"input": (1, 64, 16000), "weight": (128, 64, 3)}
    yield Call("padding.causal", "conv1d", wave, {"padding": "causal"})
    yield Call("layout.channels_last", "conv2d", shapes, {"padding": 1}, channels_last=True)
    yield Call("layout.channels_last_dw", "conv2d", depthwise, {"padding": 1, "groups": 96}, channels_last=True)
    yield Call("layout.accumulate", "conv2d", {**shapes, "out": (1, 64, 56, 56)}, {"padding": 1, "accumulate": True})


def quantized() -> Iterator[Call]:
    """ONNX's two operators on bytes."""
    scales = {"x_scale": 2.0**-7, "w_scale": 2.0**-8, "y_scale": 2.0**-2, "y_zero_point": 128}
    zeros = {"x_zero_point": 128, "w_zero_point": 120}
    rows = {
        "3x3_64": ((1, 64, 56, 56), (64, 64, 3, 3), {"padding": 1}),
        "1x1_1024_256": ((1, 1024, 14, 14), (256, 1024, 1, 1), {}),
        "dw3x3_144": ((1, 144, 56, 56), (144, 1, 3, 3), {"padding": 1, "groups": 144}),
    }
    for name, (x, w, more) in rows.items():
        for function, values in (("conv_integer", zeros), ("qlinear_conv", {**zeros, **scales})):
            call = f"quantized.{function}"
            yield Call(f"{call}.{name}", call, {"x": x, "w": w}, {**values, **more}, "uint8")


def windows() -> Iterator[Call]:
    """Unfold and fold."""
    image, matrix = {"input": (1, 64, 56, 56)}, {"input": (1, 576, 3136)}
    yield Call("windows.unfold_3x3", "unfold", image, {"kernel_size": 3, "padding": 1})
    yield Call("windows.fold_3x3", "fold", matrix, {"output_size": (56, 56), "kernel_size": 3, "padding": 1})
    patches, rows = {"input": (8, 3, 224, 224)}, {"input": (8, 768, 196)}
    yield Call("windows.unfold_patches", "unfold", patches, {"kernel_size": 16, "stride": 16})
    yield Call("windows.fold_patches", "fold", rows, {"output_size": (224, 224), "kernel_size": 16, "stride": 16})


def per_sample() -> Iterator[Call]:
    """Filters of each sample's own: modulated convolutions, and the cross-correlation of trackers."""
    shapes = {"input": (8, 64, 32, 32), "weight": (8, 64, 64, 3, 3)}
    yield Call("per sample.modulated_64", "conv2d", shapes, {"padding": 1})
    shapes = {"input": (8, 256, 31, 31), "weight": (8, 256, 1, 7, 7)}
    yield Call("per sample.siamese_256", "conv2d", shapes, {"groups": 256})
