"""Recipes in anomalib's Engine, and anomalib's FastFlow and CFLOW with predicted statistics."""

import copy
import pickle
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import semflow
from helpers.library_cases import draw, surroundings
from semflow.bases import SemanticGaussian
from semflow.errors import ConfigError, ShapeError
from semflow.features.timm_module import load_timm
from semflow.metrics import ImageAccumulator
from semflow.nn import FeatureStatisticsNetwork, InverseGammaVariance, SinusoidalPosition2d, StatisticsNetwork
from semflow.testing import check_flow

if find_spec("anomalib") is None:
    pytest.skip('needs anomalib: pip install "semflow[anomalib]"', allow_module_level=True)
load_timm()  # makes torchvision importable beside a CPU build of torch

from anomalib.data import Folder, InferenceBatch  # noqa: E402
from anomalib.engine import Engine  # noqa: E402
from anomalib.models import Cflow, Fastflow, Padim  # noqa: E402
from anomalib.models.image.cflow.torch_model import CflowModel  # noqa: E402
from anomalib.models.image.cflow.utils import get_logp, positional_encoding_2d  # noqa: E402
from anomalib.models.image.fastflow.torch_model import FastflowModel  # noqa: E402

from semflow.adapters.anomalib import SemflowModule, StatisticsModule  # noqa: E402

SIZE = (64, 96)


def fastflow(**options: Any) -> Any:
    with surroundings(0):
        return FastflowModel(SIZE, "resnet18", pre_trained=False, flow_steps=2, **options)


def cflow() -> Any:
    with surroundings(0):
        return CflowModel("resnet18", ["layer2", "layer3"], pre_trained=False, coupling_blocks=2, condition_vector=16)


MODELS: dict[str, Callable[[], Any]] = {"fastflow": fastflow, "cflow": cflow}


def head() -> InverseGammaVariance:
    with surroundings(1):
        return InverseGammaVariance(StatisticsNetwork(stride=4, filters=8), mode=0.7)


def images(count: int = 2) -> Tensor:
    return draw(count, 3, *SIZE, seed=3)


