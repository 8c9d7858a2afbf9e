"""Files that carry their own digests: any flipped bit is found, and what other libraries read is as before."""

import hashlib

import pytest
import torch
from safetensors import safe_open

from lowloss import digests
from lowloss.errors import LowlossError
from lowloss.files import load_notes, load_tensors, save_tensors

TENSORS = {"a": torch.arange(5.0), "b": torch.ones(3, dtype=torch.float64)}
NOTES = {"x": 1, "text": 'é"\\'}


def flipped(content):
    """The content with one bit flipped, for each byte."""
    for i in range(len(content)):
        changed = bytearray(content)
        changed[i] ^= 1 << i % 8
        yield i, bytes(changed)


def test_any_flipped_bit_of_tensors_and_notes_is_found(tmp_path):
    file = tmp_path / "x.safetensors"
    save_tensors(file, TENSORS, NOTES)
    content = file.read_bytes()
    header = 8 + int.from_bytes(content[:8], "little")
    for i, changed in flipped(content):
        file.write_bytes(changed)
        with pytest.raises(LowlossError, match="is unreadable"):
            load_tensors(file)
        if i < header:
            with pytest.raises(LowlossError, match="is unreadable"):
                load_notes(file)
    file.write_bytes(content)
    tensors, notes = load_tensors(file)
    assert notes == load_notes(file) == NOTES
    assert all(torch.equal(tensors[name], TENSORS[name]) for name in TENSORS)


def test_the_digests_are_those_of_the_bytes(tmp_path):
    file = tmp_path / "x.safetensors"
    save_tensors(file, TENSORS, NOTES)
    content = file.read_bytes()
    length = 8 + int.from_bytes(content[:8], "little")
    data, header = hashlib.sha256(content[length:]).hexdigest(), digests.identity(file, whole=True)
    assert (data + header).encode() in content
    assert hashlib.sha256(content[:length].replace(header.encode(), b"0" * 64)).hexdigest() == header
    with safe_open(file, "pt") as archive:  # as anyone else reads it
        assert torch.equal(archive.get_tensor("a"), TENSORS["a"])


def test_half_of_a_result_that_is_zeros_is_found(tmp_path):
    file = tmp_path / "x.safetensors"
    save_tensors(file, {"theta": torch.ones(1000)}, {})
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2] + bytes(len(content) - len(content) // 2))
    with pytest.raises(LowlossError, match=r"its digest is another than when it was written\): delete"):
        load_tensors(file)


def test_any_flipped_bit_of_a_checkpoint_is_found_and_torch_reads_it(tmp_path):
    file = tmp_path / "last.ckpt"
    torch.save(TENSORS, file)
    plain = file.read_bytes()
    digests.seal_archive(file)
    digests.check_archive(file)
    content = file.read_bytes()
    assert content[-64:] == hashlib.sha256(plain[:-2]).hexdigest().encode()
    assert torch.equal(torch.load(file, weights_only=True)["a"], TENSORS["a"])
    for _, changed in flipped(content):
        file.write_bytes(changed)
        with pytest.raises(ValueError, match="its digest is missing, or another"):
            digests.check_archive(file)


def test_a_file_that_is_none_is_told(tmp_path):
    file = tmp_path / "x.safetensors"
    for content in (b"", b"\0", (1 << 62).to_bytes(8, "little") + b"{}", (2).to_bytes(8, "little") + b"{}"):
        file.write_bytes(content)
        with pytest.raises(LowlossError, match="is unreadable"):
            load_tensors(file)
