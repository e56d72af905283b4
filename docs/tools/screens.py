"""The pictures of the program in docs/img: `python docs/tools/screens.py [RUN]` takes them anew.

RUN is what `make demo` trained, with its data set beside it; so all that is shown was drawn by the
project itself. Chromium takes the pages, and the terminal too: from what the program wrote to a
pseudo-terminal, read as a terminal reads it.
"""

from __future__ import annotations

import io
import os
import pty
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import urlopen

import cv2
import numpy as np
from PIL import Image
from playwright.sync_api import Page, sync_playwright
from rich.console import Console
from rich.text import Text

from triscale.demo.scenes import write_scenes

FOLDER = Path(__file__).resolve().parents[1] / "img"
TRISCALE = (sys.executable, "-m", "triscale")
COLUMNS = 86  # of the terminal
# what a program tells a terminal, as far as a live view needs it: up, erase the line, the rest
_TOLD = re.compile(
    r"\x1b\[(?P<up>\d+)A|(?P<erase>\x1b\[2K)|\x1b\[\?\w+|(?P<text>\x1b\[[\d;]*m|.)", re.S
)


def main(run: Path) -> None:
    """Take all of them."""
    devkit = run.parent / "VOCdevkit"
    pictures = devkit / "VOC2007" / "JPEGImages"
    names = (devkit / "VOC2007" / "ImageSets" / "Main" / "test.txt").read_text("utf-8").split()
    with tempfile.TemporaryDirectory() as folder, browser() as page:
        work = Path(folder)
        few = work / "harbour"
        write_scenes(few, num_train=160, num_test=24, seed=1, size=(240, 256))
        page.set_viewport_size({"width": 720, "height": 100})
        page.set_content(html_of(screen(few, run, work / "run")))
        keep(taken(page, whole=True), "terminal")

        spoil(few)
        triscale("check", few, "--out", work / "checked", fails=True)
        page.set_viewport_size({"width": 960, "height": 1150})
        page.goto((work / "checked" / "check.html").as_uri())
        keep(taken(page), "check")
        triscale(
            *("preview", devkit, "--recipe", "demo", "--size", 256, "--count", 3),
            *("--set", "augment.crop=true", "--out", work / "seen"),
        )
        keep(Image.open(work / "seen" / "sheet.png"), "preview")
        triscale("report", run, "--out", work / "report.html")
        page.set_viewport_size({"width": 960, "height": 1080})
        page.goto((work / "report.html").as_uri())
        keep(taken(page), "report")
        chosen = [pictures / f"{name}.jpg" for name in names[:3]]
        triscale("predict", run, *chosen, "--out", work / "found")
        keep(row([Image.open(work / "found" / path.name) for path in chosen]), "predict")
        with served(run) as address:
            page.set_viewport_size({"width": 760, "height": 840})
            page.goto(address)
            page.set_input_files("#file", chosen[0])
            page.wait_for_selector("#rows tr")
            keep(taken(page), "serve")


def triscale(*arguments: object, fails: bool = False) -> None:
    """Run a command of the program."""
    done = subprocess.run([*TRISCALE, *map(str, arguments)], stdout=subprocess.DEVNULL, check=False)
    assert fails or not done.returncode, arguments


def spoil(devkit: Path) -> None:
    """Put some usual mistakes into a drawn data set: for `check` to find."""
    voc = devkit / "VOC2007"
    parts = {
        part: (voc / "ImageSets" / "Main" / f"{part}.txt").read_text("utf-8").split()
        for part in ("trainval", "test")
    }
    first, second, third, *_ = (
        name
        for name in parts["trainval"]
        if "<object>" in (voc / "Annotations" / f"{name}.xml").read_text("utf-8")
    )
    labels = voc / "Annotations" / f"{first}.xml"
    text = labels.read_text("utf-8")
    labels.write_text(re.sub(r"<xmax>\d+</xmax>", "<xmax>999</xmax>", text, count=1), "utf-8")
    labels = voc / "Annotations" / f"{second}.xml"
    text = labels.read_text("utf-8")
    labels.write_text(
        re.sub(r"(<object>.*?</object>)", r"\1\1", text, count=1, flags=re.S), "utf-8"
    )
    pictures = voc / "JPEGImages"
    shutil.copy(pictures / f"{third}.jpg", pictures / f"{parts['test'][0]}.jpg")


