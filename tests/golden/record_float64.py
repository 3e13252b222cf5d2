"""How `float64.npz` was made: python -m tests.golden.record_float64

By torchvision 0.28 on torch 2.13, of the weights of the files beside it. Rounding puts
the inputs of some ReLUs on the other side of zero, which changes norms of gradients by
up to half a percent, torchvision's own too. So they are here in float64: of one image
that is not resized, with nothing drawn at random, as `NUMBERS` sample all there is.
"""

import pathlib

import numpy as np

from tests.golden import replay

GOLDEN = pathlib.Path(__file__).parent
MODELS = (
    "retinanet_resnet50_fpn",
    "retinanet_resnet50_fpn_v2",
    "fcos_resnet50_fpn",
    "ssd300_vgg16",
    "fasterrcnn_resnet50_fpn",
    "fasterrcnn_resnet50_fpn_v2",
    "maskrcnn_resnet50_fpn",
    "maskrcnn_resnet50_fpn_v2",
)
NUMBERS = {
    "rpn_batch_size_per_image": 8192,  # there are 3072 anchors
    "rpn_post_nms_top_n_train": 8,
    "box_batch_size_per_image": 16,  # 8 proposals and 3 objects
    "box_positive_fraction": 0.5,
}


def inputs(name: str) -> dict[str, np.ndarray]:
    """An image and three objects, each of which fills the left half of its box."""
    image = np.load(GOLDEN / "resnet50_s0.npz")["in/image"]  # 96x128
    if name == "ssd300_vgg16":
        image = np.pad(image, ((0, 204), (0, 172), (0, 0)), "wrap")
    boxes = np.array([[8, 12, 60, 70], [40, 30, 120, 90], [80, 8, 112, 40]], np.float32)
    masks = np.zeros((3, *image.shape[:2]), np.uint8)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes.astype(int), strict=True):
        mask[y1:y2, x1 : (x1 + x2) // 2] = 1
    labels = np.array([3, 17, 44])
    return {"image": image, "boxes": boxes, "labels": labels, "masks": masks}


def losses_and_gradients(name: str) -> dict[str, np.ndarray]:
    """Losses, and the norms of the gradients of all parameters, in order of names."""
    import torch
    from torchvision.models import detection

    options = {"weights": None, "weights_backbone": None}
    if "resnet50" in name:
        options |= {"min_size": 96, "max_size": 128}
    if "rcnn" in name:
        options |= NUMBERS
    model = getattr(detection, name)(**options)
    model = _with_weights(model, name).train()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eval()
    given = {key: torch.tensor(values) for key, values in inputs(name).items()}
    image = given.pop("image").permute(2, 0, 1).double() / 255
    given["boxes"] = given["boxes"].double()
    losses = model([image], [given])
    sum(losses.values()).backward()
    norms = [x.grad.norm().item() for _, x in sorted(model.named_parameters())]
    results = {f"{name}/loss/{key}": x.item() for key, x in losses.items()}
    return results | {f"{name}/grad_norm": norms}


def features_and_logits(name: str) -> dict[str, np.ndarray]:
    """Of the image that the classifier's other file holds."""
    import torch
    import torchvision

    model = _with_weights(getattr(torchvision.models, name)(), name).eval()
    image = np.load(GOLDEN / f"{name}_s0.npz")["in/image"] / 255
    pixels = (image - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    with torch.no_grad():
        features = model.features(torch.tensor(pixels).permute(2, 0, 1)[None])
        logits = model.classifier(features.mean((2, 3)))
    return {
        f"{name}/out/features[:, ::8] (NCHW)": features[:, ::8].numpy(),
        f"{name}/out/logits": logits.numpy(),
    }


def _with_weights(model, name: str):
    import torch

    state, *_ = replay.load(GOLDEN / f"{name}_s0.npz")
    model.load_state_dict({key: torch.tensor(x) for key, x in state.items()})
    return model.double()


if __name__ == "__main__":
    recorded = features_and_logits("mobilenet_v2")
    for model_name in MODELS:
        recorded |= losses_and_gradients(model_name)
    np.savez_compressed(GOLDEN / "float64.npz", **recorded)
