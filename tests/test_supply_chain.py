"""What comes with `import pyconv`: no network, no process, no file written; one way into the core, no writable code."""

import json
import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import REFERENCE_RUN

import pyconv
from pyconv import config

PACKAGE = Path(config.__file__).parent
# Python's name of every event that reaches out of the process, by the first part of it; a file opened for writing, too.
WATCHED = """
import os, sys
FORBIDDEN = ("socket.", "urllib.", "http.", "ftplib.", "smtplib.", "subprocess.", "os.system", "os.exec", "os.fork",
             "os.posix_spawn", "os.spawn", "os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.putenv",
             "os.unsetenv", "os.chmod", "shutil.", "pickle.find_class", "marshal.dump", "ctypes.dlopen", "webbrowser.",
             "tempfile.")
seen = []
def hook(event, arguments):
    if event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
        seen.append(f"open {arguments[0]} to write")
    elif event.startswith(FORBIDDEN):
        seen.append(f"{event} {arguments}")
"""


def events(code, before="import numpy"):
    """What the hook sees while some code runs in a new process; of its own imports, `before` is not looked at."""
    program = f"{before}\n{WATCHED}\nsys.addaudithook(hook)\n{code}\nseen, found = [], seen\nprint(*found, sep='\\n')"
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": str(PACKAGE.parent)}
    command = [sys.executable, "-W", "ignore", "-c", program]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=True)
    return done.stdout.split("\n")[:-1]


MODULES = sorted(
    ".".join(["pyconv", *path.relative_to(PACKAGE).with_suffix("").parts]).removesuffix(".__init__")
    for path in PACKAGE.rglob("*.py")
    if path.stem not in ("__main__", "demo")
)


OWN = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")


def test_importing_reaches_for_nothing():
    assert "pyconv.weights" in MODULES
    said = f"os.putenv (b'GOMP_SPINCOUNT', b'{config.SPINS}')", "os.unsetenv (b'GOMP_SPINCOUNT',)"  # and taken back
    seen = events("import " + ", ".join(MODULES), f"import numpy, os; [os.environ.pop(name, 0) for name in {OWN}]")
    assert seen == [*said]
    assert events("import " + ", ".join(MODULES), "import numpy, os; os.environ['GOMP_SPINCOUNT'] = '7'") == [""]


@pytest.mark.parametrize(("code", "event"), [
    ("import subprocess; subprocess.run([sys.executable, '-c', ''])", "subprocess.Popen"),
    ("import socket; socket.socket()", "socket.__new__"), ("os.system('')", "os.system"),
    ("open(os.devnull, 'w').close()", "to write"),
])  # fmt: skip
def test_the_watch_sees_what_it_should(code, event):
    """Else the test above could not fail."""
    assert any(event in line for line in events(code))


# ------------------------------------------------------------------------------------------------------ the ELF file

LOAD, DYNAMIC, STACK, RELRO = 1, 2, 0x6474E551, 0x6474E552  # kinds of segments
EXECUTE, WRITE = 1, 2
FLAGS, FLAGS_1, TEXTREL = 30, 0x6FFFFFFB, 22  # tags of the dynamic section
BIND_NOW, NOW = 0x8, 0x1


def segments(content):
    """(kind, flags, offset, bytes in the file) of each segment of a 64-bit little-endian ELF file."""
    assert content[:6] == b"\x7fELF\x02\x01"
    (start,), (size, count) = struct.unpack_from("<Q", content, 32), struct.unpack_from("<HH", content, 54)
    rows = [struct.unpack_from("<IIQQQQ", content, start + index * size) for index in range(count)]
    return [(kind, flags, offset, filesz) for kind, flags, offset, _, _, filesz in rows]


def complaints(content):
    """What is not as it should be: the reasons, or nothing."""
    found = segments(content)
    kinds = {kind for kind, *_ in found}
    reasons = []
    if RELRO not in kinds:
        reasons.append("no RELRO")
    if not any(kind == STACK and not flags & EXECUTE for kind, flags, *_ in found):
        reasons.append("the stack may hold code")
    if any(kind == LOAD and flags & EXECUTE and flags & WRITE for kind, flags, *_ in found):
        reasons.append("a segment is writable and executable")
    (place,) = ((offset, size) for kind, _, offset, size in found if kind == DYNAMIC)
    tags = dict(struct.iter_unpack("<QQ", content[place[0] : sum(place)]))
    if not tags.get(FLAGS, 0) & BIND_NOW and not tags.get(FLAGS_1, 0) & NOW:
        reasons.append("bound lazily")
    if TEXTREL in tags:
        reasons.append("code is written to when it is loaded")
    return reasons


