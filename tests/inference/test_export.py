"""Exported detectors detect the same, from one file, without their networks."""

import importlib
import io
import json
import pathlib
import re
import subprocess
import sys
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import experiments.export
from experiments import detect
from jaxdet.data.dataset import DataError, Proposals
from jaxdet.data.input_config import InputConfig
from jaxdet.detectors.detector import Detector
from jaxdet.inference import export, load, preprocess
from jaxdet.inference.preprocess import ResizeSpec
from jaxdet.structs import Detections
from jaxdet.weights.published import TrainedDetector
from tests.detectors import laws, scenes
from tests.detectors.test_deformable_detr import small_deformable_detr
from tests.detectors.test_detr import small_detr
from tests.detectors.test_mask_rcnn import small_mask_rcnn
from tests.detectors.test_retinanet import small_retinanet

ROOT = pathlib.Path(__file__).parents[2]
for tests_of_one in sorted((ROOT / "tests" / "detectors").glob("test_*.py")):
    importlib.import_module(f"tests.detectors.{tests_of_one.stem}")
LAWFUL = {
    f"{tests.__module__}.{tests.__name__}": tests
    for tests in laws.DetectorLaws.__subclasses__()
}
CANVASES = ((64, 64), (32, 96))
NAMES = ("a", "b", "c")


def trained(detector, variables, **fields):
    config = InputConfig(**{"canvases": CANVASES} | fields)
    return TrainedDetector(detector, variables, config, NAMES, (7, 8, 9), "")


@pytest.fixture(scope="module")
def retinanet():
    """One that finds something everywhere."""
    detector = small_retinanet()
    shapes = jax.eval_shape(detector.init, jax.random.key(0), scenes.batch())
    rng = np.random.default_rng(0)
    variables = jax.tree.map(
        lambda x: rng.normal(0, 0.2, x.shape).astype(np.float32), shapes
    )
    return trained(detector, variables, canvases=((64, 64),))


@pytest.fixture(scope="module")
def file(retinanet, tmp_path_factory):
    file = tmp_path_factory.mktemp("export") / "model.jaxdet"
    export.save(file, retinanet)
    return file


def with_zeros(detector):
    """Its variables, without compiling how they are drawn."""
    shapes = jax.eval_shape(detector.init, jax.random.key(0), scenes.batch())
    return jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)


@pytest.mark.parametrize("tests", LAWFUL.values(), ids=LAWFUL)
def test_every_detector_is_lowered_for_every_platform(tests, tmp_path):
    detector = tests.make(jnp.float32)
    regions = {"max_regions": 16, "canvases": ((64, 64),)}
    export.save(tmp_path / "model", trained(detector, with_zeros(detector), **regions))
    with np.load(tmp_path / "model") as members:
        program = jax.export.deserialize(bytearray(members["programs/64x64"]))
    assert program.platforms == ("cpu", "cuda", "tpu")
    boxes, scores, labels, valid = program.out_avals[:4]
    slots = scores.shape
    assert slots[0] == 1 and boxes.shape == (*slots, 4)
    assert labels.shape == valid.shape == slots


def brightest(variables, batch):
    """Each image's own size, scored by how bright it is, and nothing more."""
    corner = batch.sizes[:, ::-1].astype(jnp.float32)
    boxes = jnp.concatenate([0 * corner, corner], axis=1)[:, None]
    scores = jnp.max(batch.images, axis=(1, 2, 3))[:, None] / 255.0
    labels = jnp.ones(scores.shape, jnp.int32)
    return Detections(boxes, scores * variables["scale"], labels, labels > 0)


