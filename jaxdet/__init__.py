"""Object detection in JAX: a detector is three pure functions.

The names below are the public surface; each is imported when it is first used, so that
`import jaxdet` costs nothing and needs no package that is not used.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxdet.data.input_config import InputConfig
    from jaxdet.detectors.detector import Detector
    from jaxdet.detectors.fast_rcnn import fast_rcnn
    from jaxdet.detectors.faster_rcnn import faster_rcnn
    from jaxdet.detectors.fcos import fcos
    from jaxdet.detectors.image_pyramid import image_pyramid
    from jaxdet.detectors.mask_rcnn import mask_rcnn
    from jaxdet.detectors.rcnn import rcnn
    from jaxdet.detectors.retinanet import retinanet
    from jaxdet.detectors.rpn import rpn
    from jaxdet.detectors.sppnet import sppnet
    from jaxdet.detectors.ssd import ssd
    from jaxdet.evaluation.evaluate import evaluate
    from jaxdet.inference.load import load
    from jaxdet.structs import Batch, Detections, GroundTruth, Regions
    from jaxdet.training.config import TrainingConfig
    from jaxdet.training.train import train

__all__ = [
    "Batch",
    "Detections",
    "Detector",
    "GroundTruth",
    "InputConfig",
    "Regions",
    "TrainingConfig",
    "evaluate",
    "fast_rcnn",
    "faster_rcnn",
    "fcos",
    "image_pyramid",
    "load",
    "mask_rcnn",
    "rcnn",
    "retinanet",
    "rpn",
    "sppnet",
    "ssd",
    "train",
]
_MODULES = {
    "Batch": "structs",
    "Detections": "structs",
    "Detector": "detectors.detector",
    "GroundTruth": "structs",
    "InputConfig": "data.input_config",
    "Regions": "structs",
    "TrainingConfig": "training.config",
    "evaluate": "evaluation.evaluate",
    "fast_rcnn": "detectors.fast_rcnn",
    "faster_rcnn": "detectors.faster_rcnn",
    "fcos": "detectors.fcos",
    "image_pyramid": "detectors.image_pyramid",
    "load": "inference.load",
    "mask_rcnn": "detectors.mask_rcnn",
    "rcnn": "detectors.rcnn",
    "retinanet": "detectors.retinanet",
    "rpn": "detectors.rpn",
    "sppnet": "detectors.sppnet",
    "ssd": "detectors.ssd",
    "train": "training.train",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'jaxdet' has no attribute {name!r}")
    return getattr(importlib.import_module(f"jaxdet.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_MODULES])
