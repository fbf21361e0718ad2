"""A real browser for the tests of `pinstream view`: Chromium without a window, driven by its own chromedriver."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service

# Set where the browser has to be there, so that its absence fails the tests instead of skipping them.
REQUIRED = "PINSTREAM_REQUIRE_CHROMIUM"

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--use-fake-device-for-media-stream",
    "--use-fake-ui-for-media-stream",
    "--window-size=1280,900",
)


@contextlib.contextmanager
def chromium() -> Iterator[webdriver.Chrome]:
    """A browser with an empty profile and a camera that shows a moving test picture.

    Skips the calling test where Chromium is not installed, or fails it where it is required.
    """
    binary = shutil.which("chromium") or shutil.which("chromium-browser")
    driver = shutil.which("chromedriver")
    if binary is None or driver is None:
        missing = "needs Chromium and its driver: apt-get install chromium chromium-driver"
        if os.environ.get(REQUIRED):
            pytest.fail(f"{missing} ({REQUIRED} is set)")
        pytest.skip(missing)
    with tempfile.TemporaryDirectory(prefix="pinstream-chromium-", ignore_cleanup_errors=True) as profile:
        options = Options()
        options.binary_location = binary
        for flag in (*FLAGS, f"--user-data-dir={profile}"):
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        browser = webdriver.Chrome(options=options, service=Service(driver))
        try:
            yield browser
        finally:
            browser.quit()
