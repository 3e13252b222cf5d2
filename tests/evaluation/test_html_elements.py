import math

from jaxdet.evaluation import html_elements


def test_text_is_shown_as_it_is():
    text = html_elements.table(["a<b"], [["1 & 2"]], kind="words")
    assert "<th>a&lt;b</th>" in text and "<td>1 &amp; 2</td>" in text
    assert 'class="words"' in text
    assert "<figcaption>&lt;i&gt;</figcaption><svg/>" in html_elements.figures(
        [("<i>", "<svg/>")]
    )


def test_shares_are_in_percent():
    values = [html_elements.percent(x) for x in (0.1234, 1, None, math.nan)]
    assert values == ["12.3", "100.0", "-", "-"]
