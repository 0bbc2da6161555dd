"""Every public function and attribute with hostile arguments, one at a time and several together.

What may come of it: TypeError, ValueError or MemoryError, the first two saying which function refuses; or the result
that the same numbers give when they are passed sensibly. Never another error, a warning (which is an error in these
tests), a crash, or a change of what was passed to be read.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from hostile import ARRAYS, VALUES, plain
from hypothesis import given, settings
from hypothesis import strategies as st
from test_errors import little_memory

import pyconv
from pyconv import nn, quantized
from pyconv.nn import functional as F

DOCUMENTED = re.compile("Initializing zero-element tensors is a no-op")  # torch's warning, and ours


@dataclass
class Target:
    """A call that is fine with `arguments`. `names`: what its errors may begin with; `written`: what it fills."""

    call: Callable
    arguments: dict
    names: tuple[str, ...]
    written: tuple[str, ...] = ()
    also: tuple[type[Exception], ...] = ()  # errors that it documents beyond the three

    def hostile(self, argument):
        """Everything that stands in for an argument, by name: functions that make it."""
        good = self.arguments[argument]
        arrays = ARRAYS.items() if isinstance(good, np.ndarray) else ()
        return {**VALUES, **{name: partial(make, good) for name, make in arrays}}


def whole(*shape, dtype=np.float32):
    """Small positive whole numbers: exact in every format, in any order of summation."""
    return (np.arange(int(np.prod(shape))) % 5 + 1).reshape(shape).astype(dtype)


def with_weights(layer):
    """The layer with weights that are not random."""
    for name, array in layer.state_dict().items():
        if array.dtype.name != "bfloat16":
            setattr(layer, name, whole(*array.shape, dtype=array.dtype))
    return layer


OPTIONS = {"activation": None, "algorithm": None, "accuracy": None}
SIZES = {"stride": 1, "padding": 1, "dilation": 1, "groups": 1}


def convolutions():
    for nd in (1, 2, 3):
        space, kernel = (4, 3, 5)[-nd:], (2, 1, 3)[-nd:]
        x, w, wt = whole(1, 4, *space), whole(6, 4, *kernel), whole(4, 6, *kernel)
        y = F.__dict__[f"conv{nd}d"](x, w, padding=1)
        yt = F.__dict__[f"conv_transpose{nd}d"](x, wt, padding=0)
        arrays = {"input": x, "weight": w, "bias": whole(6)}
        common = {**SIZES, **OPTIONS, "residual": y * 2, "out": y * 0, "accumulate": False}
        more = {"padding_mode": "zeros", "padding_value": 0}
        transposed = {"weight": wt, "padding": 0, "output_padding": 0, "residual": yt * 2, "out": yt * 0}
        name = f"conv{nd}d"
        yield name, Target(F.__dict__[name], {**arrays, **common, **more}, (name,), ("out",))
        name = f"conv_transpose{nd}d"
        yield name, Target(F.__dict__[name], {**arrays, **common, **transposed}, (name,), ("out",))
        gradient = {**SIZES, "algorithm": None, "accuracy": None, "grad_output": y}
        name = f"conv{nd}d_input"
        yield name, Target(nn.grad.__dict__[name], {**gradient, "input_size": x.shape, "weight": w}, (name,))
        name = f"conv{nd}d_weight"
        yield name, Target(nn.grad.__dict__[name], {**gradient, "input": x, "weight_size": w.shape}, (name,))
    windows = {"kernel_size": 2, "dilation": 1, "padding": 1, "stride": 1}
    yield "unfold", Target(F.unfold, {"input": whole(1, 2, 3, 4), **windows}, ("unfold",))
    columns = F.unfold(whole(1, 2, 3, 4), 2, padding=1)
    yield "fold", Target(F.fold, {"input": columns, "output_size": (3, 4), **windows}, ("fold",))
    x, w, bias = whole(1, 4, 3, 5, dtype=np.uint8), whole(6, 4, 1, 3, dtype=np.int8), whole(6, dtype=np.int32)
    integers = {"x": x, "w": w, "x_zero_point": 2, "w_zero_point": whole(6, dtype=np.int8), **SIZES}
    yield "conv_integer", Target(quantized.conv_integer, integers, ("conv_integer",))
    scales = {"x_scale": 0.5, "w_scale": whole(6), "y_scale": 2.0, "y_zero_point": np.uint8(3), "bias": bias}
    yield "qlinear_conv", Target(quantized.qlinear_conv, {**integers, **scales}, ("qlinear_conv",))


def packed_call(input, **arguments):
    packed = pyconv.pack(**arguments)
    return packed.weight if input is None else F.conv2d(input, packed, padding=1)


LAYERS = {
    "Conv1d": (5,), "Conv2d": (3, 5), "Conv3d": (2, 3, 5),
    "ConvTranspose1d": (5,), "ConvTranspose2d": (3, 5), "ConvTranspose3d": (2, 3, 5),
}  # fmt: skip


def construct_and_call(name, input, **arguments):
    layer = with_weights(nn.__dict__[name](**arguments))
    if layer._dtype != input.dtype:
        return None
    return layer.eval()(input)


def assign_and_call(make, attribute, frozen, input, value):
    layer = with_weights(make()).train(not frozen)
    setattr(layer, attribute, value)
    return layer(input)


def forward(make, frozen, **arguments):
    return with_weights(make()).train(not frozen)(**arguments)


def load(make, value):
    layer = make()
    layer.load_state_dict({"weight": value, "bias": whole(6)})
    return layer.weight


def layers():
    for name, space in LAYERS.items():
        x, make = whole(1, 4, *space), partial(nn.__dict__[name], 4, 6, 2)
        function = name.lower().replace("transpose", "_transpose")
        arguments = {
            "in_channels": 4, "out_channels": 6, "kernel_size": 2, **SIZES, "bias": True, "padding_mode": "zeros",
            "device": None, "dtype": None, **OPTIONS,
        }  # fmt: skip
        if "Transpose" in name:
            arguments["output_padding"] = 0
        names = (name, function)
        yield name, Target(partial(construct_and_call, name, x), arguments, names)
        for frozen in (False, True):
            # The classes differ in their number of axes alone.
            attributes = {*arguments, "weight", "bias", "training"} - {"device", "dtype"} if "2d" in name else ()
            for attribute in sorted(attributes):
                good = getattr(with_weights(make()), attribute)
                target = partial(assign_and_call, make, attribute, frozen, x)
                yield f"{name}.{attribute}{' frozen' * frozen}", Target(target, {"value": good}, (*names, "train"))
            y = with_weights(make())(x)
            given = {"input": x, "residual": y * 2, "out": y * 0}
            if "Transpose" in name:
                given["output_size"] = y.shape
            yield f"{name}()" + " frozen" * frozen, Target(partial(forward, make, frozen), given, names, ("out",))
        value = make().weight
        yield f"{name}.load", Target(partial(load, make), {"value": value}, ("Error",), also=(RuntimeError,))
    for name, sizes in {"Unfold": (), "Fold": ("output_size",)}.items():
        arguments = {**dict.fromkeys(sizes, (3, 4)), "kernel_size": 2, "dilation": 1, "padding": 0, "stride": 1}
        x = whole(1, 2, 3, 4) if name == "Unfold" else whole(1, 4, 6)
        yield name, Target(lambda name=name, x=x, **a: nn.__dict__[name](**a)(x), arguments, (name, name.lower()))


def initialisers():
    tensor = whole(4, 2, 3)
    generated = {"tensor": tensor, "generator": None}
    for name, parameters in {
        "uniform_": {"a": 0.0, "b": 1.0}, "normal_": {"mean": 0.0, "std": 1.0},
        "trunc_normal_": {"mean": 0.0, "std": 1.0, "a": -2.0, "b": 2.0},
        "xavier_uniform_": {"gain": 1.0}, "xavier_normal_": {"gain": 1.0}, "orthogonal_": {"gain": 1.0},
        "kaiming_uniform_": {"a": 0, "mode": "fan_in", "nonlinearity": "leaky_relu"},
        "kaiming_normal_": {"a": 0, "mode": "fan_in", "nonlinearity": "leaky_relu"},
    }.items():  # fmt: skip
        yield name, Target(partial(seeded, nn.init.__dict__[name]), {**generated, **parameters}, (name,), ("tensor",))
    for name, parameters in {"constant_": {"val": 1.0}, "ones_": {}, "zeros_": {}, "dirac_": {"groups": 1}}.items():
        yield name, Target(nn.init.__dict__[name], {"tensor": tensor, **parameters}, (name,), ("tensor",))
    gain = {"nonlinearity": "leaky_relu", "param": 0.1}
    yield "calculate_gain", Target(nn.init.calculate_gain, gain, ("calculate_gain",))
    yield "manual_seed", Target(lambda seed: pyconv.manual_seed(seed).random(), {"seed": 1}, ("manual_seed",))


def seeded(function, **arguments):
    pyconv.manual_seed(1)
    return function(**arguments)


def undone(function, value):
    """Change a setting and change it back."""
    before = pyconv.get_num_threads(), pyconv.get_accuracy()
    try:
        function(value)
    finally:
        pyconv.set_num_threads(before[0])
        pyconv.set_accuracy(before[1])


def others():
    yield "pack", Target(packed_call, {
        "input": whole(1, 4, 3, 5), "weight": whole(6, 4, 3, 3), "bias": whole(6), "input_shape": (1, 4, 3, 5), **SIZES,
        "transposed": False, "output_padding": 0, "padding_mode": "zeros", "padding_value": 0, **OPTIONS,
    }, ("pack", "conv2d"))  # fmt: skip
    arguments = {"path": "weights.npz", "max_bytes": 1000}
    yield "load_weights", Target(pyconv.load_weights, arguments, ("load_weights",), also=(OSError,))
    save = pyconv.save_weights
    for argument, call, good in (
        ("weights", lambda weights: save(weights, "new.npz"), {}),
        ("value", lambda value: save({"a": value}, "new.npz"), whole(2)),
    ):
        yield f"save_weights {argument}", Target(call, {argument: good}, ("save_weights",))
    path = {"path": "new.npz"}
    yield "save_weights path", Target(lambda path: save({}, path), path, ("save_weights",), also=(OSError,))
    bn = {"bn_rm": whole(6), "bn_rv": whole(6), "bn_eps": 1e-5, "bn_w": whole(6), "bn_b": whole(6), "transpose": False}
    yield (
        "fuse_conv_bn_weights",
        Target(
            nn.fuse_conv_bn_weights, {"conv_w": whole(6, 4, 3), "conv_b": whole(6), **bn}, ("fuse_conv_bn_weights",)
        ),
    )
    yield (
        "fuse_conv_bn",
        Target(
            lambda conv, bn: nn.fuse_conv_bn(conv, bn).bias,
            {
                "conv": nn.Conv1d(4, 6, 3),
                "bn": dict.fromkeys(("running_mean", "running_var", "weight", "bias"), whole(6)),
            },
            ("fuse_conv_bn",),
        ),
    )
    yield (
        "set_num_threads",
        Target(lambda value: undone(pyconv.set_num_threads, value), {"value": 1}, ("set_num_threads",)),
    )
    yield "set_accuracy", Target(lambda value: undone(pyconv.set_accuracy, value), {"value": "fast"}, ("set_accuracy",))


TARGETS = dict([*convolutions(), *layers(), *initialisers(), *others()])


@pytest.fixture(scope="module", autouse=True)
def _files(tmp_path_factory):
    """Relative paths lead to a folder of this module's own."""
    before = Path.cwd()
    os.chdir(tmp_path_factory.mktemp("hostile"))
    pyconv.save_weights({"weight": whole(2, 3)}, "weights.npz")
    yield
    os.chdir(before)


