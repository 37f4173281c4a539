"""A run's diagnosis: what is written of a net that trains, beside its losses and errors."""

import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import optax
from jax.sharding import Mesh

from resnet_jax.config_checks import NOISE_PARTS
from resnet_jax.diagnostics.activations import activations
from resnet_jax.diagnostics.curvature import make_curvature
from resnet_jax.diagnostics.gradients import QUANTILES, spread_by_stage
from resnet_jax.diagnostics.loss import Loss, make_loss
from resnet_jax.diagnostics.noise_scale import make_noise_scale
from resnet_jax.diagnostics.probe import load_probe
from resnet_jax.diagnostics.spectra import layer_singular_values
from resnet_jax.diagnostics.stages import largest_by_stage, means_by_stage
from resnet_jax.diagnostics.updates import ratio_by_stage
from resnet_jax.distributed import collected, replicated
from resnet_jax.models.stacking import unstack_blocks
from resnet_jax.parts import Parts
from resnet_jax.training.schedules import Schedule
from resnet_jax.training.state import TrainState

Diagnose = Callable[[TrainState], dict[str, float]]


def make_diagnosis(parts: Parts, compiler_options: Mapping[str, Any]) -> Diagnose:
    """Returns the function (state of one seed) -> scalars by name, those of `config.diagnostics`.

    It changes nothing of the state, and everything is of the parameters as they are and the same images, see
    `load_probe` and `make_loss`. "STAGE" is "stem", "stage1", ..., "classifier":

      loss, gradient_norm
      gradient_norm/STAGE, gradient_zeros/STAGE, gradient_p10|p50|p90/STAGE: quantiles of the absolute values
      update_ratio/STAGE: of the update that the optimizer, as it stands, would make of this gradient
      activation_mean|std|zeros/STAGE: means over its blocks; response_std/STAGE: over its 3x3 layers

    and with `curvature`, which takes most of the time:

      singular_value/STAGE: the largest of its layers; hessian_largest, hessian_smallest
      noise_scale, noise_trace, noise_square: see `NoiseScale`
      curvature_seconds: what these took, the first time with compilation

    In a run of several processes all call it together, and get the same numbers.

    Args:
      parts: of a run of classification with `diagnostics.every` above 0.
      compiler_options: XLA's.

    Raises:
      ValueError: as `load_probe` does.
    """
    config, mesh = parts.config, parts.mesh
    images, labels = load_probe(config, parts.input, mesh)
    loss = make_loss(parts.model, loss=config.train.loss, label_smoothing=config.train.label_smoothing)
    step = _make_step(loss, parts.optimizer, parts.schedule, mesh, compiler_options)
    unrolled = jax.jit(unstack_blocks, out_shardings=replicated(mesh))
    costly = _make_costly(parts, loss, compiler_options) if config.diagnostics.curvature else None

    def diagnose(state: TrainState) -> dict[str, float]:
        state = collected(state, mesh)
        found = jax.device_get(step(state, images, labels))
        variables = unrolled(state.variables)
        found |= _named_activations(activations(parts.model, variables, images))
        if costly is not None:
            begun = time.perf_counter()
            found |= costly(state, variables, images, labels)
            found["curvature_seconds"] = time.perf_counter() - begun
        return {f"diagnostics/{name}": float(value) for name, value in found.items()}

    return diagnose


def _make_step(
    loss: Loss,
    optimizer: optax.GradientTransformation,
    schedule: Schedule,
    mesh: Mesh,
    compiler_options: Mapping[str, Any],
) -> Callable:
    """(state, images, labels) -> what one gradient says, by name."""

    @partial(jax.jit, out_shardings=replicated(mesh), compiler_options=dict(compiler_options))
    def step(state: TrainState, images, labels):
        value, gradients = jax.value_and_grad(loss)(state.params, state.batch_stats, images, labels)
        directions, _ = optimizer.update(gradients, state.opt_state, state.params)
        rate = schedule.learning_rate(state.schedule_state, state.step)
        found = {"loss": value, "gradient_norm": optax.tree.norm(gradients)}
        for stage, spread in spread_by_stage(gradients).items():
            found |= {f"gradient_norm/{stage}": spread.norm, f"gradient_zeros/{stage}": spread.zeros}
            for quantile, size in zip(QUANTILES, spread.quantiles, strict=True):
                found[f"gradient_p{100 * quantile:.0f}/{stage}"] = size
        ratios = ratio_by_stage(state.params, optax.tree.scale(rate, directions))
        return found | {f"update_ratio/{stage}": ratio for stage, ratio in ratios.items()}

    return step


def _named_activations(found: Any) -> dict[str, float]:
    quantities = {
        "activation_mean": found.means,
        "activation_std": found.stds,
        "activation_zeros": found.zeros,
        "response_std": found.responses,
    }
    return {
        f"{name}/{stage}": value
        for name, of_parts in quantities.items()
        for stage, value in means_by_stage(of_parts).items()
    }


def _make_costly(parts: Parts, loss: Loss, compiler_options: Mapping[str, Any]) -> Callable[..., dict[str, float]]:
    options = dict(compiler_options)
    everywhere = replicated(parts.mesh)
    curvature = make_curvature(loss, sharding=everywhere, compiler_options=options)
    group = parts.config.model.bn_group_size
    noise_parts = parts.config.diagnostics.images // group if group else NOISE_PARTS
    noise = make_noise_scale(loss, parts=noise_parts, sharding=everywhere, compiler_options=options)

    def costly(state: TrainState, variables: dict, *batch: Any) -> dict[str, float]:
        values = layer_singular_values(parts.model, variables, parts.input.image_shape)
        extremes = curvature(state.params, state.batch_stats, *batch)
        scale = noise(state.params, state.batch_stats, *batch)
        return {
            **{f"singular_value/{stage}": value for stage, value in largest_by_stage(values).items()},
            "hessian_largest": extremes.largest,
            "hessian_smallest": extremes.smallest,
            "noise_scale": scale.scale,
            "noise_trace": scale.trace,
            "noise_square": scale.square,
        }

    return costly
