"""Text elements of HTML pages: tables, charts in a grid, and a style for both."""

import html
import math
from collections.abc import Iterable, Sequence
from typing import Any

STYLE = """
:root { color-scheme: light; }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1240px; padding: 16px; background: #fff;
  color: #1a1d21; font: 15px/1.5 system-ui, "DejaVu Sans", sans-serif; }
h1 { font-size: 26px; line-height: 1.25; margin: 8px 0; overflow-wrap: anywhere; }
h2 { font-size: 20px; margin: 36px 0 8px; border-bottom: 2px solid #1d5fa6; }
h3 { font-size: 16px; margin: 20px 0 6px; overflow-wrap: anywhere; }
p, ul { max-width: 76ch; margin: 6px 0; overflow-wrap: anywhere; }
nav a { margin-right: 14px; } a { color: #1d5fa6; }
.tiles { display: grid; gap: 8px;
  grid-template-columns: repeat(auto-fill, minmax(88px, 1fr)); }
.tiles div { background: #f2f5f8; padding: 6px 8px; border-radius: 6px; }
.tiles b { display: block; font-size: 20px; }
.charts { display: grid; gap: 18px; align-items: start;
  grid-template-columns: repeat(auto-fill, minmax(min(340px, 100%), 1fr)); }
.pairs { max-width: 860px; }
figure { margin: 0; max-width: 420px; } figcaption { font-weight: 600; }
svg { display: block; width: 100%; height: auto; }
svg text { font: 12px system-ui, "DejaVu Sans", sans-serif; fill: #1a1d21;
  paint-order: stroke; stroke: #fff; stroke-width: 3px; }
.scroll { overflow: auto; max-width: 100%; max-height: 560px; }
tr:first-child th { position: sticky; top: 0; background: #fff; z-index: 1; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: 3px 9px; text-align: right; border-bottom: 1px solid #dde1e6; }
th { font-weight: 600; white-space: nowrap; }
td:first-child { white-space: nowrap; }
.words td:first-child { white-space: normal; }
th:first-child, td:first-child { text-align: left; position: sticky; left: 0;
  background: #fff; }
.beside { display: grid; gap: 18px; align-items: start;
  grid-template-columns: repeat(auto-fit, minmax(min(340px, 100%), 1fr)); }
.pair { display: grid; gap: 8px; margin: 4px 0 22px;
  grid-template-columns: repeat(auto-fit, minmax(min(340px, 100%), 1fr)); }
.pair img { display: block; width: 100%; min-width: 480px; height: auto; }
.pair .scroll, .scroll:has(.words) { max-height: none; }
@media (max-width: 500px) {
  body { padding: 10px; } th, td { padding: 3px 5px; } }
summary { cursor: pointer; font-weight: 600; margin: 10px 0; }
"""


def figures(captioned: Iterable[tuple[str, str]], kind: str = "") -> str:
    """Lays charts out in a grid.

    Args:
      captioned: captions, as plain text, and `<svg>` elements.
      kind: a class of the style; "pairs" for two in a row, at most.

    Returns:
      A `<div>` element.
    """
    inside = "".join(
        f"<figure><figcaption>{escape(caption)}</figcaption>{chart}</figure>"
        for caption, chart in captioned
    )
    return f'<div class="charts {kind}">{inside}</div>'


def table(head: Sequence[str], rows: Iterable[Sequence[str]], kind: str = "") -> str:
    """Writes a table that scrolls within its own width and height.

    Args:
      head: names of the columns, as plain text.
      rows: their cells, as plain text; the first column stays where it is.
      kind: a class of the style; "words" if the first column holds sentences.

    Returns:
      A `<div>` element.
    """
    lines = [f"<tr>{heads(head)}</tr>"]
    for row in rows:
        cells = "".join(f"<td>{escape(cell)}</td>" for cell in row)
        lines.append(f"<tr>{cells}</tr>")
    return f'<div class="scroll"><table class="{kind}">{"".join(lines)}</table></div>'


def heads(names: Iterable[str]) -> str:
    """Writes the cells of a table's first row."""
    return "".join(f"<th>{escape(name)}</th>" for name in names)


def percent(value: float | None) -> str:
    """Writes a share in percent; None and NaN, which nothing has, as a dash."""
    return "-" if value is None or math.isnan(value) else f"{100 * value:.1f}"


def escape(text: Any) -> str:
    """Writes any text so that HTML shows it as it is."""
    return html.escape(str(text))