@pytest.mark.parametrize("count", [0, 1, 3, 7])
def test_images_share_batches_in_any_order(tmp_path, count):
    """Of two canvases, more than fit a batch of 3, and fewer."""
    file = tmp_path / "model"
    brightness = {"scale": np.float32(0.5)}
    detector = Detector(None, None, brightest, num_classes=3)
    export.save(file, trained(detector, brightness), batch_size=3)
    sizes = [(64, 64), (40, 130), (90, 70), (33, 33), (64, 80), (10, 60), (200, 201)]
    images = [
        np.full((*size, 3), 10 * (number + 1), np.uint8)
        for number, size in enumerate(sizes[:count])
    ]
    found = export.make_detect(export.load(file), min_score=0.03)(images)
    assert len(found) == count
    for number, one in enumerate(found):
        if number == 0:  # 5 / 255 is too little
            assert not one.names
            continue
        height, width = sizes[number]
        np.testing.assert_allclose(one.boxes, [[0, 0, width, height]], rtol=1e-5)
        np.testing.assert_allclose(one.scores, 5 * (number + 1) / 255, rtol=1e-5)
        assert one.names == ("b",)


def test_the_file_says_what_it_holds(file):
    artifact = export.load(file)
    assert artifact.detector == "retinanet" and artifact.batch_size == 1
    assert artifact.class_names == NAMES and artifact.category_ids == (7, 8, 9)
    assert artifact.resize == ResizeSpec(canvases=((64, 64),))
    with np.load(file) as members:
        program = jax.export.deserialize(bytearray(members["programs/64x64"]))
    assert program.platforms == ("cpu", "cuda", "tpu")
    assert [path.name for path in file.parent.iterdir()] == ["model.jaxdet"]


def test_the_same_detections_without_networks_and_flax(file, retinanet, tmp_path):
    photo, output = tmp_path / "photo.png", tmp_path / "found"
    pixels = np.random.default_rng(0).integers(0, 256, (90, 120, 3), np.uint8)
    Image.fromarray(pixels).save(photo)
    program = (
        "import sys\n"
        "from experiments import command_line, detect\n"
        "command_line.run(detect.main)\n"
        "print(*sys.modules)\n"
    )
    options = ["--artifact", file, "--output", output, "--min-score", "0"]
    command = [sys.executable, "-c", program, photo, *options]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert not process.returncode, process.stderr
    imported = set(process.stdout.splitlines()[-1].split())
    heavy = {"flax", "optax", "orbax", "chex", "jaxdet.nn", "jaxdet.detectors"}
    assert "jaxdet.inference.export" in imported and not heavy & imported
    found = json.loads((output / "detections.json").read_text())["annotations"]
    expected = load.make_detect(retinanet)(pixels)
    assert len(found) == len(expected.names) > 5
    assert [one["category_id"] for one in found] == list(expected.labels + 7)
    scores = [one["score"] for one in found]
    np.testing.assert_allclose(scores, expected.scores, rtol=1e-5)
    boxes = np.array([one["bbox"] for one in found])
    boxes[:, 2:] += boxes[:, :2]
    np.testing.assert_allclose(boxes, expected.boxes, rtol=1e-4, atol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "std"),
    [(small_mask_rcnn, 0.2), (small_detr, 0.5), (small_deformable_detr, 0.2)],
    ids=["mask_rcnn", "detr", "deformable_detr"],
)
def test_detections_are_those_of_predict(tmp_path, make, std):
    """Of two images at once, with other sizes than their canvas."""
    detector = make()
    rng = np.random.default_rng(0)
    variables = jax.tree.map(
        lambda x: rng.normal(0, std, x.shape).astype(np.float32), with_zeros(detector)
    )
    exported = trained(detector, variables, canvases=((64, 64),))
    export.save(tmp_path / "model", exported, batch_size=2)
    batch = scenes.batch(counts=(3, 1))
    arrays = {name: getattr(batch, name) for name in ("images", "sizes", "scales")}
    found = export.load(tmp_path / "model").predict(arrays)
    expected = jax.jit(detector.predict)(variables, batch)
    assert expected.valid.sum() > 5 and np.ptp(expected.scores[expected.valid]) > 0.01
    if detector.has_masks:
        assert np.ptp(expected.masks[expected.valid]) > 0.1
    fields = ("boxes", "scores", "labels", "valid", "masks")
    for name, values in zip(fields, found, strict=True):
        if values is None:
            assert not detector.has_masks
        else:
            np.testing.assert_allclose(values, getattr(expected, name), atol=1e-4)


