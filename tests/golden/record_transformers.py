"""How the DETRs' files were made: python -m tests.golden.record_transformers

By transformers 5.24 with timm 1.0 on torch 2.13, of a small DETR, and of Deformable
DETR without and with refined boxes, on a whole ResNet-18: two images of different size
in one batch, weights by the rule of `replay`. With `auxiliary_loss` transformers feeds
the norm of each of DETR's decoder layers to the next layer, which neither the paper's
code nor its own inference does; so the outputs of all layers are taken without, and
given to its loss. It also ties the heads of Deformable DETR's layers to the first,
refined or not; where boxes are refined, each layer gets heads of its own.
"""

import json
import pathlib

import numpy as np

from tests.golden import replay

GOLDEN = pathlib.Path(__file__).parent
DETR = {
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
DEFORMABLE_DETR = DETR | {"d_model": 64}  # its norms' 32 groups need two channels each
CONFIGS = {
    "detr": DETR,
    "deformable_detr": DEFORMABLE_DETR,
    "deformable_detr_refined": DEFORMABLE_DETR,
}


def inputs(name: str) -> dict[str, np.ndarray]:
    """Two images, and three objects and one; those of DETR are twice as large."""
    rng, scale = np.random.default_rng(0), 2 if name == "detr" else 1
    given = {"in/sizes": scale * np.array([[64, 80], [48, 96]])}
    for i, (height, width) in enumerate(given["in/sizes"]):
        coarse = rng.integers(0, 256, (height // 8, width // 8, 3), np.uint8)
        given[f"in/image{i}"] = coarse.repeat(8, axis=0).repeat(8, axis=1)
    boxes = [[4, 6, 30, 35], [20, 15, 75, 45], [40, 4, 56, 60]], [[10, 15, 90, 33]]
    for i in range(2):
        given[f"in/boxes{i}"] = scale * np.array(boxes[i], np.float32)
    given["in/labels0"] = np.array([0, 3, 4])
    given["in/labels1"] = np.array([2])
    return given


def record(name: str) -> tuple[dict[str, np.ndarray], dict]:
    """Returns all arrays, and what the json holds."""
    import torch

    model = _model(name, **CONFIGS[name], backbone="resnet18").eval()
    model.config._attn_implementation = "eager"
    about, arrays = {"seed": 0, "weights": {}}, inputs(name)
    _draw(model, about, arrays)
    published = _named(_model(name, num_labels=91).state_dict())
    about["published"] = {name: [*x.shape] for name, x in published}
    for precision in (torch.float32, torch.float64):
        torch.set_default_dtype(precision)  # of the loss's weights
        model = model.to(precision).requires_grad_(True)
        model.zero_grad()
        place = "float32" if precision == torch.float32 else "float64"
        outputs = _run(model, arrays, precision)
        kept = outputs if place == "float32" else ("loss", "grad_norm")
        arrays |= {f"{place}/{name}": np.asarray(outputs[name]) for name in kept}
    torch.set_default_dtype(torch.float32)
    return arrays, about


def _model(name: str, **config):
    """Returns one of `CONFIGS`' networks, with randomly drawn weights."""
    import copy

    import transformers

    config["use_timm_backbone"] = True
    if name == "detr":
        config = transformers.DetrConfig(**config)
        return transformers.DetrForObjectDetection(config)
    refine = name == "deformable_detr_refined"
    config = transformers.DeformableDetrConfig(
        **config, with_box_refine=refine, class_cost=2
    )
    model = transformers.DeformableDetrForObjectDetection(config)
    if refine:
        for heads in (model.class_embed, model.bbox_embed):
            for i in range(1, len(heads)):
                heads[i] = copy.deepcopy(heads[i])
        model.model.decoder.bbox_embed = model.bbox_embed
    return model


def _named(tensors: dict):
    """Yields tensors by their names in published files, those of one storage once."""
    names = set()
    for name, tensor in tensors.items():
        place = tensor.data_ptr() or name
        if place in names or "num_batches_tracked" in name:
            continue
        names.add(place)
        yield _published_name(name), tensor


def _published_name(name: str) -> str:
    name = name.replace("model.backbone.", "model.backbone.conv_encoder.")
    return name.replace("o_proj", "out_proj").replace(".mlp.fc", ".fc")


def _draw(model, about: dict, arrays: dict) -> None:
    import torch

    rng = np.random.default_rng(1)
    for name, tensor in _named(model.state_dict()):
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


def _batch(arrays: dict, precision) -> tuple:
    """Returns pixels, their mask, and labels, as transformers takes them."""
    import torch

    canvas = np.max(arrays["in/sizes"], axis=0)
    pixels = torch.zeros((2, 3, *canvas), dtype=precision)
    mask, labels = torch.zeros((2, *canvas), dtype=torch.int64), []
    for i, (height, width) in enumerate(arrays["in/sizes"]):
        image = arrays[f"in/image{i}"] / 255
        image = (image - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
        pixels[i, :, :height, :width] = torch.tensor(image).permute(2, 0, 1)
        mask[i, :height, :width] = 1
        x1, y1, x2, y2 = (arrays[f"in/boxes{i}"] / [width, height, width, height]).T
        boxes = np.stack([(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1], axis=1)
        boxes = torch.tensor(boxes, dtype=precision)
        classes = torch.tensor(arrays[f"in/labels{i}"])
        labels.append({"class_labels": classes, "boxes": boxes})
    return pixels, mask, labels


def _run(model, arrays: dict, precision) -> dict:
    """Returns outputs of all stages, losses and norms of gradients."""
    import torch
    from transformers.loss import loss_deformable_detr, loss_for_object_detection

    pixels, mask, labels = _batch(arrays, precision)
    if model.config.model_type == "detr":
        compute_loss = loss_for_object_detection.ForObjectDetectionLoss
        matcher = loss_for_object_detection.HungarianMatcher
        encoder, queries, logits, boxes = _detr_outputs(model, pixels, mask)
    else:
        compute_loss = loss_deformable_detr.DeformableDetrForObjectDetectionLoss
        matcher = loss_deformable_detr.DeformableDetrHungarianMatcher
        encoder, queries, logits, boxes = _deformable_outputs(model, pixels, mask)
    config = model.config
    config.auxiliary_loss = True
    loss, parts, _ = compute_loss(
        logits[-1], labels, "cpu", boxes[-1], config, logits, boxes
    )
    config.auxiliary_loss = False
    loss.backward()
    matcher = matcher(config.class_cost, config.bbox_cost, config.giou_cost)
    results = {"encoder": encoder, "queries": queries}
    results |= {"logits": logits, "boxes": boxes, "loss": loss}
    results |= {f"loss/{name}": value for name, value in parts.items()}
    for layer in range(len(logits)):
        outputs = {"logits": logits[layer], "pred_boxes": boxes[layer]}
        for i, pairs in enumerate(matcher(outputs, labels)):
            results[f"matched/{layer}/{i}"] = np.stack(pairs)
    norms = {
        _published_name(name): parameter.grad.norm().item()
        for name, parameter in model.named_parameters()
    }
    results["grad_norm"] = [norms[name] for name in sorted(norms)]
    return {
        name: x.detach().numpy() if isinstance(x, torch.Tensor) else x
        for name, x in results.items()
    }


def _detr_outputs(model, pixels, mask) -> tuple:
    """Returns what the encoder makes, and queries, logits and boxes of all layers."""
    import torch

    layers = []
    hooks = [
        layer.register_forward_hook(lambda *call: layers.append(call[-1]))
        for layer in model.model.decoder.layers
    ]
    outputs = model(pixels, pixel_mask=mask)
    for hook in hooks:
        hook.remove()
    queries = model.model.decoder.layernorm(torch.stack(layers))
    logits = model.class_labels_classifier(queries)
    boxes = model.bbox_predictor(queries).sigmoid()
    return outputs.encoder_last_hidden_state, queries, logits, boxes


def _deformable_outputs(model, pixels, mask) -> tuple:
    """Returns what the encoder makes, and queries, logits and boxes of all layers."""
    import torch

    stored = {}

    def compute_loss(*given):
        stored["logits"], stored["boxes"] = given[-2:]
        return None, None, None

    model.loss_function = compute_loss
    outputs = model(pixels, pixel_mask=mask, labels=[])
    queries = torch.unbind(outputs.intermediate_hidden_states, dim=1)
    encoder = outputs.encoder_last_hidden_state
    return encoder, torch.stack(queries), stored["logits"], stored["boxes"]


if __name__ == "__main__":
    for name in CONFIGS:
        recorded, about = record(name)
        np.savez_compressed(GOLDEN / f"{name}_s0.npz", **recorded)
        (GOLDEN / f"{name}_s0.json").write_text(json.dumps(about) + "\n")
