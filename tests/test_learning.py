"""From pixels to average precision: what is trained for a minute has learned."""

import dataclasses

import pytest

from experiments.recipe import build
from experiments.recipes.retinanet_digits import RECIPE
from jaxdet.data.formats import digits
from jaxdet.evaluation.evaluate import evaluate
from jaxdet.training.train import train


@pytest.mark.slow
def test_retinanet_learns_large_digits(tmp_path, optimized):
    easy = {
        "data_dir": tmp_path,
        "train_images": 2000,
        "validation_images": 100,
        "side": 64,
        "digit_sides": (28, 32),
        "max_digits": 2,
    }
    training = dataclasses.replace(
        RECIPE.training,
        steps=1100,
        input=dataclasses.replace(RECIPE.training.input, canvases=((64, 64),)),
    )
    detector = build(RECIPE)
    data_set = digits.load("train", **easy)
    state = train(detector, data_set, training, workdir=tmp_path / "run")
    held_out = digits.load("validation", **easy)
    metrics = evaluate(detector, state.variables, held_out, training.input)
    assert metrics["AP50"] > 0.6
