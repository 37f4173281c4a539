"""The paper's deepest net builds, compiles and takes a step at batch 128 on a CPU, in minutes and in little memory."""

import json
import os
import subprocess
import sys

import pytest

STEP = """
import json, resource, time
import jax, jax.numpy as jnp
from resnet_jax.data.batch import Batch
from resnet_jax.models.registry import create_model, initialize
from resnet_jax.training import schedules
from resnet_jax.training.objective import classification
from resnet_jax.training.optimizers import sgd
from resnet_jax.training.state import Progress, TrainState
from resnet_jax.training.steps import make_train_step

begun = time.perf_counter()
model = create_model("cifar_resnet1202", scan=True, remat=True, bn_group_size=64)
optimizer = sgd(momentum=0.9, nesterov=False, weight_decay=1e-4, decay="kernels")
schedule = schedules.constant(0.01)
state = TrainState.create(initialize(model, jax.random.key(0), (32, 32, 3)), optimizer, schedule)
images = 50 * jax.random.normal(jax.random.key(1), (128, 32, 32, 3))
batch = Batch(image=images, label=jnp.arange(128, dtype=jnp.int32) % 10, weight=jnp.ones(128))
step = jax.jit(make_train_step(classification(model), optimizer, schedule, seed=0), donate_argnums=(0, 1))
progress = Progress.zero()
compiled = step.lower(state, progress, batch).compile()
built = time.perf_counter()
state, progress = jax.block_until_ready(compiled(state, progress, batch))
print(json.dumps({
    "parameters": sum(leaf.size for leaf in jax.tree.leaves(state.params)),
    "loss": float(progress.sums.loss) / 128, "skipped": int(progress.skipped),
    "build_seconds": built - begun, "step_seconds": time.perf_counter() - built,
    "peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
}))
"""


@pytest.mark.slow
def test_1202_layers_take_a_step_at_batch_128(capsys):
    environment = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"}
    done = subprocess.run([sys.executable, "-c", STEP], env=environment, capture_output=True, text=True, timeout=1500)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    with capsys.disabled():
        print(found)
    assert found["parameters"] == 19_421_274
    assert found["skipped"] == 0 and 0 < found["loss"] < 100
    # 19 GiB of activations without `remat`; the whole process needs a fraction of it.
    assert found["peak_gib"] < 12
    assert found["build_seconds"] < 300
