"""Every number of a training run that is not the detector's own."""

import dataclasses
from typing import Literal

from jaxdet.data.batching import InputConfig


@dataclasses.dataclass(frozen=True)
class TrainingConfig:
    """How a detector is trained. Defaults: the 1x schedule of the RetinaNet paper (4.1)."""

    steps: int = 90_000
    batch_size: int = 16
    """Images a step, over all devices and hosts."""
    learning_rate: float = 0.01
    """For `reference_batch_size` images a step; scaled linearly to `batch_size`."""
    reference_batch_size: int = 16
    optimizer: Literal["sgd", "adamw"] = "sgd"
    momentum: float = 0.9
    """Of SGD; AdamW's betas are 0.9 and 0.999."""
    weight_decay: float = 1e-4
    """Of kernels; norms and biases do not decay."""
    clip_norm: float | None = None
    """Largest global norm of the gradient; None: no clipping."""
    schedule: Literal["step", "cosine"] = "step"
    milestones: tuple[float, ...] = (2 / 3, 8 / 9)
    """Where the step schedule divides the rate by ten, as fractions of `steps`."""
    warmup_steps: int = 1000
    """Steps over which the rate grows linearly from a thousandth."""
    frozen: tuple[str, ...] = ()
    """Regular expressions; parameters whose whole path matches one stay as they are."""
    seed: int = 0
    log_every: int = 20
    """Steps between log lines and TensorBoard scalars."""
    checkpoint_every: int = 1000
    evaluate_every: int = 10_000
    """Steps between evaluations of the validation set; 0: only at the end."""
    keep_checkpoints: int = 3
    """The newest ones that stay on disk, beside the best."""
    input: InputConfig = dataclasses.field(default_factory=InputConfig)
