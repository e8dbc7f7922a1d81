"""Tables against other libraries in README and results/README.md: `python -m benchmarks.readme_table`.

Nothing is measured. The command writes the tables between `<!-- figures: NAME -->` and `<!-- end -->` from
`benchmarks/results`; `--check` only compares them.
"""

import argparse
import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .shared.figures import markdown_table, text_of
from .shared.record import ROOT, write

METRICS = {"image_auroc": "image AUROC", "pixel_auroc": "pixel AUROC", "aupro": "AUPRO"}
FREIA = "FrEIA, published formulation"
FASTER = (  # name of a speed ratio in the JSON file, what was measured, against what
    ("sanflow_train_eager", "training step of SANFlow's flows", FREIA),
    ("sanflow_train_compiled", "training step of SANFlow's flows, both compiled", FREIA),
    ("gemm_bound_train", "matrix products of our training step alone", "FrEIA, the whole step"),
    ("sanflow_infer_eager", "inference of SANFlow's flows", FREIA),
    ("sanflow_infer_compiled", "inference of SANFlow's flows, both compiled", FREIA),
    ("gemm_bound_infer", "matrix products of our inference alone", "FrEIA, the whole pass"),
    ("fastflow_train", "training step of FastFlow's flows", "anomalib"),
    ("fastflow_train_compiled", "training step of FastFlow's flows, both compiled", "anomalib"),
    ("fastflow_infer", "inference of FastFlow's flows", "anomalib"),
    ("fastflow_infer_compiled", "inference of FastFlow's flows, both compiled", "anomalib"),
    ("fastflow_infer_whole", "inference of FastFlow with its backbone", "anomalib"),
    ("cflow_infer", "inference of CFLOW-AD's flows", "anomalib, default chunks of 64 locations"),
    ("cflow_infer_best_chunk", "inference of CFLOW-AD's flows", "anomalib, fastest chunk size"),
    ("cflow_infer_whole", "inference of CFLOW-AD with its backbone", "anomalib"),
    ("auroc_vs_sklearn_1e6", "exact AUROC of 1 million pixels", "scikit-learn"),
    ("auroc_vs_anomalib_1e6", "exact AUROC of 1 million pixels", "anomalib"),
    ("aupro_vs_anomalib_1e6", "exact AUPRO of 1 million pixels", "anomalib (approximate)"),
)
ELSEWHERE = {
    "_batch1": "batches of 1",
    "_resnet18": "ResNet-18",
    "_resnet18_batch1": "ResNet-18, batches of 1",
    "_all_threads": "all threads",
}
COST = (  # name of a cost ratio in the JSON file, what was measured, against what
    ("sanflow_train_memory", "memory of a training step of SANFlow's flows", "FrEIA"),
    ("metrics_vs_sort", "time of all exact pixel metrics, 30 million pixels", "`numpy.sort` of the scores"),
)


RESULTS = ROOT / "benchmarks" / "results"
PAGES = (ROOT / "README.md", RESULTS / "README.md")


def speed(results: Path) -> str:
    """Return a table of speedups, of sizes at which a peer is faster, and a table of relative costs."""
    found = json.loads((results / "speed.json").read_text("utf-8"))
    skipped = found.get("skipped", {})

    def rows(names: Sequence[tuple[str, str, str]]) -> list[list[str]]:
        lines = []
        for name, what, against in names:
            if name in found["ratios"]:
                lines.append([what, against, _ratio(found, name)])
            elif name in skipped:
                lines.append([what, against, f"not measured: {skipped[name]}"])
        return lines

    slower = [
        [f"{what}, {where}", against, _ratio(found, name + suffix)]
        for name, what, against in FASTER
        for suffix, where in ELSEWHERE.items()
        if found["ratios"].get(name + suffix, 1.0) < 1.0
    ]
    faster = markdown_table(["measured", "compared with", "times as fast"], [*rows(FASTER), *slower])
    cost = markdown_table(["measured", "compared with", "times as much"], rows(COST))
    return f"{faster}\n\n{cost}\n\n{origin(found)}"


