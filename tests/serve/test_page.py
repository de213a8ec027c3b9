"""The page, in a headless Chromium: it shows what the server answers, and asks nobody else."""

import re
import time
from importlib import resources

import cv2
import httpx
import numpy as np
import pytest
from PIL import Image
from serve.apps import PLANTS, encoded, listening, street, wait_for
from serve.browser import with_browser

from fassd.io.palette import CITYSCAPES
from fassd.serve.page import FILES

LABELLED = "/[0-9]/.test(document.querySelector('#chosen td').textContent)"
NAMES = [info.name for info in CITYSCAPES]
COLORS = {info.name: list(info.color) for info in CITYSCAPES}


@pytest.fixture(scope="module")
def url():
    with listening(max_pixels=1024 * 1024, max_bytes=4_000_000) as url:
        yield url


def opened(browser, url, query, width=1400, **options):
    """Open the page and wait for its first labels."""
    browser.open(f"{url}/?side=256&{query}", width, **options)
    browser.wait(LABELLED)


def change(browser, selector, value, event="change"):
    """Give a control another value, as its user does."""
    control = f"document.querySelector('{selector}')"
    browser.evaluate(f"{control}.value = '{value}'; {control}.dispatchEvent(new Event('{event}'))")


def settled(browser):
    """Wait until a still picture is sent no more; how many requests there were."""
    count = -1
    while (now := asked(browser)) != count:
        count = now
        time.sleep(0.4)
    return count


def asked(browser):
    browser.evaluate("0")  # reads what happened meanwhile
    return sum("/v1/segment" in address for address in browser.requested)


def place(browser, x, y):
    """Where a point of the picture, 0 .. 1, is in the window."""
    box = browser.evaluate(
        "(() => { const r = document.querySelector('#view').getBoundingClientRect();"
        " return [r.left, r.top, r.width, r.height]; })()"
    )
    return box[0] + x * box[2], box[1] + y * box[3]


def pixel(browser, x, y):
    """The colour that is shown at a point of the picture."""
    return browser.evaluate(
        "(() => { const c = document.querySelector('#view');"
        f" return [...c.getContext('2d').getImageData({x} * c.width, {y} * c.height, 1, 1).data];"
        " })()"
    )[:3]


def test_files_name_no_other_place(url):
    for route, (name, kind) in FILES.items():
        answer = httpx.get(url + route)
        assert answer.status_code == 200 and answer.headers["content-type"].startswith(kind)
        policy = answer.headers["content-security-policy"]
        assert policy.startswith("default-src 'self'; ") and "unsafe" not in policy
        text = answer.text.replace("http://www.w3.org/2000/svg", "")  # a name, not a place
        assert not re.search(r"//[\w-]+\.\w|url\(|@import|https?:", text), name
    on_disk = {file.name for file in resources.files("fassd.serve.page").iterdir()}
    assert on_disk - {"__init__.py", "__pycache__"} == {name for name, _ in FILES.values()}
    for path in ("/docs", "/redoc"):  # FastAPI's load scripts from elsewhere
        assert httpx.get(url + path).status_code == 404


@with_browser
def test_the_example_beside_plain_pytorch(browser, url, tmp_path):
    opened(browser, url, "start=example&compare=1&opacity=100")
    browser.wait("!document.querySelector('#verdict').hidden")
    settled(browser)
    for row in ("#chosen", "#reference"):
        cells = f"[...document.querySelectorAll('{row} td')].map(cell => Number(cell.textContent))"
        network, trip, rate = browser.evaluate(cells)
        assert 0 < network < trip and rate == pytest.approx(1000 / trip, abs=0.1)
    verdict = re.fullmatch(
        r"([\d.]+) times as fast; ([\d.]+)% of the labels are equal", browser.text("#verdict")
    )
    assert float(verdict[1]) > 0 and float(verdict[2]) >= 99.9
    assert "trained on generated streets" in browser.text("#weights")
    found = [float(share) for share in re.findall(r"([\d.]+)%", browser.text("#legend"))]
    assert len(found) > 4 and sum(found) == pytest.approx(100, abs=1)
    assert browser.complaints == []
    assert {address.startswith((url, "blob:")) for address in browser.requested} == {True}
    browser.screenshot(tmp_path / "page.png")
    with Image.open(tmp_path / "page.png") as image:
        assert image.width == 1400 and np.asarray(image.convert("L")).std() > 20


@with_browser
def test_pointing_opacity_and_legend_ask_nothing_more(browser, url):
    opened(browser, url, "start=example&opacity=100")
    before = settled(browser)
    found = []
    for x, y in ((0.5, 0.95), (0.45, 0.93), (0.45, 0.05)):
        browser.move(*place(browser, x, y))
        name = browser.text("#tip")
        assert browser.text("#pointing") == f"Class: {name}"
        assert pixel(browser, x, y) == COLORS[name]
        found.append(name)
    assert found[2] == "sky" and "sky" not in found[:2]

    browser.evaluate("document.querySelector('#view').focus()")
    browser.press("ArrowUp")
    assert browser.text("#pointing") == "Class: sky"
    for _ in range(45):
        browser.press("ArrowDown")
    assert browser.text("#pointing") == f"Class: {found[1]}"

    sky = f"#legend li:nth-child({NAMES.index('sky') + 1}) button"
    browser.click(sky)
    assert pixel(browser, 0.45, 0.05) == COLORS["sky"]
    assert pixel(browser, 0.5, 0.95) != COLORS[found[0]]
    browser.click(sky)

    change(browser, "#opacity", 0, "input")
    assert browser.text("#percent") == "0%"
    assert pixel(browser, 0.45, 0.05) != COLORS["sky"]
    assert asked(browser) == before


