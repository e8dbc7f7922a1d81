"""Public functions return a valid result or raise an error of `semflow.errors` for any input."""

import io
import math
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from helpers.bad_rows import batch, stripes
from semflow import metrics
from semflow.data import Sample, decode_image, load_mask
from semflow.data.reading import oriented_size
from semflow.detectors import Scorer
from semflow.errors import SemflowError
from semflow.synthesis import KINDS, CutPaste, SyntheticAnomalies

Mutation = tuple[str, float, int]
FORMATS = ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "JPEG2000")
# Pillow also warns when it raises an error.
pytestmark = pytest.mark.filterwarnings("ignore")


def saved(format: str) -> bytes:
    buffer = io.BytesIO()
    stripes(1, (24, 32)).save(buffer, format)
    return buffer.getvalue()


WHOLE = {format: saved(format) for format in FORMATS}
MUTATIONS = st.lists(
    st.tuples(st.sampled_from(["set", "cut", "repeat", "zero"]), st.floats(0, 1), st.integers(0, 255)),
    min_size=1,
    max_size=4,
)


def mutated(content: bytes, mutations: list[Mutation]) -> bytes:
    """Set, remove, repeat or zero bytes at positions given as fractions of the length."""
    data = bytearray(content)
    for kind, position, value in mutations:
        place = int(position * max(len(data) - 1, 0))
        if kind == "set" and data:
            data[place] = value
        elif kind == "cut":
            del data[place:]
        elif kind == "repeat":
            data[place:place] = data[place : place + value]
        else:
            data[place : place + value] = bytes(len(data[place : place + value]))
    return bytes(data)


def check_decoding(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.png"
        path.write_bytes(content)

        def whole() -> None:
            image = decode_image(path)
            assert image.mode == "RGB"
            assert min(image.size) >= 1
            assert np.asarray(image).shape == (image.height, image.width, 3)
            assert oriented_size(path) == image.size

        def mask() -> None:
            decoded = load_mask(path, 8)
            assert decoded.dtype == torch.bool
            assert decoded.shape == (8, 8)

        for read in (whole, mask):
            message = ""
            try:
                read()
            except SemflowError as error:
                message = str(error)
            assert not message or message.startswith(f"{path} must ")
            assert "\n" not in message


@settings(max_examples=150)
@given(st.binary(max_size=200))
def test_decoding_random_bytes(content: bytes) -> None:
    check_decoding(content)


@settings(max_examples=250)
@given(st.sampled_from(FORMATS), MUTATIONS)
def test_decoding_mutated_files(format: str, mutations: list[Mutation]) -> None:
    check_decoding(mutated(WHOLE[format], mutations))


def valid_or_refused(function: Callable[[], Any]) -> Any:
    """Return the result, or None after an error whose message is one line."""
    try:
        return function()
    except SemflowError as error:
        message = str(error)
    assert message.strip()
    assert "\n" not in message
    return None


ANY_ARRAY = hnp.arrays(
    dtype=st.sampled_from([np.float64, np.float32, np.float16, np.int64, np.uint8, np.bool_, np.complex64]),
    shape=hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4),
)


@settings(max_examples=200)
@given(ANY_ARRAY, st.one_of(ANY_ARRAY, st.none(), st.text(max_size=3)), st.floats())
def test_metrics_of_anything(scores: np.ndarray, labels: Any, limit: float) -> None:
    for function in (metrics.auroc, metrics.average_precision, metrics.f1_max):
        value = valid_or_refused(lambda function=function: function(scores, labels))
        assert value is None or 0 <= value <= 1
    value = valid_or_refused(lambda: metrics.aupro(scores, labels, limit))
    assert value is None or 0 <= value <= 1
    both = valid_or_refused(lambda: metrics.pixel_metrics(scores, labels))
    assert both is None or all(0 <= part <= 1 for part in both)
    histogram = metrics.HistogramAccumulator(10)
    valid_or_refused(lambda: histogram.update(scores, labels))
    bounded = valid_or_refused(histogram.compute)
    assert bounded is None or all(part.low <= part.value <= part.high for part in bounded)


