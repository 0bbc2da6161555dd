"""Weights in files: what is saved comes back, with torch's names; files that lie, and objects, are refused."""

import copy
import io
import os
import pickle
import re
import struct
import sys
import tracemalloc
import zipfile
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of

import pyconv
from pyconv import nn, npz

DTYPES = "bool int8 uint8 int16 uint16 int32 uint32 int64 uint64 float16 float32 float64 complex64 complex128".split()
CHARACTERS = st.characters(codec="utf-8", exclude_categories=["C", "Z"], exclude_characters="/\\:")
NAMES = st.text(CHARACTERS, min_size=1).filter(lambda name: name not in (".", ".."))


def sample_arrays(dtypes=DTYPES):
    rng = np.random.default_rng(0)
    return {f"layer.{dtype}": (rng.standard_normal((2, 3, 4)) * 50).astype(dtype) for dtype in dtypes}


def assert_same(loaded, saved):
    assert list(loaded) == list(saved)
    for name, array in saved.items():
        assert loaded[name].dtype == array.dtype
        assert loaded[name].shape == array.shape
        assert loaded[name].flags.writeable
        assert loaded[name].tobytes() == array.tobytes()


def test_npz_and_numpy_read_each_other(tmp_path):
    saved = sample_arrays()
    pyconv.save_weights(saved, tmp_path / "a.npz")
    assert_same(pyconv.load_weights(tmp_path / "a.npz"), saved)
    with np.load(tmp_path / "a.npz", allow_pickle=False) as other:
        assert_same({name: other[name] for name in other.files}, saved)
    for save in (np.savez, np.savez_compressed):
        save(tmp_path / "b.npz", **saved)
        assert_same(pyconv.load_weights(str(tmp_path / "b.npz")), saved)


@given(
    name=NAMES,
    array=arrays_of.arrays(st.sampled_from(DTYPES), arrays_of.array_shapes(min_dims=0, max_dims=5, min_side=0)),
    fortran=st.booleans(),
)
def test_any_name_and_shape(tmp_path_factory, name, array, fortran):
    path = tmp_path_factory.mktemp("any") / "a.npz"
    saved = {name: np.asfortranarray(array) if fortran and array.ndim else array}
    pyconv.save_weights(saved, path)
    assert_same(pyconv.load_weights(path), {name: array})
    np.savez(path, array=saved[name])
    assert_same(pyconv.load_weights(path), {"array": array})


@pytest.mark.parametrize("ending", [".npz", ".safetensors"])
def test_bfloat16_is_kept(tmp_path, ending):
    bfloat16 = np.dtype(pytest.importorskip("ml_dtypes").bfloat16)
    if ending == ".safetensors":
        pytest.importorskip("safetensors")
    path = tmp_path / f"a{ending}"
    saved = {"a": np.arange(6).reshape(2, 3).astype(bfloat16), "b": np.zeros((0, 3), bfloat16)}
    pyconv.save_weights(saved, path)
    assert_same(pyconv.load_weights(path), saved)
    layer = nn.Conv1d(1, 2, 3, bias=False, dtype=bfloat16)
    layer.load_state_dict({"weight": saved["a"].reshape(2, 1, 3)})
    pyconv.save_weights(layer, path)
    assert_same(pyconv.load_weights(path), {"weight": saved["a"].reshape(2, 1, 3)})
    single = nn.Conv1d(1, 2, 3, bias=False)
    single.load_state_dict(pyconv.load_weights(path))
    np.testing.assert_array_equal(single.weight.ravel(), np.arange(6))


def test_numpy_writes_bfloat16_in_the_same_way(tmp_path):
    bfloat16 = np.dtype(pytest.importorskip("ml_dtypes").bfloat16)
    saved = {"a": np.arange(6).reshape(2, 3).astype(bfloat16)}
    np.savez(tmp_path / "a.npz", a=saved["a"].view("V2"))
    assert_same(pyconv.load_weights(tmp_path / "a.npz"), saved)


