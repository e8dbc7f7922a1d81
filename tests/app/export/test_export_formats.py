"""One small detector in every format: results, batch sizes, metadata and errors."""

import copy
import json
import pickle
import shutil
import sys
import zipfile
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec

import numpy as np
import pytest
import torch

from helpers.export_cases import FORMATS, PACKAGES, SIZE, own_detector, pictures
from semflow.app.export import load, open_runner, save
from semflow.app.export import saving as saving_module
from semflow.app.export.check import compare, to_input
from semflow.app.export.formats import OPSET
from semflow.app.export.graph import DetectorGraph, trace
from semflow.errors import CheckpointError, ConfigError, DataError, DeviceError, ExportError, ShapeError

needs_onnx = pytest.mark.skipif(
    any(find_spec(package) is None for package in PACKAGES["onnx"]), reason="needs semflow[export]"
)


@pytest.mark.parametrize("name", FORMATS)
def test_results_equal_those_of_the_detector(name, files) -> None:
    detector, exported = own_detector(), load(files[name])
    images = pictures(SIZE, 6, seed=6)
    expected = detector.predict(images.float() / 255)
    got = exported.predict(images.float() / 255)
    assert got.score.std() > 0.1
    for field in ("score", "anomaly_map"):
        torch.testing.assert_close(getattr(got, field), getattr(expected, field), rtol=1e-5, atol=1e-5)
    assert len(got.variance) == len(expected.variance) == 2
    for a, b in zip(got.variance, expected.variance, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(got.p_value, expected.p_value, rtol=1e-6, atol=0)
    assert got.p_value.dtype == torch.float64
    for field in ("is_anomalous", "mask"):
        assert getattr(got, field).dtype == torch.bool
        assert torch.equal(getattr(got, field), getattr(expected, field))
    assert expected.is_anomalous.tolist() == [False] * 3 + [True] * 3
    assert expected.mask.any()
    assert not expected.mask.all()


@pytest.mark.parametrize("name", FORMATS)
def test_results_do_not_depend_on_the_batch(name, files) -> None:
    runner = open_runner(files[name])
    images = pictures(SIZE, 7, seed=6).numpy()
    together = runner(images)
    for i in (0, 6):
        alone = runner(images[i : i + 1])
        for field in ("score", "anomaly_map"):
            np.testing.assert_allclose(alone[field][0], together[field][i], rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(runner(images[::-1])["score"], together["score"][::-1], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", FORMATS)
def test_an_opened_file_is_pickled_with_its_content(name, files, tmp_path) -> None:
    """Also without the file, twice, and with its arguments; not if the file has changed since it was opened."""
    for file in files[name].parent.glob(f"{files[name].stem}.*"):
        shutil.copy(file, tmp_path)
    path = tmp_path / files[name].name
    exported, images = load(path), pictures(SIZE, 2, seed=6)
    expected = exported.predict(images)
    data = pickle.dumps(exported)
    path.unlink()
    with pytest.raises(
        CheckpointError, match=r"must be the file that was opened, to be pickled, but got another or none"
    ):
        pickle.dumps(exported)
    again = pickle.loads(data)
    for other in (again, pickle.loads(pickle.dumps(again)), copy.deepcopy(again)):
        assert torch.equal(other.predict(images).anomaly_map, expected.anomaly_map)
        assert other.metadata == exported.metadata
    assert torch.equal(again(images).score, expected.score)


@pytest.mark.parametrize("name", FORMATS)
def test_threads_share_an_opened_file(name, files) -> None:
    exported = load(files[name])
    given = [pictures(SIZE, 1, seed=seed) for seed in range(24)]
    expected = [exported.predict(images).score for images in given]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda images: exported.predict(images).score, given))
    assert all(map(torch.equal, found, expected))


@pytest.mark.parametrize("name", FORMATS)
def test_metadata_of_a_file(name, files) -> None:
    exported = load(files[name])
    about = exported.metadata
    assert (about.recipe, about.image_size, about.input, about.localizes) == ("own", SIZE, "uint8", True)
    assert (exported.provenance.image_size, exported.localizes, exported.device) == (SIZE, True, torch.device("cpu"))
    detector = own_detector()
    assert exported.map_range == pytest.approx(detector.map_range)
    assert about.calibration["images"] == exported.calibration_images == 39
    assert (about.calibration["cross"], exported.provenance.calibration) == (False, "")
    assert about.calibration["false_alarm_rate"] == pytest.approx(0.1)
    score, value = detector.calibration.thresholds.tolist()
    assert (about.calibration["score_threshold"], about.calibration["map_threshold"]) == pytest.approx((score, value))
    assert {"semflow", "torch", *PACKAGES[name]} <= set(about.versions)


@needs_onnx
def test_onnx_has_the_opset_and_named_inputs_and_outputs(files) -> None:
    import onnx

    model = onnx.load(files["onnx"])
    onnx.checker.check_model(model, full_check=True)
    assert {entry.domain: entry.version for entry in model.opset_import} == {"": OPSET}
    assert not model.functions
    (images,) = model.graph.input
    assert images.name == "images"
    dims = [dim.dim_param or dim.dim_value for dim in images.type.tensor_type.shape.dim]
    assert dims == ["batch", 3, SIZE, SIZE]
    assert [x.name for x in model.graph.output][:5] == ["score", "anomaly_map", "p_value", "is_anomalous", "mask"]
    assert {x.type.tensor_type.shape.dim[0].dim_param for x in model.graph.output} == {"batch"}


def test_torch_file_contains_no_pickled_data(files) -> None:
    with zipfile.ZipFile(files["torch"]) as archive:
        names = archive.namelist()
        inputs = [archive.getinfo(name).file_size for name in names if "sample_inputs" in name]
        configs = [json.loads(archive.read(name)) for name in names if name.endswith("_config.json")]
    assert inputs == [0]
    assert configs
    assert not any(entry["use_pickle"] for config in configs for entry in config["config"].values())


@pytest.mark.slow
@pytest.mark.parametrize("form", ["marginal", "mode"])
@needs_onnx
def test_other_forms_of_the_density_are_exported(form, tmp_path) -> None:
    """The marginal form, a Student-t density, needs lgamma instead of digamma."""
    detector = own_detector(form, calibrated=False)
    made = save(detector, tmp_path / "own.onnx")
    assert max(made.differences.values()) < 1e-5
    prediction = load(made.path).predict(pictures(SIZE, 2, seed=1))
    assert (prediction.p_value, prediction.is_anomalous, prediction.mask) == (None, None, None)


def test_float_input_accepts_any_values(tmp_path) -> None:
    detector = own_detector()
    path = save(detector, tmp_path / "own.pt2", input="float32").path
    images = torch.rand(3, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(load(path).predict(images).score, detector.predict(images).score, rtol=1e-6, atol=1e-6)
    eight_bit = pictures(SIZE, 3, seed=1)
    torch.testing.assert_close(load(path).predict(eight_bit).score, detector.predict(eight_bit.float() / 255).score)


def test_uint8_input_rejects_other_values(files) -> None:
    for wrong in (torch.full((1, 3, SIZE, SIZE), 0.5), torch.full((1, 3, SIZE, SIZE), 2.0), torch.tensor(float("nan"))):
        with pytest.raises(ShapeError, match="k / 255"):
            to_input(wrong, "uint8")
    every = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_input(every.float() / 255.0, "uint8"), every)
    assert torch.equal(to_input(every.float().div_(255.0), "uint8"), every)


def test_save_rejects_a_file_with_other_results(tmp_path, monkeypatch) -> None:
    other = own_detector()
    with torch.no_grad():
        other.flows[0][2].shift.add_(0.01)
    program = trace(DetectorGraph(other.requires_grad_(False)))
    monkeypatch.setattr(saving_module, "trace", lambda graph: program)
    with pytest.raises(ExportError, match=r"of the exported model must differ .* by at most 0\.0001, but got"):
        save(own_detector(), tmp_path / "own.pt2")
    assert list(tmp_path.iterdir()) == []
    made = save(own_detector(), tmp_path / "own.pt2", check=False)
    assert made.differences == {}
    assert [path.name for path in tmp_path.iterdir()] == ["own.pt2"]


def test_compare_detects_differences_shapes_and_nan() -> None:
    graph = DetectorGraph(own_detector())
    images = pictures(SIZE, 3, seed=0)

    def runner(change):
        def run(batch):
            results = dict(zip(graph.outputs, (x.numpy().copy() for x in graph(torch.from_numpy(batch))), strict=True))
            change(results)
            return results

        return run

    assert set(compare(graph, runner(lambda r: None), images).values()) == {0.0}
    changes = {
        "anomaly_map": lambda r: r["anomaly_map"].__setitem__((0, 3, 3), r["anomaly_map"][0, 3, 3] * 1.001 + 1e-3),
        "score": lambda r: r["score"].__setitem__(0, np.nan),
        "mask": lambda r: r.__setitem__("mask", r["mask"][:, :-1]),
    }
    for name, change in changes.items():
        with pytest.raises(ExportError, match=f"^{name} of the exported model"):
            compare(graph, runner(change), images)


def test_save_rejects_invalid_arguments(tmp_path, monkeypatch) -> None:
    detector = own_detector()
    for path, options, words in (
        ("own.pth", {}, r"must end in .pt2, .onnx, .xml"),
        ("own", {}, "no ending"),
        ("own.pt2", {"format": "onnx"}, "must end in .onnx"),
        ("own.pt2", {"format": "tensorrt"}, "format must be one of torch, onnx, openvino"),
        ("own.pt2", {"input": "float16"}, "input must be one of uint8, float32"),
    ):
        with pytest.raises(ConfigError, match=words):
            save(detector, tmp_path / path, **options)
    with pytest.raises(DataError, match="none must be a folder, but got none"):
        save(detector, tmp_path / "none" / "own.pt2")
    (tmp_path / "there.pt2").write_text("mine")
    with pytest.raises(DataError, match="must be a new file"):
        save(detector, tmp_path / "there.pt2")
    assert (tmp_path / "there.pt2").read_text() == "mine"
    for images in (torch.zeros(2, 3, 16, 16), torch.zeros(3, SIZE, SIZE), torch.zeros(0, 3, SIZE, SIZE)):
        with pytest.raises(ShapeError, match="images must be"):
            save(detector, tmp_path / "own.pt2", images=images)
    assert [path.name for path in tmp_path.iterdir()] == ["there.pt2"]


@needs_onnx
def test_save_rejects_weights_too_large_for_onnx(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("semflow.app.export.formats.LARGEST", 1000)
    with pytest.raises(ConfigError, match="weights must have at most 1000 bytes"):
        save(own_detector(), tmp_path / "own.onnx")
    assert not list(tmp_path.iterdir())


def test_missing_package_is_named_with_its_extra(tmp_path, monkeypatch) -> None:
    for package in ("onnx", "onnxruntime", "openvino"):
        monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ConfigError, match=r'onnx must be installed, but got .*; run pip install "semflow\[export\]"'):
        save(own_detector(), tmp_path / "own.onnx")
    with pytest.raises(ConfigError, match=r"openvino must be installed.*semflow\[openvino\]"):
        save(own_detector(), tmp_path / "own.xml")
    (tmp_path / "a.onnx").write_bytes(b"")
    with pytest.raises(ConfigError, match=r"onnxruntime must be installed.*semflow\[export\]"):
        open_runner(tmp_path / "a.onnx")


@pytest.mark.parametrize("name", FORMATS)
def test_runner_rejects_other_images(name, files) -> None:
    runner = open_runner(files[name])
    good = pictures(SIZE, 2, seed=0).numpy()
    for wrong in (good[:, :, :-1], good[0], good.astype(np.float32), good[:, :2], good[:0]):
        with pytest.raises(ShapeError, match=f"images must be uint8 \\(B, 3, {SIZE}, {SIZE}\\) with B >= 1"):
            runner(wrong)
    assert np.array_equal(runner(good[:, ::-1])["score"], runner(np.ascontiguousarray(good[:, ::-1]))["score"])


def test_missing_devices_are_rejected(files) -> None:
    if "onnx" in files:
        import onnxruntime

        if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
            with pytest.raises(DeviceError, match="device must be offered by onnxruntime"):
                open_runner(files["onnx"], "cuda")
    if "openvino" in files:
        with pytest.raises(DeviceError, match="device must be cpu for OpenVINO"):
            open_runner(files["openvino"], "cuda")
    if not torch.cuda.is_available():
        with pytest.raises(DeviceError, match="device must be available, but got cuda"):
            open_runner(files["torch"], "cuda")
    for name, path in files.items():
        assert open_runner(path, "auto")(pictures(SIZE, 1, seed=0).numpy())["score"].shape == (1,), name


def test_load_rejects_missing_and_other_files(tmp_path) -> None:
    with pytest.raises(CheckpointError, match="but got no file"):
        load(tmp_path / "a.onnx")
    (tmp_path / "a.txt").write_text("a")
    with pytest.raises(CheckpointError, match="an exported model ending in"):
        load(tmp_path / "a.txt")