@settings(max_examples=150)
@given(st.integers(1, 40), st.integers(1, 40), st.sampled_from(KINDS), st.integers(0, 2**32 - 1), st.data())
def test_synthesis_of_any_size(height: int, width: int, kind: str, seed: int, data: st.DataObject) -> None:
    """The result stays in [0, 1], differs inside its mask only, and the mask is not empty."""
    options = {
        "jitter": data.draw(st.floats(0, 1)),
        "rotation": data.draw(st.floats(0, 180)),
        "border": data.draw(st.floats(0, 256)),
        "min_change": data.draw(st.sampled_from([0.0, 0.1])),
    }
    rng = np.random.default_rng(seed)
    image, donor = (torch.from_numpy(rng.random((3, height, width), dtype=np.float32)) for _ in range(2))
    before = image.clone()
    pasted, mask = CutPaste(**options)(image, donor, kind, rng)
    assert torch.equal(image, before)
    assert pasted.shape == image.shape
    assert float(pasted.min()) >= 0
    assert float(pasted.max()) <= 1
    assert mask.any()
    assert torch.equal(pasted[:, ~mask], image[:, ~mask])


WORDS = st.one_of(st.floats(), st.integers(), st.none(), st.text(max_size=3), st.booleans())


@settings(max_examples=100)
@given(WORDS, WORDS, st.lists(st.sampled_from([*KINDS, "perlin", 3]), max_size=3), WORDS)
def test_options_of_the_synthesis(jitter: Any, border: Any, kinds: list[Any], seed: Any) -> None:
    paste = valid_or_refused(lambda: CutPaste(jitter=jitter, border=border, kinds=tuple(kinds)))
    images = [Sample(image, 0, None, "") for image in batch(2)]
    epoch = valid_or_refused(lambda: SyntheticAnomalies(images, paste, seed=seed))
    if epoch is not None:
        assert epoch[0].image.shape == images[0].image.shape


SHAPES = hnp.array_shapes(min_dims=0, max_dims=5, min_side=0, max_side=9)


@settings(max_examples=200)
@given(st.lists(SHAPES, max_size=3), st.tuples(st.integers(-1, 9), st.integers(-1, 9)), st.floats(-50, 50))
def test_scorer_with_maps_of_any_shape(shapes: list[tuple[int, ...]], size: tuple[int, int], value: float) -> None:
    found = valid_or_refused(lambda: Scorer(2)([torch.full(shape, value) for shape in shapes], size))
    if found is not None:
        anomaly_map, score = found
        assert anomaly_map.shape == (shapes[0][0], *size)
        assert score.shape == shapes[0][:1]
        assert bool(score.isfinite().all())


DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.uint8, torch.int64, torch.bool)


@settings(max_examples=120)
@given(
    shape=st.one_of(SHAPES, st.tuples(st.integers(0, 2), st.just(3), st.integers(0, 40), st.integers(0, 40))),
    dtype=st.sampled_from(DTYPES),
    value=st.one_of(st.floats(0, 1), st.floats(), st.sampled_from([math.nan, math.inf, 255.0])),
    transposed=st.booleans(),
)
def test_detector_with_any_images(
    detector: Any, shape: tuple[int, ...], dtype: torch.dtype, value: float, transposed: bool
) -> None:
    try:
        images = torch.full(shape, value).to(dtype)
    except RuntimeError:  # the value does not fit into this type
        return
    images = images.transpose(-1, -2) if transposed and images.dim() > 1 else images
    prediction = valid_or_refused(lambda: detector.predict(images))
    if prediction is not None:
        assert -0.06 <= value <= 1.06
        assert prediction.score.shape == images.shape[:1]
        assert prediction.anomaly_map.shape == (images.shape[0], *images.shape[2:])
        assert bool(prediction.score.isfinite().all())
        alone = detector.predict(images[:1]).score
        torch.testing.assert_close(prediction.score[:1], alone, rtol=1e-5, atol=1e-6)


def test_lossless_formats_decode_exactly() -> None:
    """Fuzzing starts from valid files."""
    expected = np.asarray(stripes(1, (24, 32)))
    for format in ("PNG", "BMP", "TIFF", "PPM"):
        found = decode_image("a", io.BytesIO(WHOLE[format]))
        np.testing.assert_array_equal(np.asarray(found), expected)
    assert Image.open(io.BytesIO(WHOLE["JPEG"])).size == (32, 24)
