"""The page in a real browser: nothing is fetched, nothing complains, everything can be read."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from report_runs import hostile_copy, make_runs
from selenium import webdriver
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service

from compress_agents.html_report import write_page

BROWSERS = (
    *("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome"),
    *("brave-browser", "microsoft-edge", "chrome-headless-shell"),
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
    "/Applications/Chromium.app/Contents/MacOS/Chromium",
)
DRIVERS = (
    *("chromedriver", "chromium.chromedriver", "msedgedriver"),
    *("/usr/lib/chromium/chromedriver", "/usr/lib/chromium-browser/chromedriver"),
)

# Pictures, and the texts in them as they are on the screen.
PICTURES = """
return [...document.querySelectorAll("svg[role=img]")].map(svg => {
  const box = svg.getBoundingClientRect();
  const scale = box.width / svg.viewBox.baseVal.width;
  const texts = [...svg.querySelectorAll("text")];
  const inside = text => {
    const own = text.getBoundingClientRect();
    return own.left >= box.left && own.right <= box.right
      && own.top >= box.top - 1 && own.bottom <= box.bottom + 1;
  };
  return {
    label: svg.getAttribute("aria-label"), width: box.width, height: box.height,
    smallest: Math.min(...texts.map(t => scale * parseFloat(getComputedStyle(t).fontSize))),
    outside: texts.filter(text => !inside(text)).map(text => text.textContent),
  };
});
"""


def found(variable: str, names: tuple[str, ...]) -> str | None:
    """The first program that is there; an environment variable goes first."""
    given = os.environ.get(variable)
    return next(filter(None, map(shutil.which, (*([given] if given else []), *names))), None)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    program, driver = found("CHROME", BROWSERS), found("CHROMEDRIVER", DRIVERS)
    if program is None or driver is None:
        pytest.skip(
            "no Chromium or Chrome with its chromedriver is installed; set CHROME and CHROMEDRIVER"
        )
    options = Options()
    options.binary_location = program
    # A sandbox needs rights that containers do not give; the page is our own.
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    window = webdriver.Chrome(options=options, service=Service(driver))
    yield window
    window.quit()


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    runs = make_runs(tmp_path_factory.getbasetemp())
    write_page([*runs, hostile_copy(runs[0], folder)], folder / "page.html")
    return folder / "page.html"


def requested(browser: Any) -> set[str]:
    """What was asked for since the last look."""
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    return {
        event["params"]["request"]["url"]
        for event in events
        if event["method"] == "Network.requestWillBeSent"
    }


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [400, 1400])
def test_the_page_can_be_read(browser: Any, page: Path, width: int, scheme: str) -> None:
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    requested(browser)
    browser.get(page.as_uri())

    assert browser.get_log("browser") == []
    urls = {urlsplit(url)[:3] for url in requested(browser)}
    assert {url for url in urls if url[0] != "data"} == {urlsplit(page.as_uri())[:3]}
    assert browser.execute_script("return window.hacked === undefined")
    assert browser.execute_script("return innerWidth") == width
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width

    pictures = browser.execute_script(PICTURES)
    assert len(pictures) >= 2 + 3 * 3
    for picture in pictures:
        assert picture["width"] > 250 and picture["height"] > 100, picture["label"]
        assert picture["smallest"] >= 10, picture["label"]
        assert picture["outside"] == [], picture["label"]

    text = browser.execute_script("return document.body.innerText")
    report = json.loads((make_runs(page.parent.parent)[0] / "report.json").read_text())
    for name in ("search_accuracy", "test_accuracy", "baseline_test_accuracy", "reduction"):
        assert f"{report[name]:.2%}" in text
    paper = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    brightness = [int(part) for part in paper.strip("rgb()").split(",")]
    assert (min(brightness) > 200) if scheme == "light" else (max(brightness) < 60)


def test_a_request_would_be_seen(browser: Any, tmp_path: Path) -> None:
    """The oracle sees what it should see: a picture from a host, and a complaint."""
    bad = tmp_path / "bad.html"
    bad.write_text("<img src='http://127.0.0.1:9/x.png'><script>console.error('no')</script>")
    requested(browser)
    browser.get(bad.as_uri())
    assert "http://127.0.0.1:9/x.png" in requested(browser)
    assert len(browser.get_log("browser")) >= 1
