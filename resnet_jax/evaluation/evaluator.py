"""Exact evaluation: every image once, whatever the batch size and the number of devices."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.sharding import Mesh

from resnet_jax.data.batch import Batch
from resnet_jax.data.device_augment import normalize
from resnet_jax.data.resident import ResidentData, take_rows
from resnet_jax.distributed import replicate, replicated, split_batch
from resnet_jax.evaluation.metrics import Sums, classification_sums
from resnet_jax.evaluation.protocols import protocol_named

Evaluate = Callable[[dict, ResidentData], dict[str, float]]


def make_evaluator(model: nn.Module, mesh: Mesh, *, protocol: str, batch_size: int, mean: Any, std: Any) -> Evaluate:
    """Returns the function (variables, data) -> {"loss", "error_top1", "error_top5", "count"}.

    Args:
      model: the net.
      mesh: devices that share each batch.
      protocol: a name of `PROTOCOLS`.
      batch_size: images per step over all devices; raised to a multiple of the number of devices. It changes
        nothing but speed: what a batch has too many counts with weight 0.
      mean: mean image or channel mean, in pixel values.
      std: per channel.

    Raises:
      ValueError: for an unknown protocol.
    """
    scores = protocol_named(protocol)
    batch_size = -(-batch_size // mesh.size) * mesh.size

    @jax.jit
    def fetch(data: ResidentData, start) -> Batch:
        rows = jax.lax.with_sharding_constraint(start + jnp.arange(batch_size), split_batch(mesh))
        images, labels = take_rows(data, jnp.minimum(rows, len(data) - 1))
        weights = (rows < len(data)).astype(jnp.float32)
        return Batch(image=normalize(images, mean, std), label=labels, weight=weights)

    # Apart from `fetch`, so that splits of different sizes share the compiled net.
    @partial(jax.jit, donate_argnums=0, out_shardings=replicated(mesh))
    def add_batch(sums: Sums, variables: dict, batch: Batch) -> Sums:
        return sums + classification_sums(scores(model, variables, batch.image), batch.label, batch.weight)

    def evaluate(variables: dict, data: ResidentData) -> dict[str, float]:
        sums = replicate(Sums.zero(), mesh)
        for start in range(0, len(data), batch_size):
            sums = add_batch(sums, variables, fetch(data, start))
        means = sums.means()
        if means["count"] != len(data):
            raise RuntimeError(f"evaluated {means['count']} of {len(data)} images; every one must count once")
        return means

    return evaluate
