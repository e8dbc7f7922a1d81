"""Tables of `benchmarks.reproduce`: rows are recipes with settings, and refer to the figures that the paper prints."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

from semflow.errors import ConfigError

from ..shared.datasets import Kind

TABLES = {
    "sanflow": "SANFlow alone, every metric",
    "table1": "STC, beside other methods",
    "table2": "pixel AUROC by category, beside other methods",
    "table3": "image AUROC by category, beside other methods",
    "table4": "loss functions (with Table S2: by category, every metric)",
    "table5": "synthetic anomalies (with Table S3)",
    "table6": "predicted statistics (with Table S4)",
    "margin": "mean margin 0.5, 1.0, 1.5",
    "visa": "VisA",
    "cifar10": "one-class CIFAR-10",
    "tableS1": "SANFlow with WRN-101",
    "tableS2": "the same as table4",
    "tableS3": "the same as table5",
    "tableS4": "the same as table6",
    "tableS5": "CFLOW-AD and FastFlow, with and without statistics prediction",
    "tableS6": "Tables 4 to 6 and CFLOW-AD with and without statistics prediction, on STC",
}
SAME = {"tableS2": "table4", "tableS3": "table5", "tableS4": "table6"}
DATASETS: dict[Kind, str] = {"mvtec": "MVTec AD", "visa": "VisA", "stc": "STC", "cifar10": "CIFAR-10"}
STC = (
    "One model per scene, and the mean over the scenes; the paper does not say how it averages. Its learning rate on "
    "STC is 2e-4 (`--fit learning_rate=2e-4`)."
)
MODELS = {
    "1a": "plain conditional flow, unit normal",
    "1b": "predicted statistics, NLL only",
    "1c": "NLL and BCE",
    "1d": "NLL and KL (all but BCE)",
    "2a": "without synthetic anomalies (and BCE)",
    "3a": "fixed mean, variance fixed at 0.1",
    "3b": "predicted mean, variance fixed at 0.1",
    "3c": "predicted mean and variance",
}
LEARNED, ONE = "one learned variance per scale", "variance 1 everywhere"


@dataclass(frozen=True)
class Row:
    """One model of a table.

    Args:
        name: in the table.
        text: how it differs.
        recipe: its recipe.
        settings: dotted arguments of the recipe; they override those of the command line.
        paper: (table, method) pairs that print its figures, the most detailed first.
        against: the row that differences are taken to.
        control: not in the paper; shows whether the *predicted* variance is what helps.
        cells: the row whose cells are the same; its own name by default.
    """

    name: str
    text: str
    recipe: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    paper: tuple[tuple[str, str], ...] = ()
    against: str = ""
    control: bool = False
    cells: str = ""


@dataclass(frozen=True)
class Table:
    """Rows that are compared with each other and with a table of the paper."""

    name: str
    title: str
    rows: tuple[Row, ...]
    data: Kind = "mvtec"
    metrics: tuple[str, ...] = ("image_auroc", "pixel_auroc", "aupro")
    paper_backbone: str = "WRN-50"
    backbone: str = "wide_resnet50_2"
    others: str = ""
    notes: str = ""

    @property
    def dataset(self) -> str:
        """The data set's name in the paper's tables."""
        return DATASETS[self.data]


@cache
def table(name: str) -> Table:
    """Return a table by name."""
    if name not in TABLES:
        raise ConfigError(f"TABLE must be one of {', '.join(TABLES)}, but got {name!r}")
    return next(found for found in _tables() if found.name == SAME.get(name, name))


def _tables() -> tuple[Table, ...]:
    from semflow.recipes import ABLATIONS

    from .peers import OURS

    def model(name: str, *paper: str) -> Row:
        return Row(name, MODELS[name], "sanflow", ABLATIONS[name], tuple((p, name) for p in paper), "SANFlow")

    def control(name: str, against: str, text: str, settings: Mapping[str, Any], cells: str = "") -> Row:
        return Row(name, f"{against} with {text}", "sanflow", settings, against=against, control=True, cells=cells)

    def printed(paper: str, *rows: Row) -> tuple[Row, ...]:
        return tuple(row if row.control else replace(row, paper=((paper, row.name),)) for row in rows)

    learned = {"statistics.variance": "learned"}
    sanflow = Row("SANFlow", "the whole method", "sanflow", paper=(("tableS2", "SANFlow"), ("table4", "SANFlow")))
    plain = replace(model("1a"), paper=(("tableS5", "CFLOW-AD"), ("table4", "1a")))
    differnet = Row("DifferNet", "one flow of pooled features", "differnet", paper=(("table3", "DifferNet"),))
    controls = (
        control("variance 1", "SANFlow", ONE, {"statistics.variance": "fixed", "statistics.mode": 1.0}),
        control("learned", "SANFlow", LEARNED, learned),
    )
    cflow, fastflow = _with_statistics("CFLOW-AD", "cflow_ad"), _with_statistics("FastFlow", "fastflow")
    flows = (cflow[0], sanflow)
    spade = Row("SPADE", "strides 4, 8, 16; 50 similar images", "spade", paper=(("table1", "SPADE"),))
    padim, patchcore = (replace(row, paper=row.paper[:2]) for row in OURS[:2])  # printed for MVTec AD in Tables 2 and 3
    margins = tuple(
        Row(
            *(f"margin {margin}", f"anomalous mean {margin}", "sanflow", {"statistics.margin": margin}),
            paper=((("tableS2", "SANFlow"),) if margin == 1.0 else ()) + (("margin", f"margin {margin}"),),
            against="" if margin == 1.0 else "margin 1.0",
            cells="SANFlow" if margin == 1.0 else "",
        )
        for margin in (0.5, 1.0, 1.5)
    )
    losses = (*(model(name, "tableS2", "table4") for name in ("1b", "1c", "1d")), sanflow, *controls)
    synthesis = (
        *(model("1d", "tableS2", "table5"), model("2a", "tableS3", "table5"), sanflow, *controls),
        control("variance 1, no synthesis", "2a", ONE, ABLATIONS["1a"], cells="1a"),
        control("learned, no synthesis", "2a", LEARNED, {**ABLATIONS["2a"], **learned}),
    )
    predicted = (*(model(name, "tableS4", "table6") for name in ("3a", "3b", "3c")), sanflow, *controls)
    on_stc = (*(model(name) for name in MODELS if name != "1a"), *controls, *cflow, sanflow)
    image, pixel, both = ("image_auroc",), ("pixel_auroc", "aupro"), ("image_auroc", "pixel_auroc")

    cifar = "The figure is the mean of ten AUROCs; each class is the normal one once."
    return (
        Table("sanflow", "SANFlow on MVTec AD", (sanflow,)),
        Table(
            *("table2", "Table 2: localization by category", (*flows, padim, patchcore)),
            metrics=pixel,
            others="table2",
        ),
        Table(
            *("table3", "Table 3: detection by category", (differnet, *flows, padim, patchcore)),
            metrics=image,
            others="table3",
        ),
        Table("table4", "Table 4 (and S2): loss functions", (plain, *losses)),
        Table("table5", "Table 5 (and S3): synthetic anomalies", synthesis),
        Table("table6", "Table 6 (and S4): predicted statistics", predicted),
        Table("margin", "Sweep of the mean margin (section 4.3)", margins),
        Table(
            *("cifar10", "One-class CIFAR-10 (section 4.4)", printed("cifar10", *flows), "cifar10", image),
            others="cifar10",
            notes=cifar,
        ),
        Table("visa", "VisA (section 4.4)", printed("visa", *flows, padim), "visa", others="visa"),
        Table(
            *("table1", "Table 1: STC", printed("table1", *flows, spade, padim, patchcore), "stc", both),
            others="table1",
            notes=STC,
        ),
        Table("tableS6", "Table S6: STC", printed("tableS6", *on_stc), "stc", both, notes=STC),
        Table(
            *("tableS1", "Table S1: SANFlow with WRN-101"),
            (replace(sanflow, paper=(("tableS1", "SANFlow"),)),),
            paper_backbone="WRN-101",
            backbone="wide_resnet101_2",
        ),
        Table("tableS5", "Table S5: other flows with statistics prediction", (*cflow, *fastflow)),
    )


def _with_statistics(name: str, recipe: str) -> tuple[Row, Row, Row]:
    """Return a flow without statistics, with one learned variance and with predicted variance."""
    return (
        Row(name, "unit normal (variance 1)", recipe, {"statistics": None}, (("tableS5", name),)),
        Row(f"{name} learned", LEARNED, recipe, {"statistics.variance": "learned"}, against=name, control=True),
        Row(
            *(f"{name}+SP", "predicted variance", recipe, {"statistics.variance": "predicted"}),
            paper=(("tableS5", f"{name}+SP"),),
            against=name,
        ),
    )
