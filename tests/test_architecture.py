"""Rules of the repository: imports between modules, file sizes, error messages, forbidden content."""

import ast
import importlib.util
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "semflow"

# A layer imports only itself and the layers before it.
LAYERS = [
    "errors",
    "_version",
    "_validation",
    "_optional",
    "_memory",
    "_defaults",
    "_devices",
    "_tiling",
    "_channels",
    "files",
    "functional",
    "nn",
    "flows",
    "bases",
    "objectives",
    "synthesis",
    "metrics",
    "features",
    "data",
    "detectors",
    "training",
    "recipes",
    "adapters",
    "app",
]
# testing ships with the package for users' own flows: it may use everything up to flows, and no layer uses it.
TESTING_MAY_IMPORT = ["testing", *LAYERS[: LAYERS.index("flows") + 1]]
MAXIMUM_LINES = 300

SOURCES = sorted(PACKAGE.rglob("*.py"))
TEXTS = sorted(
    path
    for pattern in ("*.py", "*.md", "*.toml", "*.cff", "*.yml", "*.yaml", "*.txt", "*.json", "*.sh", "run")
    for path in ROOT.rglob(pattern)
    if path != Path(__file__).resolve()
    and not any(
        part.startswith(".") and part not in {".ci", ".github", ".pre-commit-config.yaml"}
        for part in path.relative_to(ROOT).parts
    )
    and not {"build", "dist", "site", "runs", "semflow-demo"} & set(path.relative_to(ROOT).parts)
)


def layer_of(path: Path) -> str:
    """Return the first name below the package: a folder or a module."""
    part = path.relative_to(PACKAGE).parts[0]
    return part.removesuffix(".py")


def imported_modules(path: Path) -> Iterator[tuple[int, str]]:
    """Yield line and absolute dotted name of every import in a file."""
    package = ("semflow", *path.relative_to(PACKAGE).parts[:-1])
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            module = ".".join(part for part in (base, node.module or "") if part)
            for alias in node.names:
                yield node.lineno, f"{module}.{alias.name}"


MODULES = {".".join(("semflow", *path.relative_to(PACKAGE).with_suffix("").parts)): path for path in SOURCES}
MODULES = {name.removesuffix(".__init__"): path for name, path in MODULES.items()}


def imported_layers(path: Path) -> Iterator[tuple[int, str]]:
    for line, name in imported_modules(path):
        parts = name.split(".")
        if parts[0] == "semflow" and len(parts) > 1:
            yield line, parts[1]


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def test_sources_and_texts_are_found() -> None:
    assert len(SOURCES) > 5
    assert any(path.name == "pyproject.toml" for path in TEXTS)


def test_every_module_belongs_to_a_layer() -> None:
    known = {*LAYERS, "testing", "__init__", "__main__"}
    assert {layer_of(path) for path in SOURCES} <= known


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_layers_import_only_earlier_layers(path: Path) -> None:
    layer = layer_of(path)
    if layer in {"__init__", "__main__"}:
        pytest.skip("the public names come from everywhere")
    allowed = set(TESTING_MAY_IMPORT) if layer == "testing" else set(LAYERS[: LAYERS.index(layer) + 1])
    # `from semflow import __version__` imports a name of the package itself, which belongs to no layer.
    wrong = [
        f"line {line}: {layer} imports {other}"
        for line, other in imported_layers(path)
        if other not in allowed and other != "__version__"
    ]
    assert not wrong


