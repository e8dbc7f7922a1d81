"""The wheel holds every file of the package, and nothing else; what it says of itself is what the source says."""

import zipfile
from email import message_from_bytes
from pathlib import Path

import pytest

import semflow

pytest.importorskip("hatchling", reason="the extra test installs what builds the wheel")
ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    from hatchling.builders.wheel import WheelBuilder

    (path,) = WheelBuilder(str(ROOT)).build(directory=str(tmp_path_factory.mktemp("dist")), versions=["standard"])
    assert Path(path).name == f"semflow-{semflow.__version__}-py3-none-any.whl"
    return zipfile.ZipFile(path)


def test_the_wheel_holds_the_package(wheel: zipfile.ZipFile) -> None:
    """A folder of a name that .gitignore knows, such as build/, would be left out in silence."""
    source = ROOT / "src"
    files = {path.relative_to(source).as_posix() for path in (source / "semflow").rglob("*") if path.is_file()}
    files = {name for name in files if "__pycache__" not in name}
    about = f"semflow-{semflow.__version__}.dist-info/"
    assert {name for name in wheel.namelist() if not name.startswith(about)} == files
    assert {"semflow/py.typed", "semflow/report/page.py"} <= files
    assert f"{about}licenses/LICENSE" in wheel.namelist()
    assert b"semflow = semflow.app.cli:main" in wheel.read(f"{about}entry_points.txt")


def test_what_the_wheel_needs_is_what_is_declared(wheel: zipfile.ZipFile) -> None:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    said = message_from_bytes(wheel.read(f"semflow-{semflow.__version__}.dist-info/METADATA"))
    needed = said.get_all("Requires-Dist", [])
    assert sorted(line for line in needed if "extra ==" not in line) == sorted(project["dependencies"])
    assert set(said.get_all("Provides-Extra", [])) == set(project["optional-dependencies"])
    assert said["Requires-Python"] == project["requires-python"]
    assert said.get_payload().startswith("# semflow")
