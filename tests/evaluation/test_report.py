import math

from jaxdet.evaluation import coco
from jaxdet.evaluation.report import format_metrics


def test_metrics_are_rows_of_six_and_classes_rows_of_their_own():
    metrics = dict.fromkeys(coco.NAMES, 0.1234) | {
        "AP": 1.0,
        "APs": math.nan,
        "recall@0.5/1000": 1.0,
        "mask/AP": 0.25,
        "AP/cat": 0.0,
        "mask/AP/zebra": 0.5,
    }
    assert format_metrics(metrics) == "\n".join(
        [
            "    AP   AP50   AP75    APs    APm    APl",
            " 100.0   12.3   12.3      -   12.3   12.3",
            "   AR1   AR10  AR100    ARs    ARm    ARl",
            "  12.3   12.3   12.3   12.3   12.3   12.3",
            "recall@0.5/1000 mask/AP",
            "          100.0    25.0",
            "AP/cat           0.0",
            "mask/AP/zebra   50.0",
        ]
    )
