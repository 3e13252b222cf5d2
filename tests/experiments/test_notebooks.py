"""The notebooks: they define nothing, their outputs are small, and every cell runs."""

import ast
import base64
import importlib
import io
import json
import os
import pathlib
import re
import shlex
import sys

import jax
import nbclient
import nbformat
import numpy as np
import pytest
import skimage.data
from IPython.core.inputtransformer2 import TransformerManager
from PIL import Image

from experiments import execute_notebook
from jaxdet.data.files import CACHE_VARIABLE
from jaxdet.data.formats.coco import CATEGORY_IDS, CLASS_NAMES
from jaxdet.structs import Batch
from jaxdet.weights import detectors, published
from tests import optional

FOLDER = pathlib.Path(__file__).parents[2] / "experiments" / "notebooks"
FILES = sorted(FOLDER.glob("*.ipynb"))
SCENES = {"train_images": 8, "validation_images": 4}
# What each parameters cell says instead; "{}" is an empty folder.
SMALL = {
    "anatomy_of_faster_rcnn": {"STEPS": 2, "SCENES": SCENES, "RUN": "{}/run"},
    "coco_val2017": {
        "WEIGHTS": "{}/ssd300_vgg16.npz",
        "DATA": "{}/coco",
        "BATCH_SIZE": 1,
        "PICTURES": "{}/pictures",
    },
    "from_rcnn_to_faster_rcnn": {
        "IMAGES": 2,
        "SIDE": 64,
        "REGIONS": 8,
        "OUTPUT": "{}/timing",
    },
    "quickstart": {"STEPS": 2, "SCENES": SCENES, "RUN": "{}/run"},
    "train_on_your_data": {
        "DATA": "{}/photos",
        "CANVASES": ((64, 64),),
        "STEPS": 2,
        "RECIPE": "retinanet_small",  # the SSD's weights are not everywhere
        "SCENES": SCENES,
        "RUN": "{}/run",
    },
}
# 64 regions of 227x227 pixels an image would take minutes of AlexNet.
FEW_REGIONS = """
import functools
from experiments.lecture import rcnn_timing
rcnn_timing.REGIONS_AN_IMAGE = 4
rcnn_timing.AlexNet = functools.partial(rcnn_timing.AlexNet, width=4)
fully_connected = rcnn_timing.FCHead
rcnn_timing.FCHead = lambda _, **more: fully_connected(16, **more)
"""


@pytest.fixture(params=FILES, ids=lambda file: file.stem)
def notebook(request):
    return request.param.stem, nbformat.read(request.param, as_version=4)


def code_of(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def parsed(source):
    return ast.parse(TransformerManager().transform_cell(source))


def test_notebooks_are_clean_define_nothing_and_open_in_colab(notebook):
    name, notebook = notebook
    nbformat.validate(notebook)
    first = notebook.cells[0]
    address = f"/jaxdet/jaxdet/blob/main/experiments/notebooks/{name}.ipynb"
    assert f"https://colab.research.google.com/github{address}" in first.source
    definitions = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)
    for cell in code_of(notebook):
        for node in ast.walk(parsed(cell.source)):
            assert not isinstance(node, definitions), cell.source


# Without outputs: it takes COCO, which is not downloaded.
NOT_EXECUTED = {"coco_val2017"}


def test_outputs_are_small_whole_and_of_no_one_machine(notebook):
    name, notebook = notebook
    cells = code_of(notebook)
    assert (FOLDER / f"{name}.ipynb").stat().st_size < 300_000
    executed = [cell.execution_count is not None for cell in cells]
    assert executed == [name not in NOT_EXECUTED] * len(cells)
    outputs = [output for cell in cells for output in cell.outputs]
    if name not in NOT_EXECUTED:
        assert any("image/jpeg" in output.get("data", {}) for output in outputs)
    for output in outputs:
        kind, data = output.output_type, output.get("data", {})
        assert kind in ("stream", "display_data", "execute_result")
        assert output.get("name") != "stderr" and "image/png" not in data
        text = output.get("text", data.get("text/plain", ""))
        assert not re.search("/(root|home|tmp|work|Users)/| at 0x", text), text
    assert all("execution" not in cell.metadata for cell in cells)


@pytest.mark.slow
def test_executing_keeps_small_outputs(tmp_path):
    cells = [
        "import pathlib; print('text'); print(pathlib.Path.home() / 'cache')",
        "import sys; print('progress', file=sys.stderr)",
        "from PIL import Image; Image.new('RGB', (1600, 900), 'white')",
    ]
    cells = [nbformat.v4.new_code_cell(cell) for cell in cells]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / "a.ipynb")
    execute_notebook.main(tmp_path / "a.ipynb")
    text, nothing, picture = code_of(nbformat.read(tmp_path / "a.ipynb", as_version=4))
    assert [output.text for output in text.outputs] == ["text\n"]
    assert not nothing.outputs
    (data,) = (output.data for output in picture.outputs)
    assert list(data) == ["image/jpeg"]
    encoded = io.BytesIO(base64.b64decode(data["image/jpeg"]))
    assert Image.open(encoded).size == (480, 270)


def test_what_notebooks_import_is_there(notebook):
    for cell in code_of(notebook[1]):
        for node in ast.walk(parsed(cell.source)):
            if isinstance(node, ast.ImportFrom):
                module = importlib.import_module(node.module)
                for alias in node.names:
                    if not hasattr(module, alias.name):
                        importlib.import_module(f"{node.module}.{alias.name}")


def test_the_first_cell_of_all_is_the_same():
    notebooks = [nbformat.read(file, as_version=4) for file in FILES]
    assert {file.stem for file in FILES} == set(SMALL)
    assert len({code_of(notebook)[0].source for notebook in notebooks}) == 1


