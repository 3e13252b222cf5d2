"""R-CNN with AlexNet on Pascal VOC 2007.

    python -m experiments.train rcnn_voc --data VOCdevkit --weights alexnet

The recipe of the paper (Girshick et al. 2014, 2.3) and its code: 128 regions a step,
learning rate 0.001 divided by ten every 20k of 70k steps, AlexNet pretrained on
ImageNet, 2,000 regions an image from selective search's fast mode. Softmax and box
layers are trained with the network, where the paper trains them on stored features.
Target mAP on VOC 2007 test: 54.2, with box regression 58.5. Measured: not yet run.
"""

from experiments.recipe import Recipe
from jaxdet.data.input_config import InputConfig
from jaxdet.detectors import rcnn
from jaxdet.nn.backbones.alexnet import AlexNet
from jaxdet.nn.heads import FCHead
from jaxdet.training.config import TrainingConfig

RECIPE = Recipe(
    detector=rcnn.PAPER,
    backbone=AlexNet(centered=False),
    heads=(FCHead(4096, dropout=0.5),),
    training=TrainingConfig(
        steps=70_000,
        batch_size=2,
        reference_batch_size=2,
        learning_rate=0.001,
        milestones=(20 / 70, 40 / 70, 60 / 70),
        weight_decay=5e-4,
        warmup_steps=0,
        # Most images are of 375 x 500 pixels; crops are enlarged anyway.
        input=InputConfig(canvases=((384, 512), (512, 384)), max_regions=2000),
    ),
    metrics="voc07",
)
