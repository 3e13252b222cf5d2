"""Defines a transformer's layers: attention, feed-forward networks, positions.

Norms follow the sums, as in Vaswani et al. 2017. Tokens are the cells of a map, row by
row, or object queries. Wherever a layer takes `keys`, they are random keys `[B, T]`,
one for each of its tokens, for dropout: what is dropped of a token depends neither on
padding nor on what shares its batch. None: no dropout.
"""

import math
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

XAVIER = nn.initializers.xavier_uniform()
# As one matrix of three times as many outputs would be drawn.
_JOINT_XAVIER = nn.initializers.variance_scaling(0.5, "fan_avg", "uniform")
# torch's own, of kernels.
TORCH_UNIFORM = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
_SMALLEST_EXTENT = 1e-6


def sine_position_embedding(
    inside: jax.Array, channels: int, *, offset: float = 0.0, temperature: float = 1e4
) -> jax.Array:
    """Returns sines and cosines of the cells' positions (Carion et al. 2020, A.4).

    Positions run from 0 to 2 pi over each image, whatever its canvas.

    Args:
      inside: `[B, H, W]` bool, the cells that touch the image.
      channels: a multiple of four; the first half is of the row, the second of the
        column.
      offset: cells added to positions that count from 1; -0.5: the cells' centers.
      temperature: ratio of the longest wave length to the shortest.

    Returns:
      `[B, H, W, channels]` float32; meaningless outside.
    """
    half = channels // 2
    waves = temperature ** (2 * (jnp.arange(half) // 2) / half)
    embedded = []
    for axis in (1, 2):
        cells = jnp.cumsum(inside, axis=axis, dtype=jnp.float32)
        extent = jax.lax.slice_in_dim(cells, inside.shape[axis] - 1, None, axis=axis)
        position = (cells + offset) / (extent + _SMALLEST_EXTENT) * (2 * math.pi)
        angles = position[..., None] / waves[None, None, None]
        pairs = jnp.sin(angles[..., 0::2]), jnp.cos(angles[..., 1::2])
        embedded.append(jnp.stack(pairs, axis=-1).reshape(angles.shape))
    return jnp.concatenate(embedded, axis=-1)


def cell_keys(keys: jax.Array | None, height: int, width: int) -> jax.Array | None:
    """Returns keys `[B, height * width]` of a map's cells, the same on every canvas.

    Args:
      keys: `[B]`, one an image; None: no dropout.
      height: rows of the map.
      width: columns of the map.
    """
    if keys is None:
        return None
    ids = jnp.arange(height)[:, None] * 2**16 + jnp.arange(width)[None]
    return _fold_in_each(keys, ids.reshape(-1))


def query_keys(keys: jax.Array | None, count: int) -> jax.Array | None:
    """Returns keys `[B, count]` of queries, from those of images `[B]`."""
    return None if keys is None else _fold_in_each(keys, jnp.arange(count))


def split_keys(keys: jax.Array | None, count: int) -> list[jax.Array | None]:
    """Splits keys for `count` layers, `[B, T]` each; None for all without keys."""
    if keys is None:
        return [None] * count
    split = jax.vmap(jax.vmap(partial(jax.random.split, num=count)))(keys)
    return [split[:, :, i] for i in range(count)]


def dropout(x: jax.Array, keys: jax.Array | None, rate: float) -> jax.Array:
    """Zeroes a share of the features of each token, and scales up the rest.

    Args:
      x: `[B, T, C]`.
      keys: `[B, T]`; None: nothing is zeroed.
      rate: the share, less than 1.

    Returns:
      `[B, T, C]`.
    """
    if keys is None or rate == 0:
        return x
    draw = partial(jax.random.bernoulli, p=1 - rate, shape=x.shape[2:])
    return jnp.where(jax.vmap(jax.vmap(draw))(keys), x / (1 - rate), 0)


def attention(heads: int, dtype: jnp.dtype, name: str) -> nn.Module:
    """Returns multi-head attention `(queries, keys, values, mask=...)`.

    The softmax of half precision is float32; the initial parameters are those of the
    paper's code.

    Args:
      heads: which share the channels.
      dtype: of the arithmetic; parameters stay float32.
      name: of the layer among the parameters.
    """
    return nn.MultiHeadDotProductAttention(
        heads,
        dtype=dtype,
        kernel_init=_JOINT_XAVIER,
        out_kernel_init=XAVIER,
        force_fp32_for_softmax=jnp.finfo(dtype).bits < 32,
        name=name,
    )


def layer_norm(dtype: jnp.dtype, name: str | None = None) -> nn.Module:
    """Returns the norm of each token's features, with torch's epsilon."""
    return nn.LayerNorm(epsilon=1e-5, dtype=dtype, name=name)


class FeedForward(nn.Module):
    """Two layers on each token, added to it, and the norm of the sum."""

    hidden: int  # features between the two
    dropout: float = 0.0  # share dropped of the hidden features, and of the outputs
    dtype: jnp.dtype = jnp.float32  # of the arithmetic; parameters stay float32

    @nn.compact
    def __call__(self, x: jax.Array, keys: jax.Array | None = None) -> jax.Array:
        """`[B, T, C]` -> `[B, T, C]`."""
        dense = partial(nn.Dense, kernel_init=XAVIER, dtype=self.dtype)
        hidden_keys, keys = split_keys(keys, 2)
        hidden = nn.relu(dense(self.hidden, name="fc1")(x))
        hidden = dropout(hidden, hidden_keys, self.dropout)
        added = dropout(dense(x.shape[-1], name="fc2")(hidden), keys, self.dropout)
        return layer_norm(self.dtype, "norm")(x + added)


class EncoderLayer(nn.Module):
    """Self-attention of a map's cells, then a feed-forward network."""

    heads: int  # of each attention; they share the channels
    hidden: int  # features inside the feed-forward network
    dropout: float = 0.0  # share dropped of what is added to a token
    dtype: jnp.dtype = jnp.float32  # of the arithmetic; parameters stay float32

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        positions: jax.Array,
        mask: jax.Array | None = None,
        keys: jax.Array | None = None,
    ) -> jax.Array:
        """`[B, T, C]` -> `[B, T, C]`.

        Args:
          x: the cells' features.
          positions: `[B, T, C]`, added where cells are compared.
          mask: `[B, 1, 1, T]` bool, the cells that are attended to; None: all.
          keys: see above.
        """
        keys, hidden_keys = split_keys(keys, 2)
        placed = x + positions
        attended = attention(self.heads, self.dtype, "self_attention")(
            placed, placed, x, mask=mask
        )
        x = layer_norm(self.dtype, "self_attention_norm")(
            x + dropout(attended, keys, self.dropout)
        )
        feed_forward = FeedForward(
            self.hidden, self.dropout, self.dtype, name="feed_forward"
        )
        return feed_forward(x, hidden_keys)


class DecoderLayer(nn.Module):
    """Attention among queries, from queries to a map, then a feed-forward network."""

    heads: int  # of each attention; they share the channels
    hidden: int  # features inside the feed-forward network
    dropout: float = 0.0  # share dropped of what is added to a query
    dtype: jnp.dtype = jnp.float32  # of the arithmetic; parameters stay float32

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        query_positions: jax.Array,
        memory: jax.Array,
        positions: jax.Array,
        mask: jax.Array | None = None,
        keys: jax.Array | None = None,
    ) -> jax.Array:
        """`[B, Q, C]` -> `[B, Q, C]`.

        The weights of the cross-attention, `[B, heads, Q, T]`, are sown as
        "attention_weights" of the collection "intermediates".

        Args:
          x: the queries' features.
          query_positions: `[B, Q, C]`, added where queries are compared.
          memory: `[B, T, C]`, what the encoder makes of the map.
          positions: `[B, T, C]`, of the map's cells.
          mask: `[B, 1, 1, T]` bool, the cells that are attended to; None: all.
          keys: see above.
        """
        self_keys, cross_keys, hidden_keys = split_keys(keys, 3)
        placed = x + query_positions
        attended = attention(self.heads, self.dtype, "self_attention")(
            placed, placed, x
        )
        x = layer_norm(self.dtype, "self_attention_norm")(
            x + dropout(attended, self_keys, self.dropout)
        )
        attended = attention(self.heads, self.dtype, "cross_attention")(
            x + query_positions, memory + positions, memory, mask=mask, sow_weights=True
        )
        x = layer_norm(self.dtype, "cross_attention_norm")(
            x + dropout(attended, cross_keys, self.dropout)
        )
        feed_forward = FeedForward(
            self.hidden, self.dropout, self.dtype, name="feed_forward"
        )
        return feed_forward(x, hidden_keys)


class MLP(nn.Module):
    """Fully connected layers with ReLUs between them."""

    hidden: int  # outputs of all layers but the last
    outputs: int  # of the last
    depth: int = 3  # layers
    kernel_init: nn.initializers.Initializer = TORCH_UNIFORM  # of the last layer
    bias_init: nn.initializers.Initializer = nn.initializers.zeros  # of the last layer
    dtype: jnp.dtype = jnp.float32  # of the arithmetic; parameters stay float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """`[..., C]` -> `[..., outputs]`."""
        dense = partial(nn.Dense, dtype=self.dtype)
        for index in range(self.depth - 1):
            layer = dense(self.hidden, kernel_init=TORCH_UNIFORM, name=f"layer{index}")
            x = nn.relu(layer(x))
        last = dense(
            self.outputs,
            kernel_init=self.kernel_init,
            bias_init=self.bias_init,
            name=f"layer{self.depth - 1}",
        )
        return last(x)


def _fold_in_each(keys: jax.Array, ids: jax.Array) -> jax.Array:
    fold_in = jax.vmap(jax.random.fold_in, (None, 0))
    return jax.vmap(fold_in, (0, None))(keys, ids)
