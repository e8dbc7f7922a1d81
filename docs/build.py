"""Build the documentation: `python docs/build.py`, with the extra `docs` installed; no network is used.

The reference (Sphinx, from the docstrings) is made first and lies below api/ of the guide (mkdocs). Each reads the
other's inventory, so that names in the guide lead to the reference and rooms in the reference to their pages. A warning
of either, a link that leads nowhere, and anything that a page would load from another host end the build.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from sitebuild.inventory import guide_entries, read_list, write_inventory
from sitebuild.links import faults

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent


def build(output: Path) -> list[str]:
    """Make the site in `output` and return what is wrong with it."""
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        write_inventory(work / "guide.inv", "semflow guide", guide_entries(DOCS))
        write_inventory(work / "others.inv", "others", read_list(DOCS / "api" / "others.txt"))
        environment = {
            **os.environ,
            "SEMFLOW_INVENTORIES": str(work),
            "SEMFLOW_REFERENCE": str(work / "api" / "objects.inv"),
            "PYTHONPATH": os.pathsep.join(filter(None, (str(DOCS), os.environ.get("PYTHONPATH")))),
            "NO_MKDOCS_2_WARNING": "true",  # the extra docs holds mkdocs below 2
        }
        sphinx = ["sphinx", "-W", "--keep-going", "-n", "-q", "-b", "html", "-d", str(work / "doctrees")]
        mkdocs = ["mkdocs", "build", "--strict", "--quiet", "-f", str(ROOT / "mkdocs.yml"), "-d", str(output.resolve())]
        for command in ([*sphinx, str(DOCS / "api"), str(work / "api")], mkdocs):
            code = subprocess.run([sys.executable, "-m", *command], env=environment, cwd=ROOT, check=False).returncode
            if code:
                return [f"{command[0]} ended with {code}, see above"]
        # Its links begin at the root of a host; a site that may lie anywhere cannot have one.
        (output / "404.html").unlink(missing_ok=True)
        shutil.copytree(work / "api", output / "api", ignore=shutil.ignore_patterns(".buildinfo", ".doctrees"))
    return faults(output)


def main() -> int:
    """Exit code 0, or 1 with one line on standard error for each fault."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--output", type=Path, default=ROOT / "site", help="where to build, default site/")
    found = build(parser.parse_args().output)
    for fault in found:
        print(fault, file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
