"""Defines the layers of a deformable transformer (Zhu et al. 2021, 4).

Tokens are the cells of several maps, one map after the other, or object queries. `keys`
are as in transformer.py.
"""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from jaxdet.nn import transformer
from jaxdet.nn.convolution import Conv
from jaxdet.nn.deformable_attention import multi_scale_deformable_attention
from jaxdet.nn.layers import Norm, zero_outside


class Maps(NamedTuple):
    """The cells of the L maps of each image, T in all."""

    features: jax.Array  # [B, T, C]
    extents: jax.Array  # [B, L, 2] rows and columns that belong to the image
    shapes: tuple[tuple[int, int], ...]  # rows and columns of the maps

    def centers(self) -> jax.Array:
        """Returns the cells' centers `[B, T, 2]`: (x, y) in fractions of the image."""
        centers = []
        for level, (height, width) in enumerate(self.shapes):
            cells = jnp.meshgrid(jnp.arange(width), jnp.arange(height))
            cells = jnp.stack(cells, axis=-1).reshape(1, -1, 2) + 0.5
            centers.append(cells / self.extents[:, None, level, ::-1])
        return jnp.concatenate(centers, axis=1)


class LevelProjections(nn.Module):
    """Gives all levels equal channels and a norm, and makes those that lack (A.2)."""

    levels: tuple[int, ...]  # finest first, without gaps
    channels: int  # of each level
    dtype: jnp.dtype = jnp.float32  # of the arithmetic; parameters stay float32

    @nn.compact
    def __call__(
        self, stages: dict[int, jax.Array], sizes: jax.Array | None = None
    ) -> list[jax.Array]:
        """`{level: [B, H, W, C]}` of a backbone -> `[B, H, W, channels]` of each level.

        Raises:
          ValueError: if the backbone lacks the finest level.
        """
        if self.levels[0] not in stages:
            raise ValueError(
                f"the finest level is {self.levels[0]}; the backbone must have it, but "
                f"it has levels {sorted(stages)}"
            )
        features = []
        for level in self.levels:
            if level in stages:
                x, kernel, stride = stages[level], 1, 1
            else:
                x, kernel, stride = zero_outside(x, sizes, 2 ** (level - 1)), 3, 2
            conv = Conv(
                self.channels,
                kernel,
                stride,
                kernel_init=transformer.XAVIER,
                dtype=self.dtype,
                name=f"level{level}",
            )
            norm = Norm("group", dtype=self.dtype, name=f"level{level}_norm")
            features.append(norm(conv(x), sizes, 2**level))
            x = stages.get(level, features[-1])
        return features


