"""Feature maps of all images: what is put in comes out, whatever the type and the order, and a full disk loses them."""

import tempfile
from io import FileIO
from pathlib import Path

import pytest
import torch

from semflow.recipes import Backbone, cflow_ad
from semflow.training import fit
from semflow.training.cache import NormalImages
from semflow.training.kept_maps import KeptMaps
from semflow.training.loading import batches

CPU = torch.device("cpu")
LAYOUTS = [((3, 4, 5), torch.float32), ((1, 2, 2), torch.bfloat16), ((7, 1, 1), torch.float64)]


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_maps_are_those_put_in(device: str) -> None:
    generator = torch.Generator().manual_seed(0)
    maps = [torch.randn(9, *shape, generator=generator).to(dtype) for shape, dtype in LAYOUTS]
    kept = KeptMaps(9, LAYOUTS, torch.device(device))
    for start, stop in ((4, 9), (0, 1), (1, 4)):
        kept.put(start, [x[start:stop].to(device) for x in maps])
    for images in ([8, 0, 1, 2, 5], range(2, 6), [3], [], [4, 4]):
        for found, x in zip(kept.get(images), maps, strict=True):
            assert (found.shape, found.dtype) == ((len(images), *x.shape[1:]), x.dtype)
            assert not len(images) or found.is_contiguous(memory_format=torch.channels_last)
            assert device == "meta" or torch.equal(found, x[list(images)])
    assert [x.shape[0] for x in kept.span(2, 6)] == [4, 4, 4]
    assert not kept.lost


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the memory of the process from /proc")
def test_maps_take_no_memory() -> None:
    kept = KeptMaps(1000, [((64, 32, 32), torch.float32)], CPU)  # 250 MiB

    def anonymous() -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(line.split()[1] for line in lines if line.startswith("RssAnon"))) >> 10

    x = [torch.ones(50, 64, 32, 32)]
    before = anonymous()
    for start in range(0, 1000, 50):
        kept.put(start, x)
    assert all(torch.equal(kept.span(start, start + 50)[0], x[0]) for start in range(0, 1000, 250))
    assert anonymous() - before < 60


@pytest.mark.parametrize("when", ["opened", "written"])
def test_maps_are_computed_again_if_the_disk_is_full(when: str, monkeypatch: pytest.MonkeyPatch, images) -> None:
    made = []

    class Full(FileIO):
        def write(self, values: object) -> int:
            raise OSError(28, "No space left on device")

    def opened(**options: object) -> FileIO:
        made.append(when)
        if when == "opened":
            raise OSError(28, "No space left on device")
        return Full(tempfile.mkstemp()[0], "w+b")

    def trained():
        detector = cflow_ad(Backbone("test_efficientnet", "random", (8,)), 32)
        return fit(detector, images, epochs=1, batch_size=4, progress=False).state_dict()

    expected = trained()
    monkeypatch.setattr(tempfile, "TemporaryFile", opened)
    for (name, a), b in zip(expected.items(), trained().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4, msg=name)
    normal = NormalImages(cflow_ad(Backbone("test_efficientnet", "random", (8,)), 32).features, batches(images, 4), CPU)
    assert [len(batch.images) for batch in normal] == [len(batch.images) for batch in normal]
    assert normal.maps([0]) is None
    made.clear()
    normal = NormalImages(normal.features, normal.loader, CPU)
    normal.fill()
    for _ in range(2):
        list(normal)
    assert len(made) == 1  # the disk is not filled again
