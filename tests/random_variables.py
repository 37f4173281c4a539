"""Variables of a net drawn by numpy: quick, and every scale, bias and statistic differs from its initial value."""

import jax
import jax.numpy as jnp
import numpy as np


def random_variables(model, image_shape, *, seed=0):
    """{"params", "batch_stats"} of the net's shapes; variances and gammas around 1, kernels of He's size."""
    images = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    shapes = jax.eval_shape(lambda key, images: model.init(key, images, train=False), jax.random.key(0), images)
    random = np.random.default_rng(seed)

    def draw(path, leaf):
        name = path[-1].key
        if name == "kernel":
            fan_in = np.prod(leaf.shape[-4:-1]) if len(leaf.shape) > 2 else leaf.shape[0]
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
