"""The report in a real browser: it is loaded from disk and used as a reader would."""

from pathlib import Path

import pytest

pytest.importorskip("selenium", reason="needs the extra dev")
from evaluation import browser as chromium
from evaluation import report_runs as make
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

from pancreas_mtl.evaluation.report import write_report

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (chromium.CHROMIUM and chromium.DRIVER), reason="needs chromium and chromedriver"
    ),
]
NAMES = ["quiz_0_001", "quiz_1_002", "quiz_2_003", "<script>alert(1)<\u2215script>"]


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    root = tmp_path_factory.mktemp("browser")
    evaluation = make.make_evaluation(root, names=NAMES)
    runs = [make.write_curves(root / "run"), evaluation]
    return write_report(runs, root / "report").as_uri()


@pytest.fixture(scope="module")
def driver():
    with chromium.browser() as driver:
        yield driver


@pytest.fixture
def page(driver, url):
    driver.get("about:blank")
    driver.get(url)
    yield driver
    assert not chromium.console_errors(driver)


def find(page, selector):
    return page.find_element(By.CSS_SELECTOR, selector)


def wait(page, condition):
    return WebDriverWait(page, chromium.PATIENCE_S).until(condition)


def names(page):
    rows = page.find_elements(By.CSS_SELECTOR, "#case-table tbody tr")
    return [row.get_attribute("data-name") for row in rows if row.is_displayed()]


def column(page, heading):
    """Its heading, as soon as it is drawn, and what stands below it."""

    def headings(page):
        heads = page.find_elements(By.CSS_SELECTOR, "#case-table thead > tr > *")
        return {head.text.rstrip(" ↑↓"): (index, head) for index, head in enumerate(heads)}

    index, head = wait(page, lambda page: headings(page).get(heading))
    rows = page.find_elements(By.CSS_SELECTOR, "#case-table tbody tr")
    return head, [row.find_elements(By.XPATH, "./*")[index].text for row in rows]


def is_ready(page):
    viewer = find(page, "#viewer")
    return viewer.is_displayed() and viewer.get_attribute("data-state") == "ready"


def open_first(page):
    find(page, "#case-table tbody tr a").click()
    wait(page, is_ready)


def test_the_first_screen_needs_no_viewer(page):
    assert find(page, "h1").is_displayed()
    assert page.execute_script("return typeof niivue") == "undefined"
    assert page.execute_script("return performance.getEntriesByType('resource').length") == 0


def test_a_heading_sorts_up_and_then_down(page):
    head, before = column(page, "lesion DSC")
    assert before == sorted(before, key=float)  # the worst case comes first
    head.find_element(By.TAG_NAME, "button").click()
    head.find_element(By.TAG_NAME, "button").click()
    assert head.get_attribute("aria-sort") == "descending"
    assert column(page, "lesion DSC")[1] == sorted(before, key=float, reverse=True)


def test_the_keyboard_sorts_too(page):
    head, before = column(page, "lesion DSC")
    button = head.find_element(By.TAG_NAME, "button")
    page.execute_script("arguments[0].focus()", button)
    button.send_keys(Keys.ENTER, Keys.SPACE)
    assert head.get_attribute("aria-sort") == "descending"
    assert column(page, "lesion DSC")[1] == sorted(before, key=float, reverse=True)


def test_filters_narrow_the_table_and_say_so(page):
    find(page, "#filters input[name=name]").send_keys("quiz_1")
    assert names(page) == ["quiz_1_002"]
    assert find(page, "#filter-count").text == f"1 of {len(NAMES)}"
    find(page, "#filters input[name=name]").clear()
    find(page, "#filters input[name=name]").send_keys("x", Keys.BACKSPACE)
    find(page, "#filters input[name=wrong]").click()
    verdicts = page.execute_script("return visibleRows().map((row) => row.dataset.verdict)")
    assert set(verdicts) <= {"wrong"}


def test_a_hostile_name_is_text(page):
    assert NAMES[-1] in names(page)
    assert page.execute_script("return document.scripts.length") == page.execute_script(
        "return document.querySelectorAll('body > script').length"
    )


def test_a_case_opens_in_the_viewer_with_overlays_to_toggle(page):
    open_first(page)
    assert find(page, "#viewer-title").text == names(page)[0]
    with_masks = chromium.canvas_pixels(page)
    assert with_masks["grey"] > 0.05 * with_masks["n"]
    assert with_masks["coloured"] > 0.002 * with_masks["n"]
    find(page, "#show-prediction").click()
    find(page, "#show-reference").click()
    plain = chromium.canvas_pixels(page)
    assert plain["coloured"] < 0.2 * with_masks["coloured"]
    find(page, "#viewer").send_keys("w")
    assert find(page, "#show-attention").is_selected()
    assert chromium.canvas_pixels(page)["coloured"] > 5 * plain["coloured"]
    note = find(page, "#attention-note")
    assert note.is_displayed()
    assert "where the classifier took its features from" in note.text
    assert "They do not show what the classifier saw there, nor why it chose" in note.text


