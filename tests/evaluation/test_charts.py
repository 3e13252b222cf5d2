import re
import xml.etree.ElementTree as ET

import pytest

from jaxdet.evaluation import charts

LINE = charts.Line("a <b>", charts.BLUE, [0, 0.5, 0.75, 1], [1, 0, float("nan"), 0.5])


def elements(svg, name):
    return list(ET.fromstring(svg).iter(name))


def test_a_curve_lies_within_its_axes_and_has_a_gap():
    svg = charts.line_chart([LINE], "x (px)", "y (px)", marker=(0.25, "best"))
    lines = [one.get("points") for one in elements(svg, "polyline")]
    # The plotted area is 46 to 326 by 12 to 210; the last point stands alone.
    assert lines == ["46.0,12.0 186.0,210.0", "326.0,111.0"]
    texts = [one.text for one in elements(svg, "text")]
    assert {"x (px)", "y (px)", "best", "a <b>", "0.2", "1.0"} <= set(texts)
    assert any("M116.0 12" in one.get("d") for one in elements(svg, "path"))


def test_bars_of_the_histogram_grow_by_powers_of_ten():
    svg = charts.score_histogram([0, 1], [1000, 10])
    heights = {
        re.match(r"\d+", one[0].text)[0]: float(one.get("height"))
        for one in elements(svg, "rect")
    }
    assert heights.keys() == {"1", "10", "1000"}
    decade = (210 - 12) / 4  # of 1, 10, 100, 1k and 10k
    assert heights["10"] - heights["1"] == pytest.approx(decade, abs=0.2)
    assert heights["1000"] - heights["10"] == pytest.approx(2 * decade, abs=0.2)
    texts = {one.text for one in elements(svg, "text")}
    assert {"1", "10", "100", "1k", "10k", "true positives"} <= texts
    assert not elements(charts.score_histogram([0], [0]), "rect")


@pytest.mark.parametrize("values", [(0, 0), (0.4, 7), (20.5, 11.9), (100, 1e-9)])
def test_bars_are_as_long_as_their_values(values):
    svg = charts.bar_chart([("a", values[0]), ("b", values[1])], "AP (points)")
    lengths = [float(one.get("width")) for one in elements(svg, "rect")]
    # 1 pixel at least, so that a bar is seen.
    if max(values):
        expected = [max(max(lengths) * value / max(values), 1) for value in values]
        assert lengths == pytest.approx(expected, abs=0.1)
    assert max(lengths) + 112 + 48 <= charts.WIDTH + 0.1
    texts = [one.text for one in elements(svg, "text")]
    assert f"{values[0]:.1f}" in texts and "AP (points)" in texts
    if not any(values):
        assert "1" in texts  # not a billionth
    assert 3 <= len(elements(svg, "path")) <= 6
