"""Evaluation of a run's workdir."""

import os
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.sharding import Mesh

from resnet_jax.build import build_batches, build_model, build_optimizer, build_schedule, to_device
from resnet_jax.checkpoints import Checkpoints
from resnet_jax.data.datasets import dataset_info, load_arrays
from resnet_jax.data.input_description import InputDescription
from resnet_jax.data.resident import EpochOrders, ResidentData
from resnet_jax.distributed import data_mesh, replicated
from resnet_jax.evaluation.evaluator import make_evaluator
from resnet_jax.evaluation.protocols import protocol_named
from resnet_jax.training.batch_statistics import recompute_statistics as recompute
from resnet_jax.training.state import Progress, TrainState
from resnet_jax.workdir import Workdir


def evaluate_workdir(
    workdir: str | os.PathLike,
    *,
    protocol: str = "center",
    checkpoint: str | int = "latest",
    split: str | None = None,
    data_dir: str | None = None,
    recompute_statistics: int = 0,
) -> dict[str, Any]:
    """Evaluates a trained net on a whole split.

    Args:
      workdir: of the run.
      protocol: a name of `PROTOCOLS`.
      checkpoint: "latest", "best" (by the validation split's error; without one by the test split's, and then its
        test error is a selected one), or a step.
      split: in TFDS's syntax; None is the config's test split.
      data_dir: where the data sets lie; None is the config's.
      recompute_statistics: training batches over which to average the statistics of batch normalization first;
        0 keeps the running ones.

    Returns:
      {"loss", "error_top1", "error_top5" (fractions), "count", "protocol", "split", "step"}.

    Raises:
      FileNotFoundError: if the workdir holds no run or no checkpoint, or the data set is missing.
      ValueError: for an unknown protocol, split or checkpoint.
    """
    protocol_named(protocol)
    files = Workdir(workdir)
    config = files.read_config()
    if recompute_statistics and config.model.norm == "frozen":
        raise ValueError("recompute_statistics needs batch statistics; this net has model.norm=frozen")
    data_dir = data_dir or config.data.data_dir
    split = split or config.data.test_split
    mesh = data_mesh()
    input = InputDescription.load(files.input)
    model, step, variables = restore_net(files, checkpoint=checkpoint, mesh=mesh)
    evaluate = make_evaluator(
        model, mesh, protocol=protocol, batch_size=config.evaluate.batch_size, mean=input.mean, std=input.std
    )
    info = dataset_info(config.data.name, data_dir=data_dir)
    data = to_device(load_arrays(info, split), mesh)
    if recompute_statistics:
        train_data = to_device(load_arrays(info, config.data.train_split), mesh)
        batches = _training_images(config, input, mesh, train_data, count=recompute_statistics)
        variables = recompute(model, variables, batches)
    return {**evaluate(variables, data), "protocol": protocol, "split": split, "step": step}


def load_workdir(workdir: str | os.PathLike, *, checkpoint: str | int = "latest") -> tuple[nn.Module, dict]:
    """Reads a run's net, to use in one's own code.

    Args:
      workdir: of the run.
      checkpoint: "latest", "best", or a step.

    Returns:
      The module and its variables {"params", "batch_stats"}, on the first device. What it expects of its input is in
      `InputDescription.load(workdir / "input.npz")`.

    Raises:
      FileNotFoundError: if the workdir holds no run or no checkpoint.
      ValueError: if there is no such checkpoint.
    """
    model, _, variables = restore_net(Workdir(workdir), checkpoint=checkpoint, mesh=data_mesh(jax.devices()[:1]))
    return model, variables


def restore_net(files: Workdir, *, checkpoint: str | int, mesh: Mesh) -> tuple[nn.Module, int, dict]:
    """Reads a run's net: the module, the step, and its variables on all devices of the mesh."""
    config, input = files.read_config(), InputDescription.load(files.input)
    model = build_model(config, num_classes=len(input.class_names))

    def initial() -> tuple[TrainState, Progress]:
        variables = dict(model.init(jax.random.key(0), jnp.zeros((1, *input.image_shape)), train=False))
        return TrainState.create(variables, build_optimizer(config), build_schedule(config)), Progress.zero()

    shapes = jax.eval_shape(initial)
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=replicated(mesh)), shapes)
    with Checkpoints(files.checkpoints, read_only=True) as checkpoints:
        step, (state, _) = checkpoints.restore(checkpoint, like)
    return model, step, state.variables


def _training_images(
    config: Any, input: InputDescription, mesh: Mesh, data: ResidentData, *, count: int
) -> Iterator[jax.Array]:
    batch_at = jax.jit(build_batches(config, input, mesh))
    orders = EpochOrders(seed=config.seed, count=len(data))
    for k in range(count):
        yield batch_at(data, *orders.at(k * config.train.batch_size), k).image
