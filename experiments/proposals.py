"""Makes region proposals by selective search: python -m experiments.proposals

Makes and keeps the regions that R-CNN, SPP-net and Fast R-CNN classify, and prints how
many of the objects they find. On the digits by default, or on any data set that
`--data` takes, both on what training takes from it and on what that is evaluated on;
started again, it goes on where it stopped.
Target: recall 0.99 at 0.5 with 10,097 proposals an image of VOC 2007 (Uijlings et al.
2013, abstract; their "quality"). Measured on 100 images of digits: "fast" 0.97 with 158
proposals, "quality" 1.00 with 421.
"""

import pathlib
from typing import Literal

from experiments import command_line
from experiments.data_option import (
    DIGITS,
    VALIDATION,
    DataOption,
    Flat,
    ValidationOption,
)
from jaxdet.data import proposal_files
from jaxdet.data.dataset import DataError
from jaxdet.data.selective_search import recall, with_selective_search


def main(
    source: Flat[DataOption] = DIGITS,
    validation: Flat[ValidationOption] = VALIDATION,
    *,
    mode: Literal["fast", "quality"] = "fast",
    max_proposals: int = 2000,
    output: pathlib.Path | None = None,
):
    """Makes proposals and prints their recall.

    Args:
      source: the images to train on.
      validation: the images to evaluate on.
      mode: "quality" finds more, and takes about four times as long.
      max_proposals: proposals, at most.
      output: .npz or .json file for the proposals of one data set: of all images, or of
        `--split`. If not given, they are kept where training finds them.

    Raises:
      DataError: for options that do not go together or are out of their range.
    """
    if max_proposals < 1:
        raise DataError(f"--max-proposals is {max_proposals}; it must be at least 1")
    if output is None:
        data_sets = [one for one in validation.load(source) if one is not None]
    elif validation == VALIDATION:
        data_sets = [source.load()]
    else:
        raise DataError(f"--output {output} is for one data set, without {validation}")
    for one in data_sets:
        data_set = with_selective_search(one, mode=mode, max_proposals=max_proposals)
        if output is not None:
            proposal_files.save(output, data_set)
        print(data_set.name)
        for name, value in recall(data_set).items():
            print(f"{name:>12} {value:8.3f}")


if __name__ == "__main__":
    command_line.run(main)
