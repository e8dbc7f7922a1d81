"""The model card: README.md with the header that the hub reads, and what a person must know before trusting scores."""

from collections.abc import Mapping
from typing import Any

from semflow._version import __version__
from semflow.detectors import Detector

__all__ = ["LIBRARY", "METRICS", "model_card"]

LIBRARY = "semflow"

METRICS = {
    "image_auroc": ("roc_auc", "image AUROC"),
    "pixel_auroc": ("roc_auc", "pixel AUROC"),
    "aupro": ("aupro", "AUPRO up to a false-positive rate of 0.3"),
    "image_f1_max": ("f1", "image F1 at its best threshold"),
}
"""The hub's type and the name of each figure of `semflow.evaluate`."""


def model_card(
    detector: Detector,
    config: Mapping[str, Any],
    name: str,
    data: str | None = None,
    metrics: Mapping[str, float | int | None] | None = None,
    license: str | None = None,
) -> str:
    """The text of README.md.

    Args:
        detector: trained.
        config: of its run: recipe, arguments, version, and what training has noted.
        name: what to call the model, and to load it by.
        data: what it was trained on and measured on, in the words of whoever knows.
        metrics: what `semflow.evaluate` or `semflow evaluate --json` has found, as fractions.
        license: an identifier of the hub, such as `apache-2.0`; the data and the backbone's weights may bind you.

    Example:
        >>> from semflow.recipes import Backbone, Couplings, cflow_ad
        >>> detector = cflow_ad(Backbone("test_efficientnet", "random", (8,)), 32, couplings=Couplings(1, 4))
        >>> config = {"recipe": "cflow_ad", "arguments": detector.provenance.arguments}
        >>> text = model_card(detector, config, "me/screws", data="screws", metrics={"image_auroc": 0.987})
        >>> text.splitlines()[:2], "| image AUROC | 0.987 |" in text
        (['---', 'library_name: semflow'], True)
    """
    known = {key: float(value) for key, value in (metrics or {}).items() if key in METRICS and value is not None}
    parts = [
        f"---\n{_header(name, data, known, license)}\n---\n",
        f"# {name}\n",
        f"An anomaly detector of the recipe `{config['recipe']}`, trained on images of good parts alone with "
        f"{LIBRARY} {config.get('version', __version__)}. It gives an image a score, higher is more anomalous"
        f"{', and a heat map' if detector.localizes else ''}.\n",
        _usage(name, detector),
        f"## Training\n\nData: {data or 'not described'}.\n",
        _table(("argument", "value"), {key: f"`{value}`" for key, value in dict(config["arguments"]).items()}),
        f"## Calibration\n\n{_calibration(detector)}\n",
    ]
    if known:
        counts = [f"{metrics[key]} {word}" for key, word in _COUNTS.items() if metrics and metrics.get(key) is not None]
        on = f" on {', '.join(counts)}" if counts else ""
        parts += [
            f"## Metrics\n\nMeasured{on}, data as above, as fractions.\n",
            _table(("metric", "value"), {METRICS[key][1]: f"{value:.3f}" for key, value in known.items()}),
        ]
    parts.append(
        "## Limits\n\nScores compare between images of this model only. Images taken otherwise than those of training "
        "(camera, light, position, size) are themselves anomalies to it.\n"
    )
    return "\n".join(parts)


_COUNTS = {"images": "images", "anomalous_images": "of them anomalous"}


def _header(name: str, data: str | None, metrics: Mapping[str, float], license: str | None) -> str:
    """What the hub searches and shows, by its own client."""
    from huggingface_hub import EvalResult, ModelCardData

    results = [
        EvalResult(
            task_type="anomaly-detection",
            dataset_type="custom",
            dataset_name=data or "not described",
            metric_type=METRICS[key][0],
            metric_name=METRICS[key][1],
            metric_value=round(value, 6),
        )
        for key, value in metrics.items()
    ]
    card = ModelCardData(
        library_name=LIBRARY,
        license=license,
        tags=["anomaly-detection", "normalizing-flow", "industrial-inspection"],
        model_name=name if results else None,
        eval_results=results or None,
    )
    return str(card.to_yaml())


def _usage(name: str, detector: Detector) -> str:
    return (
        "## Use\n\n"
        f"```python\nfrom semflow import hub\nfrom semflow.data import load_image\n\n"
        f'detector = hub.load("{name}")\n'
        f'prediction = detector.predict(load_image("part.png", {detector.provenance.image_size})[None])\n'
        "print(prediction.score, prediction.p_value)\n```\n"
    )


def _calibration(detector: Detector) -> str:
    calibration = detector.calibration
    if not calibration.count:
        return (
            "None: scores have no threshold yet. Calibrate with held-out images of good parts before deciding by them."
        )
    return (
        f"On {calibration.count} held-out images of good parts, at a false-alarm rate of "
        f"{calibration.false_alarm_rate:g}: a p-value, a decision and a mask come with each score. They hold for "
        "images taken as those were."
    )


def _table(header: tuple[str, str], rows: Mapping[str, str]) -> str:
    cells = [header, ("---", "---"), *((key, value.replace("|", "\\|")) for key, value in rows.items())]
    return "\n".join(f"| {key} | {value} |" for key, value in cells) + "\n"
