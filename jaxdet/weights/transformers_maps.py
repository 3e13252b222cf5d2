"""Lists the tensors of the detectors of Hugging Face's transformers, and ours."""

from collections.abc import Callable, Iterator
from functools import partial

from jaxdet.weights import backbones
from jaxdet.weights.mapping import (
    SAME,
    TORCH_KERNEL,
    Layout,
    TensorMap,
    select_outputs,
    torch_layer,
)

_BACKBONE = "model.backbone.conv_encoder.model."
_QUERIES = "model.query_position_embeddings.weight"
_ATTENTIONS = {"self": "self", "encoder": "cross"}

AttentionMaps = Callable[[str, str], Iterator[TensorMap]]
"""Yields the maps of an attention from its name in the state dict and our path."""


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


def deformable_attention(theirs: str, ours: str) -> Iterator[TensorMap]:
    """Yields the maps of attention to a few points of each map."""
    names = {"value_proj": "value", "output_proj": "out"}
    for name in ("sampling_offsets", "attention_weights", "value_proj", "output_proj"):
        yield from torch_layer(f"{theirs}.{name}", f"{ours}/{names.get(name, name)}")


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
    yield from backbones.resnet(resnet, theirs=_BACKBONE, ours="backbone/")
    yield from torch_layer("model.input_projection", "projection")
    yield TensorMap(_QUERIES, "params/query_positions", SAME)
    attend = partial(attention, heads=heads)
    yield from _layers(depths, attend, attend)
    yield from layer_norm("model.decoder.layernorm", "decoder_norm")
    yield from torch_layer("class_labels_classifier", "class_head")
    yield from _box_head("bbox_predictor", "box_head")


def deformable_detr(
    *,
    resnet: int = 50,
    depths: tuple[int, int] = (6, 6),
    heads: int = 8,
    channels: int = 256,
    refine_boxes: bool = False,
) -> Iterator[TensorMap]:
    """Yields the maps of Deformable DETR with a backbone of timm, on levels 3 to 6.

    Args:
      resnet: layers of the backbone.
      depths: layers of encoder and decoder.
      heads: of each attention.
      channels: of a query.
      refine_boxes: whether each layer of the decoder has heads of its own.
    """
    yield from backbones.resnet(resnet, theirs=_BACKBONE, ours="backbone/")
    for i in range(4):
        theirs, ours = f"model.input_proj.{i}", f"projections/level{i + 3}"
        yield from torch_layer(f"{theirs}.0", ours)
        yield from layer_norm(f"{theirs}.1", f"{ours}_norm/group")
    yield TensorMap("model.level_embed", "params/level_positions", SAME)
    # The first half of each query's numbers are its position.
    for i, name in enumerate(("query_positions", "queries")):
        half = select_outputs(range(i * channels, (i + 1) * channels), 2 * channels)
        yield TensorMap(_QUERIES, f"params/{name}", half)
    yield from torch_layer("model.reference_points", "reference_points")
    attend = partial(attention, heads=heads)
    yield from _layers(depths, attend, deformable_attention)
    for i in range(depths[1] if refine_boxes else 1):
        yield from torch_layer(f"class_embed.{i}", f"class_heads_{i}")
        box_heads = [f"model.decoder.bbox_embed.{i}", f"bbox_embed.{i}"]
        theirs, former = box_heads if refine_boxes else (box_heads[1], None)
        yield from _box_head(theirs, f"box_heads_{i}", former)


def _layers(
    depths: tuple[int, int], among_queries: AttentionMaps, to_cells: AttentionMaps
) -> Iterator[TensorMap]:
    """Yields the maps of all layers of encoder and decoder.

    Args:
      depths: layers of encoder and decoder.
      among_queries: yields the maps of the decoder's self-attention.
      to_cells: yields the maps of the others.
    """
    encoder = {"self": to_cells}
    decoder = {"self": among_queries, "encoder": to_cells}
    parts = {"encoder": encoder, "decoder": decoder}
    for depth, (part, attentions) in zip(depths, parts.items(), strict=True):
        for i in range(depth):
            layer, our_layer = f"model.{part}.layers.{i}", f"{part}_{i}"
            for name, maps in attentions.items():
                theirs = f"{layer}.{name}_attn"
                ours = f"{our_layer}/{_ATTENTIONS[name]}_attention"
                yield from maps(theirs, ours)
                yield from layer_norm(f"{theirs}_layer_norm", f"{ours}_norm")
            yield from feed_forward(layer, our_layer)


def _box_head(theirs: str, ours: str, former: str | None = None) -> Iterator[TensorMap]:
    for i in range(3):
        old_name = f"{former}.layers.{i}" if former else None
        layer = f"{theirs}.layers.{i}", f"{ours}/layer{i}"
        yield from torch_layer(*layer, former=old_name)
