"""Dense heads: order of the answers, sharing, the prior."""

import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxdet.nn.heads import DenseHead


def test_answers_run_over_levels_rows_and_columns(rng):
    pyramid = {
        4: jnp.asarray(rng.normal(size=(2, 2, 2, 8)), jnp.float32),
        3: jnp.asarray(rng.normal(size=(2, 4, 3, 8)), jnp.float32),
    }
    head = DenseHead(5, depth=0)
    variables = head.init(jax.random.key(0), pyramid)
    answers = head.apply(variables, pyramid)
    assert answers.shape == (2, 4 * 3 + 2 * 2, 5)
    # Only the cell itself matters with a kernel that looks at its centre alone.
    kernel = variables["params"]["output"]["kernel"]
    centre = jnp.zeros_like(kernel).at[1, 1].set(kernel[1, 1])
    answers = head.apply(
        {"params": {"output": {"kernel": centre, "bias": 0 * kernel[0, 0, 0]}}}, pyramid
    )
    np.testing.assert_allclose(
        answers[1, 1 * 3 + 2], pyramid[3][1, 1, 2] @ kernel[1, 1], atol=1e-6
    )
    np.testing.assert_allclose(
        answers[0, 12 + 1 * 2 + 0], pyramid[4][0, 1, 0] @ kernel[1, 1], atol=1e-6
    )


def test_levels_share_parameters_and_answers_start_at_the_bias():
    pyramid = {level: jnp.zeros((1, 4, 4, 8)) for level in (3, 4, 5)}
    head = DenseHead(6, depth=2, bias=-4.6, dtype=jnp.bfloat16)
    answers, variables = head.init_with_output(jax.random.key(0), pyramid)
    assert set(variables["params"]) == {"conv0", "conv1", "output"}
    chex.assert_type(answers, jnp.float32)
    np.testing.assert_allclose(answers, -4.6, rtol=1e-2)
