"""nearest against brute force in float64, for duplicates, tiny distances, shifted data, ids, chunks and export."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from semflow.errors import ConfigError, ShapeError
from semflow.functional import nearest


def brute_force(queries: Tensor, memory: Tensor, k: int, same: Tensor | None = None) -> tuple[Tensor, Tensor]:
    distances = (queries.double()[:, None] - memory.double()).square().sum(2).sqrt()
    if same is not None:
        distances = distances.masked_fill(same, torch.inf)
    return tuple(values[:, :k] for values in distances.sort(dim=1, stable=True))  # type: ignore[return-value]


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("channels", [1, 3, 152, 2048])
@pytest.mark.parametrize("rows", [1, 5, 300])
@pytest.mark.parametrize("k", [1, 4])
def test_equals_brute_force(channels: int, rows: int, k: int) -> None:
    queries, memory, k = drawn(40, channels, seed=1), drawn(rows, channels), min(k, rows)
    distances, index = nearest(queries, memory, k)
    expected, where = brute_force(queries, memory, k)
    torch.testing.assert_close(distances.double(), expected, rtol=1e-5, atol=0)
    assert torch.equal(index, where)


@pytest.mark.parametrize("shift", [0.0, 1e3, 1e6])
@pytest.mark.parametrize("step", [1e-1, 1e-4])
def test_is_exact_where_the_expanded_square_cancels(shift: float, step: float) -> None:
    # Distances are far below the distance from the mean: clusters of near-duplicates, wider than the candidates.
    centers = drawn(20, 1, 24) * 10 + shift
    memory = (centers + step * drawn(20, 30, 24, seed=1)).reshape(-1, 24)
    queries = memory[::7] + step * drawn(86, 24, seed=2)
    distances, _ = nearest(queries, memory, 3)
    torch.testing.assert_close(distances.double(), brute_force(queries, memory, 3)[0], rtol=1e-5, atol=0)


def test_duplicates_have_distance_zero_and_come_in_ascending_order() -> None:
    memory = drawn(50, 16).repeat(3, 1) + 100
    distances, index = nearest(memory[:50], memory, 4)
    assert distances[:, :3].count_nonzero() == 0
    assert torch.equal(index[:, :3], torch.arange(50)[:, None] + torch.tensor([0, 50, 100]))


@pytest.mark.parametrize("copies", [3, 60])
@pytest.mark.parametrize("k", [1, 2, 5])
def test_rows_at_equal_distances_are_ascending_and_distinct(copies: int, k: int) -> None:
    memory = drawn(20, 6).repeat(copies, 1)
    distances, index = nearest(drawn(30, 6, seed=1), memory, k)
    torch.testing.assert_close(distances.double(), brute_force(drawn(30, 6, seed=1), memory, k)[0], rtol=1e-5, atol=0)
    equal = distances.diff() == 0
    assert equal.any() == (k > 1)
    assert (index.diff()[equal] > 0).all()
    assert all(len(row.unique()) == k for row in index)


@pytest.mark.parametrize("scale", [1e-12, 1e12])
def test_is_exact_at_extreme_scales(scale: float) -> None:
    queries, memory = drawn(20, 8, seed=1) * scale, drawn(60, 8) * scale
    distances, index = nearest(queries, memory, 2)
    expected, where = brute_force(queries, memory, 2)
    torch.testing.assert_close(distances.double(), expected, rtol=1e-5, atol=0)
    assert torch.equal(index, where)


@pytest.mark.parametrize("chunk_bytes", [1, 20_000, 2**26])
@pytest.mark.parametrize("excluding", [False, True])
def test_chunks_do_not_change_the_result(chunk_bytes: int, excluding: bool) -> None:
    queries, memory = drawn(100, 12, seed=1), drawn(400, 12)
    exclude = torch.arange(100) % 7 if excluding else None
    ids = torch.arange(400) % 7
    distances, index = nearest(queries, memory, 3, exclude=exclude, memory_ids=ids, chunk_bytes=chunk_bytes)
    expected, where = brute_force(queries, memory, 3, ids == exclude[:, None] if exclude is not None else None)
    torch.testing.assert_close(distances.double(), expected, rtol=1e-5, atol=0)
    assert torch.equal(index, where)


def test_excluded_rows_are_ignored_by_number_and_by_id() -> None:
    memory = torch.tensor([[0.0], [1.0], [3.0]])
    distances, index = nearest(memory, memory, exclude=torch.arange(3))
    assert (distances.flatten().tolist(), index.flatten().tolist()) == ([1, 1, 2], [1, 0, 1])
    distances, _ = nearest(memory, memory, exclude=torch.tensor([5, 6, 7]), memory_ids=torch.tensor([5, 5, 7]))
    assert distances.flatten().tolist() == [3, 0, 2]
    distances, _ = nearest(memory[:1], memory, 2, exclude=torch.tensor([1]), memory_ids=torch.tensor([1, 1, 2]))
    assert distances.tolist() == [[3, torch.inf]]


@pytest.mark.parametrize("k", [1, 2, 3])
@pytest.mark.parametrize("images", [2, 16, 17, 400])
def test_images_that_are_left_out_equal_brute_force(images: int, k: int) -> None:
    """Up to 16 of them are left out column by column; ids need not be sorted nor occur in the memory."""
    generator = torch.Generator().manual_seed(images + k)
    queries, memory = (torch.randn(n, 6, generator=generator) for n in (90, 500))
    exclude, ids = (torch.randint(images, (n,), generator=generator) - 1 for n in (90, 500))
    distances, index = nearest(queries, memory, k, exclude=exclude, memory_ids=ids)
    expected, where = brute_force(queries, memory, k, ids == exclude[:, None])
    assert torch.allclose(distances.double(), expected, atol=1e-5)
    assert torch.equal(index, where)
    assert (ids[index] != exclude[:, None]).all()


def test_a_query_gives_the_same_alone_as_in_a_batch() -> None:
    queries, memory = drawn(70, 33, seed=1), drawn(500, 33)
    distances, index = nearest(queries, memory, 2)
    for i in range(0, 70, 9):
        alone, row = nearest(queries[i : i + 1], memory, 2)
        assert torch.equal(alone[0], distances[i])
        assert torch.equal(row[0], index[i])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_precisions(dtype: torch.dtype) -> None:
    queries, memory = drawn(30, 20, seed=1).to(dtype), drawn(90, 20).to(dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        distances, index = nearest(queries, memory, 2)
    expected, where = brute_force(queries, memory, 2)
    assert distances.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    torch.testing.assert_close(distances.double(), expected, rtol=1e-5, atol=0)
    assert torch.equal(index, where)


@pytest.mark.parametrize("setting", ["legacy", "cuda", "mkldnn", "all"])
def test_coarse_products_of_either_setting_of_torch_do_not_change_the_result(setting: str) -> None:
    """torch's newer settings of precision make the older function raise."""
    choose = {
        "legacy": 'torch.set_float32_matmul_precision("medium")',
        "cuda": 'torch.backends.cuda.matmul.fp32_precision = "tf32"',
        "mkldnn": 'torch.backends.mkldnn.matmul.fp32_precision = "bf16"',
        "all": 'torch.backends.fp32_precision = "tf32"',
    }[setting]
    if setting != "legacy" and not hasattr(torch.backends, "fp32_precision"):
        pytest.skip("this torch has the older setting only")
    code = f"""
import torch
from semflow.functional.neighbors import nearest, rounding
x = torch.randn(200, 16, generator=torch.Generator().manual_seed(0))
expected = torch.cdist(x[:20].double(), x.double()).topk(3, largest=False).values
exact = rounding(16, torch.float32)
{choose}
assert rounding(16, torch.float32) > 10 * exact
assert rounding(16, torch.float64) < 1e-10
torch.testing.assert_close(nearest(x[:20], x, 3)[0].double(), expected, rtol=1e-5, atol=1e-5)
"""
    subprocess.run([sys.executable, "-c", code], check=True)  # a process of its own, as torch has no way back


