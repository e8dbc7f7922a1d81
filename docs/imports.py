"""Print which package imports which: a matrix in the order of the layers, and every import cycle.

    python docs/imports.py [src/semflow]

Rows import columns; a number counts import statements. In a layered package everything lies below the diagonal.
"""

import ast
import sys
from collections import Counter
from pathlib import Path

ORDER = [
    "errors", "_version", "_validation", "_optional", "_memory", "_defaults", "_devices", "_tiling", "_channels",
    "files", "functional", "nn", "flows", "bases", "objectives", "synthesis", "metrics", "features", "data",
    "detectors", "training", "recipes", "adapters", "app", "testing", "(package)",
]  # fmt: skip


def modules(root: Path) -> dict[str, Path]:
    """Return the files of a package by dotted module name."""
    found = {}
    for path in sorted(root.rglob("*.py")):
        parts = [root.name, *path.relative_to(root).with_suffix("").parts]
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(name: str, path: Path, known: dict[str, Path]) -> set[str]:
    """Return the modules of the package that a module imports at its top level, those for type checking included."""
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    found: set[str] = set()
    nodes = list(ast.parse(path.read_text(encoding="utf-8")).body)
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.If | ast.Try):
            nodes += [*node.body, *node.orelse]
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package.rsplit(".", node.level - 1)[0] if node.level else ""
            base = ".".join(filter(None, (above, node.module)))
            found |= {f"{base}.{a.name}" if f"{base}.{a.name}" in known else base for a in node.names}
    return found & known.keys() - {name}


def cycles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Return the strongly connected components of more than one module (Tarjan 1972)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for other in sorted(graph[node]):
            if other not in index:
                visit(other)
            if other in stack:
                low[node] = min(low[node], low[other])
        if low[node] == index[node]:
            component = stack[stack.index(node) :]
            del stack[stack.index(node) :]
            if len(component) > 1:
                found.append(sorted(component))

    for node in graph:
        if node not in index:
            visit(node)
    return found


def main() -> None:
    """Print the matrix and the cycles."""
    root = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).resolve().parents[1] / "src" / "semflow"
    known = modules(root)
    graph = {name: imports(name, path, known) for name, path in known.items()}

    def layer(name: str) -> str:
        return name.split(".")[1] if "." in name else "(package)"

    counts = Counter((layer(name), layer(other)) for name, others in graph.items() for other in others)
    found = {layer(name) for name in known}
    order = [name for name in ORDER if name in found] + sorted(found - {*ORDER})
    print(" " * 14 + "".join(f"{i:>4}" for i in range(len(order))))
    for i, row in enumerate(order):
        cells = "".join(f"{counts[row, column] or '.':>4}" if row != column else "   #" for column in order)
        print(f"{i:>2} {row:<11}{cells}")
    wrong = [f"{a} imports {b}" for (a, b) in counts if a in ORDER and b in ORDER and ORDER.index(a) < ORDER.index(b)]
    print(f"\nimports against the order: {', '.join(sorted(wrong)) or 'none'}")
    print(f"cycles: {'; '.join(', '.join(c) for c in cycles(graph)) or 'none'}")


if __name__ == "__main__":
    main()
