"""What `benchmarks.reproduce TABLE` trains: rows as recipes with arguments, and where the paper prints them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from semflow.errors import ConfigError

from .datasets import Kind

__all__ = ["TABLES", "Row", "Table", "table"]

TABLES = {
    "sanflow": "SANFlow alone, every metric",
    "table2": "flows by category: pixel AUROC, beside other methods",
    "table3": "flows by category: image AUROC, beside other methods",
    "table4": "loss functions (with Table S2: by category, every metric)",
    "table5": "synthetic anomalies (with Table S3)",
    "table6": "statistics that are predicted (with Table S4)",
    "margin": "mean margin 0.5, 1.0, 1.5",
    "cifar10": "one-class CIFAR-10",
    "tableS1": "SANFlow with WRN-101",
    "tableS2": "the same as table4",
    "tableS3": "the same as table5",
    "tableS4": "the same as table6",
    "tableS5": "CFLOW-AD and FastFlow, with and without statistics prediction",
}
SAME = {"tableS2": "table4", "tableS3": "table5", "tableS4": "table6"}
DATASETS: dict[Kind, str] = {"mvtec": "MVTec AD", "cifar10": "CIFAR-10"}


@dataclass(frozen=True)
class Row:
    """One model.

    Args:
        name: in the table.
        text: what is special about it.
        recipe, arguments: how it is built; these arguments stand above those of the command line.
        paper: (table, method) pairs that print it, the most detailed first.
        against: the row that its difference is taken to.
        control: not in the paper; asks whether a *predicted* variance is what helps.
    """

    name: str
    text: str
    recipe: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    paper: tuple[tuple[str, str], ...] = ()
    against: str = ""
    control: bool = False


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

    @property
    def dataset(self) -> str:
        """The data set's name in the paper's tables."""
        return DATASETS[self.data]

    def row(self, name: str) -> Row:
        """A row by name."""
        return next(row for row in self.rows if row.name == name)


@cache
def table(name: str) -> Table:
    """What is trained for a table.

    Raises:
        ConfigError: no such table.
    """
    if name not in TABLES:
        raise ConfigError(f"TABLE must be one of {', '.join(TABLES)}, but got {name!r}")
    from semflow.recipes.sanflow import ABLATIONS

    def model(name: str, text: str, *paper: str, against: str = "SANFlow") -> Row:
        return Row(name, text, "sanflow", ABLATIONS[name], tuple((p, name) for p in paper), against)

    sanflow = Row("SANFlow", "the whole method", "sanflow", {}, (("tableS2", "SANFlow"), ("table4", "SANFlow")))
    base = Row(
        *("1a", "a plain conditional flow, unit normal", "sanflow", ABLATIONS["1a"]),
        paper=(("tableS5", "CFLOW-AD"), ("table4", "1a")),
        against="SANFlow",
    )
    controls = _controls()
    cflow = Row(
        *("CFLOW-AD", "unit normal (variance 1)", "cflow_ad", {"statistics": False}),
        paper=(("tableS5", "CFLOW-AD"),),
    )
    by_name = {
        "sanflow": Table("sanflow", "SANFlow on MVTec AD", (sanflow,)),
        "table2": Table("table2", "Table 2: localization, flows by category", (cflow, sanflow), others="table2"),
        "table3": Table("table3", "Table 3: detection, flows by category", (cflow, sanflow), others="table3"),
        "table4": Table(
            "table4",
            "Table 4 (and S2): loss functions",
            (
                base,
                model("1b", "predicted statistics, NLL alone", "tableS2", "table4"),
                model("1c", "NLL and BCE", "tableS2", "table4"),
                model("1d", "NLL and KL", "tableS2", "table4"),
                sanflow,
                *controls,
            ),
        ),
        "table5": Table(
            "table5",
            "Table 5 (and S3): synthetic anomalies",
            (
                model("1d", "synthetic anomalies, without BCE", "tableS2", "table5"),
                model("2a", "without synthetic anomalies", "tableS3", "table5"),
                sanflow,
                *controls,
                Row(
                    *("variance 1, no synthesis", "as 2a with a unit normal: this is model 1a", "sanflow"),
                    ABLATIONS["1a"],
                    against="2a",
                    control=True,
                ),
                Row(
                    *("learned, no synthesis", "as 2a with one learned variance a scale", "sanflow"),
                    {**ABLATIONS["2a"], "variance": "learned"},
                    against="2a",
                    control=True,
                ),
            ),
        ),
        "table6": Table(
            "table6",
            "Table 6 (and S4): statistics that are predicted",
            (
                model("3a", "fixed mean, variance fixed at 0.1", "tableS4", "table6"),
                model("3b", "predicted mean, variance fixed at 0.1", "tableS4", "table6"),
                model("3c", "predicted mean and variance", "tableS4", "table6"),
                sanflow,
                *controls,
            ),
        ),
        "margin": Table(
            "margin",
            "Sweep of the mean margin (section 4.3)",
            tuple(
                Row(
                    *(f"margin {margin}", f"anomalous mean {margin}", "sanflow", {"margin": margin}),
                    paper=(("tableS2", "SANFlow"), ("margin", f"margin {margin}"))
                    if margin == 1.0
                    else (("margin", f"margin {margin}"),),
                    against="" if margin == 1.0 else "margin 1.0",
                )
                for margin in (0.5, 1.0, 1.5)
            ),
        ),
        "cifar10": Table(
            "cifar10",
            "One-class CIFAR-10 (section 4.4)",
            (
                Row("CFLOW-AD", cflow.text, "cflow_ad", cflow.arguments, (("cifar10", "CFLOW-AD"),), "SANFlow"),
                Row("SANFlow", sanflow.text, "sanflow", {}, (("cifar10", "SANFlow"),)),
            ),
            data="cifar10",
            metrics=("image_auroc",),
            others="cifar10",
        ),
        "tableS1": Table(
            "tableS1",
            "Table S1: SANFlow with WRN-101",
            (Row("SANFlow", "the whole method", "sanflow", {}, (("tableS1", "SANFlow"),)),),
            paper_backbone="WRN-101",
            backbone="wide_resnet101_2",
        ),
        "tableS5": Table(
            "tableS5",
            "Table S5: other flows with statistics prediction",
            (
                *_statistics("CFLOW-AD", "cflow_ad"),
                *_statistics("FastFlow", "fastflow"),
            ),
        ),
    }
    return by_name[SAME.get(name, name)]


def _controls() -> tuple[Row, ...]:
    """SANFlow whose variance is not predicted: as good as with it, if prediction is not what helps."""
    one, learned = {"variance": "fixed", "mode": 1.0}, {"variance": "learned"}
    return (
        Row("variance 1", "SANFlow with variance 1 everywhere", "sanflow", one, against="SANFlow", control=True),
        Row(
            "learned", "SANFlow with one learned variance a scale", "sanflow", learned, against="SANFlow", control=True
        ),
    )


def _statistics(name: str, recipe: str) -> tuple[Row, ...]:
    return (
        Row(name, "unit normal (variance 1)", recipe, {"statistics": False}, (("tableS5", name),)),
        Row(
            *(f"{name} learned", "one learned variance a scale", recipe, {"statistics": True, "variance": "learned"}),
            against=name,
            control=True,
        ),
        Row(
            *(f"{name}+SP", "predicted variance", recipe, {"statistics": True, "variance": "predicted"}),
            paper=(("tableS5", f"{name}+SP"),),
            against=name,
        ),
    )
