"""Tensors of other libraries become our variables and come back unchanged."""

import chex
import numpy as np
import pytest

from jaxdet.weights import mapping
from jaxdet.weights.mapping import NetworkMap
from jaxdet.weights.state_dict import WeightsError


def test_torch_kernels_by_hand(rng):
    kernel = rng.random((5, 4, 2, 3))  # OIHW
    ours = mapping.TORCH_KERNEL.to_ours(kernel)
    assert ours.shape == (2, 3, 4, 5) and ours[1, 2, 3, 4] == kernel[4, 3, 1, 2]
    transposed = rng.random((3, 4, 2, 2))  # IOHW
    ours = mapping.TORCH_TRANSPOSED_KERNEL.to_ours(transposed)
    assert ours.shape == (2, 2, 3, 4) and ours[0, 1, 2, 3] == transposed[2, 3, 0, 1]


def test_flattened_inputs_by_hand():
    """Two channels of 2x2 cells: a1 a2 a3 a4 b1 b2 b3 b4 becomes a1 b1 a2 b2 ..."""
    kernel = np.array([[1], [2], [3], [4], [10], [20], [30], [40]])
    layout = mapping.flattened_inputs(channels=2, size=2)
    ours = layout.to_ours(kernel)
    np.testing.assert_array_equal(ours[:, 0], [1, 10, 2, 20, 3, 30, 4, 40])
    np.testing.assert_array_equal(layout.to_theirs(ours), kernel)


def test_selected_outputs_by_hand():
    """Two boxes, each with the outputs 0 to 3, of which 2 and 1 are kept."""
    layout = mapping.select_outputs((2, 1), group=4)
    ours = layout.to_ours(np.array([0, 1, 2, 3, 10, 11, 12, 13]))
    np.testing.assert_array_equal(ours, [2, 1, 12, 11])
    back = layout.to_theirs(ours)
    np.testing.assert_array_equal(back, [0, 1, 2, 0, 0, 11, 12, 0])


STEM = NetworkMap(
    "a stem",
    (
        *mapping.torch_conv_norm("conv1", "bn1", "stem"),
        *mapping.torch_layer("fc", "output", former="classifier"),
    ),
    unused=r"head\..*",
)


def _state():
    norms = {f"bn1.{part}": np.ones(8) for part in ("weight", "bias", "running_mean")}
    return norms | {
        "bn1.running_var": np.full(8, 2.0),
        "conv1.weight": np.zeros((8, 3, 7, 7)),
        "fc.weight": np.arange(6.0).reshape(2, 3),
        "fc.bias": np.zeros(2),
    }


def test_a_network_there_and_back():
    state = _state()
    variables = mapping.to_variables(state | {"head.weight": np.zeros(1)}, STEM)
    assert variables["params"]["stem_conv"]["kernel"].shape == (7, 7, 3, 8)
    norm = variables["constants"]["stem_norm"]["frozen"]
    np.testing.assert_array_equal(norm["var"], np.full(8, 2.0))
    kernel = variables["params"]["output"]["kernel"]
    np.testing.assert_array_equal(kernel, [[0, 3], [1, 4], [2, 5]])
    back = mapping.to_state_dict(variables, STEM)
    chex.assert_trees_all_equal(back, state)
    assert all(tensor.flags.c_contiguous for tensor in back.values())


def test_names_of_older_files():
    old = {key.replace("fc.", "classifier."): x for key, x in _state().items()}
    variables = mapping.to_variables(old, STEM)
    chex.assert_trees_all_equal(variables, mapping.to_variables(_state(), STEM))
    assert mapping.recognize(old, [NetworkMap("another", ()), STEM]) is STEM


def test_problems_are_named():
    state, template = _state(), mapping.to_variables(_state(), STEM)
    state["fc.bias"] = np.zeros(3)
    message = r"1 tensors .* a stem:\n  fc\.bias has shape \(3,\), \(2,\) is needed"
    with pytest.raises(WeightsError, match=message):
        mapping.to_variables(state, STEM, template=template)
    state["conv1.weight"] = np.zeros(8)
    with pytest.raises(WeightsError, match=r"  conv1\.weight has shape \(8,\)$"):
        mapping.to_variables(state, STEM)
    state["conv0.weight"] = state.pop("conv1.weight")
    message = r"2 .*\n  conv1\.weight is missing\n  conv0\.weight is left over"
    with pytest.raises(WeightsError, match=message):
        mapping.to_variables(state, STEM)
    message = r"no checkpoint of a stem; the nearest is a stem, but 2 .*conv1.weight"
    with pytest.raises(WeightsError, match=message):
        mapping.recognize(state, [STEM])
    with pytest.raises(WeightsError, match=r"8 variables do not fit a stem: .'const"):
        mapping.to_state_dict({"params": {"head": np.zeros(3)}}, STEM)
