import pathlib

import numpy as np
from PIL import Image

from experiments.lecture import augmentations

COMMITTED = (
    pathlib.Path(augmentations.__file__).parents[1] / "pictures/augmentations.jpg"
)


def test_the_sheet_is_the_one_in_the_readme(tmp_path):
    output = tmp_path / "sheet.jpg"
    augmentations.main(output=output)
    assert output.stat().st_size < 250_000
    made, committed = (np.array(Image.open(file), int) for file in (output, COMMITTED))
    assert made.shape == committed.shape
    assert np.abs(made - committed).mean() < 2  # other letters, another JPEG encoder
