"""What the time of a detector goes into: `experiments.benchmarks.speed --parts`.

Each part is a function of its own on the arrays that the parts before it make, with the
gradients that a training step takes through it; RoI Align's backward pass is a part of
its own. XLA merges what belongs to several, so the parts of a whole may take a little
more than it. The whole and its parts take turns, so that both meet the same machine.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from experiments.benchmarks.timing import medians, with_gradient
from jaxdet.detectors import faster_rcnn, fcos, retinanet, roi_heads, rpn, ssd
from jaxdet.detectors.faster_rcnn import FasterRCNNConfig, FasterRCNNNetwork
from jaxdet.detectors.fcos import FCOSConfig, FCOSNetwork
from jaxdet.detectors.mask_rcnn import MaskRCNNConfig
from jaxdet.detectors.retinanet import RetinaNetConfig, RetinaNetNetwork
from jaxdet.detectors.ssd import SSDConfig, SSDNetwork
from jaxdet.nn.heads import MaskHead
from jaxdet.ops import anchors, images, masks, matching, nms
from jaxdet.structs import Batch
from jaxdet.training.config import TrainingConfig
from jaxdet.training.optimizer import make_optimizer, partition


class Part(NamedTuple):
    """A compiled function, and what it is given."""

    name: str
    function: Callable
    arguments: tuple
    within: str = ""  # the part that it is also a part of
    layers: bool = False  # whether it is one of the network's


class OneStage(NamedTuple):
    """A detector whose layers come before all else."""

    module: Any  # with `loss` and `predict`
    network: Callable
    heads: Callable  # (network, stages, sizes) -> what the network says


def measure(
    whole: Callable,
    network: nn.Module,
    config: Any,
    variables: dict[str, Any],
    batch: Batch,
    optimizer: TrainingConfig,
    training: bool,
    repeats: int,
) -> dict[str, Any]:
    """Milliseconds of `predict`, or of a training step, and of its parts.

    Args:
      whole: a function of nothing that makes such a call.
      network: of `network`.
      config: of the detector.
      variables: of the network.
      batch: what it looks at.
      optimizer: of the step.
      training: with losses and gradients.
      repeats: calls of which the median is taken.

    Returns:
      `{"parts_whole", "parts"}`: the whole's, and for each part `{"name",
      "milliseconds", "within", "layers"}`, where `within` is empty, or the name of
      another part that does the same among other things; `layers` says whether it is of
      the backbone, neck or heads.
    """
    bench = Workbench(network, variables, batch, training)
    add_parts(bench, config)
    if training:
        _optimizer(bench, optimizer)
    calls = [partial(part.function, *part.arguments) for part in bench.parts]
    of_whole, *times = medians([whole, *calls], repeats)
    rows = []
    for part, milliseconds in zip(bench.parts, times, strict=True):
        row = {"name": part.name, "milliseconds": milliseconds}
        rows.append({**row, "within": part.within, "layers": part.layers})
    return {"parts_whole": of_whole, "parts": rows}


def network(
    config: Any, backbone: nn.Module, box_head: nn.Module | None = None
) -> nn.Module:
    """The layers of the detector with this config, as its builder makes them.

    Args:
      config: of any detector of `benchmark.MODELS`.
      backbone: as its builder takes it.
      box_head: of a two-stage detector, as its builder takes it.
    """
    if type(config) in ONE_STAGE:
        return ONE_STAGE[type(config)].network(config, backbone)
    if isinstance(config, FasterRCNNConfig):
        return FasterRCNNNetwork(config, backbone, box_head)
    boxes = config.faster_rcnn
    mask_head = MaskHead(
        boxes.num_classes,
        channels=config.mask_channels,
        depth=config.mask_depth,
        norm=config.mask_norm,
        dtype=backbone.dtype,
    )
    return FasterRCNNNetwork(boxes, backbone, box_head, mask_head)


@dataclasses.dataclass
class Workbench:
    """Parts so far, and what they are made of.

    Attributes:
      network: from `network`.
      variables: of it.
      batch: what the parts are given.
      training: whether parts are timed with their gradients.
      parts: so far.
    """

    network: nn.Module
    variables: dict[str, Any]
    batch: Batch
    training: bool
    parts: list[Part] = dataclasses.field(default_factory=list)

    def add(
        self,
        name: str,
        function: Callable,
        *arguments,
        learns: bool = True,
        within: str = "",
        layers: bool = False,
    ) -> Any:
        """A part; in training with the gradient of its first argument, if it learns.

        Args:
          name: of the part.
          function: what it does.
          *arguments: what the function takes.
          learns: whether it has a gradient by the first of them.
          within: name of the part that this is a part of, if any.
          layers: whether this is a part of the network.

        Returns:
          What the function answers.
        """
        gradient = self.training and learns
        compiled = jax.jit(partial(with_gradient, function) if gradient else function)
        self.parts.append(Part(name, compiled, arguments, within, layers))
        answer = compiled(*arguments)
        return answer[0] if gradient else answer

    def add_layers(
        self, name: str, method: Callable, owners: tuple[str, ...], features, *others
    ) -> Any:
        """A part of the network: `method(network, features, *others)`.

        Args:
          name: of the part.
          method: what it does.
          owners: beginnings of the names of the layers in it; others are not needed.
          features: differentiated, as those layers' parameters are; None: the pixels
            among the others are all it is given.
          others: further arguments.
        """
        params = self.variables["params"]
        own = {k: v for k, v in params.items() if k.startswith(owners)}
        rest = {k: v for k, v in self.variables.items() if k != "params"}
        apply = nn.apply(method, self.network)

        def run(learned, rest, *others):
            params, features = learned
            return apply({"params": params, **rest}, features, *others)

        return self.add(name, run, (own, features), rest, *others, layers=True)


def add_parts(bench: Workbench, config: Any) -> None:
    """All that the detector with this config does, in its order."""
    add = _one_stage if type(config) in ONE_STAGE else _two_stages
    add(bench, config)


def _one_stage(bench: Workbench, config: Any) -> None:
    module, _, heads = ONE_STAGE[type(config)]
    batch, masked = bench.batch, getattr(config, "mask_padding", True)
    sizes = batch.sizes if masked else None
    stages = _backbone(bench, config, sizes)
    owners = ("fpn", "class", "box_head", "head", "deltas")
    said = bench.add_layers("neck and heads", heads, owners, stages, sizes)
    # The detector's own functions, with a network that has spoken already.

    def losses(said, batch):
        return module.loss(lambda *_: said, batch, None, config=config)[1]

    def answer(said, batch):
        return module.predict(lambda *_: said, batch, config=config)

    if bench.training:
        bench.add("matching and losses", losses, said, batch)
    else:
        bench.add("best scores, decoding, NMS", answer, said, batch)


def _backbone(bench: Workbench, config: Any, sizes: jax.Array | None) -> Any:
    batch = bench.batch
    means = getattr(config, "preprocessing", config)
    normalize = partial(images.normalize, mean=means.mean, std=means.std)
    pixels = bench.add("pixels", normalize, batch.images, batch.sizes, learns=False)

    def look(network, _, pixels, sizes):
        return network.backbone(pixels, sizes)

    return bench.add_layers("backbone", look, ("backbone",), None, pixels, sizes)


def _retinanet_heads(network, stages, sizes):
    pyramid = network.fpn(stages, sizes)
    logits, deltas = (
        network.class_head(pyramid, sizes),
        network.box_head(pyramid, sizes),
    )
    count, classes = len(logits), network.config.num_classes
    return logits.reshape(count, -1, classes), deltas.reshape(count, -1, 4)


def _fcos_heads(network, stages, sizes):
    return network.head(network.fpn(stages, sizes), sizes)


class _Given(nn.Module):
    """A backbone that has done its work."""

    dtype: jnp.dtype

    def __call__(self, stages, sizes=None):
        return stages


def _ssd_heads(network, stages, sizes):
    given = network.clone(backbone=_Given(network.backbone.dtype), parent=None)
    return given.apply(network.variables, stages, sizes)


ONE_STAGE = {
    RetinaNetConfig: OneStage(retinanet, RetinaNetNetwork, _retinanet_heads),
    FCOSConfig: OneStage(fcos, FCOSNetwork, _fcos_heads),
    SSDConfig: OneStage(ssd, SSDNetwork, _ssd_heads),
}


def _two_stages(bench: Workbench, config: FasterRCNNConfig | MaskRCNNConfig) -> None:
    masks_config = config if isinstance(config, MaskRCNNConfig) else None
    config = config if masks_config is None else config.faster_rcnn
    batch = bench.batch
    sizes = batch.sizes if config.rpn.mask_padding else None
    stages = _backbone(bench, config.rpn, sizes)
    pyramid = bench.add_layers(
        "neck", lambda n, stages, sizes: n.neck(stages, sizes), ("neck",), stages, sizes
    )
    said = bench.add_layers(
        "RPN head",
        lambda n, pyramid, sizes: n.rpn_head(pyramid, sizes),
        ("rpn_head",),
        pyramid,
        sizes,
    )
    found = proposals = _proposals(bench, config, said)
    if bench.training:
        found = _samples(bench, config, said, proposals)
    cut = partial(_crop, config, None)
    crops = _align(bench, "RoI Align", cut, pyramid, found.boxes, sizes)
    logits, deltas = bench.add_layers(
        "box head", roi_heads.classify, ("box_head", "box_predictor"), crops
    )
    if bench.training:
        learn = partial(_region_losses, config)
        bench.add("region losses", learn, (logits, deltas), found)
    else:
        answer = partial(roi_heads.detections, config=config.region)
        found = bench.add("detections", answer, logits, deltas, proposals, batch.sizes)
    if masks_config is not None:
        _masks(bench, masks_config, pyramid, found, sizes)


def _proposals(bench: Workbench, config: FasterRCNNConfig, said) -> Any:
    mode, batch = config.rpn, bench.batch
    candidates, count = mode.candidates, mode.proposals
    if bench.training:
        candidates, count = mode.train_candidates, mode.train_proposals
    propose = partial(rpn.propose, config=mode, candidates=candidates, proposals=count)
    proposals = bench.add("proposals", propose, *said, batch, learns=False)
    within = {"learns": False, "within": "proposals"}
    decode = partial(rpn.best_anchors, config=mode, limit=candidates)
    given = bench.add("best scores, decoding", decode, *said, batch, **within)

    def thin(boxes, scores, levels, valid):
        limits = {"iou_threshold": mode.nms_threshold, "max_output_size": count}
        return nms.batched_nms(boxes, scores, levels, valid=valid, **limits)

    bench.add("NMS", jax.vmap(thin), *given, **within)
    return proposals


def _samples(bench: Workbench, config: FasterRCNNConfig, said, proposals) -> Any:
    batch, mode = bench.batch, config.rpn
    (keys,) = roi_heads.image_keys(jax.random.key(0), batch, 1)

    def learn(said, keys, batch):
        return rpn.proposal_losses(keys, *said, batch, config=mode, axis_name=None)

    bench.add("RPN matching and losses", learn, said, keys, batch)
    boxes = anchors.pyramid_anchors(batch.images.shape[1:3], **mode.anchors)
    match = partial(
        matching.match_by_iou, negative_iou=mode.low_iou, positive_iou=mode.high_iou
    )
    bench.add(
        "matching",
        jax.vmap(match, (None, 0, 0)),
        boxes,
        batch.truth.boxes,
        batch.truth.valid,
        learns=False,
        within="RPN matching and losses",
    )
    choose = partial(
        roi_heads.sample, num_classes=config.num_classes, config=config.region
    )
    return bench.add("sampling", choose, keys, proposals, batch.truth, learns=False)


def _crop(config: FasterRCNNConfig, size: int | None, pyramid, boxes, sizes):
    return faster_rcnn.crop(pyramid, boxes, sizes, config, size=size)


def _align(bench: Workbench, name: str, cut: Callable, pyramid, boxes, sizes) -> Any:
    crops = bench.add(name, cut, pyramid, boxes, sizes, learns=False)
    if bench.training:
        given = jnp.ones_like(crops), pyramid, boxes, sizes
        bench.add(f"{name}, backward", partial(_backward, cut), *given, learns=False)
    return crops


def _backward(function: Callable, gradient, first, *others):
    # Of a linear function: the answer is not needed, and XLA does not compute it.
    _, pull = jax.vjp(lambda first: function(first, *others), first)
    return pull(gradient)


def _region_losses(config: FasterRCNNConfig, said, samples):
    return roi_heads.region_losses(*said, samples, config=config.region, axis_name=None)


def _masks(bench: Workbench, config: MaskRCNNConfig, pyramid, found, sizes) -> None:
    if bench.training:  # positive samples come first; nothing else has a mask
        region = config.faster_rcnn.region
        most = int(region.per_image * region.positive_fraction)
        found = jax.tree.map(lambda values: values[:, :most], found)
    cut = partial(_crop, config.faster_rcnn, config.mask_pool_size)
    crops = _align(bench, "RoI Align of masks", cut, pyramid, found.boxes, sizes)
    painted = bench.add_layers(
        "mask head",
        lambda n, crops: n.mask_head(crops.reshape(-1, *crops.shape[2:])),
        ("mask_head",),
        crops,
    )
    if bench.training:
        truth = bench.batch.truth
        target = jax.vmap(
            partial(masks.crop_and_resize_masks, output_size=painted.shape[-2])
        )
        arguments = truth.masks, truth.boxes, found.boxes, found.objects
        bench.add("mask targets", target, *arguments, learns=False)


def _optimizer(bench: Workbench, config: TrainingConfig) -> None:
    optimizer = make_optimizer(config)
    params, _ = partition(bench.variables["params"], config.frozen)
    state = jax.jit(optimizer.init)(params)

    def update(gradients, state, params):
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    bench.add("optimizer", update, params, state, params, learns=False)
