"""Check the built site in Chromium: `python docs/screenshots.py site --output shots`.

Opens every page at a desktop's and a phone's width, in light and dark colors. Reports console errors, files that do not
load, formulas that are not rendered, pages wider than the window, cut-off code, and text with too little contrast.
Needs `pip install playwright` and Chromium (on PATH, in the environment variable CHROMIUM, or playwright's own).
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
LOWEST_CONTRAST = 3.0  # WCAG's limit for large text and controls

LOOK = (Path(__file__).parent / "look.js").read_text(encoding="utf-8").rstrip().rstrip(";")


def chromium() -> str | None:
    """Return the path of this machine's Chromium, or None to use playwright's own."""
    names = ("chromium", "chromium-browser", "google-chrome")
    return os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, names)), None)


def pages(site: Path) -> list[str]:
    """Return the paths of all pages, relative to `site`."""
    return [path.relative_to(site).as_posix() for path in sorted(site.rglob("*.html"))]


def look(
    site: Path, names: Sequence[str], widths: Sequence[str] = (*WIDTHS,), schemes: Sequence[str] = SCHEMES
) -> Iterator[tuple[str, Any, list[str]]]:
    """Open the pages `names` as files and yield (name with width and scheme, open page, faults) for each."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium(), args=["--no-sandbox", "--disable-gpu"])
        for width in widths:
            options = {"lowestContrast": LOWEST_CONTRAST, "clippedCode": width == "desktop"}
            for scheme in schemes:
                size = {"width": WIDTHS[width], "height": 1000}
                context = browser.new_context(viewport=size, color_scheme=scheme, reduced_motion="reduce")
                for name in names:
                    page, faults = context.new_page(), []
                    page.on("console", lambda line, to=faults: line.type == "error" and to.append(line.text))
                    page.on("pageerror", lambda error, to=faults: to.append(str(error)))
                    page.on("requestfailed", lambda request, to=faults: to.append(f"did not load {request.url}"))
                    page.goto((site / name).resolve().as_uri(), wait_until="load")
                    page.wait_for_timeout(200)  # scripts that start after loading
                    yield f"{name}, {width}, {scheme}", page, faults + page.evaluate(LOOK, options)
                    page.close()
                context.close()
        browser.close()


def main() -> int:
    """Print one line per fault and return 1 if there is any."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("site", type=Path, help="site built by docs/build.py")
    parser.add_argument("--pages", nargs="+", metavar="NAME.html", help="default: all")
    parser.add_argument("--output", type=Path, help="folder for pictures of the pages; default: none are made")
    options = parser.parse_args()
    faulty = False
    for name, page, faults in look(options.site, options.pages or pages(options.site)):
        for fault in faults:
            print(f"{name}: {fault}", file=sys.stderr)
        faulty |= bool(faults)
        if options.output:
            path = options.output / (name.replace("/", "-").replace(".html", "").replace(", ", "-") + ".png")
            page.screenshot(path=path, full_page=True)
    return int(faulty)


if __name__ == "__main__":
    sys.exit(main())
