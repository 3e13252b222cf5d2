"""Lists the tensors of the detectors of Hugging Face's transformers, and ours."""

from collections.abc import Iterator

from jaxdet.weights import backbones
from jaxdet.weights.mapping import SAME, TORCH_KERNEL, Layout, TensorMap, torch_layer


def attention(theirs: str, ours: str, *, heads: int) -> Iterator[TensorMap]:
    """Yields the maps of flax's multi-head attention.

    Args:
      theirs: its name in the state dict.
      ours: its path below "params".
      heads: which share the channels; the other library does not keep them apart.
    """
    kernel = Layout(
        lambda kernel: kernel.reshape(len(kernel), heads, -1),
        lambda kernel: kernel.reshape(len(kernel), -1),
    )
    bias = Layout(lambda bias: bias.reshape(heads, -1), lambda bias: bias.reshape(-1))
    for name in ("query", "key", "value"):
        place = f"{theirs}.{name[0]}_proj"
        layouts = TORCH_KERNEL.then(kernel), bias
        yield from torch_layer(place, f"{ours}/{name}", *layouts)
    outputs = Layout(
        lambda kernel: kernel.reshape(heads, -1, kernel.shape[-1]),
        lambda kernel: kernel.reshape(-1, kernel.shape[-1]),
    )
    yield from torch_layer(
        f"{theirs}.out_proj", f"{ours}/out", TORCH_KERNEL.then(outputs)
    )


def layer_norm(theirs: str, ours: str) -> Iterator[TensorMap]:
    """Yields the maps of a layer norm."""
    yield TensorMap(f"{theirs}.weight", f"params/{ours}/scale", SAME)
    yield TensorMap(f"{theirs}.bias", f"params/{ours}/bias", SAME)


def feed_forward(theirs: str, ours: str) -> Iterator[TensorMap]:
    """Yields the maps of `FeedForward`, which lies bare in layers of transformers."""
    for name in ("fc1", "fc2"):
        yield from torch_layer(f"{theirs}.{name}", f"{ours}/feed_forward/{name}")
    yield from layer_norm(f"{theirs}.final_layer_norm", f"{ours}/feed_forward/norm")


def detr(
    *, resnet: int = 50, depths: tuple[int, int] = (6, 6), heads: int = 8
) -> Iterator[TensorMap]:
    """Yields the maps of DETR with a backbone of timm.

    Args:
      resnet: layers of the backbone.
      depths: layers of encoder and decoder.
      heads: of each attention.
    """
    yield from backbones.resnet(
        resnet, theirs="model.backbone.conv_encoder.model.", ours="backbone/"
    )
    yield from torch_layer("model.input_projection", "projection")
    name = "model.query_position_embeddings.weight"
    yield TensorMap(name, "params/query_positions", SAME)
    parts = {"encoder": ("self_attn",), "decoder": ("self_attn", "encoder_attn")}
    names = {"self_attn": "self_attention", "encoder_attn": "cross_attention"}
    for depth, (part, attentions) in zip(depths, parts.items(), strict=True):
        for i in range(depth):
            theirs, ours = f"model.{part}.layers.{i}", f"{part}_{i}"
            for name in attentions:
                place, our_place = f"{theirs}.{name}", f"{ours}/{names[name]}"
                yield from attention(place, our_place, heads=heads)
                yield from layer_norm(f"{place}_layer_norm", f"{our_place}_norm")
            yield from feed_forward(theirs, ours)
    yield from layer_norm("model.decoder.layernorm", "decoder_norm")
    yield from torch_layer("class_labels_classifier", "class_head")
    for i in range(3):
        yield from torch_layer(f"bbox_predictor.layers.{i}", f"box_head/layer{i}")
