"""Model card: README.md with the header that the hub reads."""

from collections.abc import Iterator, Mapping
from typing import Any

from semflow._optional import import_optional
from semflow._validation import counted
from semflow._version import __version__
from semflow.detectors import Detector

LIBRARY = "semflow"

METRICS = {
    "image_auroc": ("roc_auc", "image AUROC"),
    "pixel_auroc": ("roc_auc", "pixel AUROC"),
    "aupro": ("aupro", "AUPRO up to a false-positive rate of 0.3"),
    "image_f1_max": ("f1", "image F1 at its best threshold"),
}
"""Type on the hub and name of each metric of `semflow.evaluate`."""


def model_card(
    detector: Detector,
    name: str,
    data: str | None = None,
    metrics: Mapping[str, float | int | None] | None = None,
    license: str | None = None,
    version: str = __version__,
) -> str:
    """Write the text of README.md.

    Args:
        detector: Trained detector.
        name: Name to load the model by.
        data: Description of the data for training and evaluation.
        metrics: Result of `semflow.evaluate` or `semflow evaluate --json`, as fractions.
        license: Identifier of the hub, such as `apache-2.0`. The data and the backbone's weights may restrict it.
        version: Version of semflow that trained the detector.

    Example:
        >>> from semflow.recipes import Backbone, Couplings, cflow_ad
        >>> detector = cflow_ad(Backbone("test_efficientnet", "random", (8,)), 32, couplings=Couplings(1, 4))
        >>> "| image AUROC | 0.987 |" in model_card(detector, "me/screws", metrics={"image_auroc": 0.987})
        True
    """
    metrics = metrics or {}
    known = {key: float(value) for key in METRICS if (value := metrics.get(key)) is not None}
    parts = [
        f"---\n{_header(name, data, known, license)}\n---\n",
        f"# {name}\n",
        f"Anomaly detector of the recipe `{detector.provenance.recipe}`, trained with {LIBRARY} {version} on images of "
        f"normal parts only. It computes a score per image, higher for anomalies"
        f"{', and a heat map' if detector.localizes else ''}.\n",
        "## Use\n\n"
        "```python\nfrom semflow.app import hub\nfrom semflow.data import load_image\n\n"
        f'detector = hub.pull("{name}")\n'
        f'prediction = detector.predict(load_image("part.png", {_reading(detector)})[None])\n'
        "print(prediction.score, prediction.p_value)\n```\n",
        f"## Training\n\nData: {data or 'not described'}.\n",
        _table(("argument", "value"), {key: f"`{value}`" for key, value in _flat(detector.provenance.arguments)}),
        f"## Calibration\n\n{_calibration(detector)}\n",
    ]
    if known:
        words = {"images": "images", "anomalous_images": "of them anomalous"}
        counts = ", ".join(f"{metrics[key]} {word}" for key, word in words.items() if metrics.get(key) is not None)
        parts += [
            f"## Metrics\n\nMeasured{f' on {counts}' if counts else ''}, on the data above, as fractions.\n",
            _table(("metric", "value"), {METRICS[key][1]: f"{value:.3f}" for key, value in known.items()}),
        ]
    parts.append(
        "## Limits\n\nScores are comparable between images of this model only. Images taken under other conditions "
        "(camera, light, position, size) than those of training are anomalies to the model.\n"
    )
    return "\n".join(parts)


def _reading(detector: Detector) -> str:
    """Return the arguments of `load_image` after the path."""
    made = detector.provenance
    return str(made.image_size) + ("" if made.resize == "stretch" else f', "{made.resize}"')


def _header(name: str, data: str | None, metrics: Mapping[str, float], license: str | None) -> str:
    client = import_optional("huggingface_hub")
    origin = ("anomaly-detection", "custom", data or "not described")
    results = [
        client.EvalResult(*origin, METRICS[key][0], round(value, 6), metric_name=METRICS[key][1])
        for key, value in metrics.items()
    ]
    tags = ["anomaly-detection", "normalizing-flow", "industrial-inspection"]
    shown = {"model_name": name, "eval_results": results} if results else {}
    return str(client.ModelCardData(library_name=LIBRARY, license=license, tags=tags, **shown).to_yaml())


def _calibration(detector: Detector) -> str:
    count, rate = detector.calibration.count, detector.calibration.false_alarm_rate
    if not count:
        return "None: predictions contain scores only. Calibrate with held-out images of normal parts to get decisions."
    kind = "training image" if detector.provenance.calibration == "cross" else "held-out image"
    return (
        f"On {counted(count, kind)} of normal parts, at a false-alarm rate of {rate:g}: predictions have a "
        "p-value, a decision and a mask, which are valid for images taken under the same conditions."
    )


def _flat(arguments: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield arguments by dotted name."""
    for name, value in arguments.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _table(header: tuple[str, str], rows: Mapping[str, str]) -> str:
    cells = [header, ("---", "---"), *((key, value.replace("|", "\\|")) for key, value in rows.items())]
    return "\n".join(f"| {key} | {value} |" for key, value in cells) + "\n"
