"""Writes an error analysis as one HTML page that needs no other file and no script."""

import base64
import math
import pathlib
from collections.abc import Sequence
from typing import Any

from jaxdet.data.dataset import DataSet
from jaxdet.data.files import write_atomically, write_json
from jaxdet.evaluation.charts import (
    BLUE,
    GREEN,
    ORANGE,
    Line,
    bar_chart,
    line_chart,
    score_histogram,
)
from jaxdet.evaluation.coco import MAX_DETECTIONS, Backend
from jaxdet.evaluation.error_analysis import analyze
from jaxdet.evaluation.error_pictures import ErrorPicture, draw_errors
from jaxdet.evaluation.html_elements import (
    STYLE,
    escape,
    figures,
    heads,
    percent,
    table,
)

_OPEN_CLASSES = 6  # up to as many, the charts of classes are not folded away
_CONFUSIONS = 12  # of classes, that are listed
_ERRORS = {
    "classification": "right place, wrong class",
    "localization": "right class, but an IoU of 0.1 to 0.5 only",
    "both": "wrong class, and wrong place",
    "duplicate": "an object that a better detection has found",
    "background": "nothing there: every IoU is at most 0.1",
    "missed": "objects that no detection comes close to",
    "false positives": "all detections that match no object",
    "false negatives": "all objects that no detection matches",
}


def write_report(
    folder: pathlib.Path,
    data_set: DataSet,
    ground_truth: dict,
    detections: list[dict],
    *,
    detector_name: str,
    max_detections: int = MAX_DETECTIONS,
    backend: Backend = "pycocotools",
) -> dict[str, Any]:
    """Analyzes detections; writes `report.html`, and all numbers as `report.json`.

    Args:
      folder: made where needed.
      data_set: whose worst images are drawn.
      ground_truth: COCO json of this data set.
      detections: COCO results; see `error_analysis.analyze`.
      detector_name: for the title.
      max_detections: how many detections of an image and class count, the best ones.
      backend: which library computes COCO's numbers.

    Returns:
      The numbers; json has null where `metrics` have NaN.

    Raises:
      DataError: as `error_analysis.analyze`.
    """
    numbers: dict[str, Any] = {
        "detector": detector_name,
        "data_set": data_set.name,
        "images": len(data_set),
    } | analyze(
        ground_truth, detections, max_detections=max_detections, backend=backend
    )
    boxes = numbers["boxes"]
    pictures = draw_errors(
        data_set,
        ground_truth,
        detections,
        [one["image_id"] for one in boxes["worst_images"]],
        min_score=boxes["min_score"],
        max_detections=max_detections,
    )
    folder.mkdir(parents=True, exist_ok=True)
    metrics = {
        name: None if math.isnan(value) else value
        for name, value in numbers["metrics"].items()
    }
    write_json(folder / "report.json", numbers | {"metrics": metrics})
    page = write_page(numbers, pictures).encode()
    write_atomically(folder / "report.html", lambda stream: stream.write(page))
    return numbers


def write_page(numbers: dict[str, Any], pictures: Sequence[ErrorPicture | None]) -> str:
    """Returns the HTML of a report.

    Args:
      numbers: of `error_analysis.analyze`, and `detector`, `data_set` and `images`.
      pictures: of the worst images of the boxes; None where an image could not be read.
    """
    title = f"{escape(numbers['detector'])} on {escape(numbers['data_set'])}"
    objects = sum(one["objects"] for one in numbers["objects"].values())
    parts = [part for part in ("boxes", "masks") if part in numbers]
    links = [(str(part), part.capitalize()) for part in parts]
    links += [("pictures", "Worst pictures"), ("data", "Objects in the data")]
    body = [
        f"<h1>{title}</h1><p>{numbers['images']:,} images with {objects:,} objects of "
        f"{len(numbers['objects'])} classes. AP and other shares are in percent.</p>",
        "<nav>" + "".join(f'<a href="#{id}">{text}</a>' for id, text in links),
        "</nav>",
        _metric_tiles(numbers["metrics"]),
        *(_detection_section(part, numbers) for part in parts),
        _picture_section(numbers["boxes"], pictures),
        _data_section(numbers["objects"]),
    ]
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><meta '
        'name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{title}</title><style>{STYLE}</style></head><body>"
        + "\n".join(body)
        + "</body></html>\n"
    )