def load_script(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    return script


def test_modules_do_not_import_each_other_in_cycles() -> None:
    script = load_script(ROOT / "docs" / "imports.py")
    graph = {name: script.imports(name, path, MODULES) for name, path in MODULES.items()}
    assert sum(map(len, graph.values())) > 200
    assert not script.cycles(graph)
    assert [*LAYERS, "testing", "(package)"] == script.ORDER


def test_cycles_of_imports_are_found() -> None:
    script = load_script(ROOT / "docs" / "imports.py")
    assert script.cycles({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == [["b", "c"]]
    assert not script.cycles({"a": {"b", "c"}, "b": {"c"}, "c": set()})


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_private_names_are_not_imported(path: Path) -> None:
    private = [
        f"line {line}: {name}"
        for line, name in imported_modules(path)
        if name.startswith("semflow.") and name not in MODULES and re.match(r"_[a-z]", name.rpartition(".")[2])
    ]
    assert not private


def message_of(node: ast.expr) -> str | None:
    """Return the text of a literal, an f-string (values as {}) or a concatenation with one; otherwise None."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else None
    if isinstance(node, ast.JoinedStr):
        return "".join(str(part.value) if isinstance(part, ast.Constant) else "{}" for part in node.values)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        parts = [message_of(node.left), message_of(node.right)]
        return None if parts == [None, None] else "".join(part or "{}" for part in parts)
    return None


def raised_messages(path: Path) -> Iterator[tuple[int, str]]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and node.exc.args:
            message = message_of(node.exc.args[0])
            python = getattr(node.exc.func, "id", "") == "AttributeError"  # has Python's own wording
            if message is not None and not python:
                yield node.lineno, message


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_error_messages_say_what_must_be_and_what_was_given(path: Path) -> None:
    """The grammar is `<name> must be <expected>, but got <value>`, then optionally `; <advice>`; no final period."""
    wrong = [
        f"line {line}: {message}"
        for line, message in raised_messages(path)
        if not re.match(r".* must .*, but got .*[^.]$", message, re.DOTALL)
    ]
    assert not wrong


@pytest.mark.parametrize("path", [path for path in SOURCES if layer_of(path) != "features"], ids=relative)
def test_only_features_imports_timm(path: Path) -> None:
    wrong = [name for _, name in imported_modules(path) if name.split(".")[0] in {"timm", "torchvision"}]
    assert not wrong


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_library_code_has_neither_assert_nor_bare_except(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    asserts = [node.lineno for node in ast.walk(tree) if isinstance(node, ast.Assert)]
    bare = [node.lineno for node in ast.walk(tree) if isinstance(node, ast.ExceptHandler) and node.type is None]
    if layer_of(path) != "testing":  # check_flow reports a broken law as an AssertionError, which is what pytest shows
        assert not asserts, "raise an error of semflow.errors that names the argument"
    assert not bare


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_files_have_at_most_300_lines(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= MAXIMUM_LINES


FORBIDDEN = {
    "a path of one machine": re.compile(r"(?<![\w.$}~-])/(work|tmp|root|home|mnt)/\w"),
    "a registry's host": re.compile(r"pypi\.org|pythonhosted\.org|registry\.npmjs|download\.pytorch\.org"),
    "unfinished work": re.compile(r"\b(TODO|FIXME|XXX)\b|raise NotImplemented"),
}


@pytest.mark.parametrize("what", FORBIDDEN)
def test_files_do_not_contain(what: str) -> None:
    found = [
        f"{relative(path)}:{number}: {line.strip()}"
        for path in TEXTS
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if FORBIDDEN[what].search(line)
    ]
    assert not found


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)


def test_import_semflow_imports_no_torch() -> None:
    done = run_python("import sys, semflow; print(sorted({'torch', 'timm', 'scipy', 'numpy'} & set(sys.modules)))")
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr


def test_command_line_help_imports_no_torch() -> None:
    done = run_python(
        "import sys\n"
        "from semflow.app.cli import main\n"
        "code = main(['--help'])\n"
        "heavy = sorted({'torch', 'timm', 'scipy', 'numpy', 'PIL'} & set(sys.modules))\n"
        "print(code, heavy, file=sys.stderr)\n"
    )
    assert done.stderr.strip() == "0 []"
    for name in ("demo", "fit", "evaluate", "predict", "export"):
        assert name in done.stdout


def test_version_is_the_same_everywhere() -> None:
    import semflow

    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"version: {semflow.__version__}\n" in citation
    assert f"## {semflow.__version__}" in changelog


def test_readme_has_the_demo_and_test_commands() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    blocks = {
        marker: re.search(rf"<!-- {marker} -->\n```\w*\n(.*?)```", readme, re.DOTALL)
        for marker in ("demo command", "test command")
    }
    for marker, extra, program in (("demo command", "[demo]", "semflow demo"), ("test command", "[test]", "pytest")):
        found = blocks[marker]
        assert found is not None, marker
        assert "-c constraints.txt" in found[1]
        assert extra in found[1]
        assert program in found[1]