class Colab:
    """Runs the first cell as Colab's shell does, but keeps what it would execute."""

    def __init__(self):
        cell = code_of(nbformat.read(FILES[0], as_version=4))[0].source
        self.source = TransformerManager().transform_cell(cell)
        self.names = {"get_ipython": lambda: self}
        self.installed = []

    def run(self):
        exec(self.source, self.names)
        return self.installed[0]

    def system(self, line):
        assert "git clone" in line

    def run_line_magic(self, name, line):
        if name == "pip":
            self.installed.append(shlex.split(line.format(**self.names)))


@pytest.fixture
def colab(monkeypatch, request):
    """With the chip that a test is given."""
    monkeypatch.setitem(sys.modules, "google.colab", None)
    chip = request.param
    monkeypatch.setattr("glob.glob", lambda path: [path] if chip == "tpu" else [])
    gpu = "/usr/bin/nvidia-smi" if chip == "cuda12" else None
    monkeypatch.setattr("shutil.which", lambda name: gpu)
    return chip, Colab()


@pytest.mark.parametrize("colab", ["", "cuda12", "tpu"], indirect=True)
def test_colab_restarts_where_another_jax_is_loaded(colab, monkeypatch):
    chip, colab = colab
    command = ["install", "--quiet", "-r", "requirements.txt", f"jax[{chip}]"]
    assert colab.run()[:5] == command
    monkeypatch.setattr(jax, "__version__", "0.7.2")
    with pytest.raises(SystemExit, match=r"Restart session.* jax 0\.7\.2 was loaded"):
        colab.run()
    monkeypatch.delitem(sys.modules, "jax")
    colab.run()


def needs_weights(cell):
    return "pretrained" in cell.metadata.get("tags", ())


def with_small_settings(notebook, settings):
    """The notebook with a cell after that of the parameters, as papermill does."""
    (place,) = (
        place
        for place, cell in enumerate(notebook.cells)
        if "parameters" in cell.metadata.get("tags", ())
    )
    assigned = ast.walk(parsed(notebook.cells[place].source))
    names = {node.id for node in assigned if isinstance(node, ast.Name)}
    assert settings.keys() <= names, "no such parameters"
    lines = [f"{name} = {value!r}" for name, value in settings.items()]
    if "REGIONS" in settings:
        lines.append(FEW_REGIONS)
    cell = nbformat.v4.new_code_cell("\n".join(lines))
    notebook.cells.insert(place + 1, cell)
    return notebook


def coco_with_weights(folder):
    """Two photographs as COCO's val2017, and an SSD300 of random weights."""
    images, annotations = [], []
    (folder / "coco" / "val2017").mkdir(parents=True)
    for number, photo in enumerate((skimage.data.chelsea(), skimage.data.coffee())):
        file = f"{number}.png"
        Image.fromarray(photo).save(folder / "coco" / "val2017" / file)
        height, width = photo.shape[:2]
        size = {"height": height, "width": width}
        images.append({"id": number, "file_name": file} | size)
        box = {"bbox": [9, 9, 99, 99], "area": 9801, "iscrowd": 0, "category_id": 17}
        annotations.append({"id": number + 1, "image_id": number} | box)
    pairs = zip(CATEGORY_IDS, CLASS_NAMES, strict=True)
    categories = [{"id": number, "name": name} for number, name in pairs]
    truth = {"images": images, "annotations": annotations, "categories": categories}
    file = folder / "coco" / "annotations" / "instances_val2017.json"
    file.parent.mkdir()
    file.write_text(json.dumps(truth))
    rng = np.random.default_rng(0)
    image = jax.ShapeDtypeStruct((1, 300, 300, 3), np.uint8)
    blank = Batch(image, sizes=None, scales=None, image_ids=None)
    detector = detectors.build("ssd300_vgg16")
    shapes = jax.eval_shape(detector.init, jax.random.key(0), blank)
    variables = jax.tree.map(
        lambda x: rng.standard_normal(x.shape, np.float32) / 100, shapes
    )
    state = detectors.export(variables, "ssd300_vgg16")
    np.savez(folder / "ssd300_vgg16.npz", **state)


def pictures_of(notebook):
    """The outputs that are pictures, when all cells have run."""
    where = {"metadata": {"path": FOLDER}}  # as Jupyter has it
    nbclient.NotebookClient(notebook, resources=where).execute()
    outputs = [output for cell in code_of(notebook) for output in cell.outputs]
    return [output for output in outputs if "image/png" in output.get("data", {})]


@pytest.mark.slow
@pytest.mark.optional
def test_cells_with_pretrained_weights_run():
    optional.need_package(published.SSD_MOBILENET_V2)
    notebook = nbformat.read(FOLDER / "quickstart.ipynb", as_version=4)
    first, *others = code_of(notebook)
    notebook.cells = [first, *filter(needs_weights, others)]
    assert len(notebook.cells) == 2
    assert len(pictures_of(notebook)) == 1


@pytest.mark.slow
def test_every_cell_runs(notebook, tmp_path, monkeypatch):
    """All but those with pretrained weights."""
    name, notebook = notebook
    notebook.cells = [cell for cell in notebook.cells if not needs_weights(cell)]
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    if name != "quickstart":  # which trains on four; one is faster
        one_device = os.environ["XLA_FLAGS"].replace("count=4", "count=1")
        monkeypatch.setenv("XLA_FLAGS", one_device)
    if name == "coco_val2017":
        coco_with_weights(tmp_path)
    settings = {
        key: value.format(tmp_path) if isinstance(value, str) else value
        for key, value in SMALL[name].items()
    }
    small = with_small_settings(notebook, settings)
    assert pictures_of(small)
    if name == "quickstart":
        assert "on 4 devices" in pathlib.Path(settings["RUN"], "log.txt").read_text()
