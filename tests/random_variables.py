"""Variables drawn by numpy: quick, and every scale, bias and statistic differs from its initial value."""

import jax
import jax.numpy as jnp
import numpy as np


def random_variables(module, image_shape, *, seed=0, **arguments):
    """Variables of the module's shapes; gammas and variances around 1, kernels of He's size.

    `arguments` are those of the module's call besides the images; a net needs `train`.
    """
    images = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    shapes = jax.eval_shape(lambda x: module.init(jax.random.key(0), x, **arguments), images)
    random = np.random.default_rng(seed)

    def draw(path, leaf):
        name = path[-1].key
        if name == "kernel":
            # A stack of blocks has an axis before the four of a convolution.
            fan_in = np.prod(leaf.shape[-4:-1])
            value = random.normal(0.0, np.sqrt(2.0 / fan_in), leaf.shape)
        elif name in ("scale", "var"):
            value = random.uniform(0.5, 1.5, leaf.shape)
        else:
            value = random.normal(0.0, 0.3, leaf.shape)
        return jnp.asarray(value, leaf.dtype)

    return jax.tree.map_with_path(draw, shapes)


def random_images(count, image_shape, *, seed=0):
    """Normal noise of shape [count, *image_shape]."""
    return jnp.asarray(np.random.default_rng(seed).normal(size=(count, *image_shape)), jnp.float32)
