"""Draws charts as SVG text, dark on light, for the width of a telephone and more."""

import html
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

BLUE, ORANGE, GREEN, GRAY = "#1d5fa6", "#b8480a", "#2a7540", "#5b6470"
WIDTH, HEIGHT = 340, 250  # of a chart, in pixels where the page does not enlarge it
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 14, 12, 40  # margins of the plotted area


class Line(NamedTuple):
    """A curve of a chart."""

    name: str
    color: str
    x: Sequence[float]
    y: Sequence[float]  # NaN: a gap
    dash: str = ""  # SVG's `stroke-dasharray`


def line_chart(
    lines: Sequence[Line],
    x_label: str,
    y_label: str,
    *,
    marker: tuple[float, str] | None = None,
) -> str:
    """Draws curves whose coordinates are in [0, 1], with a legend below.

    Args:
      lines: the curves, the first one below.
      x_label: of the axis, with its unit.
      y_label: of the axis, with its unit.
      marker: an x where a vertical line is drawn, and its text.

    Returns:
      An `<svg>` element.
    """
    ticks = [(k / 5, f"{k / 5:.1f}") for k in range(6)]
    parts = [_axes(ticks, ticks, x_label, y_label)]
    for line in lines:
        for points in _runs(line.x, line.y):
            corners = " ".join(f"{_x(x):.1f},{_y(y):.1f}" for x, y in points)
            dash = f' stroke-dasharray="{line.dash}"' if line.dash else ""
            parts.append(
                f'<polyline points="{corners}" fill="none" stroke="{line.color}" '
                f'stroke-width="2"{dash}/>'
            )
    if marker is not None:
        x, text = marker
        anchor, shift = ("end", -4) if x > 0.5 else ("start", 4)
        parts.append(
            f'<path d="M{_x(x):.1f} {_TOP}V{HEIGHT - _BOTTOM}" stroke="{GRAY}" '
            'stroke-dasharray="2 3"/>'
            + _text(_x(x) + shift, HEIGHT - _BOTTOM - 6, text, anchor)
        )
    parts.append(_legend([(one.name, one.color, one.dash) for one in lines]))
    return _svg(parts, HEIGHT + 22, f"{y_label} against {x_label}")


def score_histogram(true: Sequence[int], false: Sequence[int]) -> str:
    """Draws how many true and false positives have which score, on a log scale.

    Args:
      true: counts in bins of equal width, from 0 to 1.
      false: as many.

    Returns:
      An `<svg>` element.
    """
    decades = max(1, math.ceil(math.log10(max(*true, *false, 1) + 1)))
    y_ticks = [(k / decades, _power(k)) for k in range(decades + 1)]
    x_ticks = [(k / 5, f"{k / 5:.1f}") for k in range(6)]
    parts = [_axes(x_ticks, y_ticks, "score (0 to 1)", "detections (count, log scale)")]
    width = (_x(1) - _x(0)) / len(true)
    for counts, color, shift in ((true, BLUE, 0.06), (false, ORANGE, 0.5)):
        for place, count in enumerate(counts):
            if count:
                # One detection is drawn, a little, above the line of 1.
                share = (math.log10(count) + 0.05) / decades
                left, top = _x(0) + (place + shift) * width, _y(min(share, 1.0))
                parts.append(
                    f'<rect x="{left:.1f}" y="{top:.1f}" width="{0.44 * width:.1f}" '
                    f'height="{_y(0) - top:.1f}" fill="{color}"><title>{count} at '
                    f"{place / len(true):.2f} to {(place + 1) / len(true):.2f}"
                    "</title></rect>"
                )
    entries = [("true positives", BLUE, ""), ("false positives", ORANGE, "")]
    parts.append(_legend(entries))
    return _svg(parts, HEIGHT + 22, "true and false positives by score")


