"""Recipes come back from JSON, and a recipe from a stranger runs nothing."""

import ast
import copy
import dataclasses
import json
import pathlib
import random
from functools import partial

import flax.linen as nn
import jax.numpy as jnp
import pytest

import jaxdet
from jaxdet.detectors.detector import Detector
from jaxdet.detectors.fcos import FCOSConfig
from jaxdet.detectors.image_pyramid import ImagePyramidConfig, image_pyramid
from jaxdet.detectors.mask_rcnn import MaskRCNNConfig, mask_rcnn
from jaxdet.detectors.serialization import ALLOWED, deserialize, serialize
from jaxdet.nn.backbones.resnet import ResNet
from jaxdet.nn.heads import FCHead

PACKAGE = pathlib.Path(jaxdet.__file__).parent
NETWORK = {"call": "jaxdet.nn.backbones.resnet:ResNet", "keywords": {"depth": 18}}


@pytest.mark.parametrize(
    "value",
    [
        ResNet(depth=18, width=32, norm="group", dtype=jnp.bfloat16),
        FCOSConfig(num_classes=3),
        (1, 2.5, "three", None, True, ((4.0,), (5.0,))),
        {3: "level", "four": (1, 2)},
    ],
)
def test_values_survive_json(value):
    written = json.loads(json.dumps(serialize(value)))
    assert deserialize(written) == value


def test_a_call_is_made_again():
    call = partial(ResNet, 18, width=8)
    recipe = json.loads(json.dumps(serialize(call)))
    assert deserialize(recipe) == ResNet(18, 8)


def test_what_no_recipe_can_hold():
    with pytest.raises(TypeError, match="a recipe cannot hold <object"):
        serialize({"thing": object()})


def shell_command(path: pathlib.Path) -> dict:
    """A recipe that makes deserialize call itself with another list of packages."""
    command = [["call", "os:system"], ["arguments", [f"touch {path}"]]]
    return {
        "call": "jaxdet.detectors.serialization:deserialize",
        "arguments": [{"mapping": command}],
        "keywords": {"allowed": ["os:system"]},
    }


def test_a_recipe_runs_no_command(tmp_path):
    attack = shell_command(tmp_path / "run")
    as_number = {
        "call": "jaxdet.detectors.fcos:FCOSConfig",
        "keywords": {"num_classes": attack},
    }
    checkpoints = "jaxdet.training.checkpoint:Checkpoints"
    recipes = [
        attack,
        as_number,
        [1, {"mapping": [["key", attack]]}],
        {"call": "os:system", "arguments": [f"touch {tmp_path / 'run'}"]},
        {"call": checkpoints, "arguments": [str(tmp_path / "run"), 3]},
        {"call": "jaxdet.detectors.serialization:importlib.import_module"},
        {"call": "jaxdet.detectors.fcos:jax"},
        {"call": ["jaxdet.detectors.fcos:fcos"]},
    ]
    for recipe in recipes:
        with pytest.raises(ValueError, match="a recipe that calls"):
            deserialize(recipe)
    assert not list(tmp_path.iterdir())


def nested(depth: int) -> list:
    recipe: list = []
    for _ in range(depth):
        recipe = [recipe]
    return recipe


@pytest.mark.parametrize(
    ("recipe", "problem"),
    [
        (nested(900), "nested more than 64 deep"),
        ([0] * 100_000, "more than 10,000 values"),
        (["x" * 2000], "a text of 2,000 characters"),
        ([float("nan")], "the number nan"),
        ([10**400], "the number 1000"),
        ([object()], "is no JSON"),
        ({"dtype": "object"}, "dtype 'object'; allowed"),
        ({"dtype": nested(900)}, "dtype a list; allowed"),
        ({"mapping": [[[], 1]]}, "mapping a list; it must be"),
        ({"mapping": 3}, "mapping 3; it must be"),
        ({}, "an object without call"),
        ({"called": "by no name"}, "'called'; allowed are call"),
        (NETWORK | {"keywords": 3}, "with keywords 3"),
        (NETWORK | {"arguments": "ab"}, "with arguments 'ab'"),
        (NETWORK | {"keywords": {"depth": 10**9}}, "depth 1000000000; at most 1000"),
        (NETWORK | {"keywords": {"deep": 18}}, "unexpected keyword argument 'deep'"),
    ],
)
def test_what_is_no_recipe_is_named(recipe, problem):
    with pytest.raises(ValueError, match=problem):
        deserialize(recipe)


def detector() -> Detector:
    """One with all that recipes hold: a detector in a detector, modules, configs."""
    head = FCHead(features=8)
    inner = mask_rcnn(MaskRCNNConfig(), ResNet(18, 8, dtype=jnp.bfloat16), head)
    return image_pyramid(inner, ImagePyramidConfig())


def mutated(recipe: dict, chance: random.Random) -> dict:
    """A copy with one to three of its values replaced, moved, doubled or removed."""
    recipe = copy.deepcopy(recipe)
    for _ in range(chance.randint(1, 3)):
        places = []  # every list or object, and every key of it
        rest = [recipe]
        while rest:
            value = rest.pop()
            keys = range(len(value)) if isinstance(value, list) else list(value)
            places += [(value, key) for key in keys]
            inner = value if isinstance(value, list) else value.values()
            rest += [item for item in inner if isinstance(item, list | dict)]
        holder, key = chance.choice(places)
        _, there = other = chance.choice(places)
        values = [None, True, -1, 0, 1.5, 10**12, "", "os:system", [], {}, NETWORK]
        values += ["jaxdet.detectors.fcos:fcos", copy.deepcopy(other[0][there])]
        if chance.random() < 0.15 and len(holder) > 1:
            del holder[key]
        else:
            holder[key] = chance.choice(values)
    return recipe


def test_mutated_recipes_make_a_detector_or_one_error(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("os.system", lambda command: pytest.fail(command))
    recipe = detector().recipe
    chance, refused = random.Random(0), 0
    for _ in range(500):
        try:
            deserialize(json.loads(json.dumps(mutated(recipe, chance))))
        except ValueError:
            refused += 1
    assert 200 < refused < 500
    assert not list(tmp_path.iterdir())


def test_all_that_recipes_need_is_allowed():
    """Every builder, config and network part that a detector can be built from."""
    named = {name.partition(":")[2] for name in ALLOWED}
    for name in ALLOWED:
        module, _, attribute = name.partition(":")
        value = getattr(__import__(module, fromlist=["_"]), attribute)
        config = dataclasses.is_dataclass(value) or issubclass_of_module(value)
        assert config or module.startswith(("jaxdet.detectors", "jaxdet.weights"))
    missing = []
    for file in sorted((PACKAGE / "detectors").glob("*.py")):
        for node in ast.parse(file.read_text()).body:
            kind = isinstance(node, ast.ClassDef) and node.name.endswith("Config")
            returned = isinstance(node, ast.FunctionDef) and node.returns
            builder = returned and ast.unparse(node.returns) == "Detector"
            if (kind or builder) and node.name not in named | {"from_network"}:
                missing.append(f"{file.name}: {node.name}")
    assert not missing


def issubclass_of_module(value) -> bool:
    return isinstance(value, type) and issubclass(value, nn.Module)
