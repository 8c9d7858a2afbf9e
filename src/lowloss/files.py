"""Files that are whole or not there: written beside their place, synced, and renamed into it."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import secrets
import shutil
import stat
from collections.abc import Iterator, Mapping, Sequence
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lowloss.digests import KEY, ROOM, NoDigestError, check_tensors, seal_tensors
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
    temporary = create(file.parent, f".{file.name}.")
    mode = stat.S_IMODE(temporary.stat().st_mode)
    try:
        yield temporary
        if stat.S_IMODE(temporary.stat().st_mode) != mode:  # safetensors puts a file of its own there, for one user
            temporary.chmod(mode)
        sync(temporary)
        temporary.replace(file)
    finally:
        temporary.unlink(missing_ok=True)


def create(folder: Path, prefix: str) -> Path:
    """A new empty file in a folder, with the permissions that the umask leaves: `tempfile` makes files for one user."""
    while True:
        file = folder / f"{prefix}{secrets.token_hex(4)}"
        with contextlib.suppress(FileExistsError):
            os.close(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
            return file


def sync(path: Path) -> None:
    """Make a file's content, or a folder's entries, durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


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
    """A safetensors file with tensors and JSON notes, and its digests among these."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    held = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    with replacing(file) as temporary:
        try:
            save_file(held, temporary, {"notes": json.dumps({KEY: ROOM, **notes})})
        except SafetensorError as error:
            raise unwritable(file, error) from error
        seal_tensors(temporary)


def unwritable(file: Path, error: Exception) -> LowlossError:
    """The error for a library's own complaint that it could not write, most often for want of space."""
    return LowlossError(f"{file} cannot be written ({reason(error)}): {REMEDIES[errno.ENOSPC]}")


def unreadable(file: Path, error: Exception) -> LowlossError:
    """The error for a damaged file of a result, which may lie in a folder of its own there."""
    folder = next((folder for folder in file.parents if (folder / "config.yaml").is_file()), file.parent)
    return LowlossError(f"{file} is unreadable ({error}): delete {folder} and run the same command again")


def load_tensors(file: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and notes of a safetensors file. Raises LowlossError if it is damaged."""
    with _opened(file, "pt", whole=True) as archive:
        return {name: archive.get_tensor(name) for name in archive.keys()}, _notes(archive)  # noqa: SIM118


def load_notes(file: Path, foreign: bool = False) -> dict[str, Any]:
    """The notes of a safetensors file alone, without torch. Raises LowlossError if it is damaged.

    Args:
        foreign: whether it may have been written elsewhere, and hold no digest.
    """
    with _opened(file, "np", foreign=foreign) as archive:
        return _notes(archive)


def _notes(archive: Any) -> dict[str, Any]:
    notes = json.loads((archive.metadata() or {}).get("notes", "{}"))
    if not isinstance(notes, dict):
        raise ValueError("its notes are no mapping")
    notes.pop(KEY, None)
    return notes


def tensor_shape(file: Path, name: str) -> list[int]:
    """The shape of one tensor of a foreign safetensors file, without torch. Raises LowlossError if it is damaged."""
    with _opened(file, "np", foreign=True) as archive:
        return list(archive.get_slice(name).get_shape())


def load_arrays(file: Path, names: Sequence[str], most: int) -> list[Any]:
    """Some arrays of a foreign safetensors file, without torch. Raises LowlossError if it is damaged, or one has more
    than so many elements."""
    with _opened(file, "np", foreign=True) as archive:
        if any(prod(archive.get_slice(name).get_shape()) > most for name in names):
            raise ValueError(f"an array has more than {most} elements")
        return [archive.get_tensor(name) for name in names]


@contextlib.contextmanager
def _opened(file: Path, framework: str, whole: bool = False, foreign: bool = False) -> Iterator[Any]:
    """A safetensors file whose header, or the whole of which, has the digest with which it was written."""
    from safetensors import SafetensorError, safe_open

    try:
        with contextlib.suppress(*([NoDigestError] if foreign else [])):
            check_tensors(file, whole)
        with safe_open(file, framework=framework) as archive:
            yield archive
    except (SafetensorError, OSError, ValueError, RecursionError) as error:
        raise unreadable(file, error) from error


def size(count: float) -> str:
    """A number of bytes, in the unit that leaves it below a thousand."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:,.3g} TB"
