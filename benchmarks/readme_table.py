"""README's figures against the peers, from committed results: `python -m benchmarks.readme_table`.

Nothing is measured here. The tables between `<!-- figures: NAME -->` and `<!-- end -->` are made anew from
`benchmarks/results`; `--check` says whether they are what the results say, and changes nothing.
"""

import argparse
import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, NamedTuple

from semflow.files import write_atomic

from .shared.record import ROOT

__all__ = ["TABLES", "Figures", "filled", "main", "read"]

METRICS = {"image_auroc": "image AUROC", "pixel_auroc": "pixel AUROC", "aupro": "AUPRO"}
FASTER = (  # name of a ratio in the JSON file, what was measured, against what; more is better
    ("sanflow_train_eager", "SANFlow's flows, training step", "FrEIA, published formulation"),
    ("sanflow_train_compiled", "the same, both compiled", "FrEIA, published formulation"),
    ("gemm_bound_train", "our matrix products of that step alone", "FrEIA, the whole step"),
    ("sanflow_infer_eager", "SANFlow's flows, inference", "FrEIA, published formulation"),
    ("sanflow_infer_compiled", "the same, both compiled", "FrEIA, published formulation"),
    ("gemm_bound_infer", "our matrix products of that pass alone", "FrEIA, the whole pass"),
    ("fastflow_train", "FastFlow's flows, training step", "anomalib"),
    ("fastflow_train_compiled", "the same, both compiled", "anomalib"),
    ("fastflow_infer", "FastFlow's flows, inference", "anomalib"),
    ("fastflow_infer_compiled", "the same, both compiled", "anomalib"),
    ("fastflow_infer_whole", "FastFlow with its backbone, inference", "anomalib"),
    ("cflow_infer", "CFLOW-AD's flows, inference", "anomalib, fibers of 64, its default"),
    ("cflow_infer_best_chunk", "CFLOW-AD's flows, inference", "anomalib at its best fiber length"),
    ("cflow_infer_whole", "CFLOW-AD with its backbone, inference", "anomalib"),
    ("auroc_vs_sklearn_1e6", "AUROC of a million pixels, exact", "scikit-learn"),
    ("auroc_vs_anomalib_1e6", "AUROC of a million pixels, exact", "anomalib"),
    ("aupro_vs_anomalib_1e6", "AUPRO of a million pixels, exact", "anomalib, which approximates"),
)
ELSEWHERE = {
    "_batch1": "batches of 1",
    "_resnet18": "ResNet-18",
    "_resnet18_batch1": "ResNet-18, batches of 1",
    "_all_threads": "all threads",
}
LESS = (  # less is better
    ("sanflow_train_memory", "memory of a training step, SANFlow's flows", "FrEIA's"),
    ("metrics_vs_sort", "time of all pixel metrics, exact, 30 million pixels", "that of numpy.sort of the scores"),
)


class Figures(NamedTuple):
    """What the tables are made of."""

    speed: Mapping[str, Any]  # of benchmarks.speed
    flow: Mapping[str, Any]  # of benchmarks/mvtec.py
    peers: Mapping[str, Any] | None  # of benchmarks.reproduce sanflow --peers


def read(folder: Path = ROOT / "benchmarks" / "results") -> Figures:
    """The committed results."""

    def load(name: str) -> Any:
        return json.loads((folder / name).read_text("utf-8")) if (folder / name).exists() else None

    return Figures(load("speed.json"), load("mvtec_lite0.json"), load("peers/sanflow.json"))