@pytest.fixture
def core_file():
    if REFERENCE_RUN or not sys.platform.startswith("linux") or sys.maxsize < 2**32 or sys.byteorder != "little":
        pytest.skip("reads the 64-bit little-endian ELF file of a compiled core")
    return Path(config.core.__file__).read_bytes()


def test_the_core_is_hardened(core_file):
    assert complaints(core_file) == []


@pytest.mark.parametrize(("kind", "change", "reason"), [
    (RELRO, {"kind": 0}, "no RELRO"), (STACK, {"flags": 7}, "the stack may hold code"),
    (LOAD, {"flags": 7}, "a segment is writable and executable"), (DYNAMIC, {"empty": True}, "bound lazily"),
])  # fmt: skip
def test_the_reader_sees_a_core_that_is_not(core_file, kind, change, reason):
    """Else the test above could not fail."""
    content = bytearray(core_file)
    (start,), (size,) = struct.unpack_from("<Q", content, 32), struct.unpack_from("<H", content, 54)
    index, (_, flags, offset, length) = next(row for row in enumerate(segments(core_file)) if row[1][0] == kind)
    struct.pack_into("<II", content, start + index * size, change.get("kind", kind), change.get("flags", flags))
    if change.get("empty"):
        content[offset : offset + length] = bytes(length)
    assert reason in complaints(bytes(content))


# ------------------------------------------------------------------------------- lies that safetensors could be told


def safetensors(text, data=b""):
    head = text if isinstance(text, bytes) else text.encode()
    return struct.pack("<Q", len(head)) + head + data


def tensor(first, last, count=4, name="a"):
    return f'"{name}":{{"dtype":"F32","shape":[{count}],"data_offsets":[{first},{last}]}}'


LIES = {
    "two tensors share bytes": safetensors(f"{{{tensor(0, 16)},{tensor(8, 24, name='b')}}}", bytes(24)),
    "two tensors share all bytes": safetensors(f"{{{tensor(0, 16)},{tensor(0, 16, name='b')}}}", bytes(16)),
    "a gap between tensors": safetensors(f"{{{tensor(0, 16)},{tensor(20, 36, name='b')}}}", bytes(36)),
    "data before the first": safetensors(f"{{{tensor(4, 20)}}}", bytes(20)),
    "data after the last": safetensors(f"{{{tensor(0, 16)}}}", bytes(32)),
    "offsets beyond the file": safetensors(f"{{{tensor(2**40, 2**40 + 16)}}}", bytes(16)),
    "a negative offset": safetensors(f"{{{tensor(-16, 0)}}}", bytes(16)),
    "an offset that is no int": safetensors(f"{{{tensor(0, '16.0')}}}", bytes(16)),
    "a negative size": safetensors(f"{{{tensor(0, 16, -4)}}}", bytes(16)),
    "a header beyond 100 MB": struct.pack("<Q", 200_000_000) + b"{}",
    "a header nested too deeply": safetensors('{"a":' + "[" * 20_000),
    "a header that is no UTF-8": safetensors(b'{"\xff\xfe":1}'),
    "a tensor without offsets": safetensors('{"a":{"dtype":"F32","shape":[0]}}'),
    "metadata that are no strings": safetensors('{"__metadata__":{"a":[1]}}'),
}  # fmt: skip


@pytest.mark.parametrize("name", LIES)
def test_a_safetensors_file_that_lies(tmp_path, name):
    pytest.importorskip("safetensors")

    path = tmp_path / "a.safetensors"
    path.write_bytes(LIES[name])
    with pytest.raises(ValueError, match=r"^load_weights: argument 'path' must "):
        pyconv.load_weights(path)


@pytest.mark.parametrize("name", ["../a", "/etc/passwd", "a\0b", "c:\\a", "__class__", "é\u202e"])
def test_a_name_in_a_safetensors_file_is_a_name_alone(tmp_path, name):
    """Names are keys of a dict and nothing else: none becomes a path or an attribute."""
    pytest.importorskip("safetensors")

    path = tmp_path / "a.safetensors"
    text = json.dumps({name: {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}})
    path.write_bytes(safetensors(text, b"\x05"))
    assert {key: array.tolist() for key, array in pyconv.load_weights(path).items()} == {name: [5]}
    assert list(tmp_path.iterdir()) == [path]


def test_two_tensors_of_one_name(tmp_path):
    pytest.importorskip("safetensors")

    path = tmp_path / "a.safetensors"
    path.write_bytes(safetensors(f"{{{tensor(0, 16)},{tensor(16, 32)}}}", bytes(16) + b"\1" * 16))
    with pytest.raises(ValueError, match=r"^load_weights: argument 'path' must "):
        pyconv.load_weights(path)
