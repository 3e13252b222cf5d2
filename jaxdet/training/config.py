"""Configures a training run: all numbers that are not the detector's own."""

import dataclasses
from collections.abc import Iterator
from typing import Annotated, Literal

from jaxdet.config import (
    Count,
    InRange,
    NonNegative,
    Positive,
    Rising,
    Size,
    checked_dataclass,
)
from jaxdet.data.input_config import InputConfig

Inside = Annotated[float, InRange(0, 1, above=True, below=True)]


@checked_dataclass
class TrainingConfig:
    """How a detector is trained. Defaults: the schedule of the RetinaNet paper (4.1).

    Raises:
      ValueError: for a value out of its range, naming the field and what is allowed.
    """

    steps: Count = 90_000
    """Updates to make."""
    batch_size: Count = 16
    """Images per step, over all devices and hosts."""
    accumulation_steps: Count = 1
    """Parts into which each device splits its images and which it processes one after
    the other, to save memory (on CPUs in twice the time); each part's loss counts its
    own positives."""
    learning_rate: Positive = 0.01
    """For `reference_batch_size` images per step; scaled linearly to `batch_size`."""
    reference_batch_size: Count = 16
    """Images per step for which `learning_rate` is given."""
    backbone_multiplier: Positive = 1.0
    """Of the learning rate, for the parameters of the backbone."""
    optimizer: Literal["sgd", "adamw"] = "sgd"
    """SGD with momentum, or AdamW."""
    momentum: Annotated[float, InRange(0, 1, below=True)] = 0.9
    """Of SGD; AdamW's betas are 0.9 and 0.999."""
    weight_decay: NonNegative = 1e-4
    """Of kernels; norms and biases do not decay."""
    clip_norm: Positive | None = None
    """Largest global norm of the gradient; None: no clipping."""
    schedule: Literal["step", "cosine"] = "step"
    """Division by ten at the milestones, or half a cosine down to 0."""
    milestones: Annotated[tuple[Inside, ...], Rising()] = (2 / 3, 8 / 9)
    """Where the step schedule divides the rate by ten, as fractions of `steps`."""
    warmup_steps: Size = 1000
    """Steps over which the rate grows linearly from a thousandth."""
    ema_decay: Inside | None = None
    """Of an exponential moving average of the parameters, such as 0.999: the average is
    evaluated, kept and used; None: the parameters themselves."""
    frozen: tuple[str, ...] = ()
    """Regular expressions; parameters whose whole path matches one are not trained."""
    seed: Size = 0
    """Of parameters, order of the images, augmentation and sampling."""
    log_every: Count = 20
    """Steps between log lines and TensorBoard scalars."""
    checkpoint_every: Count = 1000
    """Steps between checkpoints; there is one after each evaluation, too."""
    evaluate_every: Size = 10_000
    """Steps between evaluations of the validation set; 0: only at the end."""
    patience: Size = 0
    """Evaluations in a row without a better first number, such as AP, after which the
    run ends early; 0: it never does."""
    keep_checkpoints: Count = 3
    """The newest ones that stay on disk, beside the best."""
    pictures: Size = 4
    """Validation images drawn at each evaluation, beside the truth, and training images
    as the network sees them, at the start too."""
    profile_steps: Size = 0
    """Steps near the start that a profiler traces, into `profile/`."""
    input: InputConfig = dataclasses.field(default_factory=InputConfig)
    """How images become batches."""

    def relations(self) -> Iterator[tuple[str, bool, str]]:
        """Checks that warm-up ends, and that patience can, within the run."""
        at_most = f"at most steps ({self.steps})"
        yield "warmup_steps", self.warmup_steps <= self.steps, at_most
        evaluates = 0 < self.evaluate_every < self.steps
        unless = (
            f"0 unless evaluate_every ({self.evaluate_every}) is above 0 and below "
            f"steps ({self.steps}): otherwise only the end is evaluated"
        )
        yield "patience", evaluates or not self.patience, unless


CHANGEABLE_ON_RESUME = frozenset(
    {
        "log_every",
        "checkpoint_every",
        "evaluate_every",
        "patience",
        "keep_checkpoints",
        "pictures",
        "profile_steps",
        "input/workers",
        "input/prefetch",
        "input/unreadable_images",
        "input/max_unreadable",
    }
)
"""Fields that may change when a run is resumed, since they do not affect training."""
