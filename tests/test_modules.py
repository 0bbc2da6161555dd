"""pyconv.nn.Conv1d, Conv2d, Conv3d: arguments, attributes, errors and state dicts as torch has them."""

from __future__ import annotations

import inspect
import math
import warnings

import numpy as np
import pytest
from layers import X, check, expected, integers, layer

from pyconv import nn

LAYERS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
ATTRIBUTES = (
    "in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups", "padding_mode", "training",
)  # fmt: skip
FORMS = [
    (1, (4, 6, 3), {}),
    (2, (4, 6, 3), {}),
    (3, (4, 6, 3), {}),
    (2, (16, 33, (3, 5)), {"stride": (2, 1), "padding": (4, 2), "dilation": (3, 1)}),
    (2, (3, 6, 7), {"stride": 2, "padding": 3, "groups": 3, "bias": False}),
    (2, (4, 4, [3, 1]), {"stride": [1, 2], "padding": [1, 0]}),
    (2, (4, 4, 3, 1, "same", 2), {}),
    (2, (4, 4, 3), {"padding": "valid", "stride": 2}),
    (1, (4, 4, 3, 2, 1, 1, 2, True, "circular"), {}),
    (3, (2, 4, (1, 2, 3)), {"padding": (0, 1, 1), "padding_mode": "replicate", "bias": None}),
    (2, (4, 4, 3), {"padding": 1, "padding_mode": "reflect", "bias": 0}),
    (2, (4, 4, 4), {"padding": "same", "padding_mode": "circular", "device": "cpu"}),
]


def test_arguments_have_torchs_names_order_and_defaults():
    torch = pytest.importorskip("torch")
    for rank, ours in LAYERS.items():
        theirs = inspect.signature(getattr(torch.nn, f"Conv{rank}d")).parameters.values()
        parameters = list(inspect.signature(ours).parameters.values())
        assert [(p.name, p.default) for p in parameters[: len(theirs)]] == [(p.name, p.default) for p in theirs]
        assert all(p.kind is p.KEYWORD_ONLY for p in parameters[len(theirs) :])


@pytest.mark.parametrize(("rank", "args", "kwargs"), FORMS)
def test_forms_and_results_are_torchs(rank, args, kwargs):
    torch = pytest.importorskip("torch")
    theirs = getattr(torch.nn, f"Conv{rank}d")(*args, **kwargs)
    ours = LAYERS[rank](*args, **kwargs)
    assert repr(ours) == repr(theirs)
    for name in ATTRIBUTES:
        assert getattr(ours, name) == getattr(theirs, name)
        assert type(getattr(ours, name)) is type(getattr(theirs, name))
    names = [(name, tuple(array.shape)) for name, array in theirs.named_parameters("p")]
    assert [(name, array.shape) for name, array in ours.named_parameters("p")] == names
    assert [a.shape for a in ours.parameters()] == [tuple(a.shape) for a in theirs.parameters()]
    assert repr(ours.load_state_dict(theirs.state_dict())) == repr(theirs.load_state_dict(theirs.state_dict()))
    for x in (integers((2, args[0], 9, 10, 11)[: rank + 2]), integers((args[0], 9, 10, 11)[: rank + 1])):
        result = theirs(torch.from_numpy(x)).detach().numpy()
        for conv in (ours.train(), ours.eval(), ours):
            y = conv(x)
            np.testing.assert_allclose(y, result, rtol=1e-4, atol=1e-4)
            assert y.flags.c_contiguous
            assert y.flags.owndata
            assert y.dtype == x.dtype


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "complex64", np.float64, float])
def test_dtypes(dtype):
    conv = nn.Conv1d(4, 6, 3, dtype=dtype)
    assert conv.weight.dtype == conv.bias.dtype == np.dtype(dtype)
    x = integers((1, 4, 8), dtype=dtype)
    np.testing.assert_allclose(conv(x), conv.eval()(x), rtol=1e-5)
    assert conv(x).dtype == np.dtype(dtype)
    with pytest.raises(TypeError, match="conv1d: argument 'weight' must have the input's dtype int8"):
        conv(x.real.astype("int8"))
    assert nn.Conv1d(1, 1, 1).weight.dtype == np.float32


def test_default_initialisation():
    conv = nn.Conv2d(20, 5000, (3, 4))
    bound = 1 / math.sqrt(20 * 3 * 4)
    for values in (conv.weight, conv.bias):
        assert 0.99 * bound < np.abs(values).max() <= np.float32(bound)
        assert abs(values.mean()) < 5 * bound / math.sqrt(3 * values.size)
        assert abs(values.std() / bound - math.sqrt(1 / 3)) < 0.02
    before = conv.weight.copy(), conv.bias.copy()
    conv.eval().reset_parameters()
    for values, old in zip((conv.weight, conv.bias), before, strict=True):  # of 10**6 draws, some are the same
        assert (values == old).mean() < 1e-3


