"""A headless Chromium for the tests of the report, and for the pictures of it in the docs.

python tests/evaluation/browser.py outputs/demo/report/report.html docs/images
"""

import base64
import shutil
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path

from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.support.ui import WebDriverWait

NAMES = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next(filter(None, map(shutil.which, NAMES)), None)
DRIVER = shutil.which("chromedriver")
FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--use-angle=swiftshader",  # WebGL 2 without a graphics card
    "--enable-unsafe-swiftshader",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--hide-scrollbars",
)
PATIENCE_S = 120  # the machine may be busy


@contextmanager
def browser(*, width=1280, height=900, dark=False, flags=()):
    """A driver with an empty profile; `dark` is what the system asks for."""
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        window = f"--window-size={width},{height}"
        for flag in (*FLAGS, *flags, window, f"--user-data-dir={profile}"):
            options.add_argument(flag)
        driver = webdriver.Chrome(options=options, service=Service(DRIVER))
        try:
            driver.set_page_load_timeout(PATIENCE_S)
            driver.set_script_timeout(PATIENCE_S)
            wishes = {
                "prefers-color-scheme": "dark" if dark else "light",
                "prefers-reduced-motion": "reduce",
            }
            features = [{"name": name, "value": value} for name, value in wishes.items()]
            driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
            size = {"width": width, "height": height, "deviceScaleFactor": 1}
            size["mobile"] = width < 600
            driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
            yield driver
        finally:
            driver.quit()


def save_page(driver, path, *, height=None):
    """The whole page, or its upper `height` pixels, as PNG."""
    root = "document.documentElement"
    full = [driver.execute_script(f"return {root}.scroll{side}") for side in ("Width", "Height")]
    clip = {"x": 0, "y": 0, "width": full[0], "height": height or full[1], "scale": 1}
    options = {"captureBeyondViewport": True, "clip": clip}
    data = driver.execute_cdp_cmd("Page.captureScreenshot", options)["data"]
    path.write_bytes(base64.b64decode(data))


def open_case(driver, number=0):
    """Open a row of the table of cases, and wait until the viewer shows it."""
    driver.execute_script("viewer.open(visibleRows()[arguments[0]])", number)
    state = "return document.getElementById('viewer').dataset.state"
    WebDriverWait(driver, PATIENCE_S).until(
        lambda d: d.execute_script(state) in ("ready", "picture")
    )


def console_errors(driver):
    """What the console calls severe, since it was asked last."""
    return [entry for entry in driver.get_log("browser") if entry["level"] == "SEVERE"]


def canvas_pixels(driver):
    """Counts of the viewer's pixels, read in the frame in which they are drawn."""
    return driver.execute_script(
        """viewer.nv.drawScene();
        const gl = viewer.nv.gl, n = gl.drawingBufferWidth * gl.drawingBufferHeight;
        const data = new Uint8Array(4 * n);
        gl.readPixels(0, 0, gl.drawingBufferWidth, gl.drawingBufferHeight,
                      gl.RGBA, gl.UNSIGNED_BYTE, data);
        let grey = 0, coloured = 0, sum = 0;
        for (let i = 0; i < data.length; i += 4) {
          const [r, g, b] = data.subarray(i, i + 3);
          sum += r + g + b;
          if (Math.max(r, g, b) - Math.min(r, g, b) > 40) coloured++;
          else if (r > 60) grey++;
        }
        return {grey, coloured, sum, n};"""
    )


def save_screenshots(report, folder):
    """The report in light, dark and on a phone, and the viewer, as PNG files in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, dark in (("report", False), ("report-dark", True)):
        with browser(dark=dark) as driver:
            driver.get(report.resolve().as_uri())
            save_page(driver, folder / f"{name}.png", height=1400)
            if not dark:
                open_case(driver)
                driver.save_screenshot(folder / "viewer.png")
    with browser(width=390, height=844) as driver:
        driver.get(report.resolve().as_uri())
        save_page(driver, folder / "report-phone.png", height=1600)


if __name__ == "__main__":
    save_screenshots(Path(sys.argv[1]), Path(sys.argv[2]))