def their_latents(model: Any, x: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Return the latents and log-dets that anomalib's own code computes, as maps."""
    if isinstance(model, FastflowModel):
        return list(zip(*model.train()(x), strict=True))
    found = []
    for maps, decoder in zip(model.encoder(x).values(), model.decoders, strict=True):
        b, c, h, w = maps.shape
        code = positional_encoding_2d(model.condition_vector, h, w).repeat(b, 1, 1, 1)
        rows = [m.permute(0, 2, 3, 1).reshape(b * h * w, -1) for m in (maps, code)]
        z, log_det = decoder(rows[0], [rows[1]])
        found.append((z.reshape(b, h, w, c).permute(0, 3, 1, 2), log_det.reshape(b, h, w)))
    return found


@pytest.mark.parametrize("name", MODELS)
def test_without_a_head_the_likelihood_equals_anomalib(name: str) -> None:
    """With a standard normal base: FastFlow's training loss, and the likelihood in CFLOW's score."""
    model = MODELS[name]()
    actual = semflow.with_statistics(model, None).log_prob(images())
    right = []
    with torch.no_grad():
        for z, log_det in their_latents(model, images()):
            if name == "cflow":
                c = z.shape[1]
                rows = z.permute(0, 2, 3, 1).reshape(-1, c)
                right.append(get_logp(c, rows, log_det.flatten()).reshape(log_det.shape))
            else:
                constant = 0.5 * z[0].numel() * np.log(2 * np.pi)
                right.append(log_det - 0.5 * z.square().sum((1, 2, 3)) - constant)
    for ours, theirs in zip(actual, right, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("name", MODELS)
def test_with_statistics_evaluates_the_base_on_their_latents(name: str) -> None:
    model, variance = MODELS[name](), head().eval()
    ours = semflow.with_statistics(model, variance, SemanticGaussian(form="marginal")).eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with torch.no_grad():
        latents = their_latents(model, images())
        rgb = images() * torch.tensor([0.229, 0.224, 0.225])[:, None, None]
        rgb = rgb + torch.tensor([0.485, 0.456, 0.406])[:, None, None]
        statistics = variance(rgb, [z for z, _ in latents])
        for actual, (z, log_det), s in zip(ours.log_prob(images()), latents, statistics, strict=True):
            right = SemanticGaussian(form="marginal").log_prob(z, s)
            right = right + log_det if name == "cflow" else right.sum((1, 2)) + log_det
            torch.testing.assert_close(actual, right, rtol=1e-5, atol=1e-3)
    assert ours.anomaly_map(images()).shape == (2, *SIZE)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("name", MODELS)
def test_only_their_flows_and_the_head_train(name: str) -> None:
    model = MODELS[name]()
    ours = semflow.with_statistics(model, head())
    flows = model.fast_flow_blocks if name == "fastflow" else model.decoders
    mask = torch.zeros(2, *SIZE)
    mask[0, 8:40, 8:40] = 1
    ours.loss(images(), anomaly_mask=mask).total.backward()
    theirs = {id(p) for p in flows.parameters() if p.requires_grad}
    added = {id(p) for p in ours.head.parameters()}
    assert {id(p) for p in ours.trainable()} == theirs | added
    assert all(p.grad is not None and p.grad.isfinite().all() for p in ours.trainable())
    assert all(p.grad is None for p in ours.frozen.parameters())
    before = [b.clone() for b in ours.frozen.buffers()]
    ours.train().log_prob(images())  # a backbone in training mode would change its running statistics
    assert all(torch.equal(a, b) for a, b in zip(before, ours.frozen.buffers(), strict=True))


@pytest.mark.parametrize("name", MODELS)
def test_model_with_statistics_is_saved_copied_and_pickled(name: str) -> None:
    ours = semflow.with_statistics(MODELS[name](), head())
    other = semflow.with_statistics(MODELS[name](), head())
    with torch.no_grad():
        for p in ours.trainable():
            p.add_(0.1)
    right = ours.anomaly_map(images())
    assert not torch.equal(other.anomaly_map(images()), right)
    other.load_state_dict(ours.state_dict())
    for same in (other, copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        assert torch.equal(same.anomaly_map(images()), right)
    with torch.no_grad():
        next(iter(copy.deepcopy(ours).flows.parameters())).zero_()  # a copy shares no flows
    assert torch.equal(ours.anomaly_map(images()), right)


def test_anomaly_map_does_not_depend_on_the_batch() -> None:
    ours = semflow.with_statistics(cflow(), head())
    together = ours.anomaly_map(images(3))
    alone = torch.cat([ours.anomaly_map(images(3)[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(together, alone, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", MODELS)
def test_their_flows_satisfy_the_flow_laws(name: str) -> None:
    """as_flow knows the event of anomalib's copy of FrEIA's block in FrEIA's sequence."""
    model = MODELS[name]()
    flow = semflow.as_flow(model.fast_flow_blocks[-1] if name == "fastflow" else model.decoders[0])
    assert flow.event == ("sample" if name == "fastflow" else "location")
    assert type(flow.inn.module_list[0]).__module__.startswith("anomalib.")
    x = draw(2, *((256, 4, 6) if name == "fastflow" else (128, 2, 2)), seed=1)
    context = None if name == "fastflow" else SinusoidalPosition2d(16)(2, 2)
    with torch.no_grad():
        z, _ = flow(x, context)
        torch.testing.assert_close(flow.inverse(z, context), x, rtol=1e-3, atol=1e-3)
    small = semflow.as_flow(_small_block(name))
    code = None if name == "fastflow" else draw(8, 2, 3, seed=2)
    check_flow(small, draw(2, 6, 2, 3, seed=1), code, compile_backend=None)


def _small_block(name: str) -> nn.Module:
    from anomalib.models.image.cflow.utils import cflow_head
    from anomalib.models.image.fastflow.torch_model import create_fast_flow_block

    with surroundings(0):
        if name == "cflow":
            return cflow_head(condition_vector=8, coupling_blocks=2, clamp_alpha=1.9, n_features=6)
        return create_fast_flow_block([6, 2, 3], conv3x3_only=False, hidden_ratio=1.0, flow_steps=2)


def test_head_on_features_predicts_for_every_scale() -> None:
    networks = [FeatureStatisticsNetwork(c, filters=8) for c in (64, 128, 256)]
    ours = semflow.with_statistics(fastflow(), InverseGammaVariance(networks))
    assert [p.shape for p in ours.log_prob(images())] == [(2,)] * 3


def test_other_models_and_wrong_features_are_rejected() -> None:
    with pytest.raises(ConfigError, match=r"flow must be a Fastflow or Cflow of anomalib .* but got anomalib.*Padim"):
        semflow.with_statistics(Padim(backbone="resnet18", pre_trained=False), None)
    ours = semflow.with_statistics(cflow(), None)
    with pytest.raises(ShapeError, match=r"features must be normalized images .* but got \(2, 128, 8, 12\)"):
        ours.log_prob(torch.zeros(2, 128, 8, 12))
    with pytest.raises(ShapeError, match="but got list"):
        ours.log_prob([torch.zeros(2, 3, 8, 12)])
    with pytest.raises(ShapeError, match=r"features must be images normalized .* values up to 255; divide bytes"):
        ours.log_prob(torch.full((2, 3, 8, 12), 255.0))
    with pytest.raises(ShapeError, match="features must be finite, but got NaN"):
        ours.log_prob(torch.full((2, 3, 8, 12), float("nan")))
    with pytest.raises(ConfigError, match="model must be a Fastflow or Cflow of anomalib, but got CflowModel"):
        StatisticsModule(cflow(), None)
    with pytest.raises(ConfigError, match=r"recipe must be one of .*sanflow.*, but got .draem"):
        SemflowModule("draem")


# ---------------------------------------------------------------------------------------------------- the Engine


@pytest.fixture(scope="module", name="waves")
def _waves(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write gratings of random phase, some of them with a square of noise."""
    root = tmp_path_factory.mktemp("waves")
    rng = np.random.default_rng(0)
    for folder, count in (("train", 12), ("good", 6), ("bad", 6)):
        (root / folder).mkdir()
        for i in range(count):
            wave = np.sin(np.arange(64) / 3 + 6.28 * rng.random())[:, None, None]
            pixels = 128 + 50 * wave + rng.normal(0, 4, (64, 64, 3))
            if folder == "bad":
                mask = np.zeros((64, 64), np.uint8)
                mask[20:44, 10:34] = 255
                pixels[mask > 0] = rng.integers(0, 255, (24 * 24, 3))
                (root / "mask").mkdir(exist_ok=True)
                Image.fromarray(mask).save(root / "mask" / f"{i}.png")
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(root / folder / f"{i}.png")
    return root


def data(root: Path) -> Any:
    return Folder(
        "waves",
        root=root,
        normal_dir="train",
        abnormal_dir="bad",
        normal_test_dir="good",
        mask_dir="mask",
        train_batch_size=4,
        eval_batch_size=4,
        num_workers=0,
        val_split_mode="same_as_test",
    )


def engine(folder: Path, epochs: int, **more: Any) -> Any:
    quiet = {"enable_progress_bar": False, "enable_model_summary": False}
    return Engine(max_epochs=epochs, accelerator="cpu", devices=1, default_root_dir=folder, **quiet, **more)


def recipe_module(recipe: str, settings: dict[str, Any]) -> SemflowModule:
    small = {"backbone": "resnet18", "backbone.weights": "random", "backbone.strides": (8, 16)}
    small |= {"image_size": 64, "couplings.blocks": 2}
    return SemflowModule(recipe, visualizer=False, settings={**small, **settings})


def test_recipe_without_gradient_steps_is_fitted_in_one_epoch(waves: Path, tmp_path: Path) -> None:
    small = {"backbone": "resnet18", "backbone.weights": "random", "backbone.strides": (8, 16), "image_size": 64}
    module = SemflowModule("patchcore", visualizer=False, settings={**small, "coreset": 40})
    own = engine(tmp_path, epochs=1)
    own.fit(module, datamodule=data(waves))
    assert len(module.detector.bases[0].vectors) == 40
    (metrics,) = own.test(module, datamodule=data(waves))
    assert metrics["pixel_AUROC"] > 0.7
    again = SemflowModule.load_from_checkpoint(own.best_model_path)
    x = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    assert torch.equal(again.eval().detector.predict(x).score, module.eval().detector.predict(x).score)


@pytest.mark.parametrize(
    ("recipe", "settings"),
    [
        ("sanflow", {}),
        (
            "cflow_ad",
            {
                "training.locations": 64,
                "statistics": True,
                "couplings.standardize": True,
                "couplings.position_channels": 16,
            },
        ),
    ],
)
def test_recipe_is_fitted_tested_saved_and_exported(
    recipe: str, settings: dict[str, Any], waves: Path, tmp_path: Path
) -> None:
    module = recipe_module(recipe, settings)
    start = {name: p.detach().clone() for name, p in module.detector.named_parameters() if p.requires_grad}
    own = engine(tmp_path, epochs=5)
    own.fit(module, datamodule=data(waves))
    trained = {id(p) for p in module.detector.trainable()}
    moved = [
        name for name, p in module.detector.named_parameters() if id(p) in trained and not torch.equal(p, start[name])
    ]
    assert len(moved) == len(trained)
    assert own.trainer.optimizers[0].param_groups[0]["lr"] < module.training_config.learning_rate  # decayed
    (metrics,) = own.test(module, datamodule=data(waves))
    assert metrics["pixel_AUROC"] > 0.7
    assert metrics["image_AUROC"] > 0.7

    x = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    right = module.eval().detector.predict(x)
    raw = module.model(x)
    torch.testing.assert_close(raw.pred_score, right.score)
    torch.testing.assert_close(raw.anomaly_map[:, 0], right.anomaly_map)
    # The score was fitted to the training images with the final weights.
    offsets = module.detector.scorer.offsets.clone()
    module.detector.fit_score(_unit_images(module, waves))
    torch.testing.assert_close(module.detector.scorer.offsets, offsets, rtol=1e-4, atol=1e-4)

    again = SemflowModule.load_from_checkpoint(own.best_model_path)
    assert again.detector.provenance == module.detector.provenance
    torch.testing.assert_close(again.eval().detector.predict(x).anomaly_map, right.anomaly_map)

    path = own.export(module, "torch", export_root=tmp_path)
    loaded = torch.load(path, weights_only=False)["model"]
    actual: InferenceBatch = loaded(torch.rand(1, 3, 80, 80))  # it resizes by itself
    assert actual.anomaly_map.shape == (1, 1, 64, 64)
    assert actual.pred_label.shape == (1,)
    torch.testing.assert_close(loaded.model(x).anomaly_map, raw.anomaly_map)


def _unit_images(module: SemflowModule, waves: Path) -> list[Tensor]:
    pixels = [np.asarray(Image.open(path)) for path in sorted((waves / "train").iterdir())]
    return [torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).float() / 255]


@pytest.mark.parametrize("name", ["fastflow", "cflow"])
def test_statistics_module_is_fitted_tested_and_loaded(name: str, waves: Path, tmp_path: Path) -> None:
    with surroundings(0):
        theirs: Any
        if name == "fastflow":
            size = Fastflow.configure_pre_processor((64, 64))
            theirs = Fastflow(pre_trained=False, flow_steps=2, pre_processor=size, visualizer=False)
        else:
            theirs = Cflow(
                "resnet18",
                ("layer2", "layer3"),
                pre_trained=False,
                coupling_blocks=2,
                lr=1e-3,
                pre_processor=Cflow.configure_pre_processor((64, 64)),
                visualizer=False,
            )
    module = StatisticsModule(theirs, head())
    assert module.pre_processor is theirs.pre_processor
    flows = theirs.model.fast_flow_blocks if name == "fastflow" else theirs.model.decoders
    start = [p.detach().clone() for p in flows.parameters() if p.requires_grad]
    learned = [p.detach().clone() for p in module.model.statistics.head.parameters()]
    own = engine(tmp_path, epochs=4)
    own.fit(module, datamodule=data(waves))
    assert all(
        not torch.equal(p, s) for p, s in zip([p for p in flows.parameters() if p.requires_grad], start, strict=True)
    )
    assert any(not torch.equal(p, s) for p, s in zip(module.model.statistics.head.parameters(), learned, strict=True))
    (metrics,) = own.test(module, datamodule=data(waves))
    assert metrics["pixel_AUROC"] > 0.7

    x = draw(2, 3, 64, 64, seed=1)
    right = module.eval().model.statistics.anomaly_map(x)
    raw = module.model(x)
    torch.testing.assert_close(raw.anomaly_map[:, 0], right)
    assert torch.equal(raw.pred_score, raw.anomaly_map.amax((1, 2, 3)))
    with surroundings(5):
        fresh = type(theirs)(**_options(theirs))
    again = StatisticsModule.load_from_checkpoint(own.best_model_path, model=fresh, head=head())
    torch.testing.assert_close(again.eval().model.statistics.anomaly_map(x), right)


def _options(model: Any) -> dict[str, Any]:
    return {**model.hparams, "pre_processor": model.pre_processor, "visualizer": False}


def test_recipe_rejects_normalized_images(waves: Path, tmp_path: Path) -> None:
    module = recipe_module("sanflow", {"couplings.blocks": 1})
    module.pre_processor = Fastflow.configure_pre_processor((64, 64))
    with pytest.raises(
        ShapeError, match=r"images must lie in \[0, 1\], but got .* leave normalization out of pre_proc"
    ):
        engine(tmp_path, epochs=1).fit(module, datamodule=data(waves))


def exported(which: str) -> Any:
    with surroundings(0):
        plain: Any = {
            "pre_processor": Fastflow.configure_pre_processor((64, 64)),
            "visualizer": False,
            "pre_trained": False,
        }
        if which == "fastflow":
            return StatisticsModule(Fastflow(flow_steps=1, **plain), head(), SemanticGaussian(form="marginal")).eval()
        if which == "cflow":
            return StatisticsModule(Cflow("resnet18", ("layer2", "layer3"), coupling_blocks=1, **plain), head()).eval()
    return recipe_module(which, {"couplings.blocks": 1}).eval()


@pytest.mark.slow
@pytest.mark.parametrize("which", ["sanflow", "fastflow", "cflow"])
def test_exported_graph_takes_any_batch_size(which: str) -> None:
    """All exporters of anomalib begin with this graph."""
    module = exported(which)
    batch = ({0: torch.export.Dim("batch")},)
    graph = torch.export.export(module, (torch.zeros(2, 3, 64, 64),), dynamic_shapes=batch, strict=False).module()
    x = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(graph(x).anomaly_map, module(x).anomaly_map, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("which", ["sanflow", "fastflow"])
def test_onnx_and_openvino_equal_torch(which: str, tmp_path: Path) -> None:
    """anomalib's exporter, with digamma and lgamma replaced by series."""
    onnxruntime = pytest.importorskip("onnxruntime", reason='needs onnxruntime: pip install "semflow[export]"')
    pytest.importorskip("onnxscript", reason='needs onnxscript: pip install "semflow[export]"')
    module = exported(which)
    x = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        right = module(x)
    if isinstance(module, SemflowModule):
        own = module.detector.predict(x)
        torch.testing.assert_close(right.anomaly_map[:, 0], own.anomaly_map)
        torch.testing.assert_close(right.pred_score, own.score)
    path = module.to_onnx(tmp_path, input_size=(64, 64))
    session = onnxruntime.InferenceSession(path)
    names = [output.name for output in session.get_outputs()]
    actual = dict(zip(names, session.run(None, {"input": x.numpy()}), strict=True))
    torch.testing.assert_close(torch.from_numpy(actual["anomaly_map"]), right.anomaly_map, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(torch.from_numpy(actual["pred_score"]), right.pred_score, rtol=1e-4, atol=1e-4)
    if find_spec("openvino") is None:
        return
    import openvino

    compiled = openvino.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    result = compiled(x.numpy())
    torch.testing.assert_close(torch.from_numpy(result["anomaly_map"]), right.anomaly_map, rtol=1e-3, atol=1e-3)


def test_accumulators_equal_torchmetrics_in_lightning() -> None:
    """An accumulator has the interface of a metric that Lightning resets after each epoch."""
    import lightning
    import torchmetrics

    scores = draw(24, seed=0)
    labels = (draw(24, seed=1) > 0.3).int()

    class Scored(lightning.LightningModule):  # type: ignore[misc,name-defined]  # anomalib may be missing
        def __init__(self) -> None:
            super().__init__()
            self.shift = nn.Parameter(torch.zeros(()))
            self.ours, self.theirs = ImageAccumulator(), torchmetrics.classification.BinaryAUROC()

        def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
            return (batch[0] + self.shift).square().mean()

        def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
            for metric in (self.ours, self.theirs):
                metric.update(batch[0], batch[1])

        def on_validation_epoch_end(self) -> None:
            self.log_dict(self.ours.compute()._asdict())
            self.log("theirs", self.theirs.compute())
            for metric in (self.ours, self.theirs):
                metric.reset()

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), 0.1)

    batches = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(scores, labels), 7)
    off = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
    trainer = lightning.Trainer(accelerator="cpu", devices=1, max_epochs=2, **dict.fromkeys(off, False))
    trainer.fit(Scored(), batches, batches)
    logged = trainer.callback_metrics
    assert 0 < logged["auroc"] < 1
    torch.testing.assert_close(logged["auroc"], logged["theirs"], rtol=1e-6, atol=1e-6)
    assert set(logged) == {"auroc", "average_precision", "f1_max", "theirs"}


def test_import_of_adapters_does_not_import_anomalib() -> None:
    code = "import sys, semflow.adapters; print('anomalib' in sys.modules, 'lightning' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "False False"), done.stderr


@pytest.mark.parametrize("settings", [{"training.accumulate": 2}, {}])
def test_recipe_is_fitted_with_accumulation_and_mixed_precision(
    settings: dict[str, Any], waves: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("semflow.training.stepping.BF16_DEVICES", ("cpu",))
    module = recipe_module("sanflow", settings)
    own = engine(tmp_path, epochs=1, **({} if settings else {"precision": "bf16-mixed", "accumulate_grad_batches": 3}))
    own.fit(module, datamodule=data(waves))
    assert own.trainer.global_step == (2 if settings else 1)  # of 3 batches
    (metrics,) = own.test(module, datamodule=data(waves))
    assert metrics["pixel_AUROC"] > 0.5


@pytest.mark.parametrize("given", ["recipe", "Engine"])
def test_bf16_is_refused_where_recipes_do_not_train_in_it(given: str, waves: Path, tmp_path: Path) -> None:
    module = recipe_module("sanflow", {"training.precision": "bf16"} if given == "recipe" else {})
    own = engine(tmp_path, epochs=1, **({} if given == "recipe" else {"precision": "bf16-mixed"}))
    with pytest.raises(ConfigError, match=r"precision must be float32 for torch\.float32 on device cpu, but got bf16"):
        own.fit(module, datamodule=data(waves))