def _metric_tiles(metrics: dict[str, float | None]) -> str:
    """Shows COCO's twelve numbers, those of masks in a row of their own."""
    rows = []
    for prefix, title in (("", "COCO metrics of boxes"), ("mask/", "Of masks")):
        own = {
            name.removeprefix(prefix): value
            for name, value in metrics.items()
            if name.startswith(prefix) and "/" not in name.removeprefix(prefix)
        }
        if own:
            tiles = "".join(
                f"<div>{escape(name)}<b>{percent(value)}</b></div>"
                for name, value in own.items()
            )
            rows.append(f'<h3>{title}</h3><div class="tiles">{tiles}</div>')
    note = (
        "<p>AP and AR are means over the IoUs 0.5, 0.55, ..., 0.95; s, "
        "m and l are small, medium and large objects (32 and 96 pixels squared); a "
        "dash: nothing to find.</p>"
    )
    return "".join(rows) + note


def _data_section(objects: dict[str, dict[str, int]]) -> str:
    rows = [
        [name, *(f"{one[key]:,}" for key in _COUNTS)] for name, one in objects.items()
    ]
    head = ["class", *_COUNTS.values()]
    return '<h2 id="data">Objects in the data</h2>' + table(head, rows)


_COUNTS = {
    "objects": "objects",
    "small": "small",
    "medium": "medium",
    "large": "large",
    "crowds": "crowds or difficult",
    "images": "images",
}


def _detection_section(part: str, numbers: dict[str, Any]) -> str:
    own = numbers[part]
    return "\n".join(
        [
            f'<h2 id="{part}">{part.capitalize()}</h2>',
            _best_f1_text(own),
            _curves(own),
            "<h3>What errors cost</h3>",
            _errors(own["errors"]),
            _class_table(own, numbers["objects"]),
            "<h3>Confusion matrix</h3>",
            _confusion(own["confusion"]),
            _class_curves(own),
        ]
    )


def _best_f1_text(own: dict[str, Any]) -> str:
    best = own["best_f1"]
    if best is None:
        return "<p>No detection is right at an IoU of 0.5.</p>"
    return (
        f"<p>All detections together have the highest F1, {percent(best['f1'])}, "
        f"above a score of <b>{best['min_score']:.3f}</b>: precision "
        f"{percent(best['precision'])}, recall {percent(best['recall'])}, at an IoU "
        "of 0.5.</p>"
    )


def _class_table(own: dict[str, Any], objects: dict[str, dict[str, int]]) -> str:
    head = ["class", "objects", "AP", "AP50", "AP75", "APs", "APm", "APl"]
    head += ["best score", "F1", "precision", "recall"]
    rows = []
    for name, one in own["by_class"].items():
        best = one["best_f1"]
        cells = [name, f"{objects[name]['objects']:,}"]
        cells += [percent(one[key]) for key in head[2:8]]
        cells += ["-"] * 4 if best is None else [f"{best['min_score']:.3f}"]
        if best is not None:
            cells += [percent(best[key]) for key in ("f1", "precision", "recall")]
        rows.append(cells)
    note = (
        "<p>Best score: the minimum score at which the F1 of this class is highest, at "
        "an IoU of 0.5; precision and recall are those of detections above it.</p>"
    )
    return "<h3>By class and size, in percent</h3>" + table(head, rows) + note


def _curves(own: dict[str, Any]) -> str:
    curves, scores = own["precision_recall"], own["score_curves"]
    shown = []
    if curves["all"] is not None:
        chart = _precision_recall_chart(curves["recall"], curves["all"])
        shown.append(("Precision and recall, mean over classes", chart))
    best = own["best_f1"]
    marker = None
    if best is not None:
        marker = (best["min_score"], f"best F1: {best['min_score']:.2f}")
    chart = _score_chart(scores["score"], scores["all"], marker)
    shown.append(("All detections above a score, IoU 0.5", chart))
    histogram = own["score_histogram"]
    chart = score_histogram(histogram["true"], histogram["false"])
    shown.append(("Scores of detections, IoU 0.5", chart))
    return figures(shown)


def _class_curves(own: dict[str, Any]) -> str:
    curves, scores, shown = own["precision_recall"], own["score_curves"], []
    for name, one in own["by_class"].items():
        if curves["classes"][name] is None:
            continue
        chart = _precision_recall_chart(curves["recall"], curves["classes"][name])
        shown.append((f"{name}: precision and recall", chart))
        best, marker = one["best_f1"], None
        if best is not None:
            marker = (best["min_score"], f"best F1: {best['min_score']:.2f}")
        chart = _score_chart(scores["score"], scores["classes"][name], marker)
        shown.append((f"{name}: detections above a score", chart))
    opened = " open" if len(shown) <= 2 * _OPEN_CLASSES else ""
    return (
        f"<details{opened}><summary>Curves of each class</summary>"
        f"{figures(shown, kind='pairs')}</details>"
    )


