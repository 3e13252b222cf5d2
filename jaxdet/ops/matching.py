"""Matches each anchor, point or query to an object, or to none."""

from functools import partial

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxdet.ops.box_coding import encode_ltrb
from jaxdet.ops.boxes import area, pairwise_iou


@flax.struct.dataclass
class Matches:
    """One entry an anchor; an anchor neither positive nor negative is ignored."""

    gt_index: Int[Array, "*B A"]  # slot of the object; 0 where there are no objects
    positive: Bool[Array, "*B A"]  # is matched to that object
    negative: Bool[Array, "*B A"]  # is background
    iou: Float[Array, "*B A"]  # with that object; 0 where there are no objects


def match_by_iou(
    anchors: Float[Array, "A 4"],
    boxes: Float[Array, "N 4"],
    valid: Bool[Array, " N"],
    *,
    negative_iou: float,
    positive_iou: float,
    allow_low_quality_matches: bool = True,
) -> Matches:
    """Matches every anchor to the object it overlaps most (Ren et al. 2015, 3.1.2).

    Args:
      anchors: to be matched.
      boxes: objects.
      valid: False for padding, which matches nothing. Without a valid box all anchors
        are negative.
      negative_iou: an anchor whose greatest IoU is less is negative.
      positive_iou: an anchor whose greatest IoU is at least this is positive.
      allow_low_quality_matches: also make positive the anchors that overlap some object
        as much as any anchor does, if at all, so that no object goes without. They are
        still matched to the object that they themselves overlap most, as in torchvision
        and detectron2.

    Returns:
      `Matches`; of equally good objects the first one counts.
    """
    iou = _anchor_object_iou(anchors, boxes, valid)
    matches = _match_by_greatest_iou(iou, negative_iou, positive_iou)
    if not allow_low_quality_matches:
        return matches
    best = jnp.max(iou, axis=0)
    is_best = jnp.any((iou == best[None]) & (best > 0)[None], axis=1)
    return Matches(
        gt_index=matches.gt_index,
        positive=matches.positive | is_best,
        negative=matches.negative & ~is_best,
        iou=matches.iou,
    )


def match_default_boxes(
    anchors: Float[Array, "A 4"],
    boxes: Float[Array, "N 4"],
    valid: Bool[Array, " N"],
    *,
    positive_iou: float,
) -> Matches:
    """Matches as SSD does, each object at least to its best anchor (Liu et al., 2.2).

    Args:
      anchors: to be matched.
      boxes: objects.
      valid: False for padding, which matches nothing.
      positive_iou: an anchor whose greatest IoU is at least this is positive, all
        others are negative.

    Returns:
      `Matches`. The anchor that overlaps an object most, the first of them if several
      do, is matched to that object even if it overlaps another more; of several objects
      that have the same best anchor it is matched to the one it overlaps most.
    """
    iou = _anchor_object_iou(anchors, boxes, valid)
    matches = _match_by_greatest_iou(iou, positive_iou, positive_iou)
    best = jnp.argmax(iou, axis=0)
    best_iou = jnp.take_along_axis(iou, best[None], axis=0)  # [1, N]
    is_best = (jnp.arange(len(anchors))[:, None] == best[None]) & (best_iou > 0)
    forced = jnp.where(is_best, best_iou, -1.0)
    positive = jnp.any(is_best, axis=1)
    gt_index = jnp.argmax(forced, axis=1).astype(jnp.int32)
    return Matches(
        gt_index=jnp.where(positive, gt_index, matches.gt_index),
        positive=matches.positive | positive,
        negative=matches.negative & ~positive,
        iou=jnp.where(positive, jnp.max(forced, axis=1), matches.iou),
    )


