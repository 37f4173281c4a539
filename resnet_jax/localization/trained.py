"""A localizer from a run's workdir, with the one that proposes its regions."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from resnet_jax.data.input_description import InputDescription
from resnet_jax.detection.trained import restored_variables
from resnet_jax.localization.from_config import localizer_of
from resnet_jax.localization.losses import LocalizationSums
from resnet_jax.localization.per_class_rpn import PerClassRpn
from resnet_jax.localization.region_net import RegionNet
from resnet_jax.workdir import Workdir

# By which the best checkpoint goes, see `evaluator.measured`.
ERROR = "error_localization"


@dataclass(frozen=True)
class TrainedLocalizer:
    """A localizer as it is tested.

    Attributes:
      config: of the run.
      input: what it expects of its input.
      localizer: the module.
      step: of the checkpoint.
      variables: {"params", "batch_stats"}, on all devices of a mesh; the averaged ones where the run keeps averages.
    """

    config: Any
    input: InputDescription
    localizer: PerClassRpn | RegionNet
    step: int
    variables: dict

    @classmethod
    def restore(cls, files: Workdir, *, checkpoint: str | int, mesh: Mesh) -> "TrainedLocalizer":
        """Reads a run's checkpoint.

        Args:
          files: of the run.
          checkpoint: "latest", "best" (by the validation set's localization error, without one by the test set's), or a
            step.
          mesh: devices that get the variables.

        Raises:
          ValueError: the run is of another task, or as `Checkpoints.restore`.
          FileNotFoundError: there is no run or no checkpoint.
        """
        config = files.read_config()
        if config.task != "localization":
            raise ValueError(f"{files.path} is of a run with task={config.task}, not localization")
        input = InputDescription.load(files.input)
        localizer = localizer_of(config, num_classes=len(input.class_names))
        step, variables = restored_variables(
            files,
            config,
            lambda: initial_variables(localizer, config, jax.random.key(0)),
            LocalizationSums.zero(),
            error=ERROR,
            checkpoint=checkpoint,
            mesh=mesh,
        )
        return cls(config, input, localizer, step, variables)


def initial_variables(localizer: PerClassRpn | RegionNet, config: Any, key: jax.Array) -> dict:
    """A localizer's variables before training, without running it on images.

    Args:
      localizer: the module.
      config: of the run.
      key: a PRNG key; each parameter's own key is derived from it by the parameter's name.

    Returns:
      {"params", "batch_stats"}.
    """
    side = config.data.image_size
    image = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
    variables = dict(localizer.lazy_init(key, image, train=False))
    return {"batch_stats": {}, **variables}


def proposer_of(config: Any, input: InputDescription, mesh: Mesh) -> TrainedLocalizer | None:
    """The localizer whose boxes become the regions of a run, its latest checkpoint; None if the run has no regions.

    Args:
      config: of the run.
      input: what it expects of its input.
      mesh: devices that get the variables.

    Raises:
      ValueError: there is none, it has regions itself, or expects other images, or is of other classes.
      FileNotFoundError: as `TrainedLocalizer.restore`.
    """
    if config.localizer.trains != "regions":
        return None
    path = config.localizer.proposals_from
    if path is None:
        raise ValueError(
            "localizer.proposals_from=None: with localizer.trains=regions it must be the workdir of a localizer that "
            "proposes"
        )
    found = TrainedLocalizer.restore(Workdir(path), checkpoint="latest", mesh=mesh)
    key = f"localizer.proposals_from={path}"
    if not isinstance(found.localizer, PerClassRpn):
        raise ValueError(f"{key}: must be of a run with localizer.trains=proposals")
    if found.input.class_names != input.class_names:
        raise ValueError(f"{key}: it is of other classes than those of the data")
    if not found.input.same_as(input):
        raise ValueError(
            f"{key}: it expects other images (their size, mean or standard deviation) than this localizer; take the "
            "same data.image_size, evaluate.short_side, data.resize and localizer.weights for both"
        )
    return found
