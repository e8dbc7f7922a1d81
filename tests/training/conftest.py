"""A detector small enough to be trained in a test, and images for it, as fixtures."""

from collections.abc import Callable

import pytest

from helpers.small_detector import make_detector, make_images
from semflow.data import Sample
from semflow.detectors import Detector


@pytest.fixture
def build() -> Callable[..., Detector]:
    return make_detector


@pytest.fixture
def images() -> list[Sample]:
    return make_images(10)