def test_gradient_is_the_unit_vector_from_the_neighbor_and_zero_at_it() -> None:
    queries = torch.tensor([[3.0, 4.0], [10.0, 0.0]], requires_grad=True)
    memory = torch.tensor([[0.0, 0.0], [10.0, 0.0]], requires_grad=True)
    nearest(queries, memory)[0].sum().backward()
    torch.testing.assert_close(queries.grad, torch.tensor([[0.6, 0.8], [0.0, 0.0]]))
    torch.testing.assert_close(memory.grad, torch.tensor([[-0.6, -0.8], [0.0, 0.0]]))


def test_no_queries_and_nan() -> None:
    distances, index = nearest(torch.zeros(0, 4), drawn(20, 4), 2)
    assert distances.shape == index.shape == (0, 2)
    queries = drawn(3, 4)
    queries[1, 2] = torch.nan
    assert nearest(queries, drawn(20, 4, seed=1))[0].isnan().flatten().tolist() == [False, True, False]


class Search(torch.nn.Module):
    memory: Tensor

    def __init__(self, memory: Tensor) -> None:
        super().__init__()
        self.register_buffer("memory", memory)

    def forward(self, queries: Tensor) -> tuple[Tensor, Tensor]:
        return nearest(queries, self.memory, 3, chunk_bytes=200_000)


def test_exports_with_a_dynamic_number_of_queries(tmp_path: Path) -> None:
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    module, queries = Search(drawn(700, 12)), drawn(10, 12, seed=1)
    batch = torch.export.Dim("n", min=2, max=4096)
    program = torch.export.export(module, (queries,), dynamic_shapes={"queries": {0: batch}})
    file = tmp_path / "search.onnx"
    torch.onnx.export(program, f=file, dynamo=True, verbose=False)
    more = drawn(37, 12, seed=2)
    distances, index = module(more)
    torch.testing.assert_close(program.module()(more), (distances, index))
    session = runtime.InferenceSession(file)
    found = session.run(None, {session.get_inputs()[0].name: more.numpy()})
    np.testing.assert_allclose(found[0], distances.numpy(), rtol=1e-5)
    np.testing.assert_array_equal(found[1], index.numpy())


def test_wrong_arguments_are_named() -> None:
    x = torch.zeros(3, 2)
    with pytest.raises(ShapeError, match=r"^memory must be floats of shape \(M, C\), but got torch.float32 \(2,\)$"):
        nearest(x, x[0])
    with pytest.raises(ShapeError, match=r"^queries must be floats of shape \(n, 2\), but got torch.int64 \(3, 2\)$"):
        nearest(x.long(), x)
    with pytest.raises(ConfigError, match=r"^k must be between 1 and the 3 rows of the memory, but got 4$"):
        nearest(x, x, 4)
    with pytest.raises(ShapeError, match=r"^exclude must be \(3,\), but got \(2,\)$"):
        nearest(x, x, exclude=torch.zeros(2))
    with pytest.raises(ShapeError, match=r"^memory_ids must be \(3,\), but got \(1,\)$"):
        nearest(x, x, exclude=torch.zeros(3), memory_ids=torch.zeros(1))
