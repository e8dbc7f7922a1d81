"""The wheel contains exactly the files of the package, and its metadata match pyproject.toml."""

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


def test_wheel_contains_all_package_files(wheel: zipfile.ZipFile) -> None:
    """The build would silently omit a folder whose name .gitignore matches, such as build/."""
    source = ROOT / "src"
    files = {path.relative_to(source).as_posix() for path in (source / "semflow").rglob("*") if path.is_file()}
    files = {name for name in files if "__pycache__" not in name}
    about = f"semflow-{semflow.__version__}.dist-info/"
    assert {name for name in wheel.namelist() if not name.startswith(about)} == files
    assert {"semflow/py.typed", "semflow/app/report/page.py", "semflow/app/report/templates/page.js"} <= files
    assert f"{about}licenses/LICENSE" in wheel.namelist()
    assert b"semflow = semflow.app.cli:main" in wheel.read(f"{about}entry_points.txt")


def test_wheel_metadata_match_pyproject(wheel: zipfile.ZipFile) -> None:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    metadata = message_from_bytes(wheel.read(f"semflow-{semflow.__version__}.dist-info/METADATA"))
    needed = metadata.get_all("Requires-Dist", [])
    assert sorted(line for line in needed if "extra ==" not in line) == sorted(project["dependencies"])
    assert set(metadata.get_all("Provides-Extra", [])) == set(project["optional-dependencies"])
    assert metadata["Requires-Python"] == project["requires-python"]
    assert metadata.get_payload().startswith("# semflow")
