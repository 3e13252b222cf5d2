"""Writes a trained detector as an ONNX file, NMS included, by jax2onnx.

Inputs are what `preprocess` makes of images: `images` `[B, H, W, 3]`, `sizes` `[B, 2]`
int32 and `scales` `[B, 2]` float32; outputs are `boxes` `[B, D, 4]` in pixels of the
canvas, `scores`, `labels` and `valid` `[B, D]`.
"""

import json
import os
import pathlib
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from jaxdet.data.dataset import DataError
from jaxdet.data.files import write_atomically
from jaxdet.inference.export import predict_arrays
from jaxdet.inference.onnx_operators import evaluate
from jaxdet.inference.preprocess import ResizeSpec, preprocess

if TYPE_CHECKING:
    from jaxdet.weights.published import TrainedDetector

REQUIREMENT = "jax2onnx onnxruntime"
"""What to tell pip, in an environment of its own: it wants another orbax-checkpoint."""

OUTPUTS = ("boxes", "scores", "labels", "valid")
TOLERANCE = 0.1
"""Pixels by which onnxruntime's boxes may differ from JAX's."""


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
        masks, or if onnxruntime detects something else.
    """
    file = pathlib.Path(file)
    file.parent.mkdir(parents=True, exist_ok=True)
    try:
        import jax2onnx
        import onnxruntime
    except ImportError as error:
        raise DataError(f"{error}: pip install {REQUIREMENT}") from error
    resize = ResizeSpec.of_input(trained.input)
    if resize.max_regions or trained.detector.has_masks:
        raise DataError("ONNX: proposals and masks are not supported")
    one = resize._replace(canvases=(canvas,), min_max_size=None)
    arrays = preprocess(image, one)
    arrays = {name: np.repeat(x, batch_size, axis=0) for name, x in arrays.items()}

    def predict(*values: Any) -> tuple:
        named = dict(zip(arrays, values, strict=True))
        return predict_arrays(trained.detector.predict, trained.variables, named)[:4]

    specs = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in arrays.values()]
    traced = jax.make_jaxpr(predict)(*specs)
    model = jax2onnx.to_onnx(
        lambda *values: tuple(evaluate(traced, *values)),
        specs,
        model_name="jaxdet",
        input_names=list(arrays),
        output_names=list(OUTPUTS),
    )
    about = {"class_names": trained.class_names, "category_ids": trained.category_ids}
    for name, value in about.items():
        model.metadata_props.add(key=name, value=json.dumps(value))
    content = model.SerializeToString()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # it warns of every unused constant
    session = onnxruntime.InferenceSession(content, options)
    wanted = {one.name: arrays[one.name] for one in session.get_inputs()}
    found = session.run(list(OUTPUTS), wanted)
    compare(found, jax.device_get(predict(*arrays.values())))
    write_atomically(file, lambda stream: stream.write(content))
    return int(found[3][0].sum())


def compare(found: list[np.ndarray], expected: tuple) -> None:
    """Compares detections, boxes, scores, labels and valid, of one batch.

    Raises:
      DataError: if labels or their order differ, or boxes by more than `TOLERANCE`.
    """
    boxes = np.abs(found[0] - expected[0]).max(initial=0)
    scores = np.abs(found[1] - expected[1]).max(initial=0)
    same = all(np.array_equal(found[i], expected[i]) for i in (2, 3))
    if not (same and boxes <= TOLERANCE):
        raise DataError(
            f"onnxruntime's detections differ from JAX's: boxes by {boxes:.3g} pixels, "
            f"scores by {scores:.3g}, labels are {'the same' if same else 'others'}"
        )