def test_no_input_channels():
    with pytest.warns(UserWarning, match="zero-element"):
        conv = nn.Conv2d(0, 3, 2)
    assert (conv.bias == 0).all()
    conv.bias = np.float32([1, 2, 3])
    for mode in (True, False):
        assert (conv.train(mode)(np.zeros((2, 0, 3, 3), "f4")) == conv.bias[:, None, None]).all()


CONSTRUCTOR_ERRORS = [
    (ValueError, {"groups": 0}, "groups"),
    (ValueError, {"groups": -1}, "groups"),
    (TypeError, {"groups": 2.0}, "groups"),
    (ValueError, {"in_channels": 6, "groups": 4}, "in_channels"),
    (ValueError, {"out_channels": 6, "groups": 4}, "out_channels"),
    (ValueError, {"in_channels": -4}, "in_channels"),
    (ValueError, {"out_channels": 0}, "out_channels"),
    (TypeError, {"in_channels": 4.0}, "in_channels"),
    (TypeError, {"out_channels": "4"}, "out_channels"),
    (ValueError, {"kernel_size": 0}, "kernel_size"),
    (ValueError, {"kernel_size": (3, 3, 3)}, "kernel_size"),
    (TypeError, {"kernel_size": "3"}, "kernel_size"),
    (TypeError, {"kernel_size": 3.0}, "kernel_size"),
    (ValueError, {"stride": 0}, "stride"),
    (ValueError, {"stride": (1, 2, 3)}, "stride"),
    (TypeError, {"stride": 1.5}, "stride"),
    (TypeError, {"stride": True}, "stride"),
    (TypeError, {"stride": None}, "stride"),
    (ValueError, {"dilation": 0}, "dilation"),
    (ValueError, {"padding": -1}, "padding"),
    (ValueError, {"padding": "foo"}, "padding"),
    (ValueError, {"padding": "same", "stride": 2}, "padding"),
    (ValueError, {"padding": "same", "stride": (1, 2)}, "padding"),
    (ValueError, {"padding_mode": "constant"}, "padding_mode"),
    (TypeError, {"padding_mode": None}, "padding_mode"),
    (ValueError, {"device": "cuda"}, "device"),
    (TypeError, {"dtype": "int32"}, "dtype"),
    (TypeError, {"dtype": "no such thing"}, "dtype"),
    (ValueError, {"accuracy": "good"}, "accuracy"),
    (TypeError, {"algorithm": 1}, "algorithm"),
]


@pytest.mark.parametrize(("kind", "kwargs", "argument"), CONSTRUCTOR_ERRORS)
def test_constructor_errors(kind, kwargs, argument):
    with pytest.raises(kind, match=rf"^Conv2d: argument '{argument}' .*, got "):
        nn.Conv2d(**{"in_channels": 4, "out_channels": 4, "kernel_size": 3, **kwargs})


@pytest.mark.parametrize(
    "kwargs",
    # torch has not all of the arguments, and takes two of the values
    [k for _, k, _ in CONSTRUCTOR_ERRORS if not set(k) & {"device", "accuracy", "algorithm", "dtype"}
     and k not in ({"stride": True}, {"out_channels": 0})],
)  # fmt: skip
def test_torch_refuses_them_too(kwargs):
    torch = pytest.importorskip("torch")

    def build_and_call():  # torch tells some of them no sooner than in the call
        torch.nn.Conv2d(**{"in_channels": 4, "out_channels": 4, "kernel_size": 3, **kwargs})(torch.zeros(1, 4, 8, 8))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises((ValueError, TypeError, RuntimeError)):
            build_and_call()


def test_an_unknown_algorithm_is_told_in_the_call():
    for mode in (True, False):
        with pytest.raises(ValueError, match="argument 'algorithm' must be"):
            nn.Conv2d(2, 3, 3, algorithm="magic").train(mode)(X)


@pytest.mark.parametrize("mode", [True, False])
def test_inputs_of_all_kinds(mode):
    conv = layer().train(mode)
    want = expected(conv, X)
    wide = np.zeros((2, 7, 12, 2), "f4")
    wide[:, :, ::2] = X.transpose(0, 3, 2, 1)
    packed = np.zeros(X.shape, [("skip", "i1"), ("x", "f4")])
    packed["x"] = X
    for x in (
        wide[:, :, ::2].transpose(0, 3, 2, 1),
        X[:, ::-1].copy()[:, ::-1],
        X.astype(">f4"),
        packed["x"],
        X.view(np.memmap),
        np.asfortranarray(X),
    ):
        for _ in range(2):
            assert (conv(x) == want).all()
    assert (conv(X[1]) == want[1]).all()
    assert (conv(input=X) == want).all()
    assert conv(X[:0]).shape == (0, *want.shape[1:])
    assert not np.shares_memory(conv(X), conv(X))
    for kind, x in [
        (TypeError, X.tolist()),
        (TypeError, X.astype("f8")),
        (TypeError, None),
        (ValueError, X[:, :1]),
        (ValueError, X[0, 0]),
        (TypeError, np.ma.masked_array(X)),
        (TypeError, X.astype(bool)),
    ]:
        with pytest.raises(kind, match=r"conv2d: argument '(input|weight)' must"):
            conv(x)