def match_points(
    points: Float[Array, "A 2"],
    boxes: Float[Array, "N 4"],
    valid: Bool[Array, " N"],
    *,
    regression_ranges: Float[Array, "A 2"],
    inclusive: bool = True,
    center_radius: Float[Array, " A"] | None = None,
) -> tuple[Int[Array, " A"], Bool[Array, " A"]]:
    """Matches every point to the smallest object around it (Tian et al. 2019, 3).

    Args:
      points: (x, y) in pixels. One on a side of a box is not in it.
      boxes: objects.
      valid: False for padding, which matches nothing.
      regression_ranges: pixels, the least and the greatest distance from a point to the
        farthest side of its object; other objects are left to other levels.
      inclusive: whether a point takes an object at these very distances, as in the
        authors' code, where two levels then do; torchvision's levels both leave it.
      center_radius: pixels: only objects whose center is nearer than this, across and
        down ("center sampling"); None: all of a box counts.

    Returns:
      The slot of its object, and whether there is one. Of objects of one area the first
      one counts.
    """
    if len(boxes) == 0:  # There is no smallest of nothing: one slot of padding instead.
        boxes, valid = jnp.zeros((1, 4)), jnp.zeros(1, bool)
    ltrb = encode_ltrb(boxes[None], points[:, None])  # [A, N, 4]
    farthest = jnp.max(ltrb, axis=-1)
    above, below = (
        (jnp.greater_equal, jnp.less_equal) if inclusive else (jnp.greater, jnp.less)
    )
    candidate = valid[None] & (jnp.min(ltrb, axis=-1) > 0)
    low, high = regression_ranges[:, :1], regression_ranges[:, 1:]
    candidate &= above(farthest, low) & below(farthest, high)
    if center_radius is not None:
        # Off the center by a step, one side is nearer and the other as much farther.
        off_center = jnp.abs(ltrb[..., 2:] - ltrb[..., :2]) / 2
        candidate &= jnp.max(off_center, axis=-1) < center_radius[:, None]
    areas = jnp.where(candidate, area(boxes)[None], jnp.inf)
    index = jnp.argmin(areas, axis=1).astype(jnp.int32)
    return index, jnp.any(candidate, axis=1)


def hungarian(
    costs: Float[Array, "Q N"], valid: Bool[Array, " N"]
) -> tuple[Int[Array, " Q"], Bool[Array, " Q"]]:
    """Matches queries to objects, one to one, at the least cost (Carion et al., 3.1).

    Objects join one after the other, each by the shortest augmenting path, which may
    hand queries on (Jonker & Volgenant 1987). `optax.assignment` solves the same, but
    padding takes it longer than objects: with 7 objects in 100 slots, a hundred times.

    Args:
      costs: of each query with each object. Pairs whose cost is not finite are matched
        only where nothing else is left.
      valid: False for padding, which matches nothing.

    Returns:
      The slot of each query's object, and whether it has one: as many queries do as
      there are objects, or all if there are more objects. Meaningless slots are 0.
    """
    queries, objects = costs.shape
    if objects == 0:
        return jnp.zeros(queries, jnp.int32), jnp.zeros(queries, bool)
    costs = _with_spare_queries(jnp.where(valid[None], costs, jnp.inf).T)
    columns = costs.shape[1]

    def add(row: jax.Array, state: tuple) -> tuple:
        """Matches one more object, which takes part from a column of its own."""
        *potentials, owner = state
        state = (*potentials, owner.at[columns].set(row))
        return jax.lax.cond(valid[row], partial(_augment, costs), lambda x: x, state)

    # The potentials of rows and columns, and the row that each column belongs to. The
    # last row stands for none; the last column is where each search starts.
    row_potentials = jnp.zeros(objects + 1, costs.dtype)
    column_potentials = jnp.zeros(columns + 1, costs.dtype)
    owner = jnp.full(columns + 1, objects, jnp.int32)
    rows = jnp.max(jnp.where(valid, jnp.arange(1, objects + 1), 0))  # padding is last
    state = row_potentials, column_potentials, owner
    *_, owner = jax.lax.fori_loop(0, rows, add, state)
    owner = owner[:queries]
    positive = owner < objects
    return jnp.where(positive, owner, 0), positive