def test_safetensors_as_torch_saves_them(tmp_path):
    safetensors = pytest.importorskip("safetensors.torch")
    torch = pytest.importorskip("torch")
    path = tmp_path / "net.safetensors"
    block = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.Conv2d(4, 2, 1, bias=False))
    net = torch.nn.ModuleDict({"layer1": block, "up": torch.nn.ConvTranspose2d(2, 3, 2).half()})
    safetensors.save_file(net.state_dict(), path)
    weights = pyconv.load_weights(path)
    assert weights.keys() == net.state_dict().keys()
    for name, tensor in net.state_dict().items():
        np.testing.assert_array_equal(weights[name], tensor.numpy())
        assert weights[name].dtype == tensor.numpy().dtype
        weights[name][...] = weights[name]  # writable
    layer = nn.Conv2d(3, 4, 3)
    assert str(layer.load_state_dict(weights, prefix="layer1.0.")) == "<All keys matched successfully>"
    x = np.random.default_rng(0).standard_normal((1, 3, 8, 8)).astype(np.float32)
    with torch.no_grad():
        np.testing.assert_allclose(layer(x), block[0](torch.from_numpy(x)).numpy(), atol=1e-5)
    up = nn.ConvTranspose2d(2, 3, 2, dtype=np.float16)
    up.load_state_dict(weights, prefix="up.")
    np.testing.assert_array_equal(up.weight, net["up"].weight.detach().numpy())


def test_safetensors_that_torch_reads(tmp_path):
    safetensors = pytest.importorskip("safetensors")
    path = tmp_path / "a.safetensors"
    saved = sample_arrays(sorted(set(DTYPES) - {"complex128"}))
    saved["scalar"], saved["empty"] = np.array(2.5), np.zeros((0, 4), np.float32)
    saved["layer.transposed"] = np.arange(6.0).reshape(2, 3).T
    pyconv.save_weights(saved, path)
    loaded = pyconv.load_weights(path)
    assert_same(loaded, {name: saved[name] for name in sorted(saved)})
    with safetensors.safe_open(path, "np") as other:
        assert sorted(other.keys()) == sorted(saved)
        np.testing.assert_array_equal(other.get_tensor("layer.transposed"), saved["layer.transposed"])
    with pytest.raises(ValueError, match=r"^save_weights: argument 'weights' must have dtypes that safetensors has"):
        pyconv.save_weights({"a": np.zeros(3, complex)}, path)
    assert_same(pyconv.load_weights(path), loaded)


