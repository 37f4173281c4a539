"""A detector from a run's workdir."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from resnet_jax.checkpoints import Checkpoints
from resnet_jax.data.input_description import InputDescription
from resnet_jax.detection.faster_rcnn import FasterRcnn
from resnet_jax.detection.from_config import constant_layers, detector_of
from resnet_jax.detection.losses import DetectionSums
from resnet_jax.distributed import replicated
from resnet_jax.parts import build_optimizer, build_schedule
from resnet_jax.training.state import Progress, TrainState
from resnet_jax.workdir import Workdir

# By which the best checkpoint goes, see `measures.measure`.
ERROR = "error_ap"


@dataclass(frozen=True)
class TrainedDetector:
    """A detector as it is tested.

    Attributes:
      config: of the run.
      input: what it expects of its input.
      detector: the module.
      step: of the checkpoint.
      variables: {"params", "batch_stats"}, on all devices of a mesh; the averaged ones where the run keeps averages.
    """

    config: Any
    input: InputDescription
    detector: FasterRcnn
    step: int
    variables: dict

    @classmethod
    def restore(cls, files: Workdir, *, checkpoint: str | int, mesh: Mesh) -> "TrainedDetector":
        """Reads a run's checkpoint.

        Args:
          files: of the run.
          checkpoint: "latest", "best" (by the validation set's average precision, without one by the test set's), or a
            step.
          mesh: devices that get the variables.

        Raises:
          ValueError: the run is of another task, or as `Checkpoints.restore`.
          FileNotFoundError: there is no run or no checkpoint.
        """
        config = files.read_config()
        if config.task != "detection":
            raise ValueError(f"{files.path} is of a run with task={config.task}, not detection")
        input = InputDescription.load(files.input)
        detector = detector_of(config, num_classes=len(input.class_names))
        step, variables = restored_variables(
            files,
            config,
            lambda: initial_variables(detector, jax.random.key(0)),
            DetectionSums.zero(),
            error=ERROR,
            checkpoint=checkpoint,
            mesh=mesh,
            constant=constant_layers(config, detector),
        )
        return cls(config, input, detector, step, variables)


def restored_variables(
    files: Workdir,
    config: Any,
    initialize: Callable[[], dict],
    zero: Any,
    *,
    error: str,
    checkpoint: str | int,
    mesh: Mesh,
    constant: Sequence[str] = (),
) -> tuple[int, dict]:
    """The step and the variables of a run's checkpoint, the averaged ones where the run keeps averages.

    Args:
      files: of the run.
      config: of the run.
      initialize: makes variables of the same shapes.
      zero: what a step counts, of no batch.
      error: by which the best checkpoint goes.
      checkpoint: "latest", "best", or a step.
      mesh: devices that get the variables.
      constant: beginnings of the names of layers that do not train.

    Raises:
      FileNotFoundError: there is no checkpoint.
      ValueError: as `Checkpoints.restore`.
    """

    def initial() -> tuple[TrainState, Progress]:
        optimizer = build_optimizer(config, constant=constant)
        state = TrainState.create(initialize(), optimizer, build_schedule(config), ema=config.train.ema_decay > 0)
        return state, Progress.zero(zero)

    shapes = jax.eval_shape(initial)
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=replicated(mesh)), shapes)
    with Checkpoints(files.checkpoints, best_metric=error, read_only=True) as checkpoints:
        step, (state, _) = checkpoints.restore(checkpoint, like)
    return step, state.evaluated_variables


def initial_variables(detector: FasterRcnn, key: jax.Array) -> dict:
    """A detector's variables before training, without running it on images.

    Args:
      detector: the module.
      key: a PRNG key; each parameter's own key is derived from it by the parameter's name.

    Returns:
      {"params", "batch_stats"}.
    """
    side = 16 * detector.trunk.stride
    shapes = (
        jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32),
        jax.ShapeDtypeStruct((1, 2), jnp.int32),
        jax.ShapeDtypeStruct((1, 1, 4), jnp.float32),
    )
    variables = dict(detector.lazy_init(key, *shapes))
    return {"batch_stats": {}, **variables}
