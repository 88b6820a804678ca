"""The page in a real browser: opened from disk it asks for nothing, complains of nothing, and can be read anywhere."""

import shutil

import pytest
from golden_study import golden, golden_noise

from analysis.report import write_comparison, write_report
from study.reader import StudyReader

ARGUMENTS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update",
]  # fmt: skip
PHONE, DESK = {"width": 360, "height": 740}, {"width": 1280, "height": 900}


@pytest.fixture(scope="module")
def chromium():
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    program = shutil.which("chromium") or shutil.which("chromium-browser")
    if program is None:
        pytest.skip("no chromium on this machine")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=program, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def reports(tmp_path_factory):
    place = tmp_path_factory.mktemp("reports")
    readers = {"golden": StudyReader(golden(place / "a")), "noise": StudyReader(golden_noise(place / "b"))}
    made = {name: write_report(reader, place / f"{name}-out").html for name, reader in readers.items()}
    made["compared"] = write_comparison(readers, place / "compared", ["/nowhere holds no study"]).html
    return made


NAMES = ["golden", "noise", "compared"]


@pytest.fixture(params=NAMES)
def opened(request, chromium, reports):
    """A page at desk width, what it asked for and what it complained of."""
    context = chromium.new_context(viewport=DESK)
    page, asked, said = context.new_page(), [], []
    page.on("request", lambda r: asked.append(r.url))
    page.on("console", lambda m: said.append(m.text))
    page.on("pageerror", lambda e: said.append(str(e)))
    file = reports[request.param].as_uri()
    page.goto(file)
    page.wait_for_load_state("networkidle")
    yield page, file, asked, said
    context.close()


def test_opens_from_disk_without_a_request_and_without_a_complaint(opened):
    page, file, asked, said = opened
    # Pictures inside the page are its own data.
    assert [url for url in asked if not url.startswith("data:")] == [file]
    assert said == []
    assert page.title()


def test_every_picture_is_there_and_told_in_words(opened):
    pictures = opened[0].eval_on_selector_all("img", "all => all.map(i => [i.naturalWidth, i.alt])")
    assert pictures or "compared" in opened[1]
    assert all(width > 100 and len(alt) > 30 for width, alt in pictures)


def test_every_entry_of_the_contents_leads_to_a_heading(opened):
    page = opened[0]
    links = page.eval_on_selector_all("nav a", "all => all.map(a => a.getAttribute('href'))")
    assert len(links) >= 3
    sections = page.eval_on_selector_all("main > section", "all => all.map(s => '#' + s.id)")
    assert links == sections
    last = page.locator("nav a").last
    last.click()
    assert page.evaluate("location.hash") == links[-1]
    box = page.locator(f"section{links[-1]} h2").bounding_box()
    assert -1 <= box["y"] < DESK["height"]


def test_a_phone_shows_it_without_scrolling_sideways_and_in_readable_letters(opened):
    page = opened[0]
    page.set_viewport_size(PHONE)
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    outside = """() => [...document.querySelectorAll('body *')].filter(e => !e.closest('.scroll, .pan, pre'))
        .filter(e => e.getBoundingClientRect().right > innerWidth + 1).map(e => e.outerHTML.slice(0, 80))"""
    assert page.evaluate(outside) == []
    small = """() => [...document.querySelectorAll('body *')]
        .filter(e => [...e.childNodes].some(n => n.nodeType == 3 && n.data.trim()))
        .filter(e => parseFloat(getComputedStyle(e).fontSize) < 14).map(e => e.outerHTML.slice(0, 80))"""
    assert page.evaluate(small) == []


CONTRAST = """() => {
  const parse = c => c.match(/[0-9.]+/g).map(Number);
  const light = c => { const [r, g, b] = parse(c).map(v => v / 255)
      .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
  const ground = e => { for (let n = e; n; n = n.parentElement) { const c = getComputedStyle(n).backgroundColor;
    if (!(parse(c).length === 4 && parse(c)[3] === 0)) return c; } return 'rgb(255, 255, 255)'; };
  return [...document.querySelectorAll('body *')]
    .filter(e => [...e.childNodes].some(n => n.nodeType == 3 && n.data.trim()))
    .map(e => { const [a, b] = [light(getComputedStyle(e).color), light(ground(e))].sort((x, y) => y - x);
      return (a + 0.05) / (b + 0.05); });
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_light_and_dark_have_the_contrast_that_wcag_asks_for_text(opened, scheme):
    page = opened[0]
    page.emulate_media(color_scheme=scheme)
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (ground == "rgb(255, 255, 255)") == (scheme == "light")
    assert min(page.evaluate(CONTRAST)) >= 4.5


def test_a_phone_shows_pictures_at_a_size_at_which_their_labels_can_be_read(opened):
    page = opened[0]
    page.set_viewport_size(PHONE)
    # 8.5 points, the smallest label, of a picture shown at its own size; 0.55 of it is still 6 px.
    shrunk = page.eval_on_selector_all("img", "all => all.map(i => i.clientWidth / i.getAttribute('width'))")
    assert all(ratio >= 0.5 for ratio in shrunk)


def test_print_is_black_on_white_with_nothing_cut_off(opened):
    page = opened[0]
    page.emulate_media(media="print", color_scheme="dark")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert min(page.evaluate(CONTRAST)) >= 7
    assert page.evaluate("[...document.querySelectorAll('.scroll')].every(s => s.scrollHeight <= s.clientHeight + 1)")
    page.set_viewport_size({"width": 690, "height": 900})  # A4 less its margins
    assert page.evaluate("document.documentElement.scrollWidth") <= 690
    assert not page.locator("nav").is_visible()
    assert page.pdf().startswith(b"%PDF")


def test_tables_that_scroll_are_reached_by_keyboard(opened):
    page = opened[0]
    page.set_viewport_size(PHONE)
    wide = "[...document.querySelectorAll('body *')].filter(s => getComputedStyle(s).overflowX == 'auto')"
    assert page.evaluate(f"{wide}.filter(s => s.tagName != 'PRE').every(s => s.tabIndex === 0)")
    assert page.evaluate(f"{wide}.some(s => s.scrollWidth > s.clientWidth)")


def test_without_the_style_every_section_is_still_in_order(opened):
    headings = opened[0].eval_on_selector_all("h1, h2", "all => all.map(h => h.tagName)")
    assert headings[0] == "H1"
    assert headings.count("H1") == 1
