"""Layers in train and eval mode: whatever a program does to one, no call computes with parameters from before."""

from __future__ import annotations

import copy
import os
import pickle
import subprocess
import sys
import threading
import warnings

import numpy as np
import pytest
from layers import X, check, expected, integers, layer

import pyconv
from pyconv import config, nn
from pyconv.nn import functional, modules
from pyconv.reference import ReferencePlan


def test_modes():
    conv = layer()
    weight, bias = conv.weight, conv.bias
    assert conv.training
    assert conv.eval() is conv
    assert conv.eval().training is False
    assert not weight.flags.writeable
    with pytest.raises(ValueError, match="read-only"):
        weight[0] = 1
    assert conv.train() is conv
    assert conv.weight is weight
    assert conv.bias is bias
    assert weight.flags.writeable
    weight[0] = 1
    check(conv, X)
    conv.training = False
    assert not conv.training
    check(conv, X)
    for mode in (1, None, "eval"):
        with pytest.raises(ValueError, match="train: argument 'mode' must be a bool"):
            conv.train(mode)


def test_train_mode_sees_every_change():
    conv = layer()
    view, data = conv.weight.reshape(-1)[::-1], conv.weight.data
    for change in (
        lambda: conv.weight.fill(2),
        lambda: view.__setitem__(3, 5),
        lambda: data.__setitem__((1, 1, 1, 1), 7.0),
        lambda: conv.bias.__iadd__(3),
        lambda: nn.init.ones_(conv.weight.data),
    ):
        before = conv(X)
        change()
        assert (conv(X) != before).any()
        check(conv, X)


def test_eval_packs_once(monkeypatch):
    packed = []
    pack = ReferencePlan.pack
    monkeypatch.setattr(ReferencePlan, "pack", lambda self, *a: packed.append(self) or pack(self, *a))
    conv = layer(2, 3, 3, algorithm="reference").eval()
    for x in (X, X, X.copy(), X.transpose(0, 1, 3, 2).copy().transpose(0, 1, 3, 2), X, X[:1], X[:1], X[0], X[1]):
        conv(x)
    assert len(packed) == 2
    conv.train()(X)
    conv(X)
    assert len(packed) == 4


def test_a_known_shape_takes_the_short_way(monkeypatch):
    conv = layer().eval()
    inputs = [X, X[0], X.transpose(0, 1, 3, 2), X[:, :, ::-1], X.astype("f4", order="F")]
    first = [conv(x) for x in inputs]
    monkeypatch.delattr(modules._ConvNd, "_plan_and_run")
    assert all((conv(x) == y).all() for x, y in zip(inputs, first, strict=True))
    with pytest.raises(AttributeError, match="_plan_and_run"):
        conv(X[:1])


def test_plans_are_bounded(monkeypatch):
    conv = nn.Conv1d(2, 2, 1).eval()
    for size in range(1, 200):
        conv(np.zeros((1, 2, size), "f4"))
        assert max(map(len, conv._plans)) <= modules.MOST_SHAPES
    monkeypatch.setattr(modules, "MOST_BYTES", 3 * conv.weight.nbytes)
    conv.train().eval()
    for size in range(1, 20):
        conv(np.zeros((1, 2, size), "f4"))
        assert len(conv._plans[1]) <= 3


def test_settings_count_at_every_call():
    x = np.full((1, 1, 1, 4), 1e-39, "f4")
    conv = nn.Conv2d(1, 1, 1, bias=False).eval()
    conv.weight = np.ones((1, 1, 1, 1), "f4")
    before = config.isa(), config.get_accuracy()
    try:
        for isa in config.isas_available() * 2:
            config._set_isa(isa)
            for accuracy in ("exact", "fast", "exact"):
                pyconv.set_accuracy(accuracy)
                assert (conv(x) == expected(conv, x)).all()
                assert accuracy == "fast" or (conv(x) == x).all()
    finally:
        config._set_isa(before[0])
        pyconv.set_accuracy(before[1])


def test_shared_arrays_thaw():
    for first, second in ((0, 1), (1, 0)):
        convs = layer(), layer(seed=3)
        convs[1].weight = convs[0].weight
        for conv in convs:
            conv.eval()
        convs[first].train()
        convs[second].train()
        assert convs[0].weight is convs[1].weight
        convs[0].weight[...] = 2
        for conv in convs:
            check(conv, X)


def refused(attack):
    """Return the attack with what NumPy has to answer."""

    def run(*args):
        with pytest.raises((ValueError, TypeError)):
            attack(*args)

    return run


def metadata(conv, _weight, _view):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        conv.weight.shape = (2, 3, 3, 3)
    assert conv.weight.shape == (3, 2, 3, 3)
    assert isinstance(conv.weight.base, bytes)


def cycle(conv, weight, _view):
    conv.train()
    weight *= 3
    conv.eval()