def _precision_recall_chart(recall: Sequence[float], curves: dict[str, list]) -> str:
    lines = [
        Line("IoU 0.5", BLUE, recall, curves["0.5"]),
        Line("IoU 0.75", GREEN, recall, curves["0.75"], "7 3"),
        Line("0.5 to 0.95", ORANGE, recall, curves["mean"], "2 2"),
    ]
    return line_chart(
        lines, "recall (share of objects)", "precision (share of detections)"
    )


def _score_chart(
    scores: Sequence[float], curves: dict[str, list], marker: tuple[float, str] | None
) -> str:
    lines = [
        Line("precision", BLUE, scores, curves["precision"]),
        Line("recall", GREEN, scores, curves["recall"], "7 3"),
        Line("F1", ORANGE, scores, curves["f1"], "2 2"),
    ]
    return line_chart(lines, "minimum score (0 to 1)", "share (0 to 1)", marker=marker)


def _errors(errors: dict[str, dict[str, float]]) -> str:
    chart = bar_chart(
        [(name, 100 * errors[name]["dap50"]) for name in _ERRORS],
        "AP50 that they cost (points)",
    )
    rows = [
        [
            f"{name}: {meaning}",
            f"{errors[name]['count']:,}",
            percent(errors[name]["dap50"]),
        ]
        for name, meaning in _ERRORS.items()
    ]
    head = ["error", "count", "costs AP50"]
    rows_of_errors = table(head, rows, kind="words")
    figure = f'<div class="beside"><figure>{chart}</figure>{rows_of_errors}</div>'
    return (
        "<p>As TIDE (Bolya et al. 2020) defines them, of detections of all scores: an "
        "error costs what AP50 gains when an oracle mends all errors of its kind, and "
        f"no others. The costs do not add up.</p>{figure}"
    )


def _confusion(confusion: dict[str, Any]) -> str:
    names, matrix = confusion["classes"], confusion["matrix"]
    head = ["true class", *names]
    rows = []
    for row, counts in enumerate(matrix):
        total = max(sum(counts), 1)
        cells = [f"<td>{escape(names[row])}</td>"]
        for column, count in enumerate(counts):
            color = "29,95,166" if row == column else "184,72,10"
            # Light enough for dark digits.
            shade = f' style="background:rgba({color},{0.45 * count / total:.2f})"'
            cells.append(f"<td{shade if count else ''}>{count or ''}</td>")
        rows.append(f"<tr>{''.join(cells)}</tr>")
    top = sorted(
        (
            (-count, names[row], names[column])
            for row, counts in enumerate(matrix[:-1])
            for column, count in enumerate(counts[:-1])
            if row != column and count
        )
    )
    listed = "; ".join(
        f"{escape(true)} taken for {escape(taken)} ({-count:,})"
        for count, true, taken in top[:_CONFUSIONS]
    )
    return (
        f"<p>Of detections with a score of {confusion['min_score']:.3f} or more, best "
        "first, each is matched to the remaining object, of whatever class, that it "
        f"overlaps most, with an IoU of {confusion['iou']} at least. Last column: "
        "missed objects; last row: detections of nothing. Detections in crowds of "
        "their class are left out.</p>"
        + (f"<p>Most often confused: {listed}.</p>" if listed else "")
        + f'<div class="scroll"><table><tr>{heads(head)}</tr>{"".join(rows)}'
        + "</table></div>"
        + "<p>Columns: detected class. Shades: share of the row.</p>"
    )


def _picture_section(
    own: dict[str, Any], pictures: Sequence[ErrorPicture | None]
) -> str:
    parts = [
        '<h2 id="pictures">Worst pictures</h2><p>Those with most missed objects and '
        f"false detections, of a score of {own['min_score']:.3f} or more, at an IoU of "
        "0.5. First the truth, missed objects in red with an x; then the "
        "detections, false ones in red with an x. What is right is green, "
        "crowds are gray.</p>"
    ]
    for number, (one, picture) in enumerate(
        zip(own["worst_images"], pictures, strict=True), 1
    ):
        name = str(one["image_id"]) if picture is None else picture.file_name
        parts.append(
            f"<h3>{number}. {escape(name)}: {one['missed']} missed, {one['false']} "
            "false</h3>"
        )
        if picture is None:
            parts.append("<p>This image could not be read.</p>")
            continue
        images = ((picture.truth, "truth"), (picture.detections, "detections"))
        parts.append(
            '<div class="pair">'
            + "".join(
                f'<div class="scroll"><img alt="{text}" src="data:image/jpeg;base64,'
                f'{base64.b64encode(data).decode()}"></div>'
                for data, text in images
            )
            + "</div>"
        )
    if not own["worst_images"]:
        parts.append("<p>No image has an error.</p>")
    return "\n".join(parts)
