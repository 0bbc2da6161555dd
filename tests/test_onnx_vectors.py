"""The convolutions' vectors in the onnx wheel: inputs and outputs that PyTorch made, and ONNX's node tests.

A ConvTranspose may ask for padding that differs before and after an axis, which conv_transpose1d, 2d and 3d cannot: one
of the vectors does, and there the test cuts the end off the result.
"""

import warnings
from pathlib import Path

import numpy as np
import pytest
from oracle import CONV, MODULE
from transposed import LAYERS, TRANSPOSED

from pyconv.quantized import conv_integer, qlinear_conv

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    onnx = pytest.importorskip("onnx", reason="the vectors ride in the onnx wheel")
    from onnx import numpy_helper

FILE_VECTORS, NODE_VECTORS = 27, 6  # in onnx 1.23


def conv_node(model, kind="Conv"):
    """The model's Conv, if that is all it does."""
    nodes = [node for node in model.graph.node if node.op_type != "Constant"]
    return nodes[0] if len(nodes) == 1 and nodes[0].op_type == kind else None


def tensor(path):
    return numpy_helper.to_array(onnx.load_tensor(str(path)))


def file_vectors(kind="Conv"):
    """(name, node, inputs, output) of the models that PyTorch exported."""
    data = Path(onnx.__file__).parent / "backend" / "test" / "data"
    for folder in sorted(path.parent for made in data.glob("pytorch-*") for path in made.glob("*/model.onnx")):
        model = onnx.load(str(folder / "model.onnx"))
        node = conv_node(model, kind)
        if node is None:
            continue
        known = {weight.name: numpy_helper.to_array(weight) for weight in model.graph.initializer}
        free = [value.name for value in model.graph.input if value.name not in known]
        for vectors in sorted(folder.glob("test_data_set_*")):
            known.update({name: tensor(vectors / f"input_{i}.pb") for i, name in enumerate(free)})
            yield folder.name, node, [known[name] for name in node.input], tensor(vectors / "output_0.pb")


def node_vectors(kind="Conv"):
    """The same of ONNX's node tests, which are made in memory."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from onnx.backend.test.case import node as cases
        from onnx.backend.test.case.node import (  # noqa: F401  (importing registers the tests)
            conv,
            convinteger,
            convtranspose,
            qlinearconv,
        )
    for case in cases._NodeTestCases:
        node = conv_node(case.model, kind)
        if node is not None and not case.name.endswith("_expanded"):
            for inputs, outputs in case.data_sets:
                yield case.name, node, list(inputs), outputs[0]


def arguments_of(node, x, weight):
    """A Conv node's attributes as pyconv's arguments."""
    given = {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}
    nd = x.ndim - 2
    assert weight.ndim == x.ndim
    padding = given.get("auto_pad", b"NOTSET").decode().lower()
    if padding == "notset":
        pads = given.get("pads", [0] * 2 * nd)
        padding = tuple(zip(pads[:nd], pads[nd:]))
    arguments = {"stride": given.get("strides", 1), "padding": padding, "dilation": given.get("dilations", 1)}
    return {**arguments, "groups": given.get("group", 1)}


VECTORS = {name: vector for source in (file_vectors, node_vectors) for name, *vector in source()}


@pytest.mark.parametrize("name", VECTORS)
def test_vector(name):
    node, inputs, expected = VECTORS[name]
    arguments = arguments_of(node, *inputs[:2])
    nd = inputs[0].ndim - 2
    y = CONV[nd](*inputs, **arguments)
    assert y.dtype == expected.dtype
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-6)  # torch and pyconv round differently
    weight = inputs[1]
    channels = (weight.shape[1] * arguments["groups"], weight.shape[0])
    layer = MODULE[nd](*channels, weight.shape[2:], **arguments, bias=len(inputs) > 2)
    layer.load_state_dict(dict(zip(("weight", "bias"), inputs[1:])))
    np.testing.assert_array_equal(layer(inputs[0]), y)


def test_no_vector_was_missed():
    from_files = {name for name, *_ in file_vectors()}
    assert len(from_files) >= FILE_VECTORS
    assert len(set(VECTORS) - from_files) >= NODE_VECTORS
    assert not any("Transpose" in name for name in VECTORS)


# ------------------------------------------------------------------------------------------------- ConvTranspose

TRANSPOSED_VECTORS = {
    name: vector for source in (file_vectors, node_vectors) for name, *vector in source("ConvTranspose")
}


def transposed_arguments(node, x, weight):
    """A ConvTranspose node's attributes as pyconv's arguments, and how much to cut off the end of each axis."""
    given = {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}
    nd = x.ndim - 2
    stride, dilation = given.get("strides", [1] * nd), given.get("dilations", [1] * nd)
    full = [(n - 1) * s + d * (k - 1) + 1 for n, s, d, k in zip(x.shape[2:], stride, dilation, weight.shape[2:])]
    arguments = {"stride": stride, "dilation": dilation, "groups": given.get("group", 1)}
    if given.get("auto_pad", b"NOTSET") == b"SAME_UPPER":
        pads = [size - n * s for size, n, s in zip(full, x.shape[2:], stride)]
        return {**arguments, "padding": [pad // 2 for pad in pads]}, [pad % 2 for pad in pads]
    pads = given.get("pads", [0] * 2 * nd)
    assert pads[:nd] == pads[nd:]
    added = given.get("output_padding", [0] * nd)
    if "output_shape" in given:
        added = [size + 2 * pad - most for size, pad, most in zip(given["output_shape"], pads, full)]
    return {**arguments, "padding": pads[:nd], "output_padding": added}, [0] * nd


@pytest.mark.parametrize("name", TRANSPOSED_VECTORS)
def test_transposed_vector(name):
    node, inputs, expected = TRANSPOSED_VECTORS[name]
    arguments, cut = transposed_arguments(node, *inputs[:2])
    nd = inputs[0].ndim - 2
    y = TRANSPOSED[nd](*inputs, **arguments)
    assert y.dtype == expected.dtype
    kept = y[(..., *(slice(0, n - c) for n, c in zip(y.shape[2:], cut)))]
    np.testing.assert_allclose(kept, expected, rtol=1e-4, atol=1e-6)
    weight, groups = inputs[1], arguments["groups"]
    size = weight.shape[0], weight.shape[1] * groups, weight.shape[2:]
    layer = LAYERS[nd](*size, **arguments, bias=len(inputs) > 2)
    layer.load_state_dict(dict(zip(("weight", "bias"), inputs[1:])))
    np.testing.assert_array_equal(layer(inputs[0]), y)


def test_no_transposed_vector_was_missed():
    from_files = {name for name, *_ in file_vectors("ConvTranspose")}
    assert len(from_files) >= 3
    assert len(set(TRANSPOSED_VECTORS) - from_files) >= 11


# --------------------------------------------------------------------------------------- ConvInteger, QLinearConv

QUANTIZED = {"ConvInteger": (conv_integer, 0, 1, 2), "QLinearConv": (qlinear_conv, 0, 3, 1)}  # and vectors at least


@pytest.mark.parametrize("kind", QUANTIZED)
def test_quantized_vectors(kind):
    """Equal, not close."""
    function, x, weight, least = QUANTIZED[kind]
    vectors = list(node_vectors(kind))
    assert len(vectors) >= least
    for name, node, inputs, expected in vectors:
        y = function(*inputs, **arguments_of(node, inputs[x], inputs[weight]))
        assert y.dtype == expected.dtype
        np.testing.assert_array_equal(y, expected, err_msg=name)
