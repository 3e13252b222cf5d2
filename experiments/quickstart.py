"""Trains a small RetinaNet on digits, from scratch: python -m experiments.quickstart

The whole way in minutes on two CPU cores: the data set is drawn, the detector trained
and evaluated; checkpoints, TensorBoard scalars and pictures are left in
`runs/quickstart`. It is the recipe `retinanet_digits`.
Target: AP50 >= 90 on digits and pixels that training never saw. Measured: AP 74.1,
AP50 94.8, on two CPU cores in five minutes.
"""

import pathlib

from experiments import command_line, train

if __name__ == "__main__":
    workdir = pathlib.Path("runs/quickstart")
    command_line.run(train.command("retinanet_digits", workdir=workdir))