ATTACKS = {
    "old view": lambda _conv, _weight, view: view.fill(9),
    "old flag": lambda _conv, weight, _view: (weight.setflags(write=True), weight.fill(9)),
    "element": refused(lambda conv, *_: conv.weight.__setitem__(0, 9)),
    "in place": refused(lambda conv, *_: conv.weight.__imul__(9)),
    "flag": refused(lambda conv, *_: conv.weight.setflags(write=True)),
    "flag of a view": refused(lambda conv, *_: conv.weight[::2].T.view("i4").setflags(write=True)),
    "bias flag": refused(lambda conv, *_: conv.bias.setflags(write=True)),
    "memoryview": refused(lambda conv, *_: conv.weight.data.__setitem__((0, 0, 0, 0), 9.0)),
    "copyto": refused(lambda conv, *_: np.copyto(conv.weight, 9)),
    "out": refused(lambda conv, *_: np.add(conv.weight, 1, out=conv.weight)),
    "init": refused(lambda conv, *_: nn.init.zeros_(conv.weight.data)),
    "resize": refused(lambda conv, *_: conv.weight.resize((3, 3), refcheck=False)),
    "state dict": refused(lambda conv, *_: conv.state_dict()["weight"].fill(9)),
    "parameters": refused(lambda conv, *_: next(conv.parameters()).fill(9)),
    "metadata": metadata,
    "assign weight": lambda conv, *_: setattr(conv, "weight", integers(conv.weight.shape, 20)),
    "assign own": lambda conv, weight, _view: setattr(conv, "weight", weight),
    "assign bias": lambda conv, *_: setattr(conv, "bias", integers(conv.bias.shape, 21)),
    "no bias": lambda conv, *_: setattr(conv, "bias", None),
    "stride": lambda conv, *_: setattr(conv, "stride", 2),
    "padding": lambda conv, *_: setattr(conv, "padding", [0, 2]),
    "same": lambda conv, *_: setattr(conv, "padding", "same"),
    "dilation": lambda conv, *_: setattr(conv, "dilation", (1, 2)),
    "padding_mode": lambda conv, *_: setattr(conv, "padding_mode", "circular"),
    "algorithm": lambda conv, *_: setattr(conv, "algorithm", "reference"),
    "accuracy": lambda conv, *_: setattr(conv, "accuracy", "exact"),
    "reset": lambda conv, *_: conv.reset_parameters(),
    "load": lambda conv, *_: conv.load_state_dict(layer(seed=22).state_dict()),
    "load one": lambda conv, *_: conv.load_state_dict({"bias": integers(3, 23)}, strict=False),
    "cycle": cycle,
}


@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)
def test_nothing_makes_a_frozen_layer_stale(attack):
    conv = layer()
    weight, view = conv.weight, conv.weight[...]
    conv.eval()
    check(conv, X)
    twin, frozen = copy.deepcopy(conv), conv.weight
    attack(conv, weight, view)
    check(conv, X)
    check(twin, X)
    assert (twin.weight == layer().weight).all()
    assert (frozen == layer().weight).all()
    check(conv.train(), X)
    conv.weight[0] += 1
    check(conv, X)
    check(conv.eval(), X)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m)), copy.copy])
@pytest.mark.parametrize("mode", [True, False])
def test_copies(duplicate, mode):
    conv = layer(stride=2, padding_mode="reflect", accuracy="exact").train(mode)
    conv.name = "stem"
    check(conv, X)
    twin = duplicate(conv)
    assert type(twin) is nn.Conv2d
    assert repr(twin) == repr(conv)
    assert (twin.training, twin.name, twin.accuracy) == (mode, "stem", "exact")
    check(twin, X)
    assert (twin(X) == conv(X)).all()
    twin.train().weight[...] = 1
    shared = duplicate is copy.copy and mode
    assert (conv.weight == 1).all() == shared
    check(conv, X)
    check(twin, X)


def replace_weight(conv, weight, turn):
    if turn % 3 == 0:
        conv.load_state_dict({"weight": weight}, strict=False)
    elif turn % 3 == 1:
        conv.weight = weight.copy()
    else:
        conv.train().weight = weight.copy()
        conv.eval()


def test_threads_never_see_a_stale_weight():
    conv = layer().eval()
    inputs = [integers((1, 2, size, 5), size) for size in range(3, 9)]
    weights = [integers(conv.weight.shape, seed) for seed in range(4)]
    results = [[functional.conv2d(x, w, conv.bias, padding=1) for w in weights] for x in inputs]
    conv.weight = weights[0]
    stop, faults = threading.Event(), []

    def read():
        while not stop.is_set():
            for x, allowed in zip(inputs, results, strict=True):
                y = conv(x)
                if not any(np.allclose(y, want) for want in allowed):
                    faults.append(y)

    readers = [threading.Thread(target=read) for _ in range(4)]
    for reader in readers:
        reader.start()
    try:
        for turn in range(300):
            which = turn % len(weights)
            replace_weight(conv, weights[which], turn)
            # The readers fill the plans at the same time; from here on nobody may see what was before.
            for x, allowed in zip(inputs, results, strict=True):
                assert np.allclose(conv(x), allowed[which])
    finally:
        stop.set()
        for reader in readers:
            reader.join()
    assert not faults


FORK = """
import os, signal, threading, warnings
import numpy as np, pyconv.nn as nn
warnings.simplefilter("ignore")
conv, x = nn.Conv2d(2, 3, 3), np.zeros((1, 2, 5, 5), "f4")
def toggle():
    while True:
        conv.eval(); conv.train()
threading.Thread(target=toggle, daemon=True).start()
for _ in range(25):
    pid = os.fork()
    if pid == 0:
        signal.alarm(30)  # one that hangs ends, and fails
        conv.eval()(x); conv.train()(x)
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
os._exit(0)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_forked_child_can_change_modes():
    subprocess.run([sys.executable, "-c", FORK], check=True, timeout=120)