@with_browser
def test_a_choice_is_sent(browser, url):
    opened(browser, url, "start=example")
    settled(browser)
    change(browser, "#dtype", "bfloat16")
    browser.wait("document.querySelector('#chosen th').textContent == 'auto, bfloat16'")
    settled(browser)
    sent = [address for address in browser.requested if "/v1/segment" in address]
    assert "dtype=float32" in sent[0] and "dtype=bfloat16" in sent[-1]


@with_browser
def test_an_address_with_choices_that_are_not_offered(browser, url):
    opened(browser, url, "model=resnet&dtype=bfloat16&backend=&start=example")
    assert browser.text("#chosen th") == "auto, bfloat16"
    assert browser.evaluate("document.querySelector('#model').value") == "fassd_net_l2"
    assert browser.evaluate("document.querySelector('#side').value") == "256"
    assert browser.evaluate("document.querySelector('#view').width") == 256


@with_browser
def test_files_pictures_videos_and_others(browser, url, tmp_path):
    browser.open(f"{url}/?side=256&opacity=100")
    browser.wait("document.querySelector('#model').options.length")  # its script is at work
    (tmp_path / "street.png").write_bytes(encoded(street(100, 256)))
    browser.choose("#file", tmp_path / "street.png")
    browser.wait(LABELLED)
    assert browser.evaluate("document.querySelector('#view').height") == 100
    assert browser.text("#alert") == ""

    browser.evaluate(
        "(async () => { const data = new DataTransfer();"
        " const blob = await (await fetch('v1/example?scene=5')).blob();"
        " data.items.add(new File([blob], 'street.jpg', { type: 'image/jpeg' }));"
        " const event = new DragEvent('drop', { dataTransfer: data, cancelable: true });"
        " document.querySelector('#drop').dispatchEvent(event); })()"
    )
    browser.wait("document.querySelector('#view').height == 128")  # 512x1024, scaled down
    assert browser.evaluate("document.querySelector('#view').width") == 256

    (tmp_path / "tiny.png").write_bytes(encoded(street(128, 256)[:8, :8]))
    browser.choose("#file", tmp_path / "tiny.png")
    browser.wait("document.querySelector('#alert').textContent.includes('must be at least')")

    (tmp_path / "text.png").write_bytes(b"no picture")
    browser.choose("#file", tmp_path / "text.png")
    browser.wait("document.querySelector('#alert').textContent.includes('cannot be read')")

    code = cv2.VideoWriter.fourcc(*"VP80")
    writer = cv2.VideoWriter(str(tmp_path / "drive.webm"), code, 10, (192, 96))
    for index in range(10):
        writer.write(street(96, 192, index % 3)[..., ::-1])
    writer.release()
    browser.choose("#file", tmp_path / "drive.webm")
    browser.wait("document.querySelector('#view').width == 192")
    before = asked(browser)
    wait_for(lambda: asked(browser) >= before + 8, 10)  # more than a still picture is sent
    assert browser.text("#alert") == ""


@with_browser
def test_the_webcam_until_it_is_stopped(browser, url):
    opened(browser, url, "start=camera")
    before = asked(browser)
    wait_for(lambda: asked(browser) >= before + 8, 10)
    browser.click("#stop")
    stopped = settled(browser)
    time.sleep(0.5)
    assert asked(browser) == stopped
    assert browser.complaints == []


@with_browser
@pytest.mark.parametrize("width", [390, 1400])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_narrow_and_wide_windows(browser, url, width, scheme):
    opened(browser, url, "start=example&compare=1", width, scheme=scheme)
    assert browser.evaluate("document.documentElement.scrollWidth") == width
    over = browser.evaluate(
        "[...document.querySelectorAll('main *:not(#file)')].filter(e =>"
        " e.getBoundingClientRect().right > innerWidth || e.scrollWidth > e.clientWidth + 1"
        " && getComputedStyle(e).display != 'inline').map(e => e.outerHTML.slice(0, 80))"
    )
    assert over == []
    paper = browser.evaluate("getComputedStyle(document.body).backgroundColor")
    assert paper == ("rgb(255, 255, 255)" if scheme == "light" else "rgb(20, 24, 29)")


@with_browser
def test_a_server_that_went_away_is_told(browser):
    with listening(max_pixels=1024 * 1024) as url:
        opened(browser, url, "start=camera")
    browser.wait("document.querySelector('#alert').textContent == 'The server does not answer.'")


@with_browser
def test_the_legend_has_the_classes_of_the_chosen_network(browser):
    with listening(max_pixels=1024 * 1024, others=[PLANTS]) as url:
        opened(browser, url, "start=example&opacity=100")
        assert "road" in browser.text("#legend") and "plant" not in browser.text("#legend")
        change(browser, "#model", "plants")
        browser.wait("document.querySelector('#legend').textContent.includes('plant 18')")
        settled(browser)
        assert "road" not in browser.text("#legend")
        browser.move(*place(browser, 0.5, 0.95))
        name = browser.text("#tip")
        assert name.startswith("plant ")
        assert pixel(browser, 0.5, 0.95) == [int(name.removeprefix("plant ")), 200, 3]
        assert browser.complaints == []
