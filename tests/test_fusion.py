"""fuse_conv_bn and its relatives: what the layers do after one another, and torch's results."""

import inspect
from types import SimpleNamespace

import numpy as np
import pytest
from oracle import MODULE, fill
from transposed import LAYERS

from pyconv import nn
from pyconv.nn.utils import fusion

DIMENSIONS = (1, 2, 3)
KINDS = [(nd, transposed) for nd in DIMENSIONS for transposed in (False, True)]
NAMES = ("running_mean", "running_var", "weight", "bias")


def normalisation(channels, dtype=np.float32, seed=0, **changes):
    rng = np.random.default_rng(seed)
    arrays = {name: fill(rng, channels, dtype) for name in NAMES}
    arrays["running_var"] = np.abs(arrays["running_var"])
    return {**arrays, "eps": 1e-3, **changes}


def normalised(y, bn):
    column = (-1, *[1] * (y.ndim - 2))
    mean, variance, weight, bias = (np.asarray(bn[name], np.float64).reshape(column) for name in NAMES)
    return (y - mean) / np.sqrt(variance + bn["eps"]) * weight + bias


def layer_of(nd, transposed, bias=True, groups=1, **options):
    rng = np.random.default_rng(nd)
    layer = (LAYERS if transposed else MODULE)[nd](4, 6, 3, stride=2, padding=1, bias=bias, groups=groups, **options)
    layer.weight = fill(rng, layer.weight.shape, layer.weight.dtype)
    return layer


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("nd", "transposed"), KINDS)
def test_layers_after_one_another(nd, transposed, bias, groups):
    bn = normalisation(6)
    x = fill(np.random.default_rng(9), (2, 4, *[7] * nd), np.float32)
    for mode in (True, False):
        conv = layer_of(nd, transposed, bias, groups).train(mode)
        before = {name: array.copy() for name, array in conv.state_dict().items()}
        expected = normalised(conv(x), bn)
        for form in (bn, SimpleNamespace(**bn), SimpleNamespace(**bn, training=False)):
            fused = nn.fuse_conv_bn(conv, form)
            assert type(fused) is type(conv)
            assert fused.training is mode
            np.testing.assert_allclose(fused(x), expected, rtol=1e-4, atol=1e-4)
        assert set(before) == set(conv.state_dict())
        assert all((conv.state_dict()[name] == array).all() for name, array in before.items())
        assert not any(np.shares_memory(a, b) for a in fused.parameters() for b in (*conv.parameters(), *bn.values()))
    again = fusion.fuse_conv_bn_eval(conv, bn, transpose=transposed)
    np.testing.assert_array_equal(again(x), fused(x))
    w, b = nn.fuse_conv_bn_weights(
        conv.weight,
        conv.bias,
        *(bn[n] for n in NAMES[:2]),
        bn["eps"],
        *(bn[n] for n in NAMES[2:]),
        transpose=transposed,
    )
    np.testing.assert_array_equal(w, again.weight)
    np.testing.assert_array_equal(b, again.bias)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.complex64])
def test_dtypes(dtype):
    w, b = np.ones((6, 2, 3), dtype), np.ones(6, dtype)
    for kind in (np.float32, np.float64):
        bn = normalisation(6, kind)
        arrays = bn["running_mean"], bn["running_var"], bn["eps"], bn["weight"], bn["bias"]
        new_w, new_b = nn.fuse_conv_bn_weights(w, b, *arrays)
        assert new_w.dtype == new_b.dtype == dtype
        scale = bn["weight"] / np.sqrt(bn["running_var"] + bn["eps"])
        tolerance = 2e-3 if dtype == np.float16 else 1e-5
        np.testing.assert_allclose(new_w[:, 0, 0], scale, rtol=tolerance)
        np.testing.assert_allclose(new_b, (1 - bn["running_mean"]) * scale + bn["bias"], rtol=tolerance, atol=tolerance)
        assert nn.fuse_conv_bn_weights(w, None, *arrays)[1].dtype == dtype


def test_bfloat16():
    bfloat16 = pytest.importorskip("ml_dtypes").bfloat16
    bn = normalisation(6)
    conv = nn.Conv1d(2, 6, 3, dtype=bfloat16)
    fused = nn.fuse_conv_bn(conv, bn)
    assert fused.weight.dtype == bfloat16
    scale = bn["weight"] / np.sqrt(bn["running_var"] + bn["eps"])
    np.testing.assert_allclose(fused.weight.astype("f4"), conv.weight.astype("f4") * scale[:, None, None], rtol=2**-8)


