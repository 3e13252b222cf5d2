import dataclasses
import functools
import json
import random

import jax
import numpy as np
import pytest

from jaxdet.detectors.serialization import deserialize
from jaxdet.training.run_folder import (
    FORMAT,
    RunError,
    load_min_score,
    load_run,
    resumed_weights,
    save_min_score,
    save_run,
)
from jaxdet.weights.transfer import Transfer
from tests.training import toy


def test_a_run_describes_itself(tmp_path):
    config = toy.config(milestones=(0.25, 0.5), frozen=("stem/.*",))
    save_run(tmp_path, toy.toy(width=6), toy.data_set(), config)
    run = load_run(tmp_path)
    assert run.training == config
    assert (run.class_names, run.category_ids) == (("thing",), (7,))
    assert (run.data_set, run.images) == ("toy", 12)
    assert run.versions["jax"] == jax.__version__
    again = deserialize(run.recipe, allowed={"tests.training.toy:toy"})
    batch = toy.batch_of(np.random.default_rng(0), 4)
    variables = jax.eval_shape(again.init, jax.random.key(0), batch)
    assert variables["params"]["stem"]["bias"].shape == (6,)


def test_the_best_minimum_score_holds_until_a_run_goes_on(tmp_path):
    with pytest.raises(RunError, match="does not know the best minimum score"):
        load_min_score(tmp_path, "best")
    (tmp_path / "checkpoints" / "4").mkdir(parents=True)
    save_min_score(tmp_path, 4, {"min_score": 0.25})
    save_min_score(tmp_path, "best", {"min_score": 0.75})
    save_min_score(tmp_path, "best", {"min_score": 0.5}, "--flip")
    assert [load_min_score(tmp_path, step) for step in (4, "best")] == [0.25, 0.75]
    assert load_min_score(tmp_path, "best", "--flip") == 0.5
    (tmp_path / "checkpoints" / "8").mkdir()
    with pytest.raises(RunError, match=r"has trained on since .* --step 4$"):
        load_min_score(tmp_path, 4)
    (tmp_path / "min_scores.json").write_text("{")
    with pytest.raises(RunError, match=r"min_scores\.json is no JSON"):
        load_min_score(tmp_path, 4)


def test_a_run_with_checkpoints_accepts_only_itself(tmp_path):
    save_run(tmp_path, toy.toy(), toy.data_set(), toy.config(learning_rate=7.0))
    save_run(tmp_path, toy.toy(), toy.data_set(), toy.config())  # nothing learned yet
    (tmp_path / "checkpoints" / "1").mkdir(parents=True)
    save_run(tmp_path, toy.toy(), toy.data_set(), toy.config(log_every=5))
    changed = toy.config(learning_rate=0.2)
    with pytest.raises(RunError) as error:
        save_run(tmp_path, toy.toy(width=6), toy.data_set(16), changed)
    message = str(error.value)
    assert "training/learning_rate: 0.05 in the run, 0.2 now" in message
    assert "recipe/arguments: [4] in the run, [6] now" in message
    assert "images: 12 in the run, 16 now" in message
    assert str(tmp_path) in message and "log_every" not in message
    assert load_run(tmp_path).training.log_every == 5


def changed(name):
    """The toy's data, but for one thing, with the same name and number of images."""
    data = toy.data_set()
    if name in ("image_ids", "sizes"):
        return dataclasses.replace(data, **{name: getattr(data, name)[::-1]})
    first, *rest = data.objects
    other = first._replace(**{name: getattr(first, name) + np.float32(1)})
    other = other._replace(labels=other.labels.astype(np.int32))
    return dataclasses.replace(data, objects=(other, *rest))


@pytest.mark.parametrize("name", ["image_ids", "boxes", "labels"])
def test_other_data_of_the_same_name_must_be_accepted(tmp_path, name, caplog):
    save_run(tmp_path, toy.toy(), toy.data_set(), toy.config())
    (tmp_path / "checkpoints" / "1").mkdir(parents=True)
    with pytest.raises(RunError, match=rf"changed-data:\n  data_digests/{name}: '.*$"):
        save_run(tmp_path, toy.toy(), changed(name), toy.config())
    save_run(tmp_path, toy.toy(), toy.data_set(), toy.config())
    other = dataclasses.replace(changed(name), class_names=("something",))
    detector, config = toy.toy(), toy.config()
    save_run(tmp_path, detector, other, config, accept_changed_data=True)
    assert "other data:\n  class_names: ['thing'] in the run" in caplog.text
    with pytest.raises(RunError, match="same values:\n  training/seed: 0 in the run"):
        save = functools.partial(save_run, accept_changed_data=True)
        save(tmp_path, detector, other, toy.config(seed=1))


