"""`benchmarks` is a package of the repository, not of the installed library: its root goes onto the path."""

import sys
from pathlib import Path

ROOT = str(Path(__file__).resolve().parents[2])
if ROOT not in sys.path:
    sys.path.insert(0, ROOT)
