"""What `benchmarks.reproduce TABLE` trains: rows as recipes with arguments, and where the paper prints them."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

from semflow.errors import ConfigError

from ..shared.datasets import Kind

__all__ = ["TABLES", "Row", "Table", "table"]

TABLES = {
    "sanflow": "SANFlow alone, every metric",
    "table1": "flows on STC, beside other methods",
    "table2": "flows by category: pixel AUROC, beside other methods",
    "table3": "flows by category: image AUROC, beside other methods",
    "table4": "loss functions (with Table S2: by category, every metric)",
    "table5": "synthetic anomalies (with Table S3)",
    "table6": "statistics that are predicted (with Table S4)",
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
    "A model for each scene and the mean over the scenes; the paper does not say how it averages. It trains with a "
    "learning rate of 2e-4 here (`--fit learning_rate=2e-4`)."
)
MODELS = {
    "1a": "a plain conditional flow, unit normal",
    "1b": "predicted statistics, NLL alone",
    "1c": "NLL and BCE",
    "1d": "NLL and KL (all but BCE)",
    "2a": "without synthetic anomalies (and BCE)",
    "3a": "fixed mean, variance fixed at 0.1",
    "3b": "predicted mean, variance fixed at 0.1",
    "3c": "predicted mean and variance",
}


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
    notes: str = ""

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
    from semflow.recipes import ABLATIONS

    def model(name: str, *paper: str) -> Row:
        return Row(name, MODELS[name], "sanflow", ABLATIONS[name], tuple((p, name) for p in paper), "SANFlow")

    sanflow = Row("SANFlow", "the whole method", "sanflow", {}, (("tableS2", "SANFlow"), ("table4", "SANFlow")))
    base = replace(model("1a"), paper=(("tableS5", "CFLOW-AD"), ("table4", "1a")))
    controls = (
        _control("variance 1", "SANFlow", {"variance": "fixed", "mode": 1.0}),
        _control("learned", "SANFlow", {"variance": "learned"}),
    )
    cflow = Row(
        *("CFLOW-AD", "unit normal (variance 1)", "cflow_ad", {"statistics": False}),
        paper=(("tableS5", "CFLOW-AD"),),
    )
    by_name = {
        "sanflow": Table("sanflow", "SANFlow on MVTec AD", (sanflow,)),
        "table2": Table(
            "table2",
            "Table 2: localization, flows by category",
            (cflow, sanflow),
            metrics=("pixel_auroc", "aupro"),
            others="table2",
        ),
        "table3": Table(
            "table3",
            "Table 3: detection, flows by category",
            (
                Row("DifferNet", "one flow of pooled features", "differnet", {}, (("table3", "DifferNet"),)),
                cflow,
                sanflow,
            ),
            metrics=("image_auroc",),
            others="table3",
        ),
        "table4": Table(
            "table4",
            "Table 4 (and S2): loss functions",
            (
                base,
                model("1b", "tableS2", "table4"),
                model("1c", "tableS2", "table4"),
                model("1d", "tableS2", "table4"),
                sanflow,
                *controls,
            ),
        ),
        "table5": Table(
            "table5",
            "Table 5 (and S3): synthetic anomalies",
            (
                model("1d", "tableS2", "table5"),
                model("2a", "tableS3", "table5"),
                sanflow,
                *controls,
                _control("variance 1, no synthesis", "2a", ABLATIONS["1a"]),
                _control("learned, no synthesis", "2a", {**ABLATIONS["2a"], "variance": "learned"}),
            ),
        ),
        "table6": Table(
            "table6",
            "Table 6 (and S4): statistics that are predicted",
            (
                model("3a", "tableS4", "table6"),
                model("3b", "tableS4", "table6"),
                model("3c", "tableS4", "table6"),
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
            tuple(_printed_in("cifar10", row) for row in (cflow, sanflow)),
            data="cifar10",
            metrics=("image_auroc",),
            others="cifar10",
            notes="The figure is the mean of ten AUROCs, each class being the normal one once.",
        ),
        "visa": Table(
            "visa",
            "VisA (section 4.4)",
            tuple(_printed_in("visa", row) for row in (cflow, sanflow)),
            data="visa",
            others="visa",
        ),
        "table1": Table(
            "table1",
            "Table 1: STC",
            tuple(_printed_in("table1", row) for row in (cflow, sanflow)),
            data="stc",
            metrics=("image_auroc", "pixel_auroc"),
            others="table1",
            notes=STC,
        ),
        "tableS6": Table(
            "tableS6",
            "Table S6: STC",
            tuple(
                _printed_in("tableS6", row)
                for row in (
                    *(model(name) for name in MODELS if name != "1a"),
                    *controls,
                    *_statistics("CFLOW-AD", "cflow_ad"),
                    sanflow,
                )
            ),
            data="stc",
            metrics=("image_auroc", "pixel_auroc"),
            notes=STC,
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


def _control(name: str, against: str, arguments: Mapping[str, Any]) -> Row:
    """A row whose variance is not predicted: as good as the one with it, if prediction is not what helps."""
    variance = "one learned variance a scale" if "learned" in name else "variance 1 everywhere"
    return Row(name, f"{against} with {variance}", "sanflow", arguments, against=against, control=True)


def _printed_in(paper: str, row: Row) -> Row:
    """The same row as another table prints it."""
    return row if row.control else replace(row, paper=((paper, row.name),))


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