def copied(value):
    return value.copy() if type(value) is np.ndarray else value


def bytes_of(arguments, written):
    """What each array that is only read holds, by name."""
    return {
        name: np.asarray(value).tobytes()
        for name, value in arguments.items()
        if name not in written and isinstance(value, np.ndarray) and value.nbytes < 2**20 and not value.dtype.hasobject
    }


def overlaps_itself(array):
    """Whether elements share bytes, as far as strides tell: one axis must step over all of the ones before."""
    axes = sorted((abs(s), n) for s, n in zip(array.strides, array.shape) if n > 1) if array is not None else []
    return (
        any(step < before * n for (before, n), (step, _) in zip([(array.itemsize, 1), *axes], axes)) if axes else False
    )


def sensible(target, arguments):
    """The same call with plain arguments, by NumPy where it lets one choose: its result, and what it filled."""
    if "algorithm" in arguments and arguments["algorithm"] is None and "in_channels" not in arguments:
        arguments["algorithm"] = "reference"
    return target.call(**arguments), [arguments[name] for name in target.written]


def check_call(target, hostile):
    """Call with these arguments instead of the good ones, and look at what comes of it."""
    arguments = {**{name: copied(value) for name, value in target.arguments.items()}, **hostile}
    twin = {name: plain(value) for name, value in arguments.items()}
    before = bytes_of(arguments, target.written)
    try:
        with little_memory():
            result = target.call(**arguments)
    except (TypeError, ValueError, *target.also) as error:
        assert not isinstance(error, OSError | RuntimeError) or isinstance(error, target.also)
        if not isinstance(error, target.also):
            assert re.match(rf"({'|'.join(map(re.escape, target.names))}): argument '", str(error)), repr(error)
        return False
    except MemoryError:
        return False
    except UserWarning as warning:
        assert DOCUMENTED.match(str(warning)), repr(warning)
        return False
    assert bytes_of(arguments, target.written) == before, "an argument was changed"
    if any(overlaps_itself(arguments[name]) for name in target.written):
        return True  # whatever is written last
    with little_memory(2**32):
        expected, filled = sensible(target, twin)
    assert_same(result, expected)
    for name, value in zip(target.written, filled):
        assert_same(arguments[name], value)
    return True


