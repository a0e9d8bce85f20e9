"""The page in a real browser: wide and narrow, light and dark.

The variable ADVREPAIR_BROWSER is "required" where a browser must be there, or the reason why
there is none.
"""

import os
import shutil

import pytest
from pages import change, copy, image_run, vector_run

SIZES = (1280, 400)
SCHEMES = ("light", "dark")
FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
# Every element with text of its own, with the colours of its text and of what lies behind it.
COLOURS = """
const parse = c => [...c.match(/[\\d.]+/g).map(Number), 1].slice(0, 4);
const own = e => [...e.childNodes].filter(n => n.nodeType === 3).map(n => n.data.trim()).join('');
const unseen = ['TITLE', 'DESC'];
const found = [];
for (const e of document.querySelectorAll('body *')) {
  const text = own(e);
  if (!text || !e.getClientRects().length || unseen.includes(e.tagName.toUpperCase())) continue;
  let back = e;
  while (back && parse(getComputedStyle(back).backgroundColor)[3] === 0) back = back.parentElement;
  const style = getComputedStyle(e);
  found.push([text.slice(0, 40), parse(e.namespaceURI.endsWith('svg') ? style.fill : style.color),
    back ? parse(getComputedStyle(back).backgroundColor) : null]);
}
return found;
"""
SILENT = """
return [...document.querySelectorAll('img, svg')].filter(e => !(e.alt || e.ariaLabel || '').trim()
  || (e.tagName === 'IMG' && !e.naturalWidth)).length;
"""
WIDER = """
return [...document.querySelectorAll('body *')].filter(e => !e.closest('.scroll, pre') &&
  e.getBoundingClientRect().right > innerWidth + 1).map(e => e.tagName + '.' + e.className);
"""


def _missing():
    programs = [name for name in ("chromium", "chromedriver") if shutil.which(name) is None]
    try:
        import selenium  # noqa: F401
    except ImportError:
        programs.append("selenium (the extra 'browser')")
    return programs


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    if missing := _missing():
        wish = os.environ.get("ADVREPAIR_BROWSER", "")
        reason = f"no browser: {', '.join(missing)} not installed"
        if wish == "required":
            pytest.fail(reason)
        pytest.skip(f"{reason}; {wish}" if wish else reason)
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """Pages of images, of vectors, and of a run with everything that is long or missing."""
    folder = tmp_path_factory.mktemp("pages")
    found = {"images": image_run(folder / "images"), "vectors": vector_run(folder / "vectors")}
    full = found["full"] = copy(found["images"], folder / "full")
    long = "a-name-without-any-place-to-break-it-" * 5

    def more(report):
        report["properties"] |= {"certified": 12, "falsified": 1, "unknown": 1}
        report["flags"] = [{"name": "forced label", "text": long}]
        report["metrics"] |= {"FDD": 0.01, "DSR": 0.9, "DGSR-query": 0.1, "DGSR-oracle": 1.0}
        report["intervals"] = {name: [0.1, 0.9] for name in report["metrics"]}
        report["counts"] = {name: 1000 for name in report["metrics"]}
        report["network"]["name"] = long

    def other(certificate):
        for status, each in zip(("falsified", "unknown"), certificate["properties"], strict=False):
            each |= {"status": status, "margin": None, "name": long}

    change(change(full, "report.json", more), "certificate.json", other)
    from advrepair import html

    return {name: html.write(run).as_uri() for name, run in found.items()}


def luminance(colour):
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one, other):
    dark, light = sorted(luminance([c / 255 for c in each[:3]]) for each in (one, other))
    return (light + 0.05) / (dark + 0.05)


def test_the_measure_of_contrast():
    assert contrast((0, 0, 0), (255, 255, 255)) == pytest.approx(21)
    assert contrast((118, 118, 118), (255, 255, 255)) == pytest.approx(4.54, abs=0.01)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("width", SIZES)
@pytest.mark.parametrize("name", ["images", "vectors", "full"])
def test_the_page_in_a_browser(name, width, scheme, browser, pages):
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    browser.get(pages[name])
    run = browser.execute_script
    run("document.querySelectorAll('details').forEach(e => { e.open = true; })")
    assert run("return innerWidth") == width
    assert run("return document.documentElement.scrollWidth <= innerWidth")
    assert run(WIDER) == []
    assert run(SILENT) == 0
    found = run(COLOURS)
    assert len(found) > 100
    assert (found[0][2][0] < 100) == (scheme == "dark")  # the background follows the scheme
    poor = [
        (text, contrast(ink, paper)) for text, ink, paper in found if contrast(ink, paper) < 4.5
    ]
    assert not poor
    assert browser.get_log("browser") == []


def test_it_asks_the_network_for_nothing(browser, pages):
    browser.get_log("performance")
    browser.get(pages["images"])
    lines = [line["message"] for line in browser.get_log("performance")]
    sent = [line for line in lines if '"Network.requestWillBeSent"' in line]
    assert sent and all('"url":"file://' in line or '"url":"data:' in line for line in sent)