@contextmanager
def browser() -> Iterator[Page]:
    """A page of Chromium, light, with three dots for two pixels."""
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    with sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield started.new_page(color_scheme="light", device_scale_factor=1.5)
        started.close()


def taken(page: Page, *, whole: bool = False) -> Image.Image:
    """What a page shows, or all of it."""
    return Image.open(io.BytesIO(page.screenshot(full_page=whole)))


@contextmanager
def served(run: Path) -> Iterator[str]:
    """The address of `triscale serve` on any free port."""
    command = [*TRISCALE, "serve", str(run), "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
        assert server.stderr is not None
        found = (re.search(r"http://[\w.:]+", line) for line in server.stderr)
        address = next(one[0] for one in found if one)
        while not ready(address):
            time.sleep(0.2)
        yield address
        server.terminate()
        server.communicate()


def ready(address: str) -> bool:
    """Whether the network is loaded."""
    try:
        return urlopen(f"{address}/healthz").status == 200
    except HTTPError:
        return False


def screen(devkit: Path, run: Path, out: Path) -> str:
    """What a terminal shows in the third epoch of a fine-tuning run, with its colours."""
    command = [*TRISCALE, "train", devkit, "--recipe", "finetune", "--init", run, "--out", out]
    command += ["--size", "128", "--epochs", "10", "--batch-size", "8", "--workers", "1"]
    outer, inner = pty.openpty()
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": str(COLUMNS), "LINES": "40"}
    told = ""
    with subprocess.Popen(
        list(map(str, command)), stdin=inner, stdout=inner, stderr=inner, env=environment
    ) as program:
        os.close(inner)
        until = None
        while until is None or time.monotonic() < until:
            told += os.read(outer, 65536).decode("utf-8", "replace")
            if until is None and re.search(r"epoch 2 .*?\b1\d/20", told):
                until = time.monotonic() + 0.3
        program.terminate()
        # what it still says has to be read, or it never ends
        while program.poll() is None:
            try:
                os.read(outer, 65536)
            except OSError:  # the other end is closed
                break
    os.close(outer)
    return replay(told).replace(str(devkit.parent) + os.sep, "")


def replay(told: str) -> str:
    """The lines that a terminal shows after it was told so much."""
    lines, row = [""], 0
    for one in _TOLD.finditer(told.replace("\r", "")):
        if one["up"]:
            row -= int(one["up"])
        elif one["erase"]:
            lines[row] = ""
        elif one["text"] == "\n":
            row += 1
            lines += [""] * (row == len(lines))
        elif one["text"]:
            lines[row] += one["text"]
    return "\n".join(lines)


def html_of(text: str) -> str:
    """A terminal's lines as a page; from the first epoch on."""
    lines = text.rstrip().split("\n")
    begin = next(k for k, line in enumerate(lines) if line.startswith("[epoch 0]"))
    console = Console(record=True, file=io.StringIO(), width=COLUMNS)
    console.print(Text.from_ansi("\n".join(lines[begin:])))
    body = console.export_html(inline_styles=True, code_format="<pre>{code}</pre>")
    style = "margin:0;padding:14px;background:#14181f;color:#d8dee9;font:13px/1.45 monospace"
    body = body.replace("<pre>", "<pre style='margin:0;font:inherit'>")
    return f"<body style='{style}'>{body}"


def row(pictures: list[Image.Image]) -> Image.Image:
    """Pictures of one size side by side."""
    gap = np.full((pictures[0].height, 6, 3), 255, np.uint8)
    parts = [part for picture in pictures for part in (np.asarray(picture), gap)]
    return Image.fromarray(np.concatenate(parts[:-1], axis=1))


def keep(picture: Image.Image, name: str) -> None:
    """Write a picture into docs/img, at most 1200 pixels wide."""
    pixels = np.asarray(picture.convert("RGB"))
    if (wide := pixels.shape[1]) > 1200:
        pixels = cv2.resize(
            pixels, None, fx=1200 / wide, fy=1200 / wide, interpolation=cv2.INTER_AREA
        )
    path = FOLDER / f"{name}.webp"
    Image.fromarray(pixels).save(path, quality=80, method=6)
    print(f"{path}: {path.stat().st_size / 1000:.0f} KB")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/demo/run-1"))
