"""Turns folders of images and annotations into one data set that TFDS reads."""

import collections
import concurrent.futures
import io
import json
import os
import pathlib
import re
import tempfile
from collections.abc import Iterator, Mapping

import numpy as np
import tensorflow_datasets as tfds
from tqdm import tqdm

from jaxdet.data.annotations import clip_to_image
from jaxdet.data.dataset import DataError, DataSet
from jaxdet.data.formats.tfds import load_directory

_VERSION = "1.0.0"
_SHARD = 2000  # images a file: of COCO's, 300 MB


def save(
    splits: Mapping[str, DataSet], data_dir: str | os.PathLike, name: str
) -> pathlib.Path:
    """Writes data sets as the splits of one that TFDS might have prepared.

    Image files are stored as they are; boxes, classes, crowds (difficult objects among
    them) and areas in the features that TFDS's COCO has. Where the data sets have
    masks, the segmentations of their `ground_truth()` are stored too. Labels become the
    category ids. All images are decoded before anything is written; and the set is not
    in its place before it is whole, and indexed.

    Args:
      splits: by name, data sets of image files with the same classes; all or none of
        them with masks.
      data_dir: where TFDS keeps data sets; this becomes the folder `<name>/1.0.0`.
      name: as `tfds.load(name, split, data_dir=data_dir)` takes it.

    Returns:
      The folder, for `tfds.load_directory`.

    Raises:
      DataError: the folder is there, a name is not allowed, the data sets do not fit
        together, or an image is broken.
    """
    folder = new_folder(data_dir, name)
    for split in splits:
        _check_name("split", split)
    features = _features(splits)
    for data_set in splits.values():
        _check_images(data_set)
    root = folder.parents[1]
    root.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="unfinished-", dir=root) as unfinished:
        written = pathlib.Path(unfinished) / _VERSION
        written.mkdir()
        _write(splits, features, written, name)
        for split in splits:
            load_directory(written, split)  # leaves the index
        folder.parent.mkdir(exist_ok=True)
        written.rename(folder)
    return folder


def new_folder(data_dir: str | os.PathLike, name: str) -> pathlib.Path:
    """Returns the folder that `save` writes.

    Raises:
      DataError: it is there already, or the name is not allowed.
    """
    _check_name("data set", name)
    try:
        tfds.builder_cls(name)
    except tfds.core.DatasetNotFoundError:
        pass
    else:  # Besides, some of these are read in ways of their own.
        raise DataError(f"the name {name!r} is that of one of TFDS's own data sets")
    folder = pathlib.Path(data_dir).expanduser() / name / _VERSION
    if folder.exists():
        raise DataError(
            f"{folder}: prepared already; delete it to prepare it anew, or give "
            "another name"
        )
    return folder


def _check_name(kind: str, name: str) -> None:
    if not re.fullmatch("[a-z][a-z0-9_]*", name):
        raise DataError(
            f"the {kind} cannot be called {name!r}; allowed: lower case letters, "
            "digits and underscores, a letter first"
        )


def _features(splits: Mapping[str, DataSet]) -> tfds.features.FeaturesDict:
    """Returns an example's features: image ids are numbers if all are; masks if any."""
    class_names = {data_set.class_names for data_set in splits.values()}
    with_masks = {data_set.read_masks is not None for data_set in splits.values()}
    for what, different in (("classes", class_names), ("masks", with_masks)):
        if len(different) > 1:
            raise DataError(
                f"{', '.join(splits)}: one has other {what} than another; allowed: "
                "splits of the same kind"
            )
    for class_name in next(iter(class_names)):
        if class_name.strip() != class_name or len(class_name.splitlines()) != 1:
            raise DataError(
                f"{', '.join(splits)}: a class is called {class_name!r}; allowed: one "
                "line without spaces around it, as TFDS keeps names line by line"
            )
    numbers = all(
        isinstance(image_id, int) and abs(image_id) < 2**63
        for data_set in splits.values()
        for image_id in data_set.image_ids
    )
    thing = {
        "area": np.float32,
        "bbox": tfds.features.BBoxFeature(),
        "label": tfds.features.ClassLabel(names=list(*class_names)),
        "is_crowd": np.bool_,
    }
    if with_masks == {True}:
        thing["segmentation"] = tfds.features.Text()
    return tfds.features.FeaturesDict(
        {
            "image": tfds.features.Image(),
            "image/id": np.int64 if numbers else tfds.features.Text(),
            "objects": tfds.features.Sequence(thing),
        }
    )


