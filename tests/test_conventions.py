"""The floors of the house: a file imports only from its own floor's list."""

import ast
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
FILES = sorted((ROOT / "jaxdet").rglob("*.py"))

BESIDE = {"data", "weights", "visualize", "ops", "structs"}
ALLOWED = {
    "structs": set(),
    "ops": {"ops", "structs"},
    "nn": {"nn", "structs"},
    "detectors": {"detectors", "nn", "ops", "structs"},
    "training": {"training", "evaluation", "detectors.detector"} | BESIDE,
    "evaluation": {"evaluation", "training.distributed", "training.step"}
    | {"detectors.detector"}
    | BESIDE,
    "inference": {"training", "evaluation", "detectors.detector"} | BESIDE,
    "export": {"training", "evaluation", "detectors.detector"} | BESIDE,
    "data": {"data", "structs", "ops"},
    "weights": {"weights", "structs", "ops"},
    "pretrained": {"inference", "training", "detectors", "nn"} | BESIDE,
    "torchvision": {"inference", "training", "detectors", "nn"} | BESIDE,
    "visualize": {"visualize", "structs", "ops"},
}
# Packages that only these files may import.
OPTIONAL = {
    "tensorflow_datasets": {"data/digits.py", "data/prepare.py", "data/tfds.py"},
    "grain": {"data/batching.py"},
    "cv2": {
        "data/augmentation.py",
        "data/digits.py",
        "data/image_files.py",
        "data/masks.py",
        "data/proposals.py",
        "data/tfds.py",
        "data/transforms.py",
    },
    "pycocotools": {"data/masks.py", "evaluation/coco.py"},
    "sklearn": {"data/digits.py"},
    "skimage": {"data/digits.py"},
    "tensorboardX": {"training/log.py", "weights.py"},
    "tensorflow": set(),
    "torch": {"weights.py"},
    "safetensors": {"weights.py"},
    "flatbuffers": set(),
    "matplotlib": set(),
}


def imports(path: pathlib.Path) -> set[str]:
    """Full dotted names of everything a file imports."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def name_of(path: pathlib.Path) -> str:
    return path.relative_to(ROOT / "jaxdet").as_posix()


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_a_file_imports_only_from_its_floor(path):
    floor = name_of(path).split("/")[0].removesuffix(".py")
    for name in imports(path):
        package, _, inner = name.partition(".")
        if package == "jaxdet":
            allowed = any((inner + ".").startswith(f"{a}.") for a in ALLOWED[floor])
            assert allowed, f"{floor} may not import {name}"
        users = OPTIONAL.get(package)
        assert users is None or name_of(path) in users, f"{name} in {name_of(path)}"


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_names_and_inheritance(path):
    assert path.stem not in {"utils", "misc", "common", "helpers"}
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ClassDef):
            bases = {ast.unparse(base) for base in node.bases}
            outside = {"nn.Module", "NamedTuple", "ValueError", "ArithmeticError"}
            outside |= {"tfds.core.GeneratorBasedBuilder"}
            assert bases <= outside, f"{node.name} inherits from {bases - outside}"


def test_the_core_needs_only_the_jax_family():
    modules = [
        f"jaxdet.{package}.{path.stem}"
        for package in ("ops", "nn", "detectors")
        for path in sorted((ROOT / "jaxdet" / package).glob("[!_]*.py"))
    ]
    modules += ["jaxdet.training.step", "jaxdet.training.optimizer"]
    blocked = [*OPTIONAL, "PIL", "tyro"]
    code = f"import sys; sys.modules.update(dict.fromkeys({blocked!r})); "
    code += f"import {', '.join(modules)}"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_the_tests_mirror_the_package():
    missing = []
    for path in FILES:
        test = ROOT / "tests" / pathlib.Path(name_of(path)).parent / f"test_{path.name}"
        if path.stem not in {"__init__", "structs", "dataset"} and not test.exists():
            missing.append(name_of(path))
    assert not missing
