"""One class per library: how it is imported, capped and called. All of it runs in that library's own worker process.

To add a library, add a class to `LIBRARIES`. An operation is a method of these classes, named like `Layer.op`, that
takes ``(variant, layer, x, w, b)`` in NCHW and returns a `Timed`. Every library gets its data and weights prepared
outside the timing, in the layout it likes best, and may keep its result in its own.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from .layers import Layer


class UnsupportedError(Exception):
    """The library can't do this layer, dtype or variant; no failure, but the report says so."""


class Options(NamedTuple):
    """What every worker process is told at its start; None means the library's own choice."""

    threads: int = 1
    dtype: str = "float32"
    isa: str | None = None
    algorithm: str | None = None
    accuracy: str | None = None
    family: bool = False  # which of the two tables is timed


class Timed(NamedTuple):
    """`call` is what is timed; `result` makes an NCHW array of what a call returned, None where none can be checked."""

    call: Callable[[], Any]
    result: Callable[[Any], np.ndarray] | None


class Library:
    """What a library class has to offer; the benchmark knows no more than this."""

    name = ""
    needs: tuple[str, ...] = ()  # packages, by their import names
    variants: tuple[str, ...] = ()  # the ways of using it that are timed
    capped = True  # whether `environment` can hold it to a lower instruction set

    @classmethod
    def missing(cls) -> list[str]:
        """Names of needed packages that aren't installed."""
        return [name for name in cls.needs if importlib.util.find_spec(name) is None]

    @staticmethod
    def environment(options: Options) -> dict[str, str]:
        """Variables that the process must start with."""
        return {"OMP_NUM_THREADS": str(options.threads)}

    def __init__(self, options: Options) -> None:
        self.options = options
        self.module = importlib.import_module(self.name)

    def about(self) -> dict[str, Any]:
        """Versions and facts for the head of the report."""
        return {"version": self.module.__version__}

    def reference(self, layer: Layer, x: np.ndarray, w: np.ndarray, b: np.ndarray | None) -> np.ndarray:
        """Compute the layer in float64; only the libraries named in `ORACLES` can."""
        raise NotImplementedError

    def peak_gflops(self) -> float | None:
        """Peak of fused multiply-adds in registers, summed over the threads; only pyconv measures it."""
        return None


def _as_2d(layer: Layer) -> Callable[[Any], np.ndarray]:
    """Return what gives the result of a 1-D layer its height of 1 back."""
    return np.asarray if layer.ndim == 2 else lambda y: np.asarray(y)[:, :, None]


class Pyconv(Library):
    """The project itself: the installed package where there is one, else the source folder."""

    name = "pyconv"
    needs = ("pyconv",)
    variants = ("pyconv",)

    @staticmethod
    def environment(options: Options) -> dict[str, str]:
        chosen = {"PYCONV_ISA": options.isa, "PYCONV_ACCURACY": options.accuracy}
        threads = {"OMP_NUM_THREADS": str(options.threads), "PYCONV_NUM_THREADS": str(options.threads)}
        return threads | {key: value for key, value in chosen.items() if value}

    def __init__(self, options: Options) -> None:
        super().__init__(options)
        try:
            self.core = importlib.import_module("pyconv._core")
        except ImportError:
            self.core = None
        self.module.set_num_threads(options.threads)

    def about(self) -> dict[str, Any]:
        return super().about() | {
            "package": self.module.__path__[0],
            "core": self.core and self.core.__file__,
            "isa": self.core and self.module.config.isa(),
            "isas": list(self.core.isas()) if self.core else [],  # the best one first
            "accuracy": self.module.get_accuracy(),
            "threads": self.module.get_num_threads(),
        }

    def conv(self, variant: str, layer: Layer, x: np.ndarray, w: np.ndarray, b: np.ndarray | None) -> Timed:
        """Prepare a variant.

        'pyconv': a frozen module, its weights packed beforehand. 'pyconv train': a module that isn't frozen.
        'pyconv raw': the functional call with the weights as an ndarray.
        """
        ndim, algorithm = layer.ndim, self.options.algorithm
        if ndim == 1:
            x, w = x[:, :, 0], w[:, :, 0]
        geometry = layer.stride[-ndim:], layer.padding[-ndim:], layer.dilation[-ndim:], layer.groups
        if variant == "pyconv raw":
            function = getattr(self.module, f"conv{ndim}d")
            forced = {"algorithm": algorithm} if algorithm else {}
            call = lambda: function(x, w, b, *geometry, **forced)  # noqa: E731
        else:
            make = getattr(self.module.nn, f"Conv{ndim}d")
            sizes = layer.c_in, layer.c_out, w.shape[2:]
            module = make(*sizes, *geometry, bias=b is not None, dtype=x.dtype, algorithm=algorithm)
            module.weight[...] = w
            if b is not None:
                module.bias[...] = b
            if variant == "pyconv":
                module.eval()
            call = lambda: module(x)  # noqa: E731
        if algorithm:
            try:
                call()
            except ValueError as error:
                raise UnsupportedError(f"algorithm {algorithm!r}: {error}") from None
        return Timed(call, _as_2d(layer))

    def reference(self, layer: Layer, x: np.ndarray, w: np.ndarray, b: np.ndarray | None) -> np.ndarray:
        geometry = layer.stride, layer.padding, layer.dilation, layer.groups
        return self.module.conv2d(x, w, b, *geometry, algorithm="reference")

    def peak_gflops(self) -> float | None:
        measure = getattr(self.core, "fma_peak_gflops", None)
        if measure is None:
            return None
        job = self.module.config.isa(), {"float32": "f32", "float64": "f64"}[self.options.dtype]
        with ThreadPoolExecutor(self.options.threads) as pool:
            return sum(pool.map(lambda _: measure(*job), range(self.options.threads)))


