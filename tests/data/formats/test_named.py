import types

import pytest

from jaxdet.data.formats import digits, tfds
from jaxdet.data.formats.open import open_dataset, open_for_training
from tests.data.in_memory import in_memory_data_set


@pytest.fixture
def calls(monkeypatch):
    """What the readers of digits and TFDS are asked for."""
    calls = []

    def load(*given, **options):
        calls.append((*given, *options.values()))
        return in_memory_data_set([(40, 60)])

    def open_builder(name):
        return types.SimpleNamespace(
            info=types.SimpleNamespace(splits={"train": 0, "test": 0})
        )

    for module, name in ((digits, "load"), (tfds, "load"), (tfds, "load_directory")):
        monkeypatch.setattr(module, name, load)
    for name in ("open_builder", "open_directory"):
        monkeypatch.setattr(tfds, name, open_builder)
    return calls


def test_digits_and_tfds(calls, tmp_path):
    (tmp_path / "dataset_info.json").touch()
    open_dataset("digits", split="validation")
    open_for_training("digits:70")
    open_dataset("tfds:voc/2007", split="train+validation")
    open_dataset(tmp_path, role="validation")
    open_for_training(tmp_path, split="train[:10%]")
    assert calls == [
        ("validation",),
        ("train", 70),
        ("validation", 70),
        ("voc/2007", "train+validation", "error"),
        (str(tmp_path), "test", "error"),
        (str(tmp_path), "train[:10%]", "error"),
        (str(tmp_path), "test", "error"),
    ]
