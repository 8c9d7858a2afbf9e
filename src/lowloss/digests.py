"""Digests (SHA-256) that files carry themselves, so that a file and its digest are replaced as one.

A safetensors file holds two, first of all in its notes: that of its tensors' bytes, and that of its header, in which
the first one stands. Thus the header alone identifies the whole file. A checkpoint of torch's is a zip archive, and
ends in a comment with the digest of all before it.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from pathlib import Path
from stat import S_ISREG
from typing import BinaryIO

LENGTH = 64
"""Characters of a digest."""
KEY = "sha256"
ROOM = "0" * 2 * LENGTH
"""What stands in the notes of a safetensors file before its digests are known."""


class NoDigestError(ValueError):
    """A file holds no digest."""


_PLACE = re.compile(rb'"notes":"\{\\"' + KEY.encode() + rb'\\": \\"([0-9a-f]{%d})\\"' % len(ROOM))


def digest(file: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with _opened(file) as stream:
        return _sum(stream, file.stat().st_size).hexdigest()


def identity(file: Path, whole: bool = False) -> str:
    """What a file is known by: the digest of a safetensors file's header, of any other the file's.

    Args:
        whole: whether the tensors' bytes are read and compared too.

    Raises ValueError if the digests that a safetensors file holds are wrong.
    """
    return check_tensors(file, whole) if file.suffix == ".safetensors" else digest(file)


def seal_tensors(file: Path) -> None:
    """Put the digests into a safetensors file whose notes have the room for them."""
    with file.open("r+b") as stream:
        size, header, place = _header(file, stream)
        data = _sum(stream, size - len(header)).hexdigest().encode()
        header[place : place + LENGTH] = data
        stream.seek(place)
        stream.write(data + hashlib.sha256(header).hexdigest().encode())


def check_tensors(file: Path, whole: bool) -> str:
    """The digest of a safetensors file's header, once it is seen to be right.

    Args:
        whole: whether the tensors' bytes are read and compared too.

    Raises ValueError if a digest is missing or wrong.
    """
    with _opened(file) as stream:
        size, header, place = _header(file, stream)
        data, told = (header[i : i + LENGTH].decode() for i in (place, place + LENGTH))
        header[place + LENGTH : place + 2 * LENGTH] = b"0" * LENGTH
        right = hashlib.sha256(header).hexdigest() == told
        if not right or (whole and _sum(stream, size - len(header)).hexdigest() != data):
            raise ValueError("its digest is another than when it was written")
    return told


def _header(file: Path, stream: BinaryIO) -> tuple[int, bytearray, int]:
    """The size of a safetensors file, its header with the length in front, and where in it the digests stand."""
    size = file.stat().st_size
    length = stream.read(8)
    if not 8 <= 8 + int.from_bytes(length, "little") <= size:
        raise ValueError("it is cut off, or no safetensors file")
    header = bytearray(length + stream.read(int.from_bytes(length, "little")))
    found = _PLACE.search(header)
    if found is None:
        raise NoDigestError("it holds no digest")
    return size, header, found.start(1)


def seal_archive(file: Path) -> None:
    """End a zip archive in the digest of all its bytes, as its comment, whose length the last two bytes tell."""
    with file.open("r+b") as stream:
        state = _sum(stream, file.stat().st_size - 2)
        stream.seek(-2, os.SEEK_END)
        if stream.read() != b"\0\0":
            raise ValueError("it is no zip archive, or has a comment already")
        stream.seek(-2, os.SEEK_END)
        stream.write(LENGTH.to_bytes(2, "little") + state.hexdigest().encode())


def check_archive(file: Path) -> None:
    """Raise ValueError unless a zip archive ends in the digest of all before."""
    with _opened(file) as stream:
        state = _sum(stream, file.stat().st_size - LENGTH - 2)
        if stream.read() != LENGTH.to_bytes(2, "little") + state.hexdigest().encode():
            raise ValueError("its digest is missing, or another than when it was written")


def seal(file: Path) -> None:
    """Write the digest of a file beside it, as sha256sum does: of a table, which others read."""
    _seal_of(file).write_text(f"{digest(file)}  {file.name}\n", encoding="utf-8")


def check_seal(file: Path) -> None:
    """Raise ValueError unless the digest beside a file is the file's."""
    check_regular(_seal_of(file))
    told = f"{digest(file)}  {file.name}\n"
    if not _seal_of(file).is_file() or _seal_of(file).read_text(encoding="utf-8", errors="replace") != told:
        raise ValueError("its digest is missing, or another than when it was written")


def _seal_of(file: Path) -> Path:
    return file.with_name(f"{file.name}.sha256")


def check_regular(file: Path) -> None:
    """Raise ValueError for what might never end when it is read, as a pipe, or a device."""
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        if not S_ISREG(file.stat().st_mode):
            raise ValueError("it is no regular file")


def _opened(file: Path) -> BinaryIO:
    """A regular file, to read."""
    check_regular(file)
    return file.open("rb")


def _sum(stream: BinaryIO, count: int) -> hashlib._Hash:
    """The state after the next `count` bytes of a stream."""
    state = hashlib.sha256()
    while count > 0 and (block := stream.read(min(count, 1 << 20))):
        state.update(block)
        count -= len(block)
    return state
