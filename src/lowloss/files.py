"""Files that are whole or not there: written beside their place, synced, and renamed into it."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lowloss.errors import LowlossError, reason

if TYPE_CHECKING:
    from torch import Tensor


REMEDIES = {
    errno.ENOSPC: "make room on the disk; the same command continues",
    errno.EDQUOT: "make room in your quota; the same command continues",
    errno.EROFS: "make the disk writable, or set outputs to another; the same command continues",
    errno.EACCES: "give yourself the permission, or set outputs to another folder; the same command continues",
}
"""What a user can do about an error of the file system."""


@contextlib.contextmanager
def replacing(file: Path) -> Iterator[Path]:
    """A temporary file to write; it takes the place of `file` once the block ends without an error."""
    file.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}.")
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o644)
        sync(temporary)
        temporary.replace(file)
    finally:
        temporary.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Make a file's content, or a folder's entries, durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def digest(file: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    state = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(1 << 20):
            state.update(block)
    return state.hexdigest()


def place(file: Path, target: Path) -> None:
    """Have a finished file at another place too, written once where the file system has hard links."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(file, target)
    except OSError:
        shutil.copyfile(file, target)
        sync(target)


def write_text(file: Path, text: str) -> None:
    with replacing(file) as temporary:
        temporary.write_text(text, encoding="utf-8")


def save_tensors(file: Path, tensors: Mapping[str, Tensor], notes: Mapping[str, Any]) -> None:
    """A safetensors file with tensors and JSON notes."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    held = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    with replacing(file) as temporary:
        try:
            save_file(held, temporary, {"notes": json.dumps(dict(notes))})
        except SafetensorError as error:
            raise unwritable(file, error) from error


def unwritable(file: Path, error: Exception) -> LowlossError:
    """The error for a library's own complaint that it could not write, most often for want of space."""
    return LowlossError(f"{file} cannot be written ({reason(error)}): {REMEDIES[errno.ENOSPC]}")


def unreadable(file: Path, error: Exception) -> LowlossError:
    """The error for a damaged file of a result."""
    return LowlossError(f"{file} is unreadable ({error}): delete {file.parent} and run the same command again")


def load_tensors(file: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and notes of a safetensors file. Raises LowlossError if it is damaged."""
    with _opened(file, "pt") as archive:
        return {name: archive.get_tensor(name) for name in archive.keys()}, _notes(archive)  # noqa: SIM118


def load_notes(file: Path) -> dict[str, Any]:
    """The notes of a safetensors file alone, without torch. Raises LowlossError if it is damaged."""
    with _opened(file, "np") as archive:
        return _notes(archive)


def _notes(archive: Any) -> dict[str, Any]:
    notes = json.loads((archive.metadata() or {}).get("notes", "{}"))
    if not isinstance(notes, dict):
        raise ValueError("its notes are no mapping")
    return notes


def tensor_shape(file: Path, name: str) -> list[int]:
    """The shape of one tensor of a safetensors file, without torch. Raises LowlossError if it is damaged."""
    with _opened(file, "np") as archive:
        return list(archive.get_slice(name).get_shape())


@contextlib.contextmanager
def _opened(file: Path, framework: str) -> Iterator[Any]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework=framework) as archive:
            yield archive
    except (SafetensorError, OSError, ValueError, RecursionError) as error:
        raise unreadable(file, error) from error