def _with_spare_queries(costs: Float[Array, "N Q"]) -> Float[Array, "N C"]:
    """Adds queries until there is one for each object, the worst ones for all.

    Costs that are not finite become as bad: more than all that a match without such a
    pair could cost more elsewhere.
    """
    objects, queries = costs.shape
    finite = jnp.isfinite(costs)
    low = jnp.min(costs, where=finite, initial=jnp.inf)
    high = jnp.max(costs, where=finite, initial=-jnp.inf)
    worst = jnp.where(jnp.any(finite), high + (high - low) * (objects + 1) + 1, 0.0)
    spare = ((0, 0), (0, max(objects - queries, 0)))
    costs = jnp.pad(costs, spare, constant_values=jnp.inf)
    return jnp.where(jnp.isfinite(costs), costs, worst)


def _augment(costs: Float[Array, "N C"], state: tuple) -> tuple:
    """Finds the shortest path from the last column to a free one, and takes it."""
    *potentials, owner = state
    nobody, start = costs.shape

    def extend(search: tuple) -> tuple:
        """Visits the nearest column: the paths to others may lead through its row."""
        rows, columns, visited, distance, previous, column = search
        visited = visited.at[column].set(True)
        row = owner[column]
        reduced = costs[row] - rows[row] - columns[:-1]
        closer = ~visited[:-1] & (reduced < distance)
        distance = jnp.where(closer, reduced, distance)
        previous = jnp.where(closer, column, previous)
        ahead = jnp.where(visited[:-1], jnp.inf, distance)
        nearest = jnp.argmin(ahead).astype(jnp.int32)
        step = jnp.where(visited, ahead[nearest], 0.0)
        distance = jnp.where(visited[:-1], distance, distance - ahead[nearest])
        # Visited columns belong to different rows; no step is taken for others.
        rows, columns = rows.at[owner].add(step), columns - step
        return rows, columns, visited, distance, previous, nearest

    def hand_on(path: tuple) -> tuple:
        owner, column = path
        return owner.at[column].set(owner[previous[column]]), previous[column]

    visited = jnp.zeros(start + 1, bool)
    distance = jnp.full(start, jnp.inf, costs.dtype)
    previous = jnp.full(start, start, jnp.int32)
    search = (*potentials, visited, distance, previous, jnp.int32(start))
    search = jax.lax.while_loop(lambda s: owner[s[-1]] < nobody, extend, search)
    *potentials, _, _, previous, column = search
    owner, _ = jax.lax.while_loop(lambda s: s[1] < start, hand_on, (owner, column))
    return (*potentials, owner)


def _anchor_object_iou(
    anchors: Float[Array, "A 4"], boxes: Float[Array, "N 4"], valid: Bool[Array, " N"]
) -> Float[Array, "A M"]:
    """Returns IoU of anchors with objects, M being max(N, 1); -1 with padding."""
    if len(boxes) == 0:  # There is no greatest of nothing: one slot of padding instead.
        boxes, valid = jnp.zeros((1, 4)), jnp.zeros(1, bool)
    iou = jnp.where(valid[None], pairwise_iou(anchors, boxes), -1.0)
    # Computed once, not once for each use: compilers may round differently in each, and
    # tests for equality would miss.
    return jax.lax.optimization_barrier(iou)


def _match_by_greatest_iou(
    iou: Float[Array, "A M"], negative_iou: float, positive_iou: float
) -> Matches:
    """Matches every anchor to the object it overlaps most."""
    greatest = jnp.max(iou, axis=1)
    positive = greatest >= positive_iou
    return Matches(
        gt_index=jnp.argmax(iou, axis=1).astype(jnp.int32),
        positive=positive,
        negative=(greatest < negative_iou) & ~positive,
        iou=jnp.maximum(greatest, 0.0),
    )