def test_subclasses_may_replace_forward():
    class Doubled(nn.Conv2d):
        def forward(self, input):
            return 2 * super().forward(input)

    conv = Doubled(2, 3, 3).eval()
    assert repr(conv).startswith("Doubled(2, 3, kernel")
    for _ in range(2):
        np.testing.assert_allclose(conv(X), 2 * expected(conv, X), rtol=1e-5, atol=1e-5)
    with pytest.raises(TypeError):
        conv()


def test_assigned_parameters():
    conv = layer()
    weight = integers(conv.weight.shape, 5)
    conv.weight = weight
    assert conv.weight is weight
    conv.bias = None
    assert repr(conv) == "Conv2d(2, 3, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1), bias=False)"
    assert list(conv.state_dict()) == ["weight"]
    check(conv, X)
    conv.bias = integers(3, 6)
    check(conv, X)
    for kind, name, value in [
        (TypeError, "weight", None), (TypeError, "weight", weight.tolist()), (ValueError, "weight", weight[:2]),
        (TypeError, "weight", weight.astype("f8")), (TypeError, "weight", np.ma.masked_array(weight)),
        (TypeError, "bias", 0.0), (ValueError, "bias", np.zeros((3, 1), "f4")), (TypeError, "bias", np.zeros(3)),
        (ValueError, "stride", 0), (TypeError, "padding", None), (ValueError, "padding_mode", "mirror"),
    ]:  # fmt: skip
        for mode in (True, False):
            with pytest.raises(kind, match=f"Conv2d: argument '{name}' must"):
                setattr(conv.train(mode), name, value)
            check(conv, X)
    conv.train().out_channels = 2
    conv.weight, conv.bias = weight[:2], integers(2, 7)
    check(conv, X)
    conv.weight = np.broadcast_to(np.float32(3), (2, 2, 3, 3))  # read-only: the layer takes a copy
    conv.weight[0] = 1
    check(conv, X)
    conv.eval().weight = weight = weight[:2].copy()
    assert not weight.flags.writeable
    check(conv, X)
    assert conv.train().weight is weight
    assert weight.flags.writeable


def test_state_dict_round_trip(tmp_path):
    conv, other = layer(), layer(seed=30)
    assert conv.state_dict()["weight"] is conv.weight
    assert list(conv.state_dict(prefix="stem.")) == ["stem.weight", "stem.bias"]
    np.savez(tmp_path / "state.npz", **other.eval().state_dict())
    weight = conv.eval()._live["weight"]
    with np.load(tmp_path / "state.npz") as state:
        assert str(conv.load_state_dict(state)) == "<All keys matched successfully>"
    assert not conv.training
    assert (conv.weight == other.weight).all()
    assert conv.train().weight is weight
    check(conv, X)
    missing, unexpected = conv.load_state_dict({"bias": np.arange(3.0), "extra": 1}, strict=False)
    assert (missing, unexpected) == (["weight"], ["extra"])
    assert conv.bias.tolist() == [0, 1, 2]
    assert conv.bias.dtype == np.float32


@pytest.mark.parametrize(
    ("bias", "state"),
    [
        (True, {}),
        (True, {"extra": 1, "more": 2, "weight": (3, 2, 3, 2)}),
        (True, {"weight": (3, 2, 3, 3), "bias": (2,)}),
        (True, {"weight": (), "bias": (3, 1)}),
        (False, {"weight": (3, 2, 3, 3), "bias": (3,)}),
        (True, {"weight": 1, "bias": [1, 2]}),
    ],
)
def test_load_errors_are_torchs(bias, state):
    torch = pytest.importorskip("torch")
    ours, theirs = nn.Conv2d(2, 3, 3, bias=bias), torch.nn.Conv2d(2, 3, 3, bias=bias)
    with pytest.raises(RuntimeError) as their_error:
        theirs.load_state_dict({k: torch.zeros(v) if isinstance(v, tuple) else v for k, v in state.items()})
    with pytest.raises(RuntimeError) as our_error:
        ours.load_state_dict({k: np.zeros(v, "f4") if isinstance(v, tuple) else v for k, v in state.items()})
    text = str(their_error.value).replace("torch.Tensor or Tensor-like", "numpy.ndarray or array-like")
    for size in ((), (2,), (3,), (3, 1), (3, 2, 3, 2), (3, 2, 3, 3)):
        text = text.replace(str(torch.Size(size)), str(size))
    assert str(our_error.value) == text


def test_load_refuses_other_kinds():
    conv = layer()
    with pytest.raises(TypeError, match="load_state_dict: argument 'state_dict' must be a mapping"):
        conv.load_state_dict([1])
    for value in (np.zeros((3, 2, 3, 3), complex), np.full((3, 2, 3, 3), None)):
        with pytest.raises(RuntimeError, match=r'While copying the parameter named "weight", .*an exception occurred'):
            conv.load_state_dict({"weight": value, "bias": np.ones(3)})
    assert (conv.bias == 1).all()
    check(conv, X)
