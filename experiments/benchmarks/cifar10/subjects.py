"""What is timed, in a process of its own: `python subjects.py JSON`, see `serving`."""

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from resnet_jax.benchmark import subjects
from resnet_jax.benchmark.subjects import Subject
from resnet_jax.build import build
from resnet_jax.config_files import load_config
from resnet_jax.parts import Parts

HERE = Path(__file__).resolve().parent
REFERENCE = HERE.parents[1] / "cifar10"
sys.path.append(str(HERE.parent))
from serving import serve  # noqa: E402

CONFIG, BATCH, TEST_BATCH, DATASET = "cifar10:resnet20", 128, 500, "noise"


def _parts(net: str, data_dir: str, overrides: dict[str, Any]) -> Parts:
    """The parts of a run of `resnet-jax train`, on noise in place of CIFAR-10."""
    own = {"model.name": net, "data.name": DATASET, "data.data_dir": data_dir, "evaluate.batch_size": TEST_BATCH}
    return build(load_config(CONFIG, own | overrides))


def train(net: str, data_dir: str, overrides: dict[str, Any]) -> Subject:
    """Training steps of this library, as many in a call as the config says."""
    return subjects.train(_parts(net, data_dir, overrides))


def plans(variants: list[dict[str, Any]], data_dir: str) -> Subject:
    """Compiles training steps, each {"net", "overrides"}, and runs none."""
    found = [variant | subjects.compile_only(_parts(data_dir=data_dir, **variant)).said for variant in variants]
    return Subject({"plans": found}, lambda batches: 0)


def evaluation(net: str, data_dir: str, overrides: dict[str, Any]) -> Subject:
    """This library's test of the whole test split."""
    return subjects.evaluate(_parts(net, data_dir, overrides))


def forward(net: str, data_dir: str, overrides: dict[str, Any]) -> Subject:
    """Nothing but the net, on one batch of floats that lies on the device."""
    return subjects.forward(_parts(net, data_dir, overrides))


def pytorch(
    net: str, data_dir: str, split: str, device: str, bf16: bool, mode: str | None, group: int | None
) -> Subject:
    """Training steps of `experiments/cifar10/pytorch_reference.py`, of the same size."""
    sys.path.append(str(REFERENCE))
    import pytorch_reference as reference
    import torch

    from resnet_jax.data.arrays import load_arrays
    from resnet_jax.data.datasets import dataset_info

    place = torch.device(device)
    config = {"net": net, "seed": 0, "steps": reference.STEPS, "bf16": bf16, "compile": mode}
    arrays = load_arrays(dataset_info(DATASET, data_dir=data_dir), split)
    training = reference.make_training(config, arrays, classes=10, device=place, group=group)

    def run(batches: int) -> int:
        for _ in range(batches):
            training.step()
        reference.synchronize(place)
        return batches * reference.BATCH

    begun = time.perf_counter()
    run(1)
    said = {"first_step_seconds": time.perf_counter() - begun, "threads": torch.get_num_threads()}
    return Subject(said | {"batch": reference.BATCH, "batches_per_call": 1}, run)


SUBJECTS: dict[str, Callable[..., Subject]] = {
    **{"train": train, "evaluation": evaluation, "forward": forward, "pytorch": pytorch, "plans": plans},
}

if __name__ == "__main__":
    serve(SUBJECTS)
