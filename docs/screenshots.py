"""The pictures of the terminal and of TensorBoard in docs/images.

python docs/screenshots.py RUN, a run that TensorBoard has watched
"""

import json
import os
import pty
import shutil
import socket
import subprocess
import sys
import termios
import time
import urllib.parse
import urllib.request
from contextlib import suppress
from itertools import groupby
from pathlib import Path

import pyte
from matplotlib import font_manager
from PIL import Image, ImageDraw, ImageFont
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

ROOT = Path(__file__).resolve().parent.parent
IMAGES = ROOT / "docs" / "images"
FONT_SIZE, COLUMNS, LINES, MARGIN = 14, 118, 60, 16
PAPER, INK, PROMPT = "#15171c", "#d8d8d2", "#7fb6ee"
COLOURS = {"red": "#f0716b", "green": "#7fc784", "brown": "#dcb66b", "blue": "#7fb6ee"} | {
    "magenta": "#c79be0", "cyan": "#7cc7c7", "black": "#80858f", "white": INK, "default": INK
}  # fmt: skip
PICTURES = {
    "help.png": (
        "python train.py data=quiz --help",
        "python train.py experiment=balancd",
        "python train.py optimizer.lrr=1",
    ),
    "training.png": ("python train.py experiment=smoke output_dir=outputs/smoke overwrite=true",),
}
CURVES = ("train/loss_step", "val/whole_pancreas_dsc", "val/lesion_dsc", "val/macro_f1")
PATIENCE_S = 300


def save_terminal(commands, png):
    """What the commands show on a terminal of COLUMNS; long outputs are cut at LINES."""
    screens = [(f"$ {command}", on_terminal(command)) for command in commands]
    rows = []
    for command, lines in screens:
        more = [[(f"[{len(lines) - LINES} more lines]", PROMPT)]] if len(lines) > LINES else []
        rows += [[(command, PROMPT)], *lines[:LINES], *more, []]
    font = ImageFont.truetype(font_manager.findfont("DejaVu Sans Mono"), FONT_SIZE)
    width, height = font.getlength("M"), int(FONT_SIZE * 1.35)
    size = (int(2 * MARGIN + COLUMNS * width), 2 * MARGIN + height * len(rows))
    picture = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(picture)
    for number, row in enumerate(rows):
        column = 0
        for text, colour in row:
            at = (MARGIN + column * width, MARGIN + number * height)
            draw.text(at, text, font=font, fill=colour)
            column += len(text)
    picture.quantize(32).save(png, optimize=True)


def on_terminal(command):
    """The lines that a terminal shows when the command has ended: lists of (text, colour)."""
    screen = pyte.HistoryScreen(COLUMNS, LINES, history=10_000, ratio=1)
    stream = pyte.ByteStream(screen)
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (LINES, COLUMNS))
    child = subprocess.Popen(
        [sys.executable, *command.split()[1:]],
        cwd=ROOT,
        env=os.environ | {"TERM": "xterm", "COLUMNS": str(COLUMNS)},
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)
    with suppress(OSError):  # the end of a terminal
        while text := os.read(ours, 65536):
            stream.feed(text)
    child.wait()
    cells = [*screen.history.top, *(screen.buffer[y] for y in range(screen.cursor.y))]
    return [line_of(row) for row in cells]


def line_of(row):
    """Runs of one colour, without the blanks at the end."""
    cells = [row[x] for x in range(COLUMNS)]
    while cells and cells[-1].data == " ":
        cells.pop()
    runs = groupby(cells, key=lambda cell: cell.fg.removeprefix("bright"))
    return [("".join(cell.data for cell in some), COLOURS.get(fg, f"#{fg}")) for fg, some in runs]


def save_tensorboard(run, folder):
    """Curves and pictures of a run, pinned to the top of TensorBoard's page in a browser."""
    board = EventAccumulator(str(run), size_guidance={"images": 0}).Reload()
    overlays = [tag for tag in board.Tags()["images"] if tag.startswith("overlay/")]
    pages = {
        "curves": [{"plugin": "scalars", "tag": tag} for tag in CURVES],
        "images": [
            {"plugin": "images", "tag": tag, "sample": 0, "runId": "defaultExperimentId/."}
            for tag in overlays[:4]
        ],
    }
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    server = subprocess.Popen(
        [sys.executable, "-m", "tensorboard.main", "--logdir", str(run), f"--port={port}"]
    )
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    for flag in ("--headless=new", "--no-sandbox", "--window-size=1280,1180", "--hide-scrollbars"):
        options.add_argument(flag)
    try:
        wait_for(f"http://localhost:{port}")
        driver = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
        driver.set_page_load_timeout(PATIENCE_S)
        for page, cards in pages.items():
            pinned = urllib.parse.quote(json.dumps(cards))
            driver.get(f"http://localhost:{port}/?smoothing=0&pinnedCards={pinned}#timeseries")
            time.sleep(60)  # it draws when it can; there is no sign of the end
            png = folder / f"tensorboard-{page}.png"
            driver.save_screenshot(str(png))
            Image.open(png).convert("RGB").quantize(128).save(png, optimize=True)
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
    for name, commands in PICTURES.items():
        save_terminal(commands, IMAGES / name)
    save_tensorboard(Path(sys.argv[1]), IMAGES)
