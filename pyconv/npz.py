"""Reading and writing .npz files that need not be trusted: a zip of .npy members, no pickle, no lying sizes.

An .npz is refused as a whole, before any array is made, unless every member is a plain .npy of numbers, stored or
deflated, whose header, directory entry and compressed bytes agree: the directory's sizes bound what is read, the
header must promise exactly that, and deflate cannot have made it from fewer compressed bytes than 1/1032 of it. All
members together must fit into the file, so that no two of them share their bytes.
"""

from __future__ import annotations

import ast
import io
import os
import zipfile
import zlib
from math import prod
from typing import BinaryIO

import numpy as np
from numpy.lib import format as npy

NAME_RULE = "not empty, no '/', '\\\\', ':' or control characters, not '.' or '..'"
MOST_DEFLATED = 1032  # bytes that one byte of a deflated stream can stand for
MOST_MEMBERS = 2**16
MOST_HEADER = 10_000  # bytes; NumPy's own limit
CHUNK = 2**20
KINDS = "bfciu"
BFLOAT16 = np.dtype("V2")  # how NumPy writes ml_dtypes' bfloat16
LENGTH_BYTES = {(1, 0): 2, (2, 0): 4}  # of the length of a header, by the version of the format
METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
# What zipfile, zlib and NumPy's parser of headers raise on damaged or hostile bytes.
DAMAGED = (
    zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError, EOFError, SyntaxError, OverflowError, TypeError,
    ValueError, KeyError, UnicodeError, RecursionError,
)  # fmt: skip


class RefusedError(Exception):
    """Why a file is not read."""


def is_name(name: str) -> bool:
    """Tell whether an array may be called so in an .npz."""
    return name not in ("", ".", "..") and name.isprintable() and not set(name) & set("/\\:")


def bfloat16() -> np.dtype:
    """Return ml_dtypes' bfloat16."""
    try:
        import ml_dtypes
    except ImportError:
        raise ImportError("load_weights: bfloat16 needs the package ml_dtypes: pip install ml_dtypes") from None
    return np.dtype(ml_dtypes.bfloat16)


def write(path: str | os.PathLike[str], arrays: dict[str, np.ndarray]) -> None:
    """Write arrays by name, as numpy.savez does."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
        for name, array in arrays.items():
            plain = array.view(BFLOAT16) if array.dtype.name == "bfloat16" else array
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                npy.write_array(member, plain, version=(1, 0), allow_pickle=False)


def read(path: str | os.PathLike[str], max_bytes: int) -> dict[str, np.ndarray]:
    """Return all arrays of a file by name; RefusedError for one that is damaged or not what it should be."""
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        try:
            with zipfile.ZipFile(file) as archive:
                members = checked_members(archive, size, max_bytes)
                headers = {name: read_header(archive, member) for name, member in members.items()}
                return {name: read_array(archive, member, *headers[name]) for name, member in members.items()}
        except DAMAGED as error:
            raise RefusedError(f"{type(error).__name__}: {error}") from error


def checked_members(archive: zipfile.ZipFile, size: int, max_bytes: int) -> dict[str, zipfile.ZipInfo]:
    """Return the members by the names of their arrays, if the directory is honest as far as it can be told."""
    members: dict[str, zipfile.ZipInfo] = {}
    if len(archive.filelist) > MOST_MEMBERS:
        raise RefusedError(f"it has {len(archive.filelist)} members, more than {MOST_MEMBERS}")
    for member in archive.filelist:
        name = member.orig_filename.removesuffix(".npy")
        if name == member.orig_filename or not is_name(name):
            raise RefusedError(f"member {member.orig_filename[:80]!r} must be called NAME.npy, NAME {NAME_RULE}")
        if name in members:
            raise RefusedError(f"two members are called {member.orig_filename!r}")
        if member.compress_type not in METHODS or member.flag_bits & 0x1:
            raise RefusedError(f"member {name!r} must be stored or deflated, not encrypted")
        most = member.compress_size * (MOST_DEFLATED if member.compress_type == zipfile.ZIP_DEFLATED else 1)
        if member.file_size > most:
            raise RefusedError(f"member {name!r} says {member.file_size} bytes, its contents can be {most} at most")
        members[name] = member
    total, compressed = (
        sum(getattr(member, which) for member in members.values()) for which in ("file_size", "compress_size")
    )
    if compressed > size:
        raise RefusedError(f"its members have {compressed} bytes, the file has {size}")
    if total > max_bytes:
        raise RefusedError(f"its arrays take {total} bytes, more than max_bytes = {max_bytes}")
    return members


def read_header(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Return shape, whether the order is Fortran's, and dtype, if the member has just these bytes."""
    with archive.open(member) as file:
        shape, fortran, dtype, start = header_of(file)
    name = member.filename
    if dtype.hasobject or (dtype != BFLOAT16 and (dtype.kind not in KINDS or dtype.names)):
        raise RefusedError(f"member {name!r} has dtype {dtype}, no numbers or bools")
    if any(type(n) is not int or n < 0 for n in shape) or len(shape) > 32:
        raise RefusedError(f"member {name!r} has shape {str(shape)[:80]}")
    if prod(shape) * dtype.itemsize != member.file_size - start:
        raise RefusedError(
            f"member {name!r} has {member.file_size - start} bytes, not those of {dtype} {str(shape)[:80]}"
        )
    return shape, fortran, dtype


def header_of(file: BinaryIO) -> tuple[tuple[int, ...], bool, np.dtype, int]:
    """Read an .npy header, a Python literal; what comes last is how many bytes it has."""
    head = file.read(npy.MAGIC_LEN)
    version = npy.read_magic(io.BytesIO(head))
    if version not in LENGTH_BYTES:
        raise RefusedError(f"version {version} of the .npy format is not read")
    length = int.from_bytes(file.read(LENGTH_BYTES[version]), "little")
    if length > MOST_HEADER:
        raise RefusedError(f"a header of {length} bytes is longer than {MOST_HEADER}")
    text = file.read(length)
    try:
        facts = ast.literal_eval(text.decode("latin1"))
    except MemoryError as error:  # the parser's, of brackets in brackets
        raise RefusedError("a header is nested too deeply") from error
    if type(facts) is not dict or set(facts) != {"descr", "fortran_order", "shape"}:
        raise RefusedError(f"a header is {text[:80]!r}")
    descr, fortran, shape = facts["descr"], facts["fortran_order"], facts["shape"]
    if type(descr) is not str or type(fortran) is not bool or type(shape) is not tuple:
        raise RefusedError(f"a header is {text[:80]!r}, not that of an array of numbers")
    return shape, fortran, np.dtype(descr), npy.MAGIC_LEN + LENGTH_BYTES[version] + length


def read_array(
    archive: zipfile.ZipFile, member: zipfile.ZipInfo, shape: tuple[int, ...], fortran: bool, dtype: np.dtype
) -> np.ndarray:
    """Return one array, read in pieces."""
    flat = np.empty(prod(shape), dtype)
    unread = memoryview(flat.view(np.uint8))
    with archive.open(member) as file:
        header_of(file)
        while unread.nbytes:
            count = file.readinto(unread[:CHUNK])
            if not count:
                raise RefusedError(f"member {member.filename!r} ends early")
            unread = unread[count:]
        file.read(1)  # nothing, and so the check of what was read
    array = flat.reshape(shape[::-1]).T if fortran else flat.reshape(shape)
    if dtype == BFLOAT16:
        return array.view(bfloat16())
    return array if dtype.isnative else array.astype(dtype.newbyteorder("="))
