"""What of a training state is divided among the devices instead of copied, so that it fits (ZeRO, FSDP)."""

from typing import Any

import jax
from jax.sharding import Mesh

from resnet_jax.distributed import divided, replicated
from resnet_jax.training.state import TrainState


def state_shardings(state: TrainState, mesh: Mesh, sharding: str) -> TrainState:
    """How each array of a state lies on the mesh.

    Args:
      state: of arrays, or of their shapes and dtypes.
      mesh: from `data_mesh`.
      sharding: "none": all are copies. "optimizer": the optimizer's arrays and the moving averages are divided among
        the devices of a slice (Rajbhandari et al. 2020, ZeRO, stage 1). "parameters": the parameters, too (stage 3);
        every step collects them before it uses them. What an update is, is the same but for rounding.
    """
    layout = jax.tree.map(lambda _: replicated(mesh), state)
    if sharding != "none":
        layout = layout.replace(opt_state=divided(state.opt_state, mesh), ema=divided(state.ema, mesh))
    if sharding == "parameters":
        layout = layout.replace(params=divided(state.params, mesh))
    return layout


def lay_out(state: TrainState, mesh: Mesh, sharding: str) -> TrainState:
    """Within a jitted function: the state as `state_shardings` has it."""
    return jax.lax.with_sharding_constraint(state, state_shardings(state, mesh, sharding))


def collect(params: Any, mesh: Mesh | None, sharding: str) -> Any:
    """Within a step: the parameters as the net computes with them, whole on every device."""
    if mesh is None or sharding != "parameters":
        return params
    return jax.lax.with_sharding_constraint(params, replicated(mesh))


def distribute(gradients: Any, mesh: Mesh | None, sharding: str) -> Any:
    """Within a step: the gradients as the optimizer takes them, so that each device adds up only its part of them."""
    if mesh is None or sharding == "none":
        return gradients
    return jax.lax.with_sharding_constraint(gradients, divided(gradients, mesh))