# What holds oneDNN, torch's own kernels, and MKL, whose products some of its convolutions are, to the same level.
TORCH_CAPS = {
    "avx2": {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"},
    "sse2": {"ONEDNN_MAX_CPU_ISA": "SSE41", "ATEN_CPU_CAPABILITY": "default", "MKL_ENABLE_INSTRUCTIONS": "SSE4_2"},
}


class Torch(Library):
    """PyTorch, without gradients."""

    name = "torch"
    needs = ("torch",)
    variants = ("torch", "torch channels_last", "torch prepacked")

    @staticmethod
    def environment(options: Options) -> dict[str, str]:
        return Library.environment(options) | TORCH_CAPS.get(options.isa, {})

    def __init__(self, options: Options) -> None:
        super().__init__(options)
        self.module.set_num_threads(options.threads)
        self.module.set_grad_enabled(False)

    def about(self) -> dict[str, Any]:
        return super().about() | {"isa": self.module.backends.cpu.get_cpu_capability()}

    def conv(self, variant: str, layer: Layer, x: np.ndarray, w: np.ndarray, b: np.ndarray | None) -> Timed:
        """Prepare a variant.

        'torch': eager, contiguous. 'torch channels_last': both tensors in that format (a 1-D layer as a 2-D one).
        'torch prepacked': channels_last, and the weights in oneDNN's own blocked format beforehand, called through the
        operator that torch.compile emits. It is the only way in torch without any reorder per call (checked with
        ONEDNN_VERBOSE=1): the modules of torch.utils.mkldnn reorder weights and dense inputs every time.
        'torch module': an nn.Conv2d, as a user has it.
        """
        torch = self.module
        x, w, b = (None if a is None else torch.from_numpy(a).clone() for a in (x, w, b))
        geometry = layer.stride, layer.padding, layer.dilation, layer.groups
        if variant == "torch module":
            module = torch.nn.Conv2d(layer.c_in, layer.c_out, layer.kernel, *geometry, b is not None).eval()
            module.load_state_dict({"weight": w} | ({} if b is None else {"bias": b}))
            return Timed(lambda: module(x), np.asarray)
        if layer.ndim == 1 and variant == "torch":
            x, w = x[:, :, 0], w[:, :, 0]
            geometry = layer.stride[1:], layer.padding[1:], layer.dilation[1:], layer.groups
            return Timed(lambda: torch.conv1d(x, w, b, *geometry), _as_2d(layer))
        if variant != "torch":
            x, w = (a.contiguous(memory_format=torch.channels_last) for a in (x, w))
        if variant == "torch prepacked":
            packed = self._pack(layer, w)
            run, tail = torch.ops.mkldnn._convolution_pointwise, ("none", [], "")
            geometry = layer.padding, layer.stride, layer.dilation, layer.groups
            return Timed(lambda: run(x, packed, b, *geometry, *tail), np.asarray)
        return Timed(lambda: torch.conv2d(x, w, b, *geometry), np.asarray)

    def _pack(self, layer: Layer, w: Any) -> Any:
        if self.options.dtype != "float32":
            raise UnsupportedError("oneDNN packs float32 weights only")
        pack = getattr(self.module._C._nn, "mkldnn_reorder_conv2d_weight", None)
        if pack is None or not self.module.backends.mkldnn.is_available():
            raise UnsupportedError("this torch has no oneDNN weight packing")
        return pack(w.to_mkldnn(), layer.padding, layer.stride, layer.dilation, layer.groups, layer.x_shape)

    def reference(self, layer: Layer, x: np.ndarray, w: np.ndarray, b: np.ndarray | None) -> np.ndarray:
        x, w, b = (None if a is None else self.module.from_numpy(a) for a in (x, w, b))
        return self.module.conv2d(x, w, b, layer.stride, layer.padding, layer.dilation, layer.groups).numpy()


class OnnxRuntime(Library):
    """A model of one node, its weights prepacked by the session."""

    name = "onnxruntime"
    needs = ("onnxruntime", "onnx")
    variants = ("onnxruntime",)
    capped = False  # no variable and no option lowers its instruction set

    def conv(self, variant: str, layer: Layer, x: np.ndarray, w: np.ndarray, b: np.ndarray | None) -> Timed:  # noqa: ARG002
        """Prepare a session whose input and output are bound once, so that a call copies neither."""
        if self.options.dtype != "float32":
            raise UnsupportedError("its CPU convolution is float32 only")
        geometry = {
            "kernel_shape": layer.kernel, "strides": layer.stride, "pads": layer.padding * 2,
            "dilations": layer.dilation, "group": layer.groups,
        }  # fmt: skip
        return self.session(onnx_model("Conv", x, {"w": w} if b is None else {"w": w, "b": b}, x.dtype, geometry), x)

    def session(self, model: bytes, x: np.ndarray) -> Timed:
        """Bind input and output of a model once."""
        ort = self.module
        options = ort.SessionOptions()
        options.intra_op_num_threads = self.options.threads
        options.inter_op_num_threads = 1
        session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        binding = session.io_binding()
        binding.bind_cpu_input("x", x)
        first = session.run(None, {"x": x})[0]
        y = ort.OrtValue.ortvalue_from_shape_and_type(first.shape, first.dtype, "cpu")
        binding.bind_ortvalue_output("y", y)
        return Timed(lambda: session.run_with_iobinding(binding), lambda _: y.numpy())


def onnx_model(
    kind: str, x: np.ndarray, weights: dict[str, np.ndarray], y_type: np.dtype | type, attributes: dict[str, Any]
) -> bytes:
    """Make a model of one node whose inputs are x and, as initializers, the weights."""
    onnx = importlib.import_module("onnx")
    helper = onnx.helper
    x_number, y_number = (helper.np_dtype_to_tensor_dtype(np.dtype(dtype)) for dtype in (x.dtype, y_type))
    graph = helper.make_graph(
        [helper.make_node(kind, ["x", *weights], ["y"], **attributes)],
        kind,
        [helper.make_tensor_value_info("x", x_number, x.shape)],
        [helper.make_tensor_value_info("y", y_number, None)],
        [onnx.numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    return model.SerializeToString()


class OpenVino(Library):
    """A model of one operation, compiled for latency in true float32."""

    name = "openvino"
    needs = ("openvino",)
    variants = ("openvino",)

    @staticmethod
    def environment(options: Options) -> dict[str, str]:
        return Torch.environment(options)  # its oneDNN obeys the same variable

    def conv(self, variant: str, layer: Layer, x: np.ndarray, w: np.ndarray, b: np.ndarray | None) -> Timed:  # noqa: ARG002
        """Prepare a request whose input tensor is set once, so that a call copies neither input nor output."""
        if self.options.dtype != "float32":
            raise UnsupportedError("its CPU plugin computes float64 in float32")
        openvino, opset = self.module, importlib.import_module("openvino.opset13")
        source = opset.parameter(layer.x_shape, np.float32)
        geometry = [list(pair) for pair in (layer.stride, layer.padding, layer.padding, layer.dilation)]
        if layer.groups == 1:
            y = opset.convolution(source, opset.constant(w), *geometry)
        else:
            grouped = w.reshape(layer.groups, -1, *w.shape[1:])
            y = opset.group_convolution(source, opset.constant(grouped), *geometry)
        if b is not None:
            y = opset.add(y, opset.constant(b.reshape(1, -1, 1, 1)))
        settings = {
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": 1,
            "INFERENCE_NUM_THREADS": self.options.threads,
            "INFERENCE_PRECISION_HINT": "f32",
        }
        request = openvino.Core().compile_model(openvino.Model([y], [source]), "CPU", settings).create_infer_request()
        tensor = openvino.Tensor(openvino.Type.f32, list(layer.x_shape))
        tensor.data[...] = x
        request.set_input_tensor(tensor)
        return Timed(lambda: request.infer(share_outputs=True), lambda _: request.get_output_tensor().data)


LIBRARIES = {library.name: library for library in (Pyconv, Torch, OnnxRuntime, OpenVino)}
ORACLES = ("torch", "pyconv")  # who computes the float64 results, the first that is installed
EAGER = "torch"  # the variant that "torch eager" means
