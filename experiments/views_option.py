"""The options that make a detector look at more than one view of an image."""

import dataclasses
from typing import TYPE_CHECKING, Literal

from jaxdet.config import ConfigError
from jaxdet.data.dataset import DataError
from jaxdet.inference.tiles import TilesConfig

if TYPE_CHECKING:  # it imports flax, which an exported detector does not need
    from jaxdet.weights.published import TrainedDetector

FUSION_IOU = 0.65
"""Measured best with SSD-MobileNetV2 and its mirror images; the paper has 0.55."""


@dataclasses.dataclass(frozen=True)
class ViewsOption:
    """Views of an image to detect in."""

    tiles: int | None = None
    """Detect in tiles of so many pixels a side, too, such as 640: for small objects in
    large images. Larger images than a tile are cut."""
    overlap: float | None = None
    """What neighboring tiles share, of a side; 0.2 if not given."""
    flip: bool = False
    """Detect in the mirror image, too."""
    scales: tuple[float, ...] = ()
    """Detect at so many times the canvas, such as 0.5 1 2, instead of once; not for
    SSDs whose strides fit their canvas alone, as the pretrained one's."""
    merge: Literal["nms", "wbf"] | None = None
    """How detections of `--flip` and `--scales` are merged: non-maximum suppression,
    also if not given, or weighted box fusion."""

    def __str__(self) -> str:
        """Returns the options as they are typed; of one view none."""
        options = {"tiles": self.tiles, "overlap": self.overlap, "merge": self.merge}
        typed = [f"--{name} {x}" for name, x in options.items() if x is not None]
        if self.flip:
            typed.append("--flip")
        if self.scales:
            typed.append(f"--scales {' '.join(f'{x:g}' for x in self.scales)}")
        return " ".join(typed)

    def tiles_config(self, **fields: int) -> TilesConfig | None:
        """Returns how images are cut, with further fields; None without `--tiles`.

        Raises:
          DataError: for numbers out of range, or an overlap of no tiles.
        """
        if self.tiles is None:
            if self.overlap is not None:
                raise DataError(f"--overlap {self.overlap} without --tiles")
            return None
        if self.overlap is not None:
            fields["overlap"] = self.overlap
        try:
            return TilesConfig(size=self.tiles, **fields)
        except ConfigError as error:
            raise DataError(f"--tiles {self.tiles}: {error}") from error

    def check_artifact(self) -> None:
        """Checks that nothing is asked that an exported detector cannot do.

        Raises:
          DataError: for options that change its program.
        """
        if self.flip or self.scales:
            raise DataError(
                "--flip and --scales are for run folders and --weights; an exported "
                "detector (--artifact) takes --tiles alone"
            )

    def apply(self, trained: "TrainedDetector") -> "TrainedDetector":
        """Returns a detector that predicts at all scales and in the mirror image.

        Raises:
          DataError: for numbers out of range, a way to merge one view, and boxes to
            fuse that have masks.
        """
        from jaxdet.detectors.image_pyramid import ImagePyramidConfig, image_pyramid

        if not (self.flip or self.scales):
            if self.merge is not None:
                raise DataError(f"--merge {self.merge} without --flip or --scales")
            return trained
        if self.merge == "wbf" and trained.detector.has_masks:
            raise DataError(
                "--merge wbf averages boxes, which the detector's masks would not fit; "
                "allowed: nms"
            )
        fusion_iou = FUSION_IOU if self.merge == "wbf" else None
        try:
            config = ImagePyramidConfig(
                scales=self.scales or (1.0,), flip=self.flip, fusion_iou=fusion_iou
            )
        except ConfigError as error:
            raise DataError(f"--scales {self.scales}: {error}") from error
        return trained._replace(detector=image_pyramid(trained.detector, config))


ONE_VIEW = ViewsOption()