def from_regions(variables, batch):
    """Each region, a little to the right, with a mask of its upper half."""
    given, ones = batch.regions, jnp.ones((1, 1, 4, 8))
    masks = jnp.concatenate([ones, 0 * ones], axis=2)
    shape = (*given.valid.shape, 8, 8)
    return Detections(
        boxes=given.boxes + variables["params"]["shift"],
        scores=given.scores,
        labels=jnp.zeros(given.valid.shape, jnp.int32),
        valid=given.valid,
        masks=jnp.broadcast_to(masks, shape),
    )


@pytest.mark.parametrize("own", [True, False])
def test_regions_in_and_masks_out(tmp_path, monkeypatch, own):
    shift = np.array([[[2, 0, 2, 0]]], np.float32)
    variables = {"params": {"shift": shift}}
    detector = Detector(None, None, from_regions)  # it tells no classes apart
    file = tmp_path / "deep" / "model"
    export.save(file, trained(detector, variables, max_regions=2))
    boxes = np.array([[10, 20, 30, 60]], np.float32)

    def propose(image, *, max_proposals=2):
        assert max_proposals == 2
        return Proposals(boxes, np.array([0.5], np.float32))

    if not own:
        monkeypatch.setattr(preprocess, "selective_search", propose)
    detect = export.make_detect(export.load(file), propose=propose if own else None)
    (found,) = detect([np.zeros((128, 128, 3), np.uint8)])
    np.testing.assert_allclose(found.boxes, [[14, 20, 34, 60]])
    assert found.names == ("object",)
    assert found.masks.shape == (1, 128, 128)
    assert found.masks[0, 22:37, 16:32].all() and not found.masks[0, 43:].any()


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"batch_size": 0}, "batch_size is 0"),
        ({"canvases": ()}, r"canvases is \(\)"),
        ({"canvases": ((0, 8),)}, r"canvases is \(\(0, 8\),\)"),
    ],
)
def test_what_cannot_be_exported(retinanet, tmp_path, options, problem):
    with pytest.raises(DataError, match=problem):
        export.save(tmp_path / "model", retinanet, **options)
    assert not list(tmp_path.iterdir())


def changed(file, to, **members):
    """A copy of the file with other members."""
    with np.load(file) as stored, to.open("wb") as stream:
        np.savez(stream, **dict(stored) | members)


def about(file, **fields):
    with np.load(file) as stored:
        known = json.loads(stored["about"].tobytes())
    return np.frombuffer(json.dumps(known | fields).encode(), np.uint8)


def test_files_of_something_else(file, tmp_path):
    other = tmp_path / "other.jaxdet"
    for content in (None, b"", b"no zip", file.read_bytes()[:-100]):
        if content is not None:
            other.write_bytes(content)
        with pytest.raises(DataError, match=r"other\.jaxdet: no exported detector"):
            export.load(other)
    for members, problem in (
        ({"about": about(file, version=1)}, r"version 1; this jaxdet reads .* 2"),
        ({"about": about(file, format="soup")}, "'soup'"),
        ({"about": about(file, resize=None)}, r"'about' is .*damaged"),
        ({"about": about(file, resize={"canvases": []})}, r"'about' is .*damaged"),
        (
            {"programs/64x64": np.zeros(50, np.uint8)},
            r"'programs/64x64' is .* another jax",
        ),
    ):
        changed(file, other, **members)
        with pytest.raises(DataError, match=rf"other\.jaxdet: .*{problem}"):
            export.load(other)


@pytest.mark.parametrize("kind", ["about", "programs/", "weights/"])
def test_a_missing_member_is_named(file, tmp_path, kind):
    other = tmp_path / "other.jaxdet"
    with np.load(file) as stored, other.open("wb") as stream:
        gone = next(name for name in stored if name.startswith(kind))
        np.savez(stream, **{name: stored[name] for name in stored if name != gone})
    with pytest.raises(DataError, match=rf"other\.jaxdet: .*'{gone}'.* missing"):
        export.load(other)


