import html.parser
import json
import pathlib
import re
import shutil
import subprocess

import numpy as np
import pytest

from jaxdet.data.masks import encode_rle
from jaxdet.evaluation import html_report
from tests.evaluation.scenes import data_set_of, random_scene, truth

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))),
    None,
)


def read_image(position):
    return np.full((400, 600, 3), 40 * position % 256, np.uint8)


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """The report of boxes and masks, of classes whose names HTML would take amiss."""
    folder = tmp_path_factory.mktemp("report")
    ground_truth, results = random_scene(np.random.RandomState(4), crowds=0.1)
    for number, category in enumerate(ground_truth["categories"]):
        category["name"] = f'<b>class "{number}"</b> of many words & signs'
    for one in (*ground_truth["annotations"], *results):
        x, y, width, height = map(int, one["bbox"])
        pixels = np.zeros((500, 500), np.uint8)
        pixels[max(y, 0) : y + height, max(x, 0) : x + width] = 1
        one["segmentation"] = encode_rle(pixels)
    numbers = html_report.write_report(
        folder,
        data_set_of(ground_truth, read_image),
        ground_truth,
        results,
        detector_name="runs/a&b",
    )
    return folder / "report.html", numbers


def test_the_page_stands_alone_and_shows_names_as_they_are(page):
    file, numbers = page
    text = file.read_text()
    assert file.stat().st_size < 5_000_000
    tags, sources = [], []

    class Parser(html.parser.HTMLParser):
        def handle_starttag(self, tag, attributes):
            tags.append(tag)
            sources.extend(
                value for name, value in attributes if name in ("src", "href")
            )

    Parser().feed(text)
    assert not {"script", "link", "iframe"} & set(tags)
    assert all(one.startswith(("data:image/jpeg;base64,", "#")) for one in sources)
    # Each has two pictures; "b" is of the tiles and of the best score.
    assert tags.count("img") == 2 * len(numbers["boxes"]["worst_images"])
    assert "<b>class" not in text and "&lt;b&gt;class" in text
    for anchor in ("boxes", "masks", "pictures", "data"):
        assert f'id="{anchor}"' in text and f'href="#{anchor}"' in text


def test_the_most_frequent_confusions_come_first_then_by_name(page):
    listed = re.search("Most often confused: (.*?)</p>", page[0].read_text())[1]
    one = r"class &quot;(\d)&quot;.*? taken for .*?class &quot;(\d)&quot;.*? \((\d+)\)"
    pairs = [(-int(n), true, taken) for true, taken, n in re.findall(one, listed)]
    assert len(pairs) > 2 and pairs == sorted(pairs)


def test_the_json_holds_the_numbers_and_no_nan(page):
    def fail(constant):
        raise AssertionError(constant)

    file, numbers = page
    stored = json.loads((file.parent / "report.json").read_text(), parse_constant=fail)
    assert stored["metrics"]["mask/AP50"] == numbers["metrics"]["mask/AP50"]
    assert stored["boxes"] == numbers["boxes"] and stored["masks"]["errors"]
    assert stored["metrics"]["APl"] is None and np.isnan(numbers["metrics"]["APl"])


def test_a_report_of_nothing_is_written(tmp_path):
    data_set = data_set_of(truth(), read_image)
    html_report.write_report(tmp_path, data_set, truth(), [], detector_name="none")
    text = (tmp_path / "report.html").read_text()
    assert "No detection is right" in text and "No image has an error" in text


@pytest.mark.slow
@pytest.mark.parametrize("width", [1280, 390])
def test_nothing_is_wider_than_the_screen(page, tmp_path, width):
    """In a frame, as a window of Chromium has a minimum width."""
    if CHROMIUM is None:
        pytest.skip("needs Chromium: apt-get install chromium")
    frame = tmp_path / "frame.html"
    frame.write_text(
        f'<body style="margin:0"><iframe id="page" src="{page[0].as_uri()}" '
        f'style="border:0;width:{width}px;height:4000px"></iframe><script>'
        "page.onload = () => { const root = page.contentDocument.documentElement;"
        "document.title = [root.scrollWidth, root.clientWidth]; }</script>"
    )
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu"]
    command += ["--allow-file-access-from-files", "--hide-scrollbars"]
    command += ["--virtual-time-budget=10000", f"--user-data-dir={tmp_path}/profile"]
    document = subprocess.run(
        [*command, "--dump-dom", frame.as_uri()],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    scrolled, shown = map(int, re.search("<title>(.*)</title>", document)[1].split(","))
    assert scrolled <= shown and width - 20 <= shown <= width
    picture = pathlib.Path(tmp_path / "page.png")
    size = [f"--window-size={max(width, 500)},4000", f"--screenshot={picture}"]
    subprocess.run([*command, *size, frame.as_uri()], check=True, capture_output=True)
    from PIL import Image

    image = np.array(Image.open(picture).convert("RGB"))[:, :width]
    # White paper, and dark text in it, on every part of the height.
    assert np.median(image) == 255
    for part in np.array_split(image, 8):
        assert 0.005 < (part.max(axis=-1) < 120).mean() < 0.9
