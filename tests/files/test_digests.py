import hashlib
from pathlib import Path

import pytest
import torch

from semflow.files import digests as module
from semflow.files import hash_file, hash_parts, hash_tensor, hash_tensors


def test_hash_parts_separates_the_parts() -> None:
    assert len({hash_parts(parts) for parts in (["ab", "c"], ["a", "bc"], ["abc"], ["a", "b", "c"], [])}) == 5
    assert hash_parts(["\udcff"]) == hashlib.sha256(b"\xff\0").hexdigest()


@pytest.mark.parametrize("size", [None, 0, 1, 2**20, 2**20 + 1, 3 * 2**20])
def test_hash_file_reads_the_first_bytes(tmp_path: Path, size: int | None) -> None:
    content = bytes(range(256)) * (2**13 + 1)
    (tmp_path / "a").write_bytes(content)
    assert hash_file(tmp_path / "a", size) == hashlib.sha256(content[:size]).hexdigest()


def test_hash_tensor_depends_on_type_shape_and_values_only() -> None:
    x = torch.arange(6.0)
    different = [x, x.double(), x.reshape(2, 3), x.reshape(3, 2), x + 1, x.bfloat16()]
    assert len({hash_tensor(tensor) for tensor in different}) == len(different)
    assert hash_tensor(x.reshape(2, 3).T.contiguous().T) == hash_tensor(x.reshape(2, 3))


def test_hash_tensors_depends_on_names_but_not_on_their_order() -> None:
    a, b = torch.zeros(2), torch.ones(2)
    assert hash_tensors({"a": a, "b": b}) == hash_tensors({"b": b, "a": a}) != hash_tensors({"a": b, "b": a})


def test_hash_tensors_copies_a_few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = {f"{k:02}": torch.full((3,), float(k)) for k in range(40)}
    expected, alive, most, made = hash_tensors(tensors), set(), [], module._header_and_bytes

    class Copy(bytearray):
        def __del__(self) -> None:
            alive.discard(id(self))

    def copied(tensor: torch.Tensor) -> tuple[bytes, Copy]:
        header, values = made(tensor)
        copy = Copy(values)
        alive.add(id(copy))
        most.append(len(alive))
        return header, copy

    monkeypatch.setattr(module, "_header_and_bytes", copied)
    assert hash_tensors(tensors) == expected
    assert max(most) <= 2 * module.THREADS
