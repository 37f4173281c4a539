"""What is known of a trained net, whatever file it came from."""

from dataclasses import dataclass, field

from resnet_jax.data.input_description import InputDescription
from resnet_jax.models.resnet import ResNet


@dataclass(frozen=True)
class WeightFile:
    """What a weight file holds.

    Attributes:
      model: the net.
      variables: {"params", "batch_stats"}, arrays of numpy.
      input: what the net expects of its input; None if that is not known.
      name: what the net is called, e.g. "cifar_resnet20"; None if the file does not say.
      metrics: numbers that were measured, by name.
      source: where the parameters are from; None if the file does not say.
      license: on what terms they may be used; None if the file does not say.
    """

    model: ResNet
    variables: dict
    input: InputDescription | None = None
    name: str | None = None
    metrics: dict[str, int | float] = field(default_factory=dict)
    source: str | None = None
    license: str | None = None