def bar_chart(bars: Sequence[tuple[str, float]], label: str) -> str:
    """Draws horizontal bars, each with its name and value.

    Args:
      bars: names and values of 0 or more.
      label: of the axis, with its unit.

    Returns:
      An `<svg>` element.
    """
    left, row, top = 112, 26, 6
    bottom = top + row * len(bars)
    limit = max(value for _, value in bars) or 1.0
    step = 10 ** math.floor(math.log10(limit))
    step *= next(factor for factor in (0.25, 0.5, 1, 2, 5) if limit / step / factor < 5)
    scale = (WIDTH - left - 48) / max(limit, step)
    parts = []
    for k in range(math.floor(max(limit, step) / step + 1e-9) + 1):
        x = left + scale * step * k
        parts.append(f'<path d="M{x:.1f} {top}V{bottom}" stroke="#dde1e6"/>')
        parts.append(_text(x, bottom + 16, f"{step * k:.3g}", "middle"))
    for place, (name, value) in enumerate(bars):
        y = top + row * place
        length = max(scale * value, 1)
        parts.append(
            f'<rect x="{left}" y="{y + 4}" width="{length:.1f}" height="{row - 8}" '
            f'fill="{BLUE}"/>'
        )
        parts.append(_text(left - 6, y + row / 2 + 4, name, "end"))
        parts.append(_text(left + length + 5, y + row / 2 + 4, f"{value:.1f}"))
    parts.append(_text(left + scale * limit / 2, bottom + 34, label, "middle"))
    return _svg(parts, bottom + 42, label)


def _power(exponent: int) -> str:
    """Writes a power of ten in few letters: 1, 10, 100, 1k, 10k, 100k, 1M."""
    thousands = min(exponent // 3, 2)
    return f"{10 ** (exponent - 3 * thousands)}{('', 'k', 'M')[thousands]}"


def _x(share: float) -> float:
    return _LEFT + share * (WIDTH - _LEFT - _RIGHT)


def _y(share: float) -> float:
    return HEIGHT - _BOTTOM - share * (HEIGHT - _TOP - _BOTTOM)


def _runs(x: Sequence[float], y: Sequence[float]) -> list[list[tuple[float, float]]]:
    """Splits a curve at its gaps."""
    points = np.stack([np.asarray(x, float), np.asarray(y, float)], axis=1)
    known = np.isfinite(points).all(axis=1)
    edges = np.flatnonzero(np.diff(np.concatenate([[0], known, [0]]))).reshape(-1, 2)
    return [points[start:end].tolist() for start, end in edges]


def _axes(
    x_ticks: Sequence[tuple[float, str]],
    y_ticks: Sequence[tuple[float, str]],
    x_label: str,
    y_label: str,
) -> str:
    parts = []
    for share, text in x_ticks:
        parts.append(f'<path d="M{_x(share):.1f} {_TOP}V{_y(0)}" stroke="#dde1e6"/>')
        parts.append(_text(_x(share), _y(0) + 15, text, "middle"))
    for share, text in y_ticks:
        parts.append(f'<path d="M{_LEFT} {_y(share):.1f}H{_x(1)}" stroke="#dde1e6"/>')
        parts.append(_text(_LEFT - 5, _y(share) + 4, text, "end"))
    parts.append(_text(_x(0.5), _y(0) + 33, x_label, "middle"))
    middle = _y(0.5)
    parts.append(
        f'<text transform="translate(11 {middle:.1f}) rotate(-90)" '
        f'text-anchor="middle">{html.escape(y_label)}</text>'
    )
    return "".join(parts)


def _legend(entries: Sequence[tuple[str, str, str]]) -> str:
    """Draws names with a stroke each, side by side below the chart."""
    x, y, parts = 12.0, HEIGHT + 10, []
    for name, color, dash in entries:
        style = f' stroke-dasharray="{dash}"' if dash else ""
        parts.append(
            f'<path d="M{x:.1f} {y}h18" stroke="{color}" stroke-width="3"{style}/>'
            + _text(x + 22, y + 4, name)
        )
        x += 34 + 6.3 * len(name)
    return "".join(parts)


def _text(x: float, y: float, text: str, anchor: str = "start") -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">'
        f"{html.escape(text)}</text>"
    )


def _svg(parts: Sequence[str], height: float, title: str) -> str:
    return (
        f'<svg viewBox="0 0 {WIDTH} {height:g}" role="img" '
        f'aria-label="{html.escape(title, quote=True)}">{"".join(parts)}</svg>'
    )
