"""Where a run is written down: progress bar, `log.txt`, TensorBoard, pictures."""

import datetime
import os
import pathlib
import re
import sys
import time

import jax
import numpy as np
from PIL import Image
from tensorboardX import SummaryWriter
from tqdm import tqdm

from jaxdet.training.config import TrainingConfig


class Log:
    """The diary of one run; of several hosts only the first keeps it.

    In a terminal there is a progress bar, elsewhere a line every `log_every` steps. All
    lines go to `log.txt`, numbers and pictures to TensorBoard's event files as well.
    """

    def __init__(
        self, workdir: str | os.PathLike, *, start: int, config: TrainingConfig
    ):
        """Opens the diary; what TensorBoard holds of steps after `start` is hidden."""
        self._workdir = pathlib.Path(workdir)
        self._config = config
        self._active = jax.process_index() == 0
        self._bar = tqdm(
            total=config.steps,
            initial=start,
            unit="step",
            dynamic_ncols=True,
            disable=None if self._active else True,  # None: only where no terminal is
        )
        if self._active:
            self._file = (self._workdir / "log.txt").open("a", encoding="utf-8")
            self._board = SummaryWriter(str(self._workdir), purge_step=start + 1)

    @property
    def in_terminal(self) -> bool:
        """Whether progress bars are shown."""
        return not self._bar.disable

    def advance(self) -> None:
        """One step further in the progress bar."""
        self._bar.update()

    def line(self, text: str) -> None:
        """One line to read."""
        if self._active:
            self._write(text)
            self._bar.write(text, file=sys.stdout)
            sys.stdout.flush()

    def progress(self, step: int, values: dict[str, float]) -> None:
        """Means since the last call; among them "loss" and "images_per_second"."""
        if not self._active:
            return
        self._scalars(step, "training", values)
        images = (self._config.steps - step) * self._config.batch_size
        left = datetime.timedelta(seconds=round(images / values["images_per_second"]))
        text = f"step {step}/{self._config.steps}  {_numbers(values)}  left {left}"
        if self.in_terminal:
            self._write(text)
            shown = {"loss": values["loss"], "images/s": values["images_per_second"]}
            self._bar.set_postfix(shown)
        else:
            self.line(text)

    def evaluation(self, step: int, metrics: dict[str, float]) -> None:
        """The metrics of the validation set after a step."""
        if self._active:
            self._scalars(step, "validation", metrics)
            self.line(f"evaluation at step {step}  {_numbers(metrics)}")

    def picture(self, step: int, name: str, image: np.ndarray) -> None:
        """`[H, W, 3]` uint8, to TensorBoard and `pictures/STEP_NAME.png`."""
        if self._active:
            name = re.sub(r"[^\w.-]+", "_", name)
            folder = self._workdir / "pictures"
            folder.mkdir(exist_ok=True)
            Image.fromarray(image).save(folder / f"{step:07d}_{name}.png")
            self._board.add_image(f"pictures/{name}", image, step, dataformats="HWC")

    def close(self) -> None:
        """Writes what is left."""
        self._bar.close()
        if self._active:
            self._board.close()
            self._file.close()

    def _write(self, text: str) -> None:
        self._file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')}  {text}\n")
        self._file.flush()

    def _scalars(self, step: int, group: str, values: dict[str, float]) -> None:
        for name, value in values.items():
            if not np.isnan(value):  # AP where there are no such objects
                self._board.add_scalar(f"{group}/{name}", value, step)


def _numbers(values: dict[str, float]) -> str:
    return "  ".join(f"{name} {value:.4g}" for name, value in values.items())
