"""The site in a browser: pages without visual faults, and a check that finds each kind of fault."""

from pathlib import Path

import pytest

pytest.importorskip("playwright", reason="python -m pip install playwright")
import screenshots

if screenshots.chromium() is None:
    pytest.skip("no Chromium on PATH or in the environment variable CHROMIUM", allow_module_level=True)

DARK = "@media (prefers-color-scheme: dark)"
GOOD = "<p>words</p><div style='overflow: auto'><pre>" + "long " * 200 + "</pre></div>"
FAULTS = {
    "console": ("<script>console.error('something is wrong')</script>", "something is wrong"),
    "script": ("<script>missing()</script>", "missing is not defined"),
    "file": ("<img src='nothing.png'>", "did not load"),
    "formula": ("<div class='arithmatex'>\\(x\\)</div>", "formula is not rendered"),
    "width": ("<p style='width: 1700px'>wide</p>", "page is 17"),
    "code": (f"<pre><code style='display: block; overflow: auto'>{'x' * 500}</code></pre>", "code is cut off"),
    "contrast": ("<p style='color: #ccc'>pale</p>", "contrast 1.6"),
    "dark": (f"<style>{DARK} {{ p {{ color: #222 }} }}</style><p>night</p>", "contrast"),
}


def test_look_reports_each_kind_of_fault(tmp_path: Path) -> None:
    style = f"<style>{DARK} {{ body {{ background: #111; color: #eee }} }}</style>"
    for name, body in {"good": GOOD, **{name: body for name, (body, _) in FAULTS.items()}}.items():
        (tmp_path / f"{name}.html").write_text(f"{style}<main>{body}</main>")
    names = screenshots.pages(tmp_path)
    found = {
        (name.partition(".")[0], scheme): faults
        for scheme in ("light", "dark")
        for name, _, faults in screenshots.look(tmp_path, names, ["desktop"], [scheme])
    }
    assert [found["good", scheme] for scheme in ("light", "dark")] == [[], []]
    for name, (_, message) in FAULTS.items():
        scheme = "dark" if name == "dark" else "light"
        assert any(message in fault for fault in found[name, scheme]), (name, found[name, scheme])
    assert found["dark", "light"] == []


@pytest.mark.slow
@pytest.mark.parametrize(("width", "scheme"), [("desktop", "light"), ("phone", "dark")])
def test_pages_of_the_site_have_no_visual_faults(site: Path, width: str, scheme: str) -> None:
    names = screenshots.pages(site)
    assert {"index.html", "mathematics.html", "reference/semflow.flows.html"} <= set(names)
    found = [(name, faults) for name, _, faults in screenshots.look(site, names, [width], [scheme]) if faults]
    assert found == []
