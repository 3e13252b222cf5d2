"""torchvision's outputs and older names are mapped as it orders and calls them."""

import re

import numpy as np
import pytest

from jaxdet.weights import detectors


def test_layouts_by_hand(rng):
    layouts = {
        tensor.theirs: tensor.layout
        for name in ("maskrcnn_resnet50_fpn", "ssd300_vgg16")
        for tensor in detectors.MODELS[name].network.tensors
    }

    def ours(name, theirs):
        return layouts[name].to_ours(np.asarray(theirs))

    background_last = np.array([*range(1, 91), 0])  # of their outputs
    head = "roi_heads.box_predictor"
    classes = ours(f"{head}.cls_score.bias", range(91))
    np.testing.assert_array_equal(classes, background_last)
    classes = ours(f"{head}.cls_score.weight", [[i, -i] for i in range(91)])
    np.testing.assert_array_equal(classes, [background_last, -background_last])
    deltas = ours(f"{head}.bbox_pred.bias", range(364))
    np.testing.assert_array_equal(deltas, range(4, 364))
    # Two classes, after the background, of each of four default boxes.
    classes = ours("head.classification_head.module_list.0.bias", range(12))
    np.testing.assert_array_equal(classes, [1, 2, 0, 4, 5, 3, 7, 8, 6, 10, 11, 9])
    fc6 = rng.random((2, 256, 7, 7))
    kernel = ours("roi_heads.box_head.fc6.weight", fc6.reshape(2, -1))
    expected = fc6.transpose(2, 3, 1, 0).reshape(-1, 2)
    np.testing.assert_array_equal(kernel, expected)
    masks = rng.random((91, 5, 1, 1))
    kernel = ours("roi_heads.mask_predictor.mask_fcn_logits.weight", masks)
    np.testing.assert_array_equal(kernel[0, 0], masks[1:, :, 0, 0].T)


OLD_NAMES = {
    "maskrcnn_resnet50_fpn": {
        r"(inner|layer)_blocks\.(\d)\.0\.": r"\1_blocks.\2.",
        r"rpn\.head\.conv\.0\.0\.": "rpn.head.conv.",
        r"mask_head\.0\.0\.": "mask_head.mask_fcn1.",
        r"mask_head\.3\.0\.": "mask_head.mask_fcn4.",
    },
    "retinanet_resnet50_fpn": {
        r"_head\.conv\.3\.0\.": "_head.conv.6.",
        r"_head\.conv\.2\.0\.": "_head.conv.4.",
        r"_head\.conv\.1\.0\.": "_head.conv.2.",
        r"_head\.conv\.0\.0\.": "_head.conv.0.",
    },
}


@pytest.mark.parametrize("name", OLD_NAMES)
def test_names_of_its_first_checkpoints(name):
    tensors = detectors.MODELS[name].network.tensors
    state = {tensor.theirs: np.zeros(0) for tensor in tensors}
    for new_name, old_name in OLD_NAMES[name].items():
        assert any(re.search(new_name, key) for key in state)
        state = {re.sub(new_name, old_name, key): x for key, x in state.items()}
    assert detectors.recognize(state) == name
