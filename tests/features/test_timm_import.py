"""The import of timm is lazy, and works if torchvision's operators do not load."""

import subprocess
import sys

import pytest

import semflow.features.timm_module as timm_module
from semflow.errors import ConfigError
from semflow.features.timm_module import load_timm

FRESH = """
import sys
import semflow.features
late = [m for m in sys.modules if m.partition('.')[0] in ('timm', 'torchvision')]
assert not late, late
from semflow.features.timm_module import load_timm, _declared
timm = load_timm()
assert load_timm() is timm
import torchvision
from torchvision.extension import _has_ops
assert _has_ops() == (not _declared), 'schemas are declared exactly when the operators do not load'
assert torchvision.transforms.Resize(8)
print(timm.__version__)
"""


def test_features_import_timm_lazily() -> None:
    result = subprocess.run([sys.executable, "-c", FRESH], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip()


@pytest.mark.parametrize(
    ("error", "part"),
    [
        (ModuleNotFoundError("No module named 'timm'"), "pip install timm"),
        (RuntimeError("compiled with different\nCUDA major versions"), "torch and torchvision must match"),
    ],
)
def test_load_timm_reports_failed_imports(monkeypatch: pytest.MonkeyPatch, error: Exception, part: str) -> None:
    def fail(name: str) -> None:
        raise error

    load_timm()
    before = len(timm_module._declared)
    monkeypatch.setattr("semflow._optional.import_module", fail)
    with pytest.raises(ConfigError) as caught:
        load_timm.__wrapped__()
    assert part in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(timm_module._declared) == before
