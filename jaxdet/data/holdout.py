"""Sets a share of a data set's images aside, to validate on."""

import hashlib
import logging
import re

import numpy as np

from jaxdet.data.dataset import DataError, DataSet, file_names, subset

SHARE = 0.1
"""Of the images, by default."""

logger = logging.getLogger(__name__)


def hold_out(data_set: DataSet, share: float = SHARE) -> tuple[DataSet, DataSet | None]:
    """Divides a data set into images to train on and images to validate on.

    Which of them an image is in depends on its file name alone, not on the order or the
    number of the others; but at least one image is in each. Roboflow's augmented copies
    of one image, `a_jpg.rf.1f3a.jpg`, are together. Where the source gives no file
    name, the image id takes its place.

    Args:
      data_set: what to divide.
      share: of the images, about, to validate on; 0: none.

    Returns:
      Images to train on and images to validate on; all and None where the share is 0,
      or there is one image only.

    Raises:
      DataError: the share is out of range.
    """
    if not 0 <= share < 1:
        raise DataError(
            f"validation_share is {share}; allowed: 0, or a number between 0 and 1"
        )
    hashes = np.array([_hash(name) for name in file_names(data_set)] if share else [])
    distinct = np.unique(hashes)
    if len(distinct) < 2:
        logger.info("%s: no images are set aside to validate on", data_set.name)
        return data_set, None
    chosen = hashes <= np.clip(share, distinct[0], distinct[-2])
    logger.info(
        "%s: %d of %d images, chosen by their names, are set aside to validate on "
        "(validation_share %g; 0: none)",
        *(data_set.name, chosen.sum(), len(chosen), share),
    )
    return (
        subset(data_set, np.flatnonzero(~chosen), f"{data_set.name}, training part"),
        subset(data_set, np.flatnonzero(chosen), f"{data_set.name}, validation part"),
    )


def _hash(name: str) -> float:
    """Returns a number in [0, 1) that depends on the name alone."""
    original = re.sub(r"\.rf\.\w+(\.\w+)?$", "", name)
    digest = hashlib.sha256(original.encode(errors="surrogatepass")).digest()
    return int.from_bytes(digest[:6]) / 2**48
