"""Writes a detector as a file for jax: python -m experiments.export runs/quickstart

The file holds weights, class names, how images are prepared, and `predict`, NMS
included, compiled for CPUs, CUDA GPUs and TPUs up to where they differ. Without a run
folder it is SSD-MobileNetV2 of COCO's 80 classes; with `--weights` a published
detector, which is downloaded:

python -m experiments.export --weights fasterrcnn_resnet50_fpn
python -m experiments.detect --artifact model.jaxdet photo.jpg

jax reads programs that a jax of the last six months has written; later, export again.
With `--format onnx` it is an ONNX file for one canvas, of RetinaNet, FCOS, SSD,
Faster R-CNN or a DETR, in an environment of its own that reads the same run folders:

pip install -r requirements.txt jax2onnx onnxruntime
"""

import pathlib
from typing import Literal

import tyro
from skimage import data

from experiments import command_line
from jaxdet.data import image_files
from jaxdet.data.dataset import DataError
from jaxdet.inference import export, load, onnx_export


def main(
    workdir: tyro.conf.Positional[pathlib.Path | None] = None,
    *,
    weights: str | None = None,
    step: int | Literal["best", "latest"] = "best",
    canvases: tuple[tuple[int, int], ...] = (),
    batch_size: int = 1,
    format: Literal["jaxdet", "onnx"] = "jaxdet",
    picture: pathlib.Path | None = None,
    output: pathlib.Path | None = None,
):
    """Writes an exported detector.

    Args:
      workdir: the run folder that training wrote; without one and without `--weights`
        it is the pretrained SSD-MobileNetV2.
      weights: the name of a published detector on COCO, or its checkpoint
        (.pth, .safetensors or .npz), instead of a run.
      step: which checkpoint of the run; "best" is that of the highest AP, or whatever
        its run measured first.
      canvases: (height, width) of each canvas that an image may be put on: a program
        each. If not given, those of the run; of a published detector 800x1344 and
        1344x800, where it has up to 80 that hold their image more tightly.
      batch_size: images at a time, for programs of your own: experiments.detect gives
        it one.
      format: a file for jax, of all canvases, or for ONNX, of the first; the latter is
        written once onnxruntime detects the same as jax in a picture: boxes to 0.1
        pixels, scores to 0.001.
      picture: this picture, with objects for the detector; if not given, a photograph
        of an astronaut.
      output: the file; if not given, model.jaxdet or model.onnx.

    Raises:
      DataError: for a run folder and `weights` together, a batch or canvas without
        images or pixels, and for what ONNX cannot hold or detects otherwise.
    """
    if batch_size < 1:
        raise DataError(f"--batch-size is {batch_size}; it must be at least 1")
    if any(side < 1 for canvas in canvases for side in canvas):
        raise DataError(f"--canvases is {canvases}; sides must be at least 1")
    if workdir is not None and weights is not None:
        raise DataError(
            f"--weights {weights} and the run folder {workdir}; one detector at a time"
        )
    if picture is not None and format != "onnx":
        raise DataError(f"--picture {picture} is for --format onnx alone")
    source = workdir or weights or "ssd_mobilenet_v2"
    trained = load.load_detector(source, step=step)
    if weights is not None and trained.input.min_max_size:
        canvases = canvases or ((800, 1344), (1344, 800))
    output = output or pathlib.Path(f"model.{format}")
    if format == "onnx":
        canvas = (canvases or trained.input.canvases)[0]
        image = data.astronaut() if picture is None else image_files.read(picture)
        count = onnx_export.save(
            output, trained, image, canvas=canvas, batch_size=batch_size
        )
        print(f"canvas {canvas}: onnxruntime detects the same {count} objects as jax")
    else:
        export.save(output, trained, canvases=canvases or None, batch_size=batch_size)
    print(f"{output}: {output.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    command_line.run(main)