def test_a_damaged_member_is_named(file, tmp_path):
    other = tmp_path / "other.jaxdet"
    with np.load(file) as stored:
        name = next(name for name in stored if name.startswith("weights/"))
        shape = list(stored[name].shape)
    content = bytearray(file.read_bytes())
    content[content.index(f"{name}.npy".encode()) + 300] ^= 1  # after NumPy's header
    other.write_bytes(content)
    with pytest.raises(DataError, match=rf"other\.jaxdet: cannot read {name} .*CRC"):
        export.load(other)
    changed(file, other, **{name: np.zeros(7, np.int32)})
    problem = rf"'{name}' is .*it is int32\[7\], .*float32{re.escape(str(shape))}"
    with pytest.raises(DataError, match=problem):
        export.load(other)


def test_sizes_are_checked_before_anything_is_read(file, tmp_path, monkeypatch):
    """Neither small files that grow, nor shapes without bytes, take memory."""
    bomb, cut = tmp_path / "bomb.jaxdet", tmp_path / "cut.jaxdet"
    with bomb.open("wb") as stream:
        np.savez_compressed(stream, about=np.zeros(10**6, np.uint8))
    header = io.BytesIO()
    about = {"descr": "|u1", "fortran_order": False, "shape": (10**12,)}
    np.lib.format.write_array_header_1_0(header, about)
    with zipfile.ZipFile(cut, "w") as members:
        members.writestr("about.npy", header.getvalue() + b"{}")
    monkeypatch.setattr(np, "load", None)
    with pytest.raises(DataError, match=r"bomb\.jaxdet: .*about\.npy is compressed"):
        export.load(bomb)
    problem = r"about\.npy is uint8\[1000000000000\], of \d+ bytes, but has 2"
    with pytest.raises(DataError, match=rf"cut\.jaxdet: .*{problem}"):
        export.load(cut)


def test_another_platform(file, monkeypatch):
    monkeypatch.setattr(jax.export, "default_export_platform", lambda: "rocm")
    with pytest.raises(DataError, match="made for cpu, cuda, tpu; here it is rocm"):
        export.load(file)


def test_the_command_takes_all_sources(monkeypatch, tmp_path, retinanet):
    saved = []

    def save(file, trained, canvases, batch_size):
        file.write_bytes(b"12345")
        saved.append((trained, canvases, batch_size))

    resized = trained(retinanet.detector, {}, min_max_size=(800, 1333))
    run, weights = pathlib.Path("run"), pathlib.Path("w.pth")
    sources = {"ssd_mobilenet_v2": retinanet, weights: resized, run: resized}
    monkeypatch.setattr(export, "save", save)
    monkeypatch.setattr(load, "load_detector", lambda source, step: sources[source])
    output, main = tmp_path / "model", experiments.export.main
    main(output=output, batch_size=4)
    main(weights=weights, output=output)
    main(weights=weights, output=output, canvases=((1344, 1344),))
    main(run, step=3, output=output)
    assert saved == [
        (retinanet, None, 4),
        (resized, ((800, 1344), (1344, 800)), 1),
        (resized, ((1344, 1344),), 1),
        (resized, None, 1),
    ]
    with pytest.raises(DataError, match=r"w\.pth and the run folder run"):
        main(run, weights=weights)


def test_detect_asks_one_detector(tmp_path):
    options = {"weights": tmp_path / "w.pth", "artifact": tmp_path / "model"}
    with pytest.raises(DataError, match=r"--artifact .*model and --weights .*w\.pth"):
        detect.main((tmp_path,), **options)
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.json").touch()
    with pytest.raises(DataError, match=r"--artifact .*model and the run folder"):
        detect.main((run, tmp_path), artifact=tmp_path / "model")


@pytest.mark.slow
def test_errors_without_networks_are_one_message(tmp_path):
    program = (
        "import sys\n"
        "sys.modules.update(dict.fromkeys(('flax', 'orbax', 'optax', 'chex')))\n"
        "from experiments import command_line, detect\n"
        "command_line.run(detect.main)\n"
    )
    photo = tmp_path / "photo.png"
    Image.new("RGB", (8, 8)).save(photo)
    command = [sys.executable, "-c", program, photo, "--artifact", "missing.jaxdet"]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert process.returncode == 1
    assert process.stderr.startswith("error: ") and "missing.jaxdet" in process.stderr