def test_a_window_changes_the_grey_values(page):
    open_first(page)
    before = chromium.canvas_pixels(page)["sum"]
    find(page, "#viewer-windows label:nth-child(3)").click()
    assert chromium.canvas_pixels(page)["sum"] != before


def test_keys_step_through_the_cases_and_escape_closes(page):
    open_first(page)
    seen = [find(page, "#viewer-title").text]
    for key in (Keys.ARROW_RIGHT, Keys.ARROW_RIGHT, Keys.ARROW_LEFT):
        find(page, "#viewer-canvas").send_keys(key)
        wait(page, lambda p: find(p, "#viewer").get_attribute("data-state") == "ready")
        seen.append(find(page, "#viewer-title").text)
    order = names(page)
    assert seen == [order[0], order[1], order[2], order[1]]
    find(page, "#viewer-canvas").send_keys(Keys.ESCAPE)
    assert not find(page, "#viewer").is_displayed()
    open_first(page)
    find(page, "#viewer-close").click()
    assert not find(page, "#viewer").is_displayed()


def test_a_dot_in_a_chart_opens_its_case(page):
    link = find(page, "#chart-size svg a")
    row = link.get_dom_attribute("href").removeprefix("#")
    link.click()
    wait(page, lambda p: find(p, "#viewer").get_attribute("data-state") == "ready")
    assert find(page, "#viewer-title").text == find(page, f"#{row}").get_attribute("data-name")


LIGHT, DARK, WHITE = "rgb(250, 249, 246)", "rgb(19, 21, 25)", "rgb(255, 255, 255)"


def colours(page):
    """Of the paper and the ink."""
    return page.execute_script(
        "const s = getComputedStyle(document.body); return [s.backgroundColor, s.color]"
    )


def emulate(page, *, media="", scheme="light"):
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": media, "features": features})


def test_the_theme_follows_the_system_until_the_button_is_used(page):
    light, dark_ink = colours(page)
    assert light == LIGHT
    emulate(page, scheme="dark")
    assert colours(page)[0] == DARK
    assert colours(page)[1] != dark_ink
    find(page, "#theme").click()
    assert colours(page) == [LIGHT, dark_ink]
    emulate(page)
    find(page, "#theme").click()
    assert colours(page)[0] == DARK


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_paper_is_white_whatever_the_screen_shows(page, scheme):
    ink = colours(page)[1]
    emulate(page, scheme=scheme)
    for chosen in ("", "light", "dark"):
        page.execute_script("document.documentElement.dataset.theme = arguments[0]", chosen)
        emulate(page, media="print", scheme=scheme)
        assert colours(page) == [WHITE, ink]
        assert not find(page, ".bar").is_displayed()
        assert not find(page, "#filters").is_displayed()
        assert find(page, "#case-table").is_displayed()
        emulate(page, scheme=scheme)
    emulate(page)


def test_without_webgl_the_picture_stands_in(url):
    flags = ("--disable-3d-apis",)
    with chromium.browser(flags=flags) as page:
        page.get(url)
        find(page, "#case-table tbody tr a").click()
        wait(page, lambda p: find(p, "#viewer").get_attribute("data-state") == "picture")
        assert "No WebGL 2" in find(page, "#viewer-status").text
        width = page.execute_script("return document.getElementById('viewer-picture').naturalWidth")
        assert width > 500
        assert not find(page, "#viewer-canvas").is_displayed()
        assert find(page, "#viewer-picture").get_attribute("alt").startswith("CT of ")
        assert not chromium.console_errors(page)


def test_page_and_viewer_fit_a_phone(url):
    with chromium.browser(width=390, height=844) as page:
        page.get(url)
        assert page.execute_script("return document.documentElement.scrollWidth") <= 390
        open_first(page)
        box = find(page, "#viewer").rect
        assert (box["x"], box["width"], box["height"]) == (0, 390, 844)
        for selector in ("#viewer-canvas", "#viewer-next", "#viewer-close"):
            inner = find(page, selector).rect
            assert inner["x"] >= 0
            assert inner["x"] + inner["width"] <= 390
        assert find(page, "#viewer-canvas").rect["height"] > 300
        pixels = chromium.canvas_pixels(page)
        assert pixels["grey"] > 0.02 * pixels["n"]
        find(page, "#viewer-close").click()
        assert not chromium.console_errors(page)


def test_screenshots_for_the_docs_are_made(url, tmp_path):
    report = Path(url.removeprefix("file://"))
    chromium.save_screenshots(report, tmp_path / "images")
    sizes = {path.name: path.stat().st_size for path in (tmp_path / "images").iterdir()}
    names = {"report.png", "report-dark.png", "report-phone.png", "viewer.png"}
    assert sizes.keys() == names
    assert min(sizes.values()) > 20_000
