"""Look at the built site in Chromium: `python docs/screenshots.py site --output shots`.

Every page at the width of a desktop and of a phone, light and dark, as pictures; and one line for each thing that a
reader would stumble over: errors of the console, files that did not load, formulas that were not rendered, pages wider
than the window, and text that hardly stands out from its ground. Needs `pip install playwright` and Chromium (on PATH,
in the environment variable CHROMIUM, or playwright's own).
"""

import argparse
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

WIDTHS = {"desktop": 1440, "phone": 390}
SCHEMES = ("light", "dark")
LOWEST_CONTRAST = 3.0  # of the WCAG: for large text, and what controls must have

LOOK = (Path(__file__).parent / "sitebuild" / "look.js").read_text(encoding="utf-8").rstrip().rstrip(";")


def chromium() -> str | None:
    """The browser of this machine, None where playwright has to bring its own."""
    names = ("chromium", "chromium-browser", "google-chrome")
    return os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, names)), None)


def pages(site: Path) -> list[str]:
    """All pages of the guide and of the reference, without indices that are made by machine."""
    made = {"genindex.html", "py-modindex.html", "search.html"}
    found = (path for path in sorted(site.rglob("*.html")) if path.name not in made)
    return [path.relative_to(site).as_posix() for path in found if "files" not in path.relative_to(site).parts]


def look(
    site: Path, names: Sequence[str], widths: Sequence[str] = (*WIDTHS,), schemes: Sequence[str] = SCHEMES
) -> Iterator[tuple[str, Any, list[str]]]:
    """Open pages as files, as a reader of a copy does: name, width and scheme, the open page, and its faults."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium(), args=["--no-sandbox", "--disable-gpu"])
        for width in widths:
            for scheme in schemes:
                size = {"width": WIDTHS[width], "height": 1000}
                context = browser.new_context(viewport=size, color_scheme=scheme, reduced_motion="reduce")
                for name in names:
                    page, found = context.new_page(), []
                    page.on("console", lambda line, to=found: line.type == "error" and to.append(line.text))
                    page.on("pageerror", lambda error, to=found: to.append(str(error)))
                    page.on("requestfailed", lambda asked, to=found: to.append(f"did not load {asked.url}"))
                    page.goto((site / name).resolve().as_uri(), wait_until="load")
                    page.wait_for_timeout(200)  # scripts that begin when all is loaded
                    yield f"{name}, {width}, {scheme}", page, found + page.evaluate(LOOK, LOWEST_CONTRAST)
                    page.close()
                context.close()
        browser.close()


def main() -> int:
    """Exit code 0, or 1 with one line on standard error for each fault."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("site", type=Path, help="what docs/build.py has built")
    parser.add_argument("--pages", nargs="+", metavar="NAME.html", help="default: all")
    parser.add_argument("--output", type=Path, help="where to put pictures; none are made without it")
    options = parser.parse_args()
    faulty = False
    for name, page, found in look(options.site, options.pages or pages(options.site)):
        for fault in found:
            print(f"{name}: {fault}", file=sys.stderr)
        faulty |= bool(found)
        if options.output:
            path = options.output / (name.replace("/", "-").replace(".html", "").replace(", ", "-") + ".png")
            page.screenshot(path=path, full_page=True)
    return int(faulty)


if __name__ == "__main__":
    sys.exit(main())
