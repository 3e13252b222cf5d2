"""How `detr_s0.npz` was made: python -m tests.golden.record_transformers

By transformers 5.24 with timm 1.0 on torch 2.13, of a small DETR on a whole ResNet-18:
two images of different size in one batch, weights by the rule of `replay`. With
`auxiliary_loss` transformers feeds the norm of each decoder layer's output to the next
layer, which neither the paper's code nor its own inference does; so the outputs of all
layers are taken without, and given to its loss.
"""

import json
import pathlib

import numpy as np

from tests.golden import replay

GOLDEN = pathlib.Path(__file__).parent
SIZES = ((128, 160), (96, 192))
CONFIG = {
    "backbone": "resnet18",
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "num_queries": 12,
    "num_labels": 5,
    "dropout": 0.0,
}


def inputs() -> dict[str, np.ndarray]:
    """Two images, and three objects and one."""
    rng = np.random.default_rng(0)
    given = {}
    for i, (height, width) in enumerate(SIZES):
        coarse = rng.integers(0, 256, (height // 8, width // 8, 3), np.uint8)
        given[f"in/image{i}"] = coarse.repeat(8, axis=0).repeat(8, axis=1)
    given["in/boxes0"] = np.array(
        [[8, 12, 60, 70], [40, 30, 150, 90], [80, 8, 112, 120]], np.float32
    )
    given["in/labels0"] = np.array([0, 3, 4])
    given["in/boxes1"] = np.array([[20, 30, 180, 66]], np.float32)
    given["in/labels1"] = np.array([2])
    return given


def record() -> tuple[dict[str, np.ndarray], dict]:
    """Returns all arrays, and what the json holds."""
    import torch
    from transformers import DetrConfig, DetrForObjectDetection

    model = DetrForObjectDetection(DetrConfig(**CONFIG, use_timm_backbone=True)).eval()
    model.config._attn_implementation = "eager"
    about, arrays = {"seed": 0, "weights": {}}, inputs()
    _draw(model, about, arrays)
    published = DetrForObjectDetection(DetrConfig(num_labels=91))
    shapes = {name: [*x.shape] for name, x in _named(published)}
    about["detr_resnet50"] = shapes
    for precision in (torch.float32, torch.float64):
        torch.set_default_dtype(precision)  # of the loss's weights
        model = model.to(precision).requires_grad_(True)
        model.zero_grad()
        place = "float32" if precision == torch.float32 else "float64"
        outputs = _run(model, arrays, precision)
        for name, value in outputs.items():
            arrays[f"{place}/{name}"] = np.asarray(value)
    return arrays, about


def _named(model):
    """Parameters and buffers by the names of the published file."""
    import re

    for name, tensor in model.state_dict().items():
        name = name.replace("model.backbone.", "model.backbone.conv_encoder.")
        name = name.replace("o_proj", "out_proj").replace(".mlp.fc", ".fc")
        if not re.search("num_batches_tracked", name):
            yield name, tensor


def _draw(model, about: dict, arrays: dict) -> None:
    import torch

    rng = np.random.default_rng(1)
    for name, tensor in _named(model):
        shape = tuple(tensor.shape)
        if len(shape) > 1:
            scale = 4.0 if "query_position" in name else 1.0
            about["weights"][name] = {"shape": shape, "scale": scale}
            drawn = replay.drawn_tensor(name, shape, 0) * np.float32(scale)
        else:
            about["weights"][name] = {"shape": shape}
            low, high = (0.6, 1.2) if name.endswith(("weight", "var")) else (-0.2, 0.2)
            drawn = arrays["param/" + name] = rng.uniform(low, high, shape).astype("f4")
        tensor.copy_(torch.tensor(drawn))


def _run(model, arrays: dict, precision) -> dict:
    """Returns outputs of all stages, losses and norms of gradients."""
    import torch
    from transformers.loss.loss_for_object_detection import (
        ForObjectDetectionLoss,
        HungarianMatcher,
    )

    canvas = np.max(SIZES, axis=0)
    pixels = torch.zeros((2, 3, *canvas), dtype=precision)
    mask, labels = torch.zeros((2, *canvas), dtype=torch.int64), []
    for i, (height, width) in enumerate(SIZES):
        image = arrays[f"in/image{i}"] / 255
        image = (image - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
        pixels[i, :, :height, :width] = torch.tensor(image).permute(2, 0, 1)
        mask[i, :height, :width] = 1
        x1, y1, x2, y2 = (arrays[f"in/boxes{i}"] / [width, height, width, height]).T
        boxes = np.stack([(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1], axis=1)
        boxes = torch.tensor(boxes, dtype=precision)
        classes = torch.tensor(arrays[f"in/labels{i}"])
        labels.append({"class_labels": classes, "boxes": boxes})
    layers = []
    hooks = [
        layer.register_forward_hook(lambda *call: layers.append(call[-1]))
        for layer in model.model.decoder.layers
    ]
    found = model(pixels, pixel_mask=mask)
    for hook in hooks:
        hook.remove()
    queries = model.model.decoder.layernorm(torch.stack(layers))
    logits = model.class_labels_classifier(queries)
    boxes = model.bbox_predictor(queries).sigmoid()
    config = model.config
    config.auxiliary_loss = True
    loss, parts, _ = ForObjectDetectionLoss(
        logits[-1], labels, "cpu", boxes[-1], config, logits, boxes
    )
    config.auxiliary_loss = False
    loss.backward()
    matcher = HungarianMatcher(config.class_cost, config.bbox_cost, config.giou_cost)
    answer = {"encoder": found.encoder_last_hidden_state, "queries": queries}
    answer |= {"logits": logits, "boxes": boxes, "loss": loss}
    answer |= {f"loss/{name}": value for name, value in parts.items()}
    for layer in range(len(logits)):
        outputs = {"logits": logits[layer], "pred_boxes": boxes[layer]}
        for i, pairs in enumerate(matcher(outputs, labels)):
            answer[f"matched/{layer}/{i}"] = np.stack(pairs)
    norms = {}
    for name, parameter in model.named_parameters():
        name = name.replace("model.backbone.", "model.backbone.conv_encoder.")
        name = name.replace("o_proj", "out_proj").replace(".mlp.fc", ".fc")
        norms[name] = parameter.grad.norm().item()
    answer["grad_norm"] = [norms[name] for name in sorted(norms)]
    return {
        name: x.detach().numpy() if isinstance(x, torch.Tensor) else x
        for name, x in answer.items()
    }


if __name__ == "__main__":
    recorded, about = record()
    np.savez_compressed(GOLDEN / "detr_s0.npz", **recorded)
    (GOLDEN / "detr_s0.json").write_text(json.dumps(about, indent=0) + "\n")
