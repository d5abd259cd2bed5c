"""The pictures of the terminal and of TensorBoard in docs/images.

python docs/screenshots.py RUN, a run that TensorBoard has watched
"""

import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

from matplotlib import font_manager
from PIL import Image, ImageDraw, ImageFont
from selenium import webdriver
from selenium.webdriver.chrome.service import Service

ROOT = Path(__file__).resolve().parent.parent
IMAGES = ROOT / "docs" / "images"
FONT_SIZE, COLUMNS, MARGIN = 14, 104, 16
PAPER, INK, PROMPT = "#15171c", "#d8d8d2", "#7fb6ee"
TERMINAL = (
    ("python train.py data=quiz --help", slice(0, 56)),
    ("python train.py experiment=balancd", slice(None)),
    ("python train.py optimizer.lrr=1", slice(None)),
)
PATIENCE_S = 300


def save_terminal(commands, png):
    """What the commands print, as a terminal of COLUMNS would show it; long outputs are cut."""
    lines = []
    for command, part in commands:
        output = subprocess.run(
            [sys.executable, *command.split()[1:]],
            cwd=ROOT,
            env=os.environ | {"COLUMNS": str(COLUMNS)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        ).stdout.splitlines()
        shown = output[part]
        more = [f"[{len(output) - len(shown)} more lines]"] if len(shown) < len(output) else []
        lines += [f"$ {command}", *shown, *more, ""]
    font = ImageFont.truetype(font_manager.findfont("DejaVu Sans Mono"), FONT_SIZE)
    width, height = font.getlength("M"), int(FONT_SIZE * 1.35)
    lines = [part for line in lines for part in re.findall(f".{{1,{COLUMNS}}}", line) or [""]]
    size = (int(2 * MARGIN + COLUMNS * width), 2 * MARGIN + height * len(lines))
    picture = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(picture)
    for number, line in enumerate(lines):
        colour = PROMPT if line.startswith("$ ") else INK
        draw.text((MARGIN, MARGIN + number * height), line, font=font, fill=colour)
    picture.quantize(32).save(png, optimize=True)


def save_tensorboard(run, folder):
    """The scalars and the pictures of a run, in a browser."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    server = subprocess.Popen(
        [sys.executable, "-m", "tensorboard.main", "--logdir", str(run), f"--port={port}"]
    )
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    for flag in ("--headless=new", "--no-sandbox", "--window-size=1280,900", "--hide-scrollbars"):
        options.add_argument(flag)
    try:
        wait_for(f"http://localhost:{port}")
        driver = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
        driver.set_page_load_timeout(PATIENCE_S)
        for page in ("timeseries", "images"):
            driver.get(f"http://localhost:{port}/#{page}")
            time.sleep(60)  # it draws when it can; there is no sign of the end
            png = folder / f"tensorboard-{page}.png"
            driver.save_screenshot(str(png))
            Image.open(png).convert("RGB").quantize(64).save(png, optimize=True)
        driver.quit()
    finally:
        server.terminate()


def wait_for(address):
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end:
        try:
            urllib.request.urlopen(address)
            return
        except OSError:
            time.sleep(1)
    raise TimeoutError(address)


if __name__ == "__main__":
    IMAGES.mkdir(exist_ok=True)
    save_terminal(TERMINAL, IMAGES / "help.png")
    save_tensorboard(Path(sys.argv[1]), IMAGES)