def speed(figures: Figures) -> str:
    """A row for each ratio that was measured, or tried and could not be; of other sizes, where the peer is faster."""
    found = figures.speed
    skipped = found.get("skipped", {})
    rows = []
    for less, names in ((False, FASTER), (True, LESS)):
        for name, what, against in names:
            if name in found["ratios"]:
                rows.append([what, against, _ratio(found, name) + (", less is better" if less else "")])
            elif name in skipped:
                rows.append([what, against, f"not measured: {skipped[name]}"])
    for name, what, against in FASTER:
        for suffix, where in ELSEWHERE.items():
            if found["ratios"].get(name + suffix, 1.0) < 1.0:
                rows.append([f"{what}, {where}", against, _ratio(found, name + suffix)])
    return f"{table(['measured', 'against', 'ratio'], rows)}\n\n{origin(found)}"


def accuracy(figures: Figures) -> str:
    """SANFlow and the peers on the same features, by category; the highest figure of each metric in bold."""
    rows = []
    for category in sorted({cell["category"] for cell in figures.flow["cells"]}, reverse=True):
        cells = [cell for cell in figures.flow["cells"] if cell["category"] == category]
        by_metric = [[100 * cell[metric] for cell in cells] for metric in METRICS]
        ours = [{"mean": fmean(v), "std": stdev(v) if len(v) > 1 else None} for v in by_metric]
        methods = [("SANFlow", f"{cells[0]['epochs']} epochs", len(cells), ours)]
        for row in figures.peers["rows"] if figures.peers else ():
            found = [row["metrics"][metric]["categories"].get(category) for metric in METRICS]
            if all(cell and cell["ours"] for cell in found):
                theirs = [cell["ours"] for cell in found]
                methods.append((row["row"], "one pass", len(theirs[0]["seeds"]), theirs))
        best = [max(values[i]["mean"] for *_, values in methods) for i in range(len(METRICS))]
        for name, training, seeds, values in methods:
            figures_of = [_cell(value, high) for value, high in zip(values, best, strict=True)]
            rows.append([category, name, training, str(seeds), *figures_of])
    parts = [table(["category", "method", "training", "seeds", *METRICS.values()], rows)]
    parts.append(f"SANFlow: {origin(figures.flow)}")
    if figures.peers:
        parts.append(f"The others: {origin(figures.peers['provenance'])}")
    return "\n\n".join(parts)


TABLES = {"speed": speed, "accuracy": accuracy}


def filled(text: str, figures: Figures) -> str:
    """A page with every table between its markers made anew."""
    return re.sub(
        r"(<!-- figures: (?P<name>\w+) -->\n).*?(<!-- end -->)",
        lambda match: f"{match[1]}\n{TABLES[match['name']](figures)}\n\n{match[3]}",
        text,
        flags=re.DOTALL,
    )


def origin(record: Mapping[str, Any]) -> str:
    """Command, machine, versions and, where the command does not say it, the seed in a line."""
    versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items() if name != "python")
    command = record["command"].replace(" --report", "")  # which writes the table of cells that the rest has made
    seed = f"; seed {record['seed']}" if "seed" in record else ""
    return f"`{command}`; {record['machine']}; {versions}{seed}."


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _ratio(found: Mapping[str, Any], name: str) -> str:
    spread = found["ranges"][name]
    return f"{found['ratios'][name]:.2f} ({spread['low']:.2f} to {spread['high']:.2f})"


def _cell(value: Mapping[str, float | None], best: float) -> str:
    text = f"{value['mean']:.1f}" + ("" if value["std"] is None else f" ± {value['std']:.1f}")
    return f"**{text}**" if value["mean"] == best else text


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0; 1 with `--check` where the page is not what the results say."""
    parser = argparse.ArgumentParser("python -m benchmarks.readme_table", description=__doc__.partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="change nothing; exit code 1 where a table is another")
    options = parser.parse_args(arguments)
    page = ROOT / "README.md"
    text = page.read_text("utf-8")
    made = filled(text, read())
    if options.check:
        if made != text:
            print(
                "README.md: its tables are not those of the results; python -m benchmarks.readme_table", file=sys.stderr
            )
        return int(made != text)
    write_atomic(page, made)
    return 0


if __name__ == "__main__":
    sys.exit(main())
