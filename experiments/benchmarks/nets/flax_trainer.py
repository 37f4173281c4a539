"""A straightforward ImageNet trainer, in the manner of Flax's ImageNet example: a yardstick of speed.

Linen's layers as they come, `TrainState`, `optax.sgd`, weight decay in the loss, metrics of every step, one jitted step
whose state is donated. `jax.jit` stands where that example had `pmap`, which is a wrapper around it by now. Nothing of
resnet_jax is used: no convolution of its own, no compiler options, no calls of several steps.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from flax.training import train_state

MOMENTUM, WEIGHT_DECAY = 0.9, 1e-4
RATE, RATE_BATCH = 0.1, 256
EPOCHS, WARMUP_EPOCHS, EPOCH_IMAGES = 90, 5, 1_281_167
SETTINGS = {
    **{"optimizer": "optax.sgd, Nesterov", "rate": f"{RATE} for {RATE_BATCH} images, warm-up, cosine"},
    **{"momentum": MOMENTUM, "weight_decay": f"{WEIGHT_DECAY} of kernels, in the loss"},
    **{"padding": "SAME", "images": "floats of the dtype of computation on the device"},
}


class BasicBlock(nn.Module):
    """Two 3x3 convolutions."""

    filters: int
    stride: int
    conv: Any
    norm: Any

    @nn.compact
    def __call__(self, x):
        y = nn.relu(self.norm()(self.conv(self.filters, (3, 3), self.stride)(x)))
        y = self.norm(scale_init=nn.initializers.zeros)(self.conv(self.filters, (3, 3))(y))
        if x.shape != y.shape:
            x = self.norm()(self.conv(self.filters, (1, 1), self.stride)(x))
        return nn.relu(x + y)


class Bottleneck(nn.Module):
    """1x1, 3x3 with the stride (v1.5), and 1x1 to four times the filters."""

    filters: int
    stride: int
    conv: Any
    norm: Any

    @nn.compact
    def __call__(self, x):
        y = nn.relu(self.norm()(self.conv(self.filters, (1, 1))(x)))
        y = nn.relu(self.norm()(self.conv(self.filters, (3, 3), self.stride)(y)))
        y = self.norm(scale_init=nn.initializers.zeros)(self.conv(4 * self.filters, (1, 1))(y))
        if x.shape != y.shape:
            x = self.norm()(self.conv(4 * self.filters, (1, 1), self.stride)(x))
        return nn.relu(x + y)


NETS: dict[str, tuple[tuple[int, ...], type[nn.Module]]] = {
    "resnet18": ((2, 2, 2, 2), BasicBlock),
    "resnet34": ((3, 4, 6, 3), BasicBlock),
    "resnet50": ((3, 4, 6, 3), Bottleneck),
    "resnet101": ((3, 4, 23, 3), Bottleneck),
    "resnet152": ((3, 8, 36, 3), Bottleneck),
}


class ResNet(nn.Module):
    """Logits [n, num_classes], float32, of normalised images [n, h, w, 3]; `name` is one of `NETS`."""

    net: str
    num_classes: int
    dtype: Any

    @nn.compact
    def __call__(self, x, *, train: bool):
        conv = partial(nn.Conv, use_bias=False, padding="SAME", dtype=self.dtype)
        norm = partial(nn.BatchNorm, use_running_average=not train, momentum=0.9, epsilon=1e-5, dtype=self.dtype)
        x = nn.relu(norm()(conv(64, (7, 7), 2)(x)))
        x = nn.max_pool(x, (3, 3), (2, 2), padding="SAME")
        sizes, block = NETS[self.net]
        for stage, size in enumerate(sizes):
            for index in range(size):
                x = block(64 * 2**stage, 2 if stage and not index else 1, conv, norm)(x)
        x = jnp.mean(x, (1, 2))
        return nn.Dense(self.num_classes, dtype=self.dtype)(x).astype(jnp.float32)


class TrainState(train_state.TrainState):
    """With the running statistics of batch normalization."""

    batch_stats: Any


def learning_rate(batch_size: int) -> optax.Schedule:
    """Linear warm-up, then a cosine to 0 after 90 epochs of ImageNet."""
    epoch, peak = EPOCH_IMAGES // batch_size, RATE * batch_size / RATE_BATCH
    warmup, total = WARMUP_EPOCHS * epoch, EPOCHS * epoch
    rising, falling = optax.linear_schedule(0.0, peak, warmup), optax.cosine_decay_schedule(peak, total - warmup)
    return optax.join_schedules([rising, falling], [warmup])


def initial_state(
    net: str, *, image_size: int, dtype: str, schedule: optax.Schedule, num_classes: int = 1000
) -> TrainState:
    """The state before step 1.

    Args:
      net: one of `NETS`.
      image_size: height and width in pixels.
      dtype: of the computation, "float32" or "bfloat16"; parameters are float32.
      schedule: of the learning rate.
      num_classes: of the classifier.
    """
    model = ResNet(net, num_classes, jnp.dtype(dtype))
    image = jnp.zeros((1, image_size, image_size, 3), dtype)
    variables = jax.jit(partial(model.init, train=False))(jax.random.key(0), image)
    optimizer = optax.sgd(schedule, MOMENTUM, nesterov=True)
    return TrainState.create(apply_fn=model.apply, tx=optimizer, **variables)


def make_train_step(schedule: optax.Schedule) -> Callable:
    """The jitted step (state, images, labels) -> (state, metrics), which donates the state.

    Images are normalised [n, h, w, 3] of the dtype of computation, labels int32 [n].
    """

    @partial(jax.jit, donate_argnums=0)
    def train_step(state: TrainState, images, labels):
        def objective(params):
            variables = {"params": params, "batch_stats": state.batch_stats}
            logits, updated = state.apply_fn(variables, images, train=True, mutable=["batch_stats"])
            loss = cross_entropy(logits, labels)
            squares = sum(jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(params) if leaf.ndim > 1)
            return loss + WEIGHT_DECAY / 2 * squares, (logits, updated["batch_stats"])

        (_, (logits, batch_stats)), gradients = jax.value_and_grad(objective, has_aux=True)(state.params)
        accuracy = jnp.mean(jnp.argmax(logits, -1) == labels)
        metrics = {"loss": cross_entropy(logits, labels), "accuracy": accuracy, "learning_rate": schedule(state.step)}
        return state.apply_gradients(grads=gradients, batch_stats=batch_stats), metrics

    return train_step


def cross_entropy(logits, labels):
    """The mean over a batch."""
    return optax.softmax_cross_entropy(logits, jax.nn.one_hot(labels, logits.shape[-1])).mean()
