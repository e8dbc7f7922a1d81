"""The import of torch's compiler is put off, and what it is for works afterwards."""

import subprocess
import sys

import pytest

PREDICT = """
import sys, torch
from semflow.recipes import Backbone, build, load, save
detector = build("memory_flow", {"backbone": "test_efficientnet", "backbone.weights": "random", "memory": 10})
save(detector, sys.argv[1])
load(sys.argv[1])
import semflow.app.cli.predict
assert "torch._dynamo" not in sys.modules and "sympy" not in sys.modules
assert not [name for name in sys.modules if name.startswith("scipy.ndimage")]
"""

FIT = """
import sys, torch
from semflow.data import Sample
from semflow.recipes import build
from semflow.training import fit
detector = build("padim", {"backbone": "test_efficientnet", "backbone.weights": "random", "image_size": 32})
fit(detector, [Sample(torch.rand(3, 32, 32), 0, None, f"{k}.png") for k in range(6)], device="cpu", progress=False)
assert "torch._dynamo" not in sys.modules  # which an optimizer imports
"""

COMPILE = """
import sys, torch
from semflow.features.deferring import deferred_compiler

with deferred_compiler():
    disabled = torch.compiler.disable(lambda x: torch.sin(x))
    quick = torch.compiler.disable(recursive=False)
    assert disabled(torch.zeros(())) == 0
assert "torch._dynamo" in sys.modules  # since the last use of `disable` is another one
with deferred_compiler():
    import torch._dynamo
assert torch._dynamo.disable is sys.modules["torch._dynamo"].disable
seen = []

def backend(graph, inputs):
    seen.extend(str(node.target) for node in graph.graph.nodes)
    return graph.forward

compiled = torch.compile(lambda x: disabled(x + 1) * 2, backend=backend)
assert torch.allclose(compiled(torch.ones(3)), 2 * torch.sin(torch.tensor(2.0)))
assert not any("sin" in name for name in seen), seen
"""

THREADS = """
import sys, threading, torch
from semflow.features.deferring import deferred_compiler

with deferred_compiler():
    def other():
        from torch._dynamo import config
        found.append(config.cache_size_limit)
    found = []
    thread = threading.Thread(target=other)
    thread.start()
    thread.join()
assert found and torch._dynamo.config.cache_size_limit == found[0]
"""


@pytest.mark.parametrize("code", [PREDICT, FIT, COMPILE, THREADS], ids=["predict", "fit", "compile", "threads"])
def test_compiler_is_imported_when_it_is_used(code: str, tmp_path: object) -> None:
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
