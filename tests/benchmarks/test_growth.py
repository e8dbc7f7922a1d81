"""Curves of `benchmarks.growth`."""

import json
from pathlib import Path

import pytest
from benchmarks.growth import __main__ as growth
from benchmarks.growth.curves import AXES, exponent, measure_point

ROOT = Path(__file__).resolve().parents[2]


def test_exponent_of_a_power_law() -> None:
    points = [{"batch": n, "train_s": 0.5 * n**1.5} for n in (1, 2, 4, 8)]
    assert exponent(points, "batch", "train_s") == 1.5
    assert exponent(points[:2], "batch", "train_s") == 1.5


def test_exponent_uses_the_upper_half() -> None:
    points = [{"batch": n, "train_s": 1.0 if n < 4 else n / 4} for n in (1, 2, 4, 8)]
    assert exponent(points, "batch", "train_s") == 1.0


def test_documented_exponents_match_the_measured_points() -> None:
    found = json.loads((ROOT / "benchmarks/results/growth.json").read_text("utf-8"))["axes"]
    assert found.keys() == AXES.keys()
    rows = [line for line in (ROOT / "docs/benchmarks.md").read_text("utf-8").splitlines() if line.startswith("|")]
    for axis, curves in found.items():
        slopes = {what: exponent(curves["points"], axis, what) for what in curves["exponents"]}
        assert slopes == curves["exponents"]
        (row,) = (line for line in rows if line.startswith(f"| {AXES[axis].label.removesuffix(' in pixels')}, "))
        for unit, cell in zip(("s", "mib"), row.split("|")[3:5], strict=True):
            shown = [f"{slopes[f'{kind}_{unit}']:.2f}" for kind in ("train", "infer") if f"{kind}_{unit}" in slopes]
            assert cell.strip().startswith(", ".join(shown))


@pytest.mark.parametrize("axis", ["image_size", "locations", "images", "memory_images", "stored_vectors"])
def test_point_has_time_and_memory(axis: str) -> None:
    found = measure_point(axis, AXES[axis].quick[0], least=0.0)
    kinds = ("train",) if axis == "images" else ("train", "infer")
    assert found.keys() == {f"{kind}_{unit}" for kind in kinds for unit in ("s", "mib")}
    assert all(found[f"{kind}_s"] > 0 for kind in kinds)


def test_json_file_has_provenance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(growth, "grow", lambda axis, sizes: [{axis: n, "train_s": float(n)} for n in sizes])
    growth.main(["--quick", "--only", "batch", "--json", str(tmp_path / "growth.json")])
    found = json.loads((tmp_path / "growth.json").read_text("utf-8"))
    assert found["axes"]["batch"]["exponents"] == {"train_s": 1.0}
    assert {"command", "versions", "machine", "commit", "seed"} <= found.keys()


def test_plot_is_small_enough_for_the_documentation(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="needs the extra plot")
    from benchmarks.growth.plot import draw

    points = [{"batch": n, "train_s": 0.1 * n, "infer_s": 0.02 * n, "train_mib": 9.0, "infer_mib": n} for n in (1, 4)]
    slopes = {what: exponent(points, "batch", what) for what in points[0] if what != "batch"}
    path = draw("batch", {"label": "batch", "points": points, "exponents": slopes}, tmp_path)
    assert path.read_bytes()[:4] == b"\x89PNG"
    assert path.stat().st_size < 60_000


def test_chosen_axes_replace_those_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(growth, "grow", lambda axis, sizes: [{axis: n, "train_s": float(n)} for n in sizes])
    path = tmp_path / "growth.json"
    path.write_text(json.dumps({"commit": "old", "axes": {"blocks": {}, "batch": {}}}), "utf-8")
    growth.main(["--quick", "--only", "batch", "--json", str(path)])
    found = json.loads(path.read_text("utf-8"))
    assert found["axes"].keys() == {"blocks", "batch"}
    assert found["commit"] == "old" != found["axes"]["batch"]["record"]["commit"]
