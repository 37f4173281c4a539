"""The same training with a plain loop around it: Orbax's CheckpointManager as its documentation uses it, and no more.

Net, data, state and training step are those of `resnet_jax.build`; what differs is all that this library adds around
them. A run goes on from the manager's latest step. Of several processes each is told its place as `resnet-jax` is.
"""

import argparse
import json
import os
import sys
from pathlib import Path

import jax
import orbax.checkpoint as ocp

from resnet_jax.build import build
from resnet_jax.config_files import load_config
from resnet_jax.distributed import replicate
from resnet_jax.training.state import Progress


def restore_latest(manager, state):
    """The step and the state to go on from."""
    step = manager.latest_step()
    if step is None:
        return 0, state
    like = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), state)
    return step, manager.restore(step, args=ocp.args.StandardRestore(like))


def open_manager(workdir, keep):
    options = ocp.CheckpointManagerOptions(max_to_keep=keep)
    return ocp.CheckpointManager(Path(workdir).absolute() / "checkpoints", options=options)


def initial_state(parts):
    return parts.initial_state(), replicate(Progress.zero(), parts.mesh)


def train(config, workdir):
    parts, every = build(config), config.checkpoint.every
    with open_manager(workdir, config.checkpoint.keep_latest) as manager:
        first_step, (state, progress) = restore_latest(manager, initial_state(parts))
        print(f"from step {first_step}", file=sys.stderr, flush=True)
        call = parts.make_call(1)
        for step in range(first_step, config.train.duration):
            state, progress = call(state, progress, *parts.feed.arguments(step))
            if jax.process_index() == 0 and ((step + 1) % config.train.log_every == 0 or (step + 1) % every == 0):
                jax.block_until_ready(progress)
                with (Path(workdir) / "metrics.jsonl").open("a") as metrics:
                    metrics.write(json.dumps({"step": step + 1}) + "\n")
            if (step + 1) % every == 0:
                manager.save(step + 1, args=ocp.args.StandardSave((state, progress)))
    return step + 1


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workdir", required=True)
    parser.add_argument("--changes", default="{}", help="config keys and values, as JSON")
    flags = parser.parse_args()
    address = os.environ.get("RESNET_JAX_COORDINATOR")
    if address:
        count, index = (int(os.environ[f"RESNET_JAX_PROCESS_{name}"]) for name in ("COUNT", "INDEX"))
        jax.distributed.initialize(
            address, count, index, coordinator_bind_address=address, heartbeat_timeout_seconds=10
        )
    Path(flags.workdir).mkdir(parents=True, exist_ok=True)
    print(f"done at step {train(load_config('digits', json.loads(flags.changes)), flags.workdir)}", file=sys.stderr)


if __name__ == "__main__":
    main()
