"""`semflow predict`: images to scores, heat maps, raw maps and a page, in a folder that is complete or not there."""

__all__ = ["run"]

import csv
import io
import json
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from PIL import Image

from semflow import __version__
from semflow.cli.console import say, track
from semflow.cli.inputs import load_detector, verified
from semflow.cli.options import Predict
from semflow.data import ImageDataset, decode_image, open_dataset
from semflow.detectors import results
from semflow.errors import ConfigError
from semflow.report import Entry, Picture, Section, link, overlay, render_page, save_map, staged_folder, write_atomic
from semflow.report.files import refuse_occupied

LONGEST_SIDE = 1024
SUFFIX = {"npy": ".npy", "png16": ".png"}


@dataclass(frozen=True)
class Record:
    """One image's line in scores.csv and scores.json; the paths are relative to the output folder.

    The anomaly map is at the size the detector works at; width and height are those of the image itself.
    """

    image: str
    score: float
    overlay: str
    map: str
    width: int
    height: int

    @property
    def overlay_size(self) -> tuple[int, int]:
        """Width and height of the overlay: the image's own proportions, at most LONGEST_SIDE pixels long."""
        scale = min(1.0, LONGEST_SIDE / max(self.width, self.height))
        return max(1, round(self.width * scale)), max(1, round(self.height * scale))


def run(options: Predict) -> None:
    """Check the images, score them, and let the output folder appear."""
    refuse_occupied(options.output)
    detector = load_detector(options.model, options.device)
    dataset = verified(open_dataset(options.input, "predict", detector.image_size))
    names = _names(dataset)
    records = []
    with staged_folder(options.output) as folder:
        scored = results(detector, dataset, batch_size=options.batch_size, workers=options.workers)
        for name, (sample, score, anomaly_map) in zip(names, track(scored, "scoring", len(dataset)), strict=True):
            if not np.isfinite(score):
                raise ConfigError(
                    f"{sample.path}: its score is {score}; the model {options.model} is broken, fit it again"
                )
            heat = PurePosixPath("overlays", f"{name}.png")
            raw = PurePosixPath("maps", name + SUFFIX[options.map_format])
            original = decode_image(sample.path)
            record = Record(name, score, str(heat), str(raw), *original.size)
            _save_overlay(folder / heat, original.resize(record.overlay_size), anomaly_map, detector.map_range)
            save_map(folder / raw, anomaly_map)
            records.append(record)
        _write_scores(folder, options, records, detector.map_range)
        write_atomic(folder / "index.html", _page(options, records))
    highest = max(records, key=lambda record: record.score)
    say(f"scored {len(records)} images; the most anomalous is {highest.image} ({highest.score:.4f})")
    for name in ("scores.csv", "scores.json", "index.html"):
        say(f"wrote {options.output / name}")


def _names(dataset: ImageDataset) -> list[str]:
    """Names relative to the input, with their endings, so that a.png and a.jpg stay apart."""
    root = getattr(dataset, "root", None)
    paths = [Path(path) for path in dataset.paths]
    return [path.relative_to(root).as_posix() if root is not None else path.name for path in paths]


def _save_overlay(
    path: Path, picture: Image.Image, anomaly_map: torch.Tensor, value_range: tuple[float, float]
) -> None:
    """The heat over a picture: the map is stretched as the picture was squeezed when it became a square."""
    pixels = np.asarray(picture, dtype=np.float32).transpose(2, 0, 1) / 255.0
    enlarged = torch.nn.functional.interpolate(
        anomaly_map[None, None], size=(picture.height, picture.width), mode="bilinear", align_corners=False
    )[0, 0]
    buffer = io.BytesIO()
    overlay(pixels, enlarged, value_range).save(buffer, format="PNG")
    write_atomic(path, buffer.getvalue())


def _write_scores(folder: Path, options: Predict, records: list[Record], map_range: tuple[float, float]) -> None:
    table = io.StringIO()
    writer = csv.DictWriter(table, fieldnames=list(Record.__dataclass_fields__), lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(record) for record in records)
    write_atomic(folder / "scores.csv", table.getvalue())
    content = {
        "semflow": __version__,
        "model": str(options.model),
        "input": str(options.input),
        "map_format": options.map_format,
        "map_range": list(map_range),
        "images": [asdict(record) for record in records],
    }
    write_atomic(folder / "scores.json", json.dumps(content, indent=2) + "\n")


def _page(options: Predict, records: list[Record]) -> str:
    entries = tuple(
        Entry(
            record.image,
            record.score,
            (Picture(link(PurePosixPath(record.overlay)), f"heat map of {record.image}", record.overlay_size),),
        )
        for record in records
    )
    lines = (
        f"Model {options.model}. A higher score is more anomalous; scores compare between images of this model.",
        "The colours have one scale for all images, taken from the normal training images: uncoloured is as usual "
        "there, pale yellow far beyond anything seen there.",
    )
    count = "1 image" if len(entries) == 1 else f"{len(entries)} images, the most anomalous first"
    return render_page(f"Anomaly scores of {options.input}", [Section(count, entries)], lines=lines)
