"""A headless Chromium for the tests of pages, where there is one."""

import json
import shutil
import time

import pytest

FLAGS = """
    --headless --no-sandbox --disable-gpu --disable-background-networking --disable-component-update --disable-sync
    --no-first-run --window-size=1400,1500 --hide-scrollbars
"""


def start(profile):
    """A driver with a fresh profile, all network but the machine's files cut off; skips where there is no Chromium."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not chromium or not driver:
        pytest.skip("there is no Chromium here: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    # Whatever would ask for a host finds none.
    for flag in [*FLAGS.split(), f"--user-data-dir={profile}", "--host-resolver-rules=MAP * ~NOTFOUND"]:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    return webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))


def show(driver, page, ready, address=""):
    """Open a page, and wait until a condition in JavaScript holds, at most 30 s. Returns the seconds that it took."""
    driver.get("data:,")
    driver.get_log("browser"), driver.get_log("performance")
    began = time.monotonic()
    driver.get(f"{page.as_uri()}#{address}")
    while not driver.execute_script(f"return {ready}"):
        assert time.monotonic() < began + 30, driver.get_log("browser")
        time.sleep(0.02)
    return time.monotonic() - began


def check(driver):
    """Whatever was done, nothing went wrong and nothing but files was asked for."""
    # Without a GPU Chromium warns of its own rendering of 3-D.
    assert [entry for entry in driver.get_log("browser") if entry["source"] != "rendering"] == []
    events = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
    asked = {e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"}
    assert {url.partition(":")[0] for url in asked} <= {"file", "data", "blob"}
