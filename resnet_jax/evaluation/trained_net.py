"""A trained net, from a run's workdir or a weight file: to be tested, used or handed on."""

import dataclasses
import os
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from resnet_jax.build import (
    build_batches,
    build_model,
    build_prepare,
    build_state,
    build_train_batches,
    to_device,
)
from resnet_jax.checkpoints import Checkpoints
from resnet_jax.data.arrays import load_arrays
from resnet_jax.data.datasets import DatasetInfo
from resnet_jax.data.feeds import Feed, ResidentFeed, StreamedFeed
from resnet_jax.data.input_description import InputDescription
from resnet_jax.distributed import data_mesh, replicate, replicated
from resnet_jax.models.resnet import ResNet
from resnet_jax.pretrained.reading import load_weights
from resnet_jax.pretrained.weight_file import WeightFile
from resnet_jax.records import read_record
from resnet_jax.training.batch_statistics import recompute_statistics
from resnet_jax.training.state import Progress, TrainState
from resnet_jax.workdir import Workdir


@dataclasses.dataclass(frozen=True)
class TrainedNet:
    """A net as it is tested.

    Attributes:
      config: of the run, or what says on which data the net is tested.
      input: what the net expects of its input.
      model: the module.
      step: of the checkpoint; None for a weight file.
      variables: {"params", "batch_stats"}, on all devices of a mesh; the averaged ones where the run keeps averages.
    """

    config: Any
    input: InputDescription
    model: ResNet
    step: int | None
    variables: dict

    @classmethod
    def restore(cls, files: Workdir, *, checkpoint: str | int, mesh: Mesh) -> "TrainedNet":
        """Reads a run's checkpoint; raises what `Workdir.read_config` and `Checkpoints.restore` raise."""
        config = files.read_config()
        if config.task != "classification":
            raise ValueError(f"{files.path} is of a run with task={config.task}, not classification")
        input = InputDescription.load(files.input)
        if config.num_seeds > 1:
            raise ValueError(
                f"{files.path} is of {config.num_seeds} seeds that train together; each has a workdir in it at the "
                f"end: name one, such as {files.of_seed(config.seed).path}"
            )
        model = build_model(config, num_classes=len(input.class_names))

        def initial() -> tuple[TrainState, Progress]:
            variables = dict(model.init(jax.random.key(0), jnp.zeros((1, *input.image_shape)), train=False))
            return build_state(config, variables), Progress.zero()

        shapes = jax.eval_shape(initial)
        like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=replicated(mesh)), shapes)
        with Checkpoints(files.checkpoints, read_only=True) as checkpoints:
            step, (state, _) = checkpoints.restore(checkpoint, like)
        return cls(config, input, model, step, state.evaluated_variables)

    @classmethod
    def from_weights(cls, path: str | os.PathLike, *, config: Any, mesh: Mesh) -> "TrainedNet":
        """Reads a weight file; raises as `load_net` does."""
        file = load_net(weights=path)
        assert file.input is not None
        return cls(config, file.input, file.model, None, replicate(jax.tree.map(jnp.asarray, file.variables), mesh))

    def with_recomputed_statistics(
        self, info: DatasetInfo, mesh: Mesh, *, batches: int, workers: int | None
    ) -> "TrainedNet":
        """The net with batch statistics that are the average over the first training batches, as the run made them.

        Args:
          info: of the run's data set.
          mesh: the devices that have the variables.
          batches: how many.
          workers: decoding processes, see `Stream`.
        """
        images = _training_images(self.config, info, self.input, mesh, count=batches, workers=workers)
        return dataclasses.replace(self, variables=recompute_statistics(self.model, self.variables, images))


def load_net(
    *,
    workdir: str | os.PathLike | None = None,
    weights: str | os.PathLike | None = None,
    checkpoint: str | int = "latest",
) -> WeightFile:
    """Reads one net to be used or handed on, from a run or from a weight file.

    Args:
      workdir: of the run that trained the net; or
      weights: what `load_weights` reads.
      checkpoint: of the run "latest", "best", or a step.

    Returns:
      The net with what it expects of its input; a run's on the first device, with the test errors of its record if it
      is the one that was tested last.

    Raises:
      FileNotFoundError: the workdir holds no run or no checkpoint, or there are no such weights.
      ValueError: both or neither are given, a checkpoint of weights, or weights that do not say what input they take.
    """
    if (workdir is None) == (weights is None):
        raise ValueError("one net is needed: name either a workdir or weights")
    if weights is not None:
        if checkpoint != "latest":
            raise ValueError(f"checkpoint={checkpoint!r}: weights are one net, only a workdir has checkpoints")
        file = load_weights(weights)
        if file.input is None:
            raise ValueError(
                f"{weights} does not say what input its net expects: save_pretrained(..., input=) and "
                "resnet-jax convert --mean --std --image_size do"
            )
        return file
    assert workdir is not None
    files = Workdir(workdir)
    net = TrainedNet.restore(files, checkpoint=checkpoint, mesh=data_mesh(jax.devices()[:1]))
    metrics, commit = {}, ""
    if files.record.is_file() and (record := read_record(files.record))["steps"] == net.step:
        metrics = {key: record["test"][key] for key in ("error_top1", "error_top5") if record["test"][key] is not None}
        commit = f", commit {record['commit']['hash']}" if record["commit"] else ""
    source = f"trained with resnet_jax, step {net.step}, seed {net.config.seed}{commit}"
    return WeightFile(net.model, net.variables, net.input, net.config.model.name, metrics, source)


def _training_images(
    config: Any, info: DatasetInfo, input: InputDescription, mesh: Mesh, *, count: int, workers: int | None
) -> Iterator[jax.Array]:
    feed: Feed
    if config.data.pipeline == "streamed":
        batch_at = jax.jit(build_prepare(config, input, mesh))
        feed = StreamedFeed(build_train_batches(config, info), mesh, total_steps=count, workers=workers)
    else:
        batch_at = jax.jit(lambda seed, *arguments: build_batches(config, input, mesh, seed=seed)(*arguments))
        data = to_device(load_arrays(info, config.data.train_split), mesh)
        feed = ResidentFeed(data, seeds=(config.seed,), batch_size=config.train.batch_size)
    try:
        for step in range(count):
            yield batch_at(*feed.arguments(step), step).image
    finally:
        feed.close()
