"""The site in a browser: nothing that a reader would stumble over, and what there is to see is seen."""

from pathlib import Path
from urllib.parse import quote

import pytest

pytest.importorskip("playwright", reason="python -m pip install playwright")
import screenshots

if screenshots.chromium() is None:
    pytest.skip("no Chromium on PATH nor in the environment variable CHROMIUM", allow_module_level=True)

GOOD = "<p>words</p><div style='overflow: auto'><pre>" + "long " * 200 + "</pre></div>"
BAD = {
    "console": ("<script>console.error('something is wrong')</script>", "something is wrong"),
    "script": ("<script>missing()</script>", "missing is not defined"),
    "file": ("<img src='nothing.png'>", "did not load"),
    "formula": ("<div class='arithmatex'>\\(x\\)</div>", "formula not rendered"),
    "width": ("<p style='width: 700px'>wide</p>", "is 7"),
    "contrast": ("<p style='color: #ccc'>pale</p>", "contrast 1.6"),
    "dark": ("<style>@media (prefers-color-scheme: dark) { p { color: #222 } }</style><p>night</p>", "contrast"),
}


def test_what_a_reader_would_stumble_over_is_named(tmp_path: Path) -> None:
    dark = "<style>@media (prefers-color-scheme: dark) { body { background: #111; color: #eee } }</style>"
    for name, body in {"good": GOOD, **{name: body for name, (body, _) in BAD.items()}}.items():
        text = f"<meta name='viewport' content='width=device-width'>{dark}<main>{body}</main>"
        (tmp_path / f"{quote(name)}.html").write_text(text)
    names = screenshots.pages(tmp_path)
    found = {
        name.partition(",")[0][:-5]: faults
        for name, _, faults in screenshots.look(tmp_path, names, ["phone"], ["dark"])
    }
    assert found.pop("good") == []
    for name, faults in found.items():
        if name != "contrast":  # #ccc stands out from the dark
            assert any(BAD[name][1] in fault for fault in faults), (name, faults)
    by_day = [faults for *_, faults in screenshots.look(tmp_path, ["contrast.html", "dark.html"], ["phone"], ["light"])]
    assert BAD["contrast"][1] in by_day[0][0]
    assert by_day[1] == []


@pytest.mark.slow
@pytest.mark.parametrize(("width", "scheme"), [("desktop", "light"), ("phone", "dark")])
def test_no_page_of_the_site_has_any(site: Path, width: str, scheme: str) -> None:
    names = screenshots.pages(site)
    assert {"index.html", "mathematics.html", "api/flows.html"} <= set(names)
    found = [(name, faults) for name, _, faults in screenshots.look(site, names, [width], [scheme]) if faults]
    assert found == []
