"""Build the documentation into site/ (or --output): `python docs/build.py`. Needs the extra `docs` and no network."""

import argparse
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def main() -> int:
    """Run a strict MkDocs build and return its exit code; a warning or a broken link fails it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=ROOT / "site", help="folder of the built site, default site/")
    output = parser.parse_args().output.resolve()
    command = ["mkdocs", "build", "--strict", "--quiet", "-f", str(ROOT / "mkdocs.yml"), "-d", str(output)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "true"}  # the extra `docs` pins mkdocs below 2
    code = subprocess.run([sys.executable, "-m", *command], env=environment, check=False).returncode
    (output / "404.html").unlink(missing_ok=True)  # its links start at the root of a host
    return code


if __name__ == "__main__":
    sys.exit(main())