def test_names_and_order_are_torchs():
    torch = pytest.importorskip("torch")
    for name in ("fuse_conv_bn_eval", "fuse_conv_bn_weights"):
        ours = inspect.signature(getattr(fusion, name)).parameters.values()
        theirs = inspect.signature(getattr(torch.nn.utils.fusion, name)).parameters.values()
        assert [(p.name, p.default) for p in ours] == [(p.name, p.default) for p in theirs]
    assert nn.fuse_conv_bn is fusion.fuse_conv_bn
    assert nn.fuse_conv_bn_weights is nn.utils.fusion.fuse_conv_bn_weights


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("nd", "transposed"), KINDS)
def test_results_are_torchs(nd, transposed, bias, affine):
    torch = pytest.importorskip("torch")
    name = f"Conv{'Transpose' if transposed else ''}{nd}d"
    conv = getattr(torch.nn, name)(4, 6, 3, bias=bias).eval()
    bn = getattr(torch.nn, f"BatchNorm{nd}d")(6, affine=affine).eval()
    with torch.no_grad():
        bn.running_mean.normal_()
        bn.running_var.uniform_(0, 2)
        for parameter in bn.parameters():
            parameter.normal_()
    theirs = torch.nn.utils.fusion.fuse_conv_bn_eval(conv, bn, transpose=transposed)
    ours = getattr(nn, name)(4, 6, 3, bias=bias).eval()
    ours.load_state_dict(conv.state_dict())
    for fused in (nn.fuse_conv_bn(ours, bn), fusion.fuse_conv_bn_eval(ours, bn, transpose=transposed)):
        for key, value in theirs.state_dict().items():
            np.testing.assert_allclose(fused.state_dict()[key], value.numpy(), rtol=1e-5, atol=1e-6)
    bn.train()
    with pytest.raises(ValueError, match=r"fuse_conv_bn: argument 'bn' must be in eval mode"):
        nn.fuse_conv_bn(ours, bn)


WEIGHTS = {
    "conv_w": np.ones((6, 2, 3)), "conv_b": np.ones(6), "bn_rm": np.ones(6), "bn_rv": np.ones(6), "bn_eps": 1e-5,
    "bn_w": np.ones(6), "bn_b": np.ones(6),
}  # fmt: skip


@pytest.mark.parametrize(("kind", "argument", "value"), [
    (TypeError, "conv_w", None), (TypeError, "conv_w", [[1.0]]), (TypeError, "conv_w", np.ones((6, 2, 3), int)),
    (ValueError, "conv_w", np.ones(6)), (ValueError, "conv_b", np.ones(5)), (TypeError, "conv_b", 1.0),
    (TypeError, "bn_rm", None), (TypeError, "bn_rv", None), (ValueError, "bn_rv", np.ones((6, 1))),
    (ValueError, "bn_rv", np.full(6, -1.0)), (TypeError, "bn_eps", None), (TypeError, "bn_eps", "0"),
    (TypeError, "bn_eps", True), (ValueError, "bn_w", np.ones(1)), (TypeError, "bn_w", np.ones(6, complex)),
    (TypeError, "bn_b", np.ones(6, bool)), (ValueError, "bn_b", np.ones(())),
])  # fmt: skip
def test_wrong_arrays(kind, argument, value):
    nn.fuse_conv_bn_weights(**WEIGHTS)
    with pytest.raises(kind, match=f"^fuse_conv_bn_weights: argument '{argument}' must .*, got "):
        nn.fuse_conv_bn_weights(**{**WEIGHTS, argument: value})


def test_wrong_groups():
    with pytest.raises(ValueError, match="argument 'conv_w' must have input channels for 4 groups"):
        nn.fuse_conv_bn_weights(**{**WEIGHTS, "conv_w": np.ones((6, 2, 3)), **{
            name: np.ones(8) for name in ("conv_b", "bn_rm", "bn_rv", "bn_w", "bn_b")
        }}, transpose=True)  # fmt: skip
    with pytest.raises(ValueError, match=r"argument '\w+' must have shape \(2,\)"):
        nn.fuse_conv_bn_weights(**{**WEIGHTS, "bn_rm": np.ones(5)}, transpose=True)


def test_wrong_layers():
    bn, conv = normalisation(6), layer_of(2, transposed=False).eval()
    for kind, name, arguments in [
        (TypeError, "conv", (conv.weight, bn)),
        (TypeError, "conv", (None, bn)),
        (TypeError, "bn", (conv, None)),
        (TypeError, "bn", (conv, {name: bn[name] for name in NAMES[:3]})),
        (TypeError, "bn", (conv, SimpleNamespace(running_mean=np.ones(6)))),
        (TypeError, "bn_rm", (conv, {**bn, "running_mean": None})),
        (ValueError, r"\w+", (conv, normalisation(5))),
        (ValueError, "conv", (layer_of(2, transposed=False, activation="relu").eval(), bn)),
        (ValueError, "bn", (conv, SimpleNamespace(**bn, training=True))),
    ]:
        for function in (fusion.fuse_conv_bn, fusion.fuse_conv_bn_eval):
            with pytest.raises(kind, match=f"^{function.__name__}: argument '{name}' must "):
                function(*arguments)
    with pytest.raises(ValueError, match="argument 'conv' must be in eval mode"):
        fusion.fuse_conv_bn_eval(layer_of(2, transposed=False), bn)
    for transpose in (True, 1, None):
        with pytest.raises(ValueError, match="argument 'transpose' must be False for Conv2d"):
            fusion.fuse_conv_bn_eval(conv, bn, transpose)
    with pytest.raises(ValueError, match="argument 'transpose' must be True for ConvTranspose1d"):
        fusion.fuse_conv_bn_eval(layer_of(1, transposed=True).eval(), bn)