def test_a_run_that_an_older_jaxdet_began_goes_on(tmp_path):
    save_run(tmp_path, toy.toy(), toy.data_set(), toy.config())
    (tmp_path / "checkpoints" / "1").mkdir(parents=True)
    file = tmp_path / "config.json"
    run = json.loads(file.read_text())
    digests = run.pop("data_digests")
    del run["training"]["patience"], run["training"]["input"]["mosaic"]
    file.write_text(json.dumps(run))
    assert load_run(tmp_path).data_digests == {}
    mixed = dataclasses.replace(toy.config().input, mosaic=0.5)
    with pytest.raises(RunError, match=r"input/mosaic: 0\.0 in the run, 0\.5 now"):
        save_run(tmp_path, toy.toy(), toy.data_set(), toy.config(input=mixed))
    save_run(tmp_path, toy.toy(), toy.data_set(), toy.config())
    assert load_run(tmp_path).data_digests == digests


def test_a_run_with_checkpoints_keeps_what_it_started_from(tmp_path):
    run = tmp_path / "run", toy.toy(), toy.data_set(), toy.config()
    weights = Transfer("a.pth", "0" * 64, 3, ("params/box/bias",), ("thing",))
    assert save_run(*run, weights=weights) == weights
    assert resumed_weights(run[0]) is None  # nothing learned yet
    assert save_run(*run) is None
    assert save_run(
        *run, weights=dataclasses.replace(weights, options={"epsilon": 0.0})
    )
    (run[0] / "checkpoints" / "1").mkdir(parents=True)
    with pytest.raises(RunError, match=r"weights/options/epsilon: 0\.0 in the run"):
        save_run(*run, weights=weights)
    assert resumed_weights(run[0]).options == {"epsilon": 0.0}
    weights = resumed_weights(run[0])
    assert save_run(*run) == load_run(run[0]).weights == weights
    moved = dataclasses.replace(weights, source="elsewhere/a.pth")
    assert save_run(*run, weights=moved) == moved
    with pytest.raises(
        RunError, match=r"weights/sha256: '000.* in the run, '111.* now"
    ):
        save_run(*run, weights=dataclasses.replace(weights, sha256="1" * 64))


def config_with(**values) -> str:
    run = {
        "format": FORMAT,
        "recipe": None,
        "training": {},
        "class_names": ["a"],
        "category_ids": [1],
    }
    return json.dumps(run | {"data_set": "", "images": 1, "versions": {}} | values)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "holds no run"),
        ("{", "is no JSON"),
        ("{}", f"another version of jaxdet .format None, here {FORMAT}"),
        ("3", "must hold a JSON object"),
        ("null", "must hold a JSON object"),
        ("[" * 100_000, "nested too deep"),
        (config_with(training={"warp": 9}), "TrainingConfig has no warp"),
        (config_with(training=3), "TrainingConfig is 3; it must be an object"),
        (config_with(class_names=7), "class_names is 7"),
        (config_with(images=-1), "images is -1"),
        (config_with(category_ids=["a"]), "category_ids is"),
    ],
)
def test_a_broken_config_is_named(tmp_path, content, words):
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(RunError, match=words) as error:
        load_run(tmp_path)
    assert str(tmp_path) in str(error.value)


def nested(depth: int) -> list:
    value: list = []
    for _ in range(depth):
        value = [value]
    return value


def test_mutated_configs_are_loaded_or_named(tmp_path):
    """A value of a run or of its training becomes something else: one error at most."""
    save_run(tmp_path, toy.toy(), toy.data_set(), toy.config())
    file = tmp_path / "config.json"
    whole, chance = file.read_text(), random.Random(0)
    values = [None, True, -1, 0, 1.5, 10**400, "", "os:system", [], {}, nested(900)]
    values += [[[10**6, 10**6]], [{"a": []}], {"call": "os:system", "arguments": []}]
    refused = 0
    for _ in range(400):
        run = json.loads(whole)
        part = chance.choice([run, run["training"], run["training"]["input"]])
        part[chance.choice([*part])] = chance.choice(values)
        file.write_text(json.dumps(run))
        try:
            load_run(tmp_path)
        except RunError as error:
            refused += 1
            assert str(file) in str(error)
    assert 200 < refused < 400
    assert [*tmp_path.iterdir()] == [file]