def assert_same(one, other):
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for name, value in one.items():
            assert_same(value, other[name])
    elif isinstance(one, np.ndarray) and one.dtype.name != "bfloat16":
        assert one.shape == other.shape
        assert one.dtype.newbyteorder("=") == other.dtype
        np.testing.assert_allclose(one, other, rtol=1e-3 if one.dtype.itemsize == 2 else 1e-5, atol=1e-5)


@pytest.mark.parametrize("name", TARGETS)
def test_one_hostile_argument(name):
    target, problems, fine = TARGETS[name], [], 0
    assert check_call(target, {}), "the good arguments are refused"
    for argument in target.arguments:
        for what, make in target.hostile(argument).items():
            try:
                fine += check_call(target, {argument: make()})
            except Exception as error:
                problems.append(f"{argument} = {what}: {error!r}")
    assert not problems, f"{len(problems)} problems, {fine} fine:\n" + "\n".join(problems)


@pytest.mark.parametrize("name", [name for name, target in TARGETS.items() if len(target.arguments) > 1])
@settings(max_examples=max(10, settings.default.max_examples // 4))
@given(data=st.data())
def test_several_hostile_arguments(name, data):
    target = TARGETS[name]
    arguments = data.draw(st.lists(st.sampled_from(list(target.arguments)), min_size=2, max_size=4, unique=True))
    hostile = {}
    for argument in arguments:
        choices = target.hostile(argument)
        hostile[argument] = choices[data.draw(st.sampled_from(list(choices)), label=argument)]()
    check_call(target, hostile)
