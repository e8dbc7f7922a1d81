"""Position codes compared with loops over their definitions."""

import math
from collections.abc import Callable, Iterator

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from semflow.errors import ConfigError, ShapeError
from semflow.nn import FourierPosition2d, LearnedPosition2d, PositionCode, PositionTables, SinusoidalPosition2d

CODES: dict[str, Callable[[int], PositionCode]] = {
    "sinusoidal": SinusoidalPosition2d,
    "fourier": FourierPosition2d,
    "learned": lambda channels: LearnedPosition2d(channels, height=9, width=7),
}
quarters = st.integers(1, 16).map(lambda n: 4 * n)
lengths = st.integers(1, 9)


@pytest.fixture(autouse=True)
def _seeded_parameters() -> Iterator[None]:
    """Seed torch's global generator, from which layers draw their parameters, and restore it afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def slow_sinusoids(channels: int, height: int, width: int) -> Tensor:
    """Compute the code with the column in the first half, sines at even channels and cosines at odd ones."""
    half = channels // 2
    code = torch.zeros(channels, height, width, dtype=torch.float64)
    for row in range(height):
        for column in range(width):
            for k in range(half // 2):
                frequency = math.exp(-2 * k * math.log(1e4) / half)
                for start, position in ((0, column), (half, row)):
                    code[start + 2 * k, row, column] = math.sin(position * frequency)
                    code[start + 2 * k + 1, row, column] = math.cos(position * frequency)
    return code


@pytest.mark.parametrize(("channels", "height", "width"), [(4, 3, 2), (128, 2, 5), (512, 4, 3), (12, 1, 1)])
def test_sinusoidal_position_matches_the_definition(channels: int, height: int, width: int) -> None:
    dense = SinusoidalPosition2d(channels)(height, width).dense()
    assert torch.allclose(dense.double(), slow_sinusoids(channels, height, width), atol=1e-7)


def test_sinusoidal_position_is_accurate_at_large_positions() -> None:
    table = SinusoidalPosition2d(16).axis(4000)
    for k in range(4):
        angle = 3999 * math.exp(-2 * k * math.log(1e4) / 8)
        assert table[3999, 2 * k].item() == pytest.approx(math.sin(angle), abs=1e-7)
        assert table[3999, 2 * k + 1].item() == pytest.approx(math.cos(angle), abs=1e-7)


@pytest.mark.parametrize(("height", "width"), [(3, 5), (1, 1), (8, 2)])
@pytest.mark.parametrize("highest", [0.5, 4.0, 32.0])
def test_fourier_position_matches_the_definition(height: int, width: int, highest: float) -> None:
    count = 5  # frequencies per axis, from half a period per side to `highest`, geometrically
    dense = FourierPosition2d(4 * count, highest)(height, width).dense()
    for k in range(count):
        frequency = 0.5 * (highest / 0.5) ** (k / (count - 1))
        for row in range(height):
            for column in range(width):
                for start, u in ((0, (column + 0.5) / width), (2 * count, (row + 0.5) / height)):
                    sine, cosine = dense[start + 2 * k, row, column], dense[start + 2 * k + 1, row, column]
                    assert sine.item() == pytest.approx(math.sin(2 * math.pi * frequency * u), abs=1e-6)
                    assert cosine.item() == pytest.approx(math.cos(2 * math.pi * frequency * u), abs=1e-6)


def test_fourier_position_of_the_center_is_independent_of_size() -> None:
    code = FourierPosition2d(32)
    assert torch.allclose(code(3, 3).dense()[:, 1, 1], code(9, 7).dense()[:, 4, 3], atol=1e-6)


@given(name=st.sampled_from(sorted(CODES)), channels=quarters, height=lengths, width=st.integers(1, 7))
def test_dense_code_joins_column_and_row_tables(name: str, channels: int, height: int, width: int) -> None:
    code = CODES[name](channels)
    tables = code(height, width)
    assert isinstance(tables, PositionTables)
    assert (code.channels, tables.channels, tables.size) == (channels, channels, (height, width))
    assert (tables.column.shape, tables.row.shape) == ((width, channels // 2), (height, channels // 2))
    dense = tables.dense()
    assert dense.shape == (channels, height, width)
    for row in range(height):
        for column in range(width):
            assert torch.equal(dense[:, row, column], torch.cat((tables.column[column], tables.row[row])))


@pytest.mark.parametrize("name", CODES)
def test_locations_have_distinct_codes(name: str) -> None:
    flat = CODES[name](32)(9, 7).dense().flatten(1).T
    distances = torch.cdist(flat, flat) + 10 * torch.eye(len(flat))
    assert distances.min() > 0.1


@pytest.mark.parametrize("name", CODES)
def test_absolute_codes_do_not_depend_on_the_map_size(name: str) -> None:
    code = CODES[name](16)
    same = torch.allclose(code(9, 7).dense()[:, :4, :5], code(4, 5).dense())
    assert same == (name != "fourier")  # whose positions are relative


@pytest.mark.parametrize("name", CODES)
@pytest.mark.parametrize("channels", [0, -4, 2, 6, 130])
def test_position_code_rejects_channels_that_are_not_a_multiple_of_four(name: str, channels: int) -> None:
    with pytest.raises(ConfigError, match=f"positive multiple of 4, but got {channels}"):
        CODES[name](channels)


@pytest.mark.parametrize("highest", [0.25, float("nan")])
def test_fourier_position_rejects_low_frequencies(highest: float) -> None:
    with pytest.raises(ConfigError, match=r"highest must be (at least 0\.5|a finite number)"):
        FourierPosition2d(16, highest)


@pytest.mark.parametrize("size", [(10, 7), (9, 8)])
def test_learned_position_rejects_larger_maps(size: tuple[int, int]) -> None:
    with pytest.raises(ShapeError, match=r"size must be at most \(9, 7\)"):
        CODES["learned"](16)(*size)


def test_position_code_without_axis_raises_type_error() -> None:
    with pytest.raises(TypeError, match=r"PositionCode must define axis\(length\)"):
        PositionCode(4)(2, 2)


@pytest.mark.parametrize("name", ["sinusoidal", "fourier"])
def test_fixed_codes_have_no_state_and_survive_casts(name: str) -> None:
    code = CODES[name](64)
    expected = code(9, 7).dense()
    assert not list(code.parameters())
    assert not code.state_dict()
    for cast in (torch.float16, torch.bfloat16, torch.float64):  # bfloat16 frequencies would give another code
        assert torch.equal(code.to(cast)(9, 7).dense(), expected)


def test_learned_position_has_two_parameters_of_unit_scale() -> None:
    code = CODES["learned"](16)
    assert {name for name, _ in code.named_parameters()} == {"column", "row"}
    assert code(2, 3).row.requires_grad
    assert code(9, 7).dense().square().mean().item() == pytest.approx(0.5, rel=0.3)  # the mean square of sinusoids


@pytest.mark.parametrize("name", CODES)
def test_repr_shows_the_channels(name: str) -> None:
    assert "16" in repr(CODES[name](16))
