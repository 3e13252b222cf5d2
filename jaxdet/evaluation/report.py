"""Metrics as a table to read."""

import math

_COLUMNS = 6  # of numbers in a row of the table


def format_metrics(metrics: dict[str, float]) -> str:
    """Formats metrics in percent for terminals: rows of six, then a row per class."""
    classes = [name for name in metrics if "AP/" in name]
    others = [name for name in metrics if "AP/" not in name]
    lines = []
    for start in range(0, len(others), _COLUMNS):
        names = others[start : start + _COLUMNS]
        widths = [max(6, len(name)) for name in names]
        values = [_per_cent(metrics[name]) for name in names]
        for words in (names, values):
            cells = zip(words, widths, strict=True)
            lines.append(" ".join(f"{word:>{width}}" for word, width in cells))
    width = max(map(len, classes), default=0)
    lines += [f"{name:<{width}} {_per_cent(metrics[name]):>6}" for name in classes]
    return "\n".join(lines)


def _per_cent(value: float) -> str:
    return "-" if math.isnan(value) else f"{100 * value:.1f}"
