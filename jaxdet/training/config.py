"""Every number of a training run that is not the detector's own."""

import dataclasses
from typing import Literal

from jaxdet.data.input_config import InputConfig, require_numbers


@dataclasses.dataclass(frozen=True)
class TrainingConfig:
    """How a detector is trained. Defaults: the schedule of the RetinaNet paper (4.1).

    Raises:
      ValueError: for a number out of its range, naming the field and what is allowed.
    """

    steps: int = 90_000
    """Updates to make."""
    batch_size: int = 16
    """Images a step, over all devices and hosts."""
    accumulate: int = 1
    """Parts in which each device takes its images, one after the other, to save memory
    (slow on CPUs); each part's loss counts its own positives."""
    learning_rate: float = 0.01
    """For `reference_batch_size` images a step; scaled linearly to `batch_size`."""
    reference_batch_size: int = 16
    """Images a step for which `learning_rate` is given."""
    optimizer: Literal["sgd", "adamw"] = "sgd"
    """SGD with momentum, or AdamW."""
    momentum: float = 0.9
    """Of SGD; AdamW's betas are 0.9 and 0.999."""
    weight_decay: float = 1e-4
    """Of kernels; norms and biases do not decay."""
    clip_norm: float | None = None
    """Largest global norm of the gradient; None: no clipping."""
    schedule: Literal["step", "cosine"] = "step"
    """Division by ten at the milestones, or half a cosine down to 0."""
    milestones: tuple[float, ...] = (2 / 3, 8 / 9)
    """Where the step schedule divides the rate by ten, as fractions of `steps`."""
    warmup_steps: int = 1000
    """Steps over which the rate grows linearly from a thousandth."""
    ema_decay: float | None = None
    """Of an exponential moving average of the parameters, such as 0.999: the average is
    what is evaluated, kept and used; None: the parameters themselves."""
    frozen: tuple[str, ...] = ()
    """Regular expressions; parameters whose whole path matches one stay as they are."""
    seed: int = 0
    """Of parameters, order of the images, augmentation and sampling."""
    log_every: int = 20
    """Steps between log lines and TensorBoard scalars."""
    checkpoint_every: int = 1000
    """Steps between checkpoints; there is one after each evaluation, too."""
    evaluate_every: int = 10_000
    """Steps between evaluations of the validation set; 0: only at the end."""
    keep_checkpoints: int = 3
    """The newest ones that stay on disk, beside the best."""
    pictures: int = 4
    """Validation images drawn at each evaluation, beside the truth, and training images
    as the network sees them, at the start too."""
    profile: int = 0
    """Steps near the start that a profiler traces, into `profile/`."""
    input: InputConfig = dataclasses.field(default_factory=InputConfig)
    """How images become batches."""

    def __post_init__(self):
        require_numbers(self)
        at_least_one = ("steps", "batch_size", "reference_batch_size", "log_every")
        at_least_one += ("accumulate", "checkpoint_every", "keep_checkpoints")
        for name in at_least_one:
            self._require(name, getattr(self, name) >= 1, "at least 1")
        for name in ("evaluate_every", "pictures", "profile", "weight_decay", "seed"):
            self._require(name, getattr(self, name) >= 0, "0 or more")
        self._require("learning_rate", self.learning_rate > 0, "above 0")
        self._require("momentum", 0 <= self.momentum < 1, "in [0, 1)")
        self._require(
            "clip_norm", self.clip_norm is None or self.clip_norm > 0, "above 0"
        )
        decay = self.ema_decay
        self._require("ema_decay", decay is None or 0 < decay < 1, "in (0, 1)")
        for name, allowed in (
            ("optimizer", ("sgd", "adamw")),
            ("schedule", ("step", "cosine")),
        ):
            self._require(name, getattr(self, name) in allowed, f"one of {allowed}")
        rising = list(self.milestones) == sorted(set(self.milestones))
        inside = all(0 < milestone < 1 for milestone in self.milestones)
        self._require("milestones", rising and inside, "rising fractions in (0, 1)")
        warm = 0 <= self.warmup_steps <= self.steps
        self._require("warmup_steps", warm, f"between 0 and steps ({self.steps})")

    def _require(self, name: str, right: bool, allowed: str) -> None:
        if not right:
            raise ValueError(f"{name} is {getattr(self, name)!r}; it must be {allowed}")


FREE_FIELDS = frozenset(
    {
        "log_every",
        "checkpoint_every",
        "evaluate_every",
        "keep_checkpoints",
        "pictures",
        "profile",
        "input/workers",
        "input/prefetch",
        "input/unreadable_images",
        "input/max_unreadable",
    }
)
"""What may change when a run goes on, since what it learns does not depend on it."""
