"""Writes a trained detector as an ONNX file, NMS included, by jax2onnx.

Inputs are what `preprocess` makes of images: `images` `[B, H, W, 3]`, `sizes` `[B, 2]`
int32 and `scales` `[B, 2]` float32; outputs are `boxes` `[B, D, 4]` in pixels of the
canvas, `scores`, `labels` and `valid` `[B, D]`. Its metadata has `class_names`,
`category_ids` and `keep_aspect`, as json.
"""

import functools
import json
import logging
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import jax
import numpy as np

from jaxdet.data.dataset import DataError
from jaxdet.data.files import write_atomically
from jaxdet.inference.export import predict_arrays
from jaxdet.inference.onnx_operators import evaluate
from jaxdet.inference.preprocess import ResizeSpec, preprocess

if TYPE_CHECKING:
    from jaxdet.weights.published import TrainedDetector

REQUIREMENT = "-r requirements.txt jax2onnx onnxruntime"
"""What to tell pip, in an environment of its own: it wants an older orbax-checkpoint
than pip has chosen for jaxdet alone."""

OUTPUTS = ("boxes", "scores", "labels", "valid")
BOX_TOLERANCE, SCORE_TOLERANCE = 0.1, 1e-3
"""By how many pixels, and by what score, onnxruntime may differ from JAX."""


def save(
    file: str | os.PathLike,
    trained: "TrainedDetector",
    image: np.ndarray,
    *,
    canvas: tuple[int, int],
    batch_size: int = 1,
) -> int:
    """Writes `predict` for a canvas, once onnxruntime detects the same as JAX.

    Args:
      file: its path; it gets its name only when it is complete.
      trained: the `TrainedDetector`.
      image: `[H, W, 3]` uint8 RGB, on which both are compared.
      canvas: (height, width).
      batch_size: images at a time.

    Returns:
      The number of detections in the image.

    Raises:
      DataError: if jax2onnx is not installed, if the detector needs proposals or finds
        masks, if it detects nothing in the image, or onnxruntime something else.
    """
    try:
        import jax2onnx  # noqa: F401
        import onnxruntime
    except ImportError as error:
        raise DataError(f"{error}: pip install {REQUIREMENT}") from error
    resize = ResizeSpec.of_input(trained.input)
    if resize.max_regions or trained.detector.has_masks:
        raise DataError("ONNX: proposals and masks are not supported")
    one = resize._replace(canvases=(canvas,), min_max_size=None)
    arrays = preprocess(image, one)
    arrays = {name: np.repeat(x, batch_size, axis=0) for name, x in arrays.items()}
    variables = jax.device_put(trained.variables)
    predict = functools.partial(predict_arrays, trained.detector.predict)
    expected = jax.device_get(jax.jit(predict)(variables, arrays)[:4])
    count = int(expected[3][0].sum())
    if not count:
        raise DataError(
            "ONNX: nothing is detected in the picture, so nothing can be compared; "
            "name one with objects as --picture"
        )
    content = _convert(functools.partial(predict, variables), arrays, trained)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # it warns of every unused constant
    session = onnxruntime.InferenceSession(content, options)
    wanted = {one.name: arrays[one.name] for one in session.get_inputs()}
    compare(session.run(list(OUTPUTS), wanted), expected)
    file = pathlib.Path(file)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(file, lambda stream: stream.write(content))
    return count


def compare(found: Sequence[np.ndarray], expected: Sequence[np.ndarray]) -> None:
    """Compares the detections of a batch: each one must be among the others.

    The order may differ, as that of equal scores does.

    Args:
      found: boxes, scores, labels and valid; see `OUTPUTS`.
      expected: the same.

    Raises:
      DataError: if there are others, by label, `BOX_TOLERANCE` or `SCORE_TOLERANCE`.
    """
    for ours, others in zip(
        zip(*found, strict=True), zip(*expected, strict=True), strict=True
    ):
        boxes, scores, labels = (x[ours[3]] for x in ours[:3])
        other_boxes, other_scores, other_labels = (x[others[3]] for x in others[:3])
        same = labels[:, None] == other_labels
        same &= np.abs(scores[:, None] - other_scores) <= SCORE_TOLERANCE
        same &= np.abs(boxes[:, None] - other_boxes).max(2) <= BOX_TOLERANCE
        alone = int((~same.any(0)).sum()), int((~same.any(1)).sum())
        if any(alone) or len(labels) != len(other_labels):
            raise DataError(
                f"onnxruntime's {len(labels)} detections are not JAX's "
                f"{len(other_labels)}: {alone[0]} of JAX's are missing, {alone[1]} are "
                f"others (by label, {BOX_TOLERANCE} pixels or a score of "
                f"{SCORE_TOLERANCE})"
            )


def _convert(
    predict: Callable[[dict], tuple],
    arrays: dict[str, np.ndarray],
    trained: "TrainedDetector",
) -> bytes:
    """Returns the ONNX file of `predict`, with the classes of the detector."""
    import jax2onnx

    logging.getLogger("onnx_ir").setLevel(logging.ERROR)  # of types that it infers
    specs = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in arrays.values()]
    traced = jax.make_jaxpr(
        lambda *values: predict(dict(zip(arrays, values, strict=True)))[:4]
    )(*specs)
    model = jax2onnx.to_onnx(
        lambda *values: tuple(evaluate(traced, *values)),
        specs,
        model_name="jaxdet",
        input_names=list(arrays),
        output_names=list(OUTPUTS),
    )
    about = {
        "class_names": trained.class_names,
        "category_ids": trained.category_ids,
        "keep_aspect": trained.input.keep_aspect,
    }
    for name, value in about.items():
        model.metadata_props.add(key=name, value=json.dumps(value))
    return model.SerializeToString()