def _check_images(data_set: DataSet) -> None:
    """Decodes all images, on all cores."""

    def problem(position: int) -> DataError | None:
        try:
            data_set.read_image(position)
        except DataError as error:
            return error
        return None

    pool = concurrent.futures.ThreadPoolExecutor(os.cpu_count())
    try:
        checked = pool.map(problem, range(len(data_set)))
        label = f"checking {data_set.name}"
        progress = tqdm(checked, label, len(data_set), unit="image", delay=2)
        problems = [error for error in progress if error is not None]
    finally:
        pool.shutdown(cancel_futures=True)  # Ctrl-C need not wait for all images
    if problems:
        raise DataError(
            f"{data_set.name}: {len(problems)} of {len(data_set)} images are broken; "
            f"the first: {problems[0]}"
        )


def _write(
    splits: Mapping[str, DataSet],
    features: tfds.features.FeaturesDict,
    folder: pathlib.Path,
    name: str,
) -> None:
    # Not a builder, which holds every split in memory until its end, or else, from a
    # gigabyte on, needs TensorFlow.
    identity = tfds.core.DatasetIdentity(
        name=name,
        version=tfds.core.Version(_VERSION),
        data_dir=os.fspath(folder),
        module_name=__name__,
    )
    writer = tfds.core.SequentialWriter(
        tfds.core.DatasetInfo(builder=identity, features=features),
        max_examples_per_shard=_SHARD,
        file_format="array_record",
    )
    writer.initialize_splits(list(splits))
    for split, data_set in splits.items():
        examples = _examples(data_set, features)
        label = f"writing {data_set.name}"
        for example in tqdm(examples, label, len(data_set), unit="image", delay=2):
            writer.add_examples({split: [example]})
    writer.close_all()


def _examples(
    data_set: DataSet, features: tfds.features.FeaturesDict
) -> Iterator[dict]:
    with_masks = "segmentation" in features["objects"].feature
    image_id_kind = int if features["image/id"].np_dtype == np.int64 else str
    annotations = collections.defaultdict(list)
    for annotation in data_set.ground_truth()["annotations"]:
        annotations[annotation["image_id"]].append(annotation)
    for position, image_id in enumerate(data_set.image_ids):
        height, width = size = data_set.sizes[position].tolist()
        boxes, labels, crowd = data_set.objects[position]
        corners = boxes[:, [1, 0, 3, 2]] / np.array([height, width, height, width])
        own = [one for one in annotations[image_id] if _has_area(one, size)]
        things = [
            {
                "area": annotation["area"],
                "bbox": tfds.features.BBox(*box),
                "label": label,
                "is_crowd": is_crowd,
            }
            for annotation, box, label, is_crowd in zip(
                own, corners.tolist(), labels.tolist(), crowd.tolist(), strict=True
            )
        ]
        if with_masks:
            for thing, annotation in zip(things, own, strict=True):
                thing["segmentation"] = json.dumps(annotation["segmentation"])
        yield {
            "image": io.BytesIO(data_set.read_encoded(position)),
            "image/id": image_id_kind(image_id),
            "objects": things,
        }


def _has_area(annotation: dict, size: tuple[int, int]) -> bool:
    """Tells whether an annotation's box has area when clipped as `coco.load` does."""
    x, y, width, height = annotation["bbox"]
    corners = np.array([[x, y, x + width, y + height]], np.float64)
    return bool(clip_to_image(corners, size)[1])
