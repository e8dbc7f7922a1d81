"""The page of results in Chromium: two widths, light and dark, keyboard, threshold, any names, thousands of images."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("playwright", reason="python -m pip install playwright")
import screenshots

from semflow.app.report import Entry, Table, link, render_page

if screenshots.chromium() is None:
    pytest.skip("no Chromium on PATH or in the environment variable CHROMIUM", allow_module_level=True)

NAMES = [
    "<script>document.title = 'taken'</script>.png",
    "\u0642\u0637\u0639\u0629 \u0663.png",
    "\u88c2\u7eb9.png",
    "\U0001f600.png",
    "\u202egnp.exe",
    "line\nbreak.png",
    "50%25 #?&amp;.png",
    "e\u0301.png",
    "\udcff.png",
]
Open = Callable[[list[Entry]], Any]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        options = {"executable_path": screenshots.chromium(), "args": ["--no-sandbox", "--disable-gpu"]}
        browser = driver.chromium.launch(**options)
        yield browser
        browser.close()


@pytest.fixture
def opened(browser: Any, tmp_path: Path) -> Iterator[Open]:
    """Return a function that writes a page, opens it and returns it; no page may report an error."""
    pages, errors = [], []

    def open_page(entries: list[Entry], **options: Any) -> Any:
        (tmp_path / "index.html").write_text(render_page("Scores", entries, **options), "utf-8", "backslashreplace")
        page = browser.new_page(viewport={"width": 1200, "height": 900}, reduced_motion="reduce")
        page.on("console", lambda line: line.type == "error" and errors.append(line.text))
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("requestfailed", lambda request: errors.append(request.url))
        page.set_default_timeout(20_000)
        page.goto((tmp_path / "index.html").as_uri())
        pages.append(page)
        return page

    yield open_page
    for page in pages:
        page.close()
    assert errors == []


def views(folder: Path, name: str = "a") -> dict[Any, str]:
    """Write three pictures and return their URLs."""
    rng = np.random.default_rng(0)
    for kind in ("original", "overlay", "map"):
        path = folder / kind / f"{name}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (24, 32, 3), dtype=np.uint8)).save(path)
    return {kind: link(PurePosixPath(f"{kind}/{name}.png")) for kind in ("original", "overlay", "map")}


def labeled(count: int = 20) -> list[Entry]:
    """Return entries with p-values 0.05, 0.10, ...; the first quarter and the last image are defects."""
    defects = [*range(count // 4), count - 1]
    return [
        Entry(f"{n}.png", float(count - n), (32, 24), {}, (n + 1) / count, (n + 1) / count <= 0.1, int(n in defects))
        for n in range(count)
    ]


def shown(page: Any) -> list[str]:
    names: list[str] = page.eval_on_selector_all("#list .name", "all => all.map(one => one.textContent)")
    return names


def move(page: Any, step: int) -> None:
    page.locator("#threshold").fill(str(step))


def test_page_has_no_faults_at_two_widths_in_light_and_dark(tmp_path: Path) -> None:
    entries = [
        Entry(name, score, (32, 24), views(tmp_path), 0.05 * score, score < 2, label=int(score < 3))
        for score, name in enumerate(NAMES, 1)
    ]
    table = Table(("images", "image AUROC"), (("9", "98.00"),))
    page = render_page(
        "Scores", entries, lines=["Model: <b>."], notes=NAMES, tables=[table], rate=0.05, pro=[(0, 0), (0.3, 1)]
    )
    (tmp_path / "index.html").write_text(page, "utf-8", "backslashreplace")
    with ThreadPoolExecutor(1) as own:  # a thread cannot have two drivers, and this one may have that of `browser`
        looked = own.submit(lambda: list(screenshots.look(tmp_path, ["index.html"]))).result()
    seen = {name: faults for name, _, faults in looked}
    assert seen == {
        f"index.html, {width}, {scheme}": [] for width in screenshots.WIDTHS for scheme in screenshots.SCHEMES
    }


def test_names_of_all_scripts_are_shown_as_they_are(opened: Open, tmp_path: Path) -> None:
    entries = [Entry(name, 1.0, (32, 24), views(tmp_path)) for name in NAMES]
    page = opened(entries)
    assert sorted(shown(page)) == sorted(NAMES)
    assert page.title() == "Scores"
    isolation = "all => all.every(one => getComputedStyle(one).unicodeBidi === 'isolate')"
    assert page.eval_on_selector_all("#list .name", isolation)
    for typed, found in (
        ("\u0642\u0637\u0639\u0629", 1),
        ("\u00c9", 1),
        (".PNG", len(NAMES) - 1),
        ("<SCRIPT>", 1),
        ("x y z", 0),
    ):
        page.locator("#search").fill(typed)  # composed, in any case
        assert len(shown(page)) == found, typed
    assert page.locator("#none").is_visible()


def test_threshold_changes_decisions_and_both_error_rates(opened: Open) -> None:
    page = opened(labeled(), rate=0.1)
    count, badges = page.locator("#count"), "#list .badge.anomalous"
    assert count.text_content() == (
        "2 of 20 images called anomalous (10 %) · false alarms: 0 of 14 good (0 %) · missed: 4 of 6 defects (66.7 %)"
    )
    assert page.locator(badges).count() == 2
    assert page.locator("#reset").is_disabled()
    move(page, 10)  # p up to 0.5
    page.wait_for_function("document.getElementById('count').textContent.startsWith('10 of 20')")
    assert count.text_content().endswith("false alarms: 5 of 14 good (35.7 %) · missed: 1 of 6 defects (16.7 %)")
    assert page.locator("#threshold").get_attribute("aria-valuetext") == "p up to 0.5"
    assert page.locator(badges).count() == 10
    for chosen, names in (("missed", ["19.png"]), ("alarm", [f"{n}.png" for n in range(5, 10)])):
        page.locator("#filter").select_option(chosen)
        assert shown(page) == names
        assert count.text_content().endswith(f"{len(names)} shown")
    move(page, 0)  # nothing is called anomalous
    page.wait_for_function("document.getElementById('count').textContent.startsWith('0 of 20')")
    assert shown(page) == []
    page.locator("#reset").click()
    page.wait_for_function("document.getElementById('count').textContent.startsWith('2 of 20')")
    assert page.locator("#limit").text_content() == "p up to 0.1 (the model\u2019s)"


def test_model_decides_at_its_own_threshold(opened: Open) -> None:
    """P-values rounded to float32 are above the rate that they equal."""
    entries = [Entry(f"{p}", -p, p_value=float(np.float32(p)), is_anomalous=p <= 0.1) for p in (0.05, 0.1, 0.15, 1.0)]
    page = opened(entries, rate=0.1)
    assert page.locator("#count").text_content() == "2 of 4 images called anomalous (50 %)"
    move(page, 3)
    page.wait_for_function("document.getElementById('count').textContent.startsWith('3 of 4')")


def test_scores_take_the_place_of_missing_p_values(opened: Open) -> None:
    page = opened([Entry("a", 3.5), Entry("b", -1.0), Entry("c", 0.25)])
    assert page.locator("#count").text_content() == "3 images"
    assert page.locator("#limit").text_content() == "none: not calibrated"
    assert page.locator("#list .badge").count() == 0
    move(page, 1)
    page.wait_for_function("document.getElementById('count').textContent.startsWith('2 of 3')")
    assert page.locator("#limit").text_content() == "score from 0.25"


def test_worst_errors_come_first(opened: Open) -> None:
    scores = {"worst miss": (0.0, 1), "good": (0.5, 0), "alarm": (5.0, 0), "miss": (1.0, 1), "found": (6.0, 1)}
    page = opened([Entry(name, score, label=label) for name, (score, label) in scores.items()], worst_first=True)
    assert shown(page) == ["worst miss", "alarm", "miss", "good", "found"]
    for order, names in (("high", ["found", "alarm"]), ("low", ["worst miss", "good"]), ("name", ["alarm", "found"])):
        page.locator("#order").select_option(order)
        assert shown(page)[:2] == names
    assert page.locator("figure").count() == 2  # scores and ROC; no PRO without masks


def test_false_alarms_come_before_defects_that_were_found(opened: Open) -> None:
    """Here the scores separate all images, and only the threshold is too low."""
    scores = {"good": (0.0, 0), "alarm": (1.0, 0), "found": (2.0, 1), "clear": (3.0, 1)}
    entries = [Entry(name, x, p_value=0.1, is_anomalous=x > 0, label=label) for name, (x, label) in scores.items()]
    page = opened(entries, rate=0.1, worst_first=True)
    assert shown(page) == ["alarm", "found", "clear", "good"]


def test_names_with_numbers_are_sorted_as_numbers(opened: Open) -> None:
    page = opened([Entry(f"{n}.png", n) for n in (10, 9, 100)])
    page.locator("#order").select_option("name")
    assert shown(page) == ["9.png", "10.png", "100.png"]


def test_detectors_can_be_chosen(opened: Open) -> None:
    page = opened([Entry(f"{n}", n, group=f"detector <{n % 2}>") for n in range(6)])
    assert not page.locator("#curves").is_visible()  # scores of different detectors have no common axis
    assert shown(page) == ["4", "2", "0", "5", "3", "1"]
    page.locator("#group").select_option(label="detector <1>")
    assert shown(page) == ["5", "3", "1"]
    assert page.locator("#curves").is_visible()


def test_page_is_used_with_the_keyboard_alone(opened: Open, tmp_path: Path) -> None:
    page = opened([Entry(f"{n}.png", -n, (32, 24), views(tmp_path)) for n in range(3)], lines=["line"])
    focused = "document.activeElement.getAttribute('aria-label')"
    for _ in range(20):
        page.keyboard.press("Tab")
        if page.evaluate(focused) == "Enlarge 0.png":
            break
    assert page.evaluate(focused) == "Enlarge 0.png"
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    page.keyboard.press("ArrowRight")
    assert page.evaluate(focused) == "Enlarge 1.png"
    pictures = "#list li:first-child img"
    alone = []
    for _ in range(4):
        page.keyboard.press("v")
        alone.append(page.eval_on_selector_all(pictures, "all => all.map(one => one.title)"))
    side_by_side = ["original", "heat map"]
    assert alone == [["original"], ["heat map"], ["map alone"], side_by_side]
    page.keyboard.press("Enter")
    assert page.locator("dialog #large-name").text_content() == "1.png"
    page.keyboard.press("ArrowRight")
    page.keyboard.press("v")
    assert page.locator("dialog #large-name").text_content() == "2.png"
    assert page.locator("dialog img").count() == 1
    page.keyboard.press("Escape")
    assert not page.locator("dialog").is_visible()
    page.wait_for_function(f"{focused} === 'Enlarge 2.png'")  # the dialog gives the focus back after it has closed
    page.locator("#search").focus()
    page.keyboard.type("v")  # a letter here, and not a command
    assert page.locator("#search").input_value() == "v"
    assert page.locator("input[name=view]:checked").input_value() == "original"


def test_all_controls_have_names(opened: Open, tmp_path: Path) -> None:
    page = opened([Entry("a", 1.0, (32, 24), views(tmp_path), label=1), Entry("b", 0.0, label=0, group="g")])
    nameless = """all => all.filter(one => !one.textContent.trim() && !one.getAttribute('aria-label')
        && !one.getAttribute('alt') && !(one.labels && one.labels.length)).map(one => one.outerHTML)"""
    assert page.eval_on_selector_all("button, input, select, img, [role=img]", nameless) == []
    assert page.locator("#count").get_attribute("aria-live") == "polite"


def test_thousands_of_images_are_built_as_they_are_seen(opened: Open, tmp_path: Path) -> None:
    urls = views(tmp_path)
    entries = [Entry(f"{n}.png", float(n), (32, 24), urls, (n + 1) / 2001, False, n % 2) for n in range(2000)]
    page = opened(entries, rate=0.05)
    assert page.locator("#list li").count() < 300
    assert page.locator("#count").text_content().startswith("0 of 2,000 images")
    page.locator("#search").fill("1999")
    assert shown(page) == ["1999.png"]
    page.locator("#search").fill("")
    for _ in range(60):
        if not page.locator("#more").is_visible():
            break
        page.evaluate("window.scrollTo(0, document.body.scrollHeight)")
        page.wait_for_timeout(50)
    assert len(shown(page)) == 2000
    move(page, 1000)
    page.wait_for_function("!document.getElementById('count').textContent.startsWith('0 of')")


def test_page_without_entries_opens(opened: Open) -> None:
    assert opened([]).locator("#count").text_content() == "0 images"