METHODS = (  # folder of the results, row, name in README
    ("sanflow", "SANFlow", "SANFlow"),
    ("sanflow", "PaDiM, anomalib", "PaDiM, anomalib"),
    ("sanflow", "PatchCore-10, anomalib", "PatchCore-10, anomalib"),
    ("sanflow", "PatchCore (1 %), anomalib", "PatchCore (1 %), anomalib"),
    ("sanflow", "PatchCore-10", "PatchCore-10, ours"),
    ("sanflow", "PatchCore (1 %)", "PatchCore (1 %), ours"),
    ("memory_flow", "PaDiM", "PaDiM, ours, at 320 px"),
    ("memory_flow", "PatchCore-10", "PatchCore-10, ours, at 320 px"),
    ("memory_flow", "memory_flow", "memory_flow at 320 px"),
)
TEXTURES = (
    ("textures128", "PaDiM", "PaDiM at 128 px"),
    ("textures128", "PatchCore-10", "PatchCore-10 at 128 px"),
    ("textures", "PatchCore-10", "PatchCore-10 at 160 px"),
    ("textures", "memory_flow", "memory_flow at 160 px"),
)


def accuracy(results: Path, methods: Sequence[tuple[str, str, str]] = METHODS) -> str:
    """Return methods on the same backbone by category, with the highest figures in bold."""
    files = {folder: results / folder / "sanflow.json" for folder, _, _ in methods}
    found = {folder: json.loads(path.read_text("utf-8")) for folder, path in files.items() if path.is_file()}
    categories = dict.fromkeys(category for one in found.values() for category in one["categories"])
    rows = []
    for category in categories:
        values: dict[str, list[Any]] = {}
        for folder, row, name in methods:
            for one in found.get(folder, {"rows": ()})["rows"]:
                figures = [one["metrics"][metric]["categories"].get(category, {}).get("ours") for metric in METRICS]
                if one["row"] == row and all(figures):
                    values[name] = figures
        best = [max(figures[k]["mean"] for figures in values.values()) for k in range(len(METRICS))]
        for name, figures in values.items():
            texts = [text_of(v, 1) for v in figures]
            bold = [f"**{t}**" if v["mean"] == b else t for t, v, b in zip(texts, figures, best, strict=True)]
            rows.append([category, name, str(len(figures[0]["seeds"])), *bold])
    table = markdown_table(["category", "method", "seeds", *METRICS.values()], rows)
    return "\n\n".join([table, *(origin(one["provenance"]) for one in found.values())])


def textures(results: Path) -> str:
    """Return the recipes on the demo's textures."""
    return accuracy(results, TEXTURES)


TABLES = {"speed": speed, "accuracy": accuracy, "textures": textures}


def filled(text: str, results: Path = RESULTS) -> str:
    """Return a page with new tables between its markers."""
    return re.sub(
        r"(<!-- figures: (?P<name>\w+) -->\n).*?(<!-- end -->)",
        lambda match: f"{match[1]}\n{TABLES[match['name']](results)}\n\n{match[3]}",
        text,
        flags=re.DOTALL,
    )


def origin(record: Mapping[str, Any]) -> str:
    """Return command, machine, versions and seed in one line."""
    versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items() if name != "python")
    command = record["command"].replace(" --report", "")  # the cells were measured without it
    seed = f"; seed {record['seed']}" if "seed" in record else ""
    return f"`{command}`; {record['machine']}; {versions}{seed}."


def _ratio(found: Mapping[str, Any], name: str) -> str:
    limits = found["ranges"][name]
    return f"{found['ratios'][name]:.2f} ({limits['low']:.2f} to {limits['high']:.2f})"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return 1 with `--check` if README does not match the results."""
    parser = argparse.ArgumentParser("python -m benchmarks.readme_table", description=__doc__.partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="change nothing; exit code 1 if a table differs")
    options = parser.parse_args(arguments)
    made = {page: filled(page.read_text("utf-8")) for page in PAGES}
    if options.check:
        changed = [str(page.relative_to(ROOT)) for page, text in made.items() if text != page.read_text("utf-8")]
        if changed:
            names = ", ".join(changed)
            print(f"{names}: tables differ from the results; run python -m benchmarks.readme_table", file=sys.stderr)
        return int(bool(changed))
    for page, text in made.items():
        write(page, text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