class DeformableAttention(nn.Module):
    """Attention to a few points of each map, around one of each query (4.1)."""

    heads: int  # which share the channels
    points: int  # for each head and map
    dtype: jnp.dtype = jnp.float32  # of the arithmetic; parameters stay float32

    @nn.compact
    def __call__(
        self, queries: jax.Array, references: jax.Array, maps: Maps
    ) -> jax.Array:
        """`[B, Q, C]` -> `[B, Q, C]`.

        References `[B, Q, 1, 1, 1, 2 or 4]`, points in fractions of the image
        `[B, Q, H, L, P, 2]` and weights `[B, Q, H, L, P]` of H heads, L maps and P
        points are sown as "samples" of the collection "intermediates".

        Args:
          queries: what points and weights follow from.
          references: what the points lie around, in fractions of the image: (x, y), or
            boxes (center x, center y, width, height), `[B, Q, 2]` or `[B, Q, 4]`.
          maps: what is attended to.
        """
        batch, count, channels = queries.shape
        layout = self.heads, len(maps.shapes), self.points
        samples = math.prod(layout)
        linear = functools.partial(nn.Dense, dtype=self.dtype)
        zeros = functools.partial(linear, kernel_init=nn.initializers.zeros)
        xavier = functools.partial(linear, kernel_init=transformer.XAVIER)
        offsets = zeros(
            2 * samples,
            bias_init=lambda *_: _initial_offsets(layout),
            name="sampling_offsets",
        )(queries)
        offsets = offsets.reshape(batch, count, *layout, 2).astype(jnp.float32)
        scale = maps.extents[:, None, None, :, None, ::-1].astype(jnp.float32)
        references = references[:, :, None, None, None]
        if references.shape[-1] == 4:
            offsets = offsets / self.points * references[..., 2:] * 0.5 * scale
        points = references[..., :2] * scale + offsets
        weights = zeros(samples, name="attention_weights")(queries)
        weights = weights.reshape(batch, count, self.heads, -1).astype(jnp.float32)
        weights = nn.softmax(weights).reshape(batch, count, *layout)
        self.sow("intermediates", "samples", (references, points / scale, weights))
        values = xavier(channels, name="value")(maps.features)
        values = values.reshape(batch, -1, self.heads, channels // self.heads)

        def attend(values, points, weights, extents):
            return multi_scale_deformable_attention(
                values, points, weights, shapes=maps.shapes, extents=extents
            )

        attended = lax.platform_dependent(
            *(values, points, weights, maps.extents),
            tpu=functools.partial(one_by_one, attend),
            default=jax.vmap(attend),
        )
        attended = attended.reshape(batch, count, channels)
        return xavier(channels, name="out")(attended)


def one_by_one(function: Callable, *arrays: jax.Array) -> jax.Array:
    """Returns what `jax.vmap(function)` does, image after image, to save memory.

    Where the last axis of arrays is filled up to 128, what a batch keeps for gradients
    is too much: here it is computed again, for one image.

    Args:
      function: of arrays of one image.
      arrays: those of B images, `[B, ...]`.

    Returns:
      `[B, ...]`.
    """
    function = jax.checkpoint(function)
    return lax.map(lambda image: function(*image), arrays)


class DeformableEncoderLayer(nn.Module):
    """Attention of the maps' cells to each other, then a feed-forward network (4.1)."""

    heads: int  # which share the channels
    points: int  # for each head and map
    hidden: int  # features inside the feed-forward network
    dropout: float = 0.0  # share dropped of what is added to a token
    dtype: jnp.dtype = jnp.float32  # of the arithmetic; parameters stay float32

    @nn.compact
    def __call__(
        self, maps: Maps, positions: jax.Array, keys: jax.Array | None = None
    ) -> Maps:
        """Returns the maps with new features.

        Args:
          maps: of the image.
          positions: `[B, T, C]`, added where points and weights are computed.
          keys: see above.
        """
        x = maps.features
        keys, hidden_keys = transformer.split_keys(keys, 2)
        attended = DeformableAttention(
            self.heads, self.points, self.dtype, name="self_attention"
        )(x + positions, maps.centers(), maps)
        x = transformer.layer_norm(self.dtype, "self_attention_norm")(
            x + transformer.dropout(attended, keys, self.dropout)
        )
        feed_forward = transformer.FeedForward(
            self.hidden, self.dropout, self.dtype, name="feed_forward"
        )
        return maps._replace(features=feed_forward(x, hidden_keys))


class DeformableDecoderLayer(nn.Module):
    """Attention among queries, from queries to maps, then a feed-forward network."""

    heads: int  # which share the channels
    points: int  # for each head and map
    hidden: int  # features inside the feed-forward network
    dropout: float = 0.0  # share dropped of what is added to a query
    dtype: jnp.dtype = jnp.float32  # of the arithmetic; parameters stay float32

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        query_positions: jax.Array,
        references: jax.Array,
        maps: Maps,
        keys: jax.Array | None = None,
    ) -> jax.Array:
        """`[B, Q, C]` -> `[B, Q, C]`.

        Args:
          x: the queries' features.
          query_positions: `[B, Q, C]`, added where queries are compared, and where
            points and weights are computed.
          references: see `DeformableAttention`.
          maps: what the encoder makes of the image.
          keys: see above.
        """
        self_keys, cross_keys, hidden_keys = transformer.split_keys(keys, 3)
        placed = x + query_positions
        attended = transformer.attention(self.heads, self.dtype, "self_attention")(
            placed, placed, x
        )
        x = transformer.layer_norm(self.dtype, "self_attention_norm")(
            x + transformer.dropout(attended, self_keys, self.dropout)
        )
        attended = DeformableAttention(
            self.heads, self.points, self.dtype, name="cross_attention"
        )(x + query_positions, references, maps)
        x = transformer.layer_norm(self.dtype, "cross_attention_norm")(
            x + transformer.dropout(attended, cross_keys, self.dropout)
        )
        feed_forward = transformer.FeedForward(
            self.hidden, self.dropout, self.dtype, name="feed_forward"
        )
        return feed_forward(x, hidden_keys)


def _initial_offsets(layout: tuple[int, int, int]) -> jax.Array:
    """Returns offsets in cells: a direction for each head, a distance for each point.

    The directions end on the sides of a square, so that eight heads read the eight
    cells around (A.4).
    """
    heads, levels, points = layout
    angles = jnp.arange(heads) * (2 * jnp.pi / heads)
    directions = jnp.stack([jnp.cos(angles), jnp.sin(angles)], axis=-1)
    directions = directions / jnp.max(jnp.abs(directions), axis=-1, keepdims=True)
    distances = jnp.arange(1.0, points + 1).reshape(1, 1, -1, 1)
    offsets = directions[:, None, None] * distances
    shape = heads, levels, points, 2
    return jnp.broadcast_to(offsets, shape).reshape(-1)
