"""The page in Chromium: pictures in, boxes on the canvas, and nothing to or from elsewhere."""

from __future__ import annotations

import base64
from typing import Any

import pytest

from tests.serve.clients import Fake, Running, picture, running, wait_until

# Of the fake's only box, at the picture's edge: class 1 is sky blue, as in every drawing.
SKY_BLUE = [0x56, 0xB4, 0xE9]
BROWSER_FLAGS = ("--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream")
EVENT = """([kind, data]) => {
  const bytes = Uint8Array.from(atob(data), (character) => character.charCodeAt(0));
  const carried = new DataTransfer();
  carried.items.add(new File([bytes], "a.png", { type: "image/png" }));
  dispatchEvent(kind === "drop"
    ? new DragEvent(kind, { dataTransfer: carried, cancelable: true })
    : new ClipboardEvent(kind, { clipboardData: carried }));
}"""
PIXEL = """([x, y]) => {
  const copy = new OffscreenCanvas(1, 1).getContext("2d");
  copy.drawImage(canvas, x, y, 1, 1, 0, 0, 1, 1);
  return [...copy.getImageData(0, 0, 1, 1).data].slice(0, 3);
}"""
# A form as the browser writes it.
FORM = """async (data) => {
  const bytes = Uint8Array.from(atob(data), (character) => character.charCodeAt(0));
  const form = new FormData();
  for (const name of ["ä.png", 'b"\\r\\n.png']) form.append("image", new File([bytes], name));
  return (await fetch("detect", { method: "POST", body: form })).json();
}"""


class Tab:
    """A page of the browser, and what it said, asked and had in flight."""

    def __init__(self, browser: Any, server: Running) -> None:
        self.page = browser.new_page(viewport={"width": 390, "height": 900})
        self.said, self.asked = list[str](), list[str]()
        self.now = self.most = 0
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("request", self.begin)
        self.page.on("requestfinished", self.end)
        self.page.on("requestfailed", self.end)
        self.page.goto(f"http://127.0.0.1:{server.port}/")
        self.page.locator("h1", has_text="weights").wait_for()

    def begin(self, request: Any) -> None:
        self.asked.append(request.url)
        self.now += "/detect" in request.url
        self.most = max(self.most, self.now)

    def end(self, request: Any) -> None:
        self.now -= "/detect" in request.url

    def pixel(self, x: int, y: int) -> list[int]:
        return self.page.evaluate(PIXEL, [x, y])

    def rows(self) -> list[str]:
        return self.page.locator("#rows tr").all_inner_texts()


@pytest.mark.parametrize("way", ["file", "drop", "paste"])
def test_a_picture(way: str, browser: Any) -> None:
    data = picture(300, 400, suffix=".png")
    with running(Fake) as server:
        tab = Tab(browser, server)
        page = tab.page
        if way == "file":
            file = {"name": "a.png", "mimeType": "image/png", "buffer": data}
            page.set_input_files("#file", file)
        else:
            page.evaluate(EVENT, [way, base64.b64encode(data).decode()])
        page.wait_for_selector("#rows td.name")
        assert tab.rows() == ["square\t0.750\t0, 0, 400, 300"]
        assert tab.pixel(0, 150) == SKY_BLUE
        assert tab.pixel(200, 299) == SKY_BLUE
        assert page.evaluate("document.scrollingElement.scrollWidth <= innerWidth")
        asked = len(tab.asked)
        page.locator("#threshold").fill("0.76")
        assert tab.rows() == ["Nothing with this score."]
        assert tab.pixel(0, 150) != SKY_BLUE
        page.locator("#threshold").fill("0.75")
        page.locator(".chip").click()
        assert tab.pixel(0, 150) != SKY_BLUE
        assert len(tab.asked) == asked, "the slider and the labels need no server"
        assert tab.said == []
        assert all(url.startswith(f"http://127.0.0.1:{server.port}/") for url in tab.asked)
        page.close()


def test_a_newer_picture_takes_the_place(browser: Any) -> None:
    detector = Fake()
    with running(lambda: detector) as server:
        tab = Tab(browser, server)
        detector.gate.clear()
        for width in (50, 60):
            data = base64.b64encode(picture(40, width, suffix=".png")).decode()
            tab.page.evaluate(EVENT, ["drop", data])
            tab.page.wait_for_timeout(100)
            wait_until(lambda: tab.page.wait_for_timeout(20) or tab.now == 1, seconds=10)
        detector.gate.set()
        tab.page.wait_for_selector("#rows td.name")
        assert tab.rows() == ["square\t0.750\t0, 0, 60, 40"]
        assert len([url for url in tab.asked if "/detect" in url]) == 2
        tab.page.close()


def test_what_is_no_picture(browser: Any) -> None:
    with running(Fake, max_pixels=100) as server:
        tab = Tab(browser, server)
        for data, text in ((b"no", "isn't a picture"), (picture(), "expected at most 100")):
            file = {"name": "a.png", "mimeType": "image/png", "buffer": data}
            tab.page.set_input_files("#file", file)
            tab.page.locator("#status.wrong", has_text=text).wait_for()
        tab.page.close()


def test_the_camera(browser: Any) -> None:
    detector = Fake()
    with running(lambda: detector) as server:
        tab = Tab(browser, server)
        page = tab.page
        page.locator("#camera").click()
        page.locator("#live").click()
        page.wait_for_selector("#rows td.name")
        detector.gate.clear()  # a slow server
        count = len(detector.batches)
        wait_until(lambda: page.wait_for_timeout(20) or len(detector.batches) > count)
        page.wait_for_timeout(200)
        detector.gate.set()
        wait_until(lambda: page.wait_for_timeout(20) or len(detector.batches) > count + 3)
        assert set(detector.batches) == {1}
        assert tab.most == 1
        detector.gate.clear()  # so that the snapshot's answer isn't mistaken for a live one's
        page.locator("#snapshot").click()
        page.locator("#status", has_text="Looking").wait_for()
        assert not page.evaluate("video.srcObject")
        detector.gate.set()
        wait_until(lambda: page.evaluate("pending === null"))
        assert tab.pixel(0, page.evaluate("canvas.height / 2")) == SKY_BLUE
        assert tab.said == []
        page.close()


def test_the_token(browser: Any) -> None:
    with running(Fake, token="geheim") as server:
        page = browser.new_page()
        page.goto(f"http://127.0.0.1:{server.port}/")
        page.locator("#token").fill("geheim")
        page.get_by_role("button", name="Use it").click()
        page.locator("h1", has_text="weights").wait_for()
        assert page.title() == "weights · triscale"
        assert not page.locator("#access").is_visible()
        page.close()


def test_a_form_of_the_browser(browser: Any) -> None:
    with running(Fake) as server:
        tab = Tab(browser, server)
        data = base64.b64encode(picture(10, 20)).decode()
        answer = tab.page.evaluate(FORM, data)
        # HTML's own rules for names: quotes and line ends are escaped
        assert [image["name"] for image in answer["images"]] == ["ä.png", "b%22%0D%0A.png"]
        assert [image["width"] for image in answer["images"]] == [20, 20]
        tab.page.close()


def test_the_documentation(browser: Any) -> None:
    with running(Fake) as server:
        asked = list[str]()
        page = browser.new_page(color_scheme="dark")
        page.on("request", lambda request: asked.append(request.url))
        page.goto(f"http://127.0.0.1:{server.port}/docs")
        titles = page.locator("h2").all_inner_texts()
        assert titles == ["POST /detect", "GET /model", "GET /healthz", "GET /metrics", "Fields"]
        assert [url for url in asked if not url.startswith("data:")] == asked[:1]
        page.close()