def test_without_safetensors(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(ImportError, match=r"^save_weights: .*pip install 'pyconv-cpu\[weights\]'"):
        pyconv.save_weights({"a": np.zeros(3)}, tmp_path / "a.safetensors")
    with pytest.raises(ImportError, match=r"^load_weights: .*pip install 'pyconv-cpu\[weights\]'"):
        pyconv.load_weights(tmp_path / "a.safetensors")
    assert not list(tmp_path.iterdir())


def test_layers_by_name(tmp_path):
    path = tmp_path / "a.npz"
    net = {"stem": nn.Conv2d(3, 4, 3), "up": nn.ConvTranspose2d(4, 2, 2, bias=False).eval(), "mean": np.ones(3)}
    pyconv.save_weights(net, path)
    weights = pyconv.load_weights(path)
    assert list(weights) == ["stem.weight", "stem.bias", "up.weight", "mean"]
    other = nn.Conv2d(3, 4, 3)
    result = other.load_state_dict(weights, prefix="stem.")
    assert result == ([], [])
    np.testing.assert_array_equal(other.bias, net["stem"].bias)
    pyconv.save_weights(net["stem"], path)
    assert copy.copy(other).load_state_dict(pyconv.load_weights(path)) == ([], [])


def test_prefixes_that_miss():
    layer = nn.Conv1d(1, 1, 1)
    weights = {"a.weight": np.ones((1, 1, 1)), "a.scale": np.ones(1), "b.bias": np.ones(1), 3: np.ones(1)}
    with pytest.raises(RuntimeError, match=r'Missing key\(s\).*"a.bias".*\n.*Unexpected key\(s\).*"a.scale"') as caught:
        layer.load_state_dict(weights, prefix="a.")
    assert "b.bias" not in str(caught.value)
    assert layer.load_state_dict(weights, strict=False, prefix="a.") == (["a.bias"], ["a.scale"])
    assert layer.weight == 1
    with pytest.raises(RuntimeError, match=r'"c.weight", "c.bias"'):
        layer.load_state_dict(weights, prefix="c.")
    with pytest.raises(TypeError, match=r"^load_state_dict: argument 'prefix' must be a str, got None"):
        layer.load_state_dict(weights, prefix=None)


@pytest.mark.parametrize(("weights", "kind", "rule"), [
    ([np.zeros(1)], TypeError, "must be a layer or a mapping"), (np.zeros(1), TypeError, "must be a layer"),
    ({1: np.zeros(1)}, TypeError, "must have strings as names, got 1"),
    ({"a": [1.0]}, TypeError, "must be a numpy.ndarray"), ({"a": np.array([None])}, TypeError, "must hold"),
    ({"a": np.zeros(1, "V4")}, TypeError, "must hold"), ({"a": np.ma.masked_array([1])}, TypeError, "masked"),
    ({"../a": np.zeros(1)}, ValueError, "must have names without paths"), ({"": np.zeros(1)}, ValueError, "names"),
    ({"a\0b": np.zeros(1)}, ValueError, "names"), ({"c:a": np.zeros(1)}, ValueError, "names"),
    ({"a": nn.Conv1d(1, 1, 1), "a.bias": np.zeros(1)}, ValueError, "two arrays of one name, got 'a.bias'"),
])  # fmt: skip
def test_what_is_not_saved(tmp_path, weights, kind, rule):
    path = tmp_path / "a.npz"
    path.write_bytes(b"as it was")
    with pytest.raises(kind, match=rf"^save_weights: argument 'weights(\['a'\])?' .*{re.escape(rule)}"):
        pyconv.save_weights(weights, path)
    assert path.read_bytes() == b"as it was"
    assert list(tmp_path.iterdir()) == [path]


def test_paths(tmp_path):
    for call in (lambda path: pyconv.save_weights({}, path), pyconv.load_weights):
        for path, kind in (("a.pt", ValueError), ("npz", ValueError), (b"a.npz", TypeError), (3, TypeError)):
            with pytest.raises(kind, match=r"^(save|load)_weights: argument 'path' must "):
                call(path)
        with pytest.raises(OSError, match="none"):
            call(tmp_path / "none" / "a.npz")
    for most in (True, 1.5, None):
        with pytest.raises(TypeError, match=r"^load_weights: argument 'max_bytes' must be an int"):
            pyconv.load_weights(tmp_path / "a.npz", max_bytes=most)


# ------------------------------------------------------------------------------------------------- hostile files


def npy_bytes(header, data=b"", version=1):
    head = header.encode("latin1")
    return b"\x93NUMPY" + bytes([version, 0]) + struct.pack("<H" if version == 1 else "<I", len(head)) + head + data


def header(descr="'<f4'", shape="(4,)", fortran="False"):
    return f"{{'descr': {descr}, 'fortran_order': {fortran}, 'shape': {shape}, }}\n"


def zipped(members, method=zipfile.ZIP_STORED):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        for name, data in members:
            archive.writestr(name, data)
    return file.getvalue()


class Bomb:
    def __reduce__(self):
        return os.mkdir, ("pyconv-was-here",)


def object_array():
    file = io.BytesIO()
    np.save(file, np.array([Bomb()], object), allow_pickle=True)
    return file.getvalue()


def with_sizes(data, compressed=None, uncompressed=None):
    """A zip of one member whose directory and local header tell other sizes."""
    data = bytearray(data)
    for signature, at in ((b"PK\x03\x04", 18), (b"PK\x01\x02", 20)):
        place = data.index(signature) + at
        old = struct.unpack_from("<II", data, place)
        struct.pack_into("<II", data, place, *(new or was for new, was in zip((compressed, uncompressed), old)))
    return bytes(data)


GOOD = npy_bytes(header(), np.arange(4, dtype="<f4").tobytes())
ZEROS = npy_bytes(header(shape="(10_000_000,)"), bytes(40_000_000))
HOSTILE = {
    "not a zip": b"PK\x03\x04 and so on",
    "empty": b"",
    "a pickle": pickle.dumps(Bomb()),
    "an object array": zipped([("a.npy", object_array())]),
    "an object in a record": zipped([("a.npy", npy_bytes(header("[('x', '|O')]"), bytes(32)))]),
    "a record": zipped([("a.npy", npy_bytes(header("[('x', '<f4')]"), bytes(16)))]),
    "strings": zipped([("a.npy", npy_bytes(header("'<U1'"), bytes(16)))]),
    "dates": zipped([("a.npy", npy_bytes(header("'<M8[s]'"), bytes(32)))]),
    "a dtype of arrays": zipped([("a.npy", npy_bytes(header("('<f4', (4,))", "()"), bytes(16)))]),
    "no .npy": zipped([("a.pkl", pickle.dumps(Bomb()))]),
    "no name": zipped([(".npy", GOOD)]),
    "up": zipped([("../a.npy", GOOD)]),
    "absolute": zipped([("/etc/a.npy", GOOD)]),
    "a drive": zipped([("c:a.npy", GOOD)]),
    "backslashes": zipped([("..\\a.npy", GOOD)]),
    "a folder": zipped([("b/a.npy", GOOD)]),
    "a control character": zipped([("a\n.npy", GOOD)]),
    "more than the member": zipped([("a.npy", npy_bytes(header(shape="(5,)"), bytes(16)))]),
    "less than the member": zipped([("a.npy", npy_bytes(header(shape="(3,)"), bytes(16)))]),
    "enormous": zipped([("a.npy", npy_bytes(header(shape=f"({2**61},)"), bytes(16)))]),
    "enormous twice": zipped([("a.npy", npy_bytes(header(shape=f"({2**40}, {2**40})"), bytes(16)))]),
    "negative": zipped([("a.npy", npy_bytes(header(shape="(-2, -2)"), bytes(16)))]),
    "a shape of floats": zipped([("a.npy", npy_bytes(header(shape="(4.0,)"), bytes(16)))]),
    "a shape of bools": zipped([("a.npy", npy_bytes(header(shape="(True, 4)"), bytes(16)))]),
    "many axes": zipped([("a.npy", npy_bytes(header(shape=f"({'1, ' * 70}4)"), bytes(16)))]),
    "an expression": zipped([("a.npy", npy_bytes(header(shape="(__import__('os').getpid(),)"), bytes(16)))]),
    "brackets": zipped([("a.npy", npy_bytes("(" * 9000))]),
    "a long header": zipped([("a.npy", npy_bytes(header() + " " * 20_000, bytes(16)))]),
    "a longer header": zipped([("a.npy", npy_bytes(header() + " " * 10**6, bytes(16), version=2))]),
    "a header that says it is long": zipped([("a.npy", b"\x93NUMPY\x02\0\xff\xff\xff\xff{}")]),
    "an unknown version": zipped([("a.npy", b"\x93NUMPY\x09\0" + GOOD[8:])]),
    "no header": zipped([("a.npy", b"\x93NUM")]),
    "two of one name": GOOD and zipped([("a.npy", GOOD), ("b.npy", GOOD)]).replace(b"b.npy", b"a.npy"),
    "another compression": zipped([("a.npy", GOOD)], zipfile.ZIP_LZMA),
    "a wrong checksum": zipped([("a.npy", GOOD)]).replace(GOOD, GOOD[:-1] + b"?"),
    "cut off": zipped([("a.npy", GOOD)])[:-30],
    "a size that lies": with_sizes(zipped([("a.npy", ZEROS)], zipfile.ZIP_DEFLATED), None, 2**32 - 2),
    "a stored size that lies": with_sizes(
        zipped([("a.npy", npy_bytes(header(shape="(100_000_000,)"), bytes(16)))]), None, 400_000_128
    ),
    "sizes that lie together": with_sizes(
        zipped([("a.npy", npy_bytes(header(shape="(100_000_000,)"), bytes(16)))]), 400_000_128, 400_000_128
    ),
    "damaged data": zipped([("a.npy", ZEROS)], zipfile.ZIP_DEFLATED).replace(bytes(100), b"\xff" * 100, 1),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_npz(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "a.npz"
    path.write_bytes(HOSTILE[name])
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=r"^load_weights: argument 'path' must be an honest .npz .*, got '"):
            pyconv.load_weights(path)
        memory = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert memory < 5e7
    assert list(tmp_path.iterdir()) == [path]


def test_a_bomb_is_limited(tmp_path):
    """40 MB from 40 KB are honest, and refused where the caller wants no more than 10 MB."""
    path = tmp_path / "a.npz"
    path.write_bytes(zipped([("a.npy", ZEROS)], zipfile.ZIP_DEFLATED))
    assert path.stat().st_size < 50_000
    assert pyconv.load_weights(path)["a"].nbytes == 40_000_000
    with pytest.raises(ValueError, match=r"its arrays take \d+ bytes, more than max_bytes = 10000000"):
        pyconv.load_weights(path, max_bytes=10_000_000)


def test_members_that_share_their_bytes(tmp_path):
    """Many names for one place in the file, the other kind of bomb."""
    path = tmp_path / "a.npz"
    one = zipped([("a.npy", ZEROS)], zipfile.ZIP_DEFLATED)
    start = one.index(b"PK\x01\x02")
    entry, end = one[start : one.index(b"PK\x05\x06")], bytearray(one[one.index(b"PK\x05\x06") :])
    entries = b"".join(entry.replace(b"a.npy", bytes([97 + i]) + b".npy") for i in range(20))
    struct.pack_into("<HHI", end, 8, 20, 20, len(entries))
    path.write_bytes(one[:start] + entries + bytes(end))
    with pytest.raises(ValueError, match=r"must be an honest .npz"):
        pyconv.load_weights(path)


@given(data=st.data())
def test_damaged_bytes_never_crash(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("damaged") / "a.npz"
    method = data.draw(st.sampled_from([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED]))
    whole = bytearray(zipped([("a.npy", GOOD), ("b.npy", npy_bytes(header("'|u1'", "(2, 3)"), bytes(6)))], method))
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(whole)
    try:
        loaded = pyconv.load_weights(path)
    except ValueError as error:
        assert str(error).startswith("load_weights: argument 'path' must ")
    else:
        assert sum(array.nbytes for array in loaded.values()) <= 22


def safetensors_bytes(text, data=b""):
    return struct.pack("<Q", len(text)) + text.encode() + data


def tensor(dtype="F32", shape="[4]", offsets="[0,16]"):
    return f'"a":{{"dtype":"{dtype}","shape":{shape},"data_offsets":{offsets}}}'


@pytest.mark.parametrize("content", [
    b"", b"\x08", safetensors_bytes("{"), safetensors_bytes("[]"), struct.pack("<Q", 2**63) + b"{}",
    struct.pack("<Q", 10**8) + b"{}", safetensors_bytes("{" + tensor() + "}"),
    safetensors_bytes("{" + tensor() + "}", bytes(17)), safetensors_bytes("{" + tensor(shape="[5]") + "}", bytes(16)),
    safetensors_bytes("{" + tensor(offsets="[0,15]") + "}", bytes(16)),
    safetensors_bytes("{" + tensor(offsets="[16,0]") + "}", bytes(16)),
    safetensors_bytes("{" + tensor(shape=f"[{2**62},4]") + "}", bytes(16)),
    safetensors_bytes("{" + tensor(shape=f"[{2**33},{2**33}]", offsets="[0,0]") + "}"),
    safetensors_bytes("{" + tensor("O") + "}", bytes(16)),
    safetensors_bytes("{" + tensor("F8_E4M3", "[16]") + "}", bytes(16)),
    pickle.dumps(Bomb()), zipped([("a.npy", GOOD)]),
], ids=range(17))  # fmt: skip
def test_hostile_safetensors(tmp_path, content):
    pytest.importorskip("safetensors")
    path = tmp_path / "a.safetensors"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"^load_weights: argument 'path' must (be a sound|hold numbers of).*, got '"):
        pyconv.load_weights(path)
    assert list(tmp_path.iterdir()) == [path]


def test_a_safetensors_file_that_is_too_large(tmp_path):
    pytest.importorskip("safetensors")
    path = tmp_path / "a.safetensors"
    pyconv.save_weights({"a": np.zeros(1000)}, path)
    with pytest.raises(ValueError, match="must be a file of at most max_bytes = 8000"):
        pyconv.load_weights(path, max_bytes=8000)


def test_deflate_makes_no_more_than_that():
    """The number that tells bombs that lie from honest ones: zlib's documentation says 1032:1."""
    for count in (10**4, 10**6, 10**7):
        packed = zlib.compress(bytes(count), 9)
        assert count <= npz.MOST_DEFLATED * len(packed)
