"""The CIFAR-10 recipe of section 4.2 in plain PyTorch, on the same pixels: a yardstick for this library's runs.

    python experiments/cifar10/pytorch_reference.py --net=cifar_resnet20 --seed=0 --data_dir=DATA --workdir=WORKDIR

It shares this library's reader of data sets and nothing else; order, crops and initial parameters are draws of its own.
The same command goes on where it was stopped, and WORKDIR gets checkpoint.pt and record.json.
"""

import argparse
import hashlib
import json
import math
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# Errors and versions are asked of the library; the devices are PyTorch's alone.
os.environ["JAX_PLATFORMS"] = "cpu"

import numpy as np  # noqa: E402
import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from resnet_jax.atomic_files import open_atomically, write_text_atomically  # noqa: E402
from resnet_jax.data.arrays import ImageArrays, content_digest, load_arrays  # noqa: E402
from resnet_jax.data.datasets import dataset_info  # noqa: E402
from resnet_jax.environment import environment  # noqa: E402
from resnet_jax.models.names import settings_of  # noqa: E402

BATCH, GROUP, PAD = 128, 64, 4
RATE, MOMENTUM, WEIGHT_DECAY = 0.1, 0.9, 1e-4
STEPS, DROPS, DROP = 64_000, (0.5, 0.75), 0.1
# From 110 layers on: this rate until the training error of so many steps is below that.
WARMUP_DEPTH, WARMUP_RATE, WARMUP_ERROR, WARMUP_STEPS = 110, 0.01, 0.8, 100
TEST_BATCH = 500


class BatchNorm(nn.BatchNorm2d):
    """Batch normalization with statistics of groups of so many examples; None takes the whole batch.

    The running statistics move towards the mean over the groups. The variance in them is unbiased, as PyTorch's is.
    """

    def __init__(self, channels: int, group: int | None):
        super().__init__(channels)
        self.group = group

    def forward(self, x: Tensor) -> Tensor:
        """Normalises [n, c, h, w]; n is a multiple of the group in training."""
        if not self.training or self.group is None or self.group == len(x):
            return super().forward(x)
        parts = x.split(self.group)
        # With a momentum of 1 they become the groups' own.
        means, variances = self.running_mean.new_zeros((2, len(parts), self.num_features))
        options = {"weight": self.weight, "bias": self.bias, "training": True, "momentum": 1.0, "eps": self.eps}
        normal = [F.batch_norm(p, m, v, **options) for p, m, v in zip(parts, means, variances, strict=True)]
        self.running_mean.lerp_(means.mean(0), self.momentum)
        self.running_var.lerp_(variances.mean(0), self.momentum)
        return torch.cat(normal)


class Block(nn.Module):
    """Two 3x3 layers; with a shortcut of option A (new channels are zeros, after the old ones), or plain."""

    def __init__(self, inputs: int, outputs: int, stride: int, *, shortcut: bool, group: int | None):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm1 = BatchNorm(outputs, group)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norm2 = BatchNorm(outputs, group)
        self.shortcut, self.stride, self.new_channels = shortcut, stride, outputs - inputs

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))
        if self.shortcut:
            x = x[:, :, :: self.stride, :: self.stride]
            y = y + (F.pad(x, (0, 0, 0, 0, 0, self.new_channels)) if self.new_channels else x)
        return F.relu(y)


class Net(nn.Module):
    """The 6n+2 layers of section 4.2, He initialised.

    Args:
      name: such as "cifar_resnet20" or "cifar_plain56".
      channels: of the images.
      classes: of the classifier.
      group: see `BatchNorm`.

    Raises:
      ValueError: it is no net for CIFAR.
    """

    def __init__(self, name: str, *, channels: int = 3, classes: int = 10, group: int | None = GROUP):
        super().__init__()
        settings = settings_of(name, {})
        if settings["stem"] != "cifar":
            raise ValueError(f"net={name!r}: allowed are cifar_resnetN and cifar_plainN, N = 6n + 2")
        self.conv, self.norm = nn.Conv2d(channels, 16, 3, 1, 1, bias=False), BatchNorm(16, group)
        options = {"shortcut": settings["shortcut"] is not None, "group": group}
        blocks, inputs = [], 16
        for stage, size in enumerate(settings["stage_sizes"]):
            for index in range(size):
                outputs, stride = 16 * 2**stage, 2 if stage and not index else 1
                blocks.append(Block(inputs, outputs, stride, **options))
                inputs = outputs
        self.blocks, self.classifier = nn.Sequential(*blocks), nn.Linear(inputs, classes)

    def initialize(self, generator: torch.Generator) -> None:
        """Kernels of variance 2 / fan-in, biases 0; scales and shifts are 1 and 0 already."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu", generator=generator)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [n, classes], float32, of normalised images [n, c, h, w]."""
        x = self.blocks(F.relu(self.norm(self.conv(x))))
        return self.classifier(x.mean((2, 3))).float()


class Batches:
    """The endless stream of training batches, each a function of the seed and its number; all data on the device.

    Every epoch is a permutation of its own. A batch is cropped from images padded with zeros, and half of it mirrored.
    """

    def __init__(self, arrays: ImageArrays, mean: Tensor, *, seed: int, device: torch.device):
        self.images, self.labels = on_device(arrays, device)
        self.mean, self.seed, self.device = mean, seed, device
        self.epochs: dict[int, Tensor] = {}

    def at(self, step: int) -> tuple[Tensor, Tensor]:
        """Images [BATCH, c, h, w], channels last in memory, and labels of a step (the first is 0)."""
        begin, count = step * BATCH, len(self.labels)
        parts, end = [], begin + BATCH
        while begin < end:
            epoch, first = divmod(begin, count)
            parts.append(self.draws(epoch)[:, first : first + end - begin])
            begin += parts[-1].shape[1]
        rows, tops, lefts, mirrored = torch.cat(parts, 1)
        images = F.pad(self.images[rows].float() - self.mean, (0, 0, PAD, PAD, PAD, PAD))
        height, width = self.images.shape[1:3]
        down, across = (torch.arange(side, device=self.device) for side in (height, width))
        across = torch.where(mirrored[:, None] > 0, across.flip(0), across)
        y, x = tops[:, None] + down, lefts[:, None] + across
        images = images[torch.arange(BATCH, device=self.device)[:, None, None], y[:, :, None], x[:, None, :]]
        return images.permute(0, 3, 1, 2), self.labels[rows]

    def draws(self, epoch: int) -> Tensor:
        """For each place of an epoch: the image's number, the crop's top and left, whether it is mirrored; [4, n]."""
        if epoch not in self.epochs:
            random, count = np.random.default_rng([self.seed, epoch]), len(self.labels)
            crops = random.integers(0, 2 * PAD + 1, (2, count))
            found = np.stack([random.permutation(count), *crops, random.integers(0, 2, count)])
            # A batch may need the epoch before, too.
            self.epochs = {old: draws for old, draws in self.epochs.items() if old == epoch - 1}
            self.epochs[epoch] = torch.from_numpy(found).to(self.device)
        return self.epochs[epoch]


def on_device(arrays: ImageArrays, device: torch.device) -> tuple[Tensor, Tensor]:
    """Images uint8 [n, h, w, c] and labels int64 [n]."""
    return torch.from_numpy(arrays.images).to(device), torch.from_numpy(arrays.labels).long().to(device)


def pixel_mean(arrays: ImageArrays, device: torch.device) -> Tensor:
    """The mean image of a training set, [h, w, c], in pixel values of 0 to 255."""
    return torch.from_numpy(arrays.images.mean(0, dtype=np.float64).astype(np.float32)).to(device)


def rate_at(step: int, total: int) -> float:
    """The learning rate of the update that turns step into step + 1."""
    return RATE * DROP ** sum(step >= part * total for part in DROPS)


def wrong(logits: Tensor, labels: Tensor, top: int = 1) -> Tensor:
    """How many labels are not among the `top` highest scores; ties, and what is no number, count as wrong."""
    own = logits.gather(1, labels[:, None])
    return ((~(logits < own)).sum(1) - 1 >= top).sum()


class Training:
    """A net, its optimizer and its batches; one `step()` after the other.

    Args:
      net: on the device.
      batches: on the same.
      total: steps of the whole training.
      warmup: begin at the low rate.
      bf16: compute in bfloat16 (autocast).
      mode: of torch.compile; None leaves the net as it is.
    """

    def __init__(self, net: Net, batches: Batches, *, total: int, warmup: bool, bf16: bool, mode: str | None):
        self.net, self.batches, self.total, self.bf16, self.mode = net, batches, total, bf16, mode
        kernels = [value for value in net.parameters() if value.ndim > 1]
        others = [value for value in net.parameters() if value.ndim <= 1]
        groups = [{"params": kernels, "weight_decay": WEIGHT_DECAY}, {"params": others, "weight_decay": 0.0}]
        on_gpu = batches.device.type == "cuda"
        self.optimizer = torch.optim.SGD(groups, lr=RATE, momentum=MOMENTUM, nesterov=False, fused=on_gpu)
        self.forward = net if mode is None else torch.compile(net, mode=mode)
        self.done, self.low = 0, warmup
        self.errors = torch.zeros((), dtype=torch.int64, device=batches.device)

    def step(self) -> Tensor:
        """One update; returns its loss, for which nothing waits."""
        images, labels = self.batches.at(self.done)
        if self.mode is not None:
            torch.compiler.cudagraph_mark_step_begin()
        for group in self.optimizer.param_groups:
            group["lr"] = WARMUP_RATE if self.low else rate_at(self.done, self.total)
        with torch.autocast(self.batches.device.type, torch.bfloat16, enabled=self.bf16):
            logits = self.forward(images)
        loss = F.cross_entropy(logits, labels)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        self.done += 1
        if self.low:
            self.errors += wrong(logits.detach(), labels)
            if self.done % WARMUP_STEPS == 0:
                self.low = int(self.errors) >= WARMUP_ERROR * WARMUP_STEPS * BATCH
                self.errors.zero_()
        return loss.detach()

    @torch.no_grad()
    def evaluate(self, images: Tensor, labels: Tensor) -> dict[str, Any]:
        """Loss and errors of a whole split, without augmentation."""
        self.net.eval()
        loss, top1, top5 = 0.0, 0, 0
        for start in range(0, len(labels), TEST_BATCH):
            pixels, target = images[start : start + TEST_BATCH], labels[start : start + TEST_BATCH]
            with torch.autocast(self.batches.device.type, torch.bfloat16, enabled=self.bf16):
                logits = self.net((pixels.float() - self.batches.mean).permute(0, 3, 1, 2))
            loss += float(F.cross_entropy(logits, target, reduction="sum"))
            top1, top5 = top1 + int(wrong(logits, target)), top5 + int(wrong(logits, target, 5))
        self.net.train()
        count = len(labels)
        return {"loss": loss / count, "error_top1": top1 / count, "error_top5": top5 / count, "count": count}

    def save(self, path: Path, config: dict[str, Any]) -> None:
        """Writes all that the rest of the training depends on, whole or not at all."""
        state = {"net": self.net.state_dict(), "optimizer": self.optimizer.state_dict()}
        state |= {"config": config, "done": self.done, "low": self.low, "errors": self.errors}
        with open_atomically(path) as file:
            torch.save(state, file)

    def restore(self, path: Path, config: dict[str, Any]) -> None:
        """Goes on from what `save` wrote; ValueError if it is of another run."""
        state = torch.load(path, map_location=self.batches.device, weights_only=True)
        differing = [key for key in config if state["config"].get(key) != config[key]]
        if differing:
            raise ValueError(f"{path} is of a run with another {', '.join(differing)}; choose another --workdir")
        self.net.load_state_dict(state["net"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.done, self.low, self.errors = state["done"], state["low"], state["errors"]


def make_training(
    config: dict[str, Any], train: ImageArrays, *, classes: int, device: torch.device, group: int | None = GROUP
) -> Training:
    """A training before its first step, of `net`, `seed`, `steps`, `bf16` and `compile` of a config."""
    torch.backends.cudnn.benchmark = True
    net = Net(config["net"], channels=train.images.shape[-1], classes=classes, group=group)
    net.initialize(torch.Generator().manual_seed(config["seed"]))
    net.to(device, memory_format=torch.channels_last)
    batches = Batches(train, pixel_mean(train, device), seed=config["seed"], device=device)
    warmup = 2 + 2 * len(net.blocks) >= WARMUP_DEPTH
    options = {"bf16": config["bf16"], "mode": config["compile"], "warmup": warmup}
    return Training(net, batches, total=config["steps"], **options)


def synchronize(device: torch.device) -> None:
    """Waits for all that the device has to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def run(
    config: dict[str, Any], workdir: Path, *, data_dir: str | None, device: torch.device, every: int
) -> dict[str, Any]:
    """Trains to the end, from the workdir's checkpoint if there is one; returns the record.

    Args:
      config: net, seed, steps, dataset, bf16 and compile.
      workdir: for checkpoint.pt and record.json; a run that has its record is finished.
      data_dir: folder of TFDS data sets.
      device: "cpu" or "cuda".
      every: steps from one checkpoint to the next.

    Raises:
      FloatingPointError: a loss is not finite where a checkpoint is due; the one before it stays.
      ValueError: the checkpoint is of another run.
    """
    begun = time.perf_counter()
    if (workdir / "record.json").is_file():
        return json.loads((workdir / "record.json").read_text())
    info = dataset_info(config["dataset"], data_dir=data_dir)
    train, test = load_arrays(info, "train"), load_arrays(info, "test")
    config = config | {"device": device.type, "train_pixels": content_digest(train)}
    training = make_training(config, train, classes=info.num_classes, device=device)
    checkpoint = workdir / "checkpoint.pt"
    if checkpoint.is_file():
        training.restore(checkpoint, config)
    first, clock, first_step_seconds = training.done, time.perf_counter(), None
    while training.done < config["steps"]:
        loss = training.step()
        if training.done == first + 1:  # It compiles, and chooses kernels.
            synchronize(device)
            first_step_seconds, clock = time.perf_counter() - clock, time.perf_counter()
        if training.done % every == 0 or training.done == config["steps"]:
            if not math.isfinite(value := float(loss)):
                raise FloatingPointError(f"step {training.done}: the loss is {value}")
            paused = time.perf_counter()
            training.save(checkpoint, config)
            print(f"step {training.done:,} of {config['steps']:,}: loss {value:.4f}", flush=True)
            clock += time.perf_counter() - paused
    timed = training.done - first - 1
    speed = timed * BATCH / (time.perf_counter() - clock) if timed > 0 else None
    splits = {"train": train, "test": test}
    errors = {name: training.evaluate(*on_device(arrays, device)) for name, arrays in splits.items()}
    times = {"images_per_second": speed, "first_step_seconds": first_step_seconds}
    times |= {"resumed_from_step": first or None, "wall_seconds": time.perf_counter() - begun}
    record = make_record(config, training, errors, times)
    write_text_atomically(workdir / "record.json", json.dumps(record, indent=2, allow_nan=False) + "\n")
    return record


def make_record(
    config: dict[str, Any], training: Training, errors: dict[str, dict], times: dict[str, Any]
) -> dict[str, Any]:
    """The record, with the keys of this library's own where it has them; its times are those of the last process."""
    found, device = environment(), training.batches.device
    found["versions"] |= {"torch": torch.__version__, "cuda": torch.version.cuda}
    kind = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    found["devices"] = {"platform": device.type, "kind": kind, "count": 1, "processes": 1}
    train, test = errors["train"], errors["test"]
    return {
        "framework": "pytorch",
        "config": config
        | {"batch_size": BATCH, "bn_group_size": GROUP, "tf32": torch.backends.cudnn.allow_tf32, "pad": PAD}
        | {"rate": RATE, "momentum": MOMENTUM, "weight_decay": WEIGHT_DECAY, "drops": DROPS},
        "model": config["net"],
        "seed": config["seed"],
        **found,
        # The commit's flag does not see this file.
        "script_sha256": hashlib.sha256(Path(__file__).read_bytes()).hexdigest(),
        "steps": training.done,
        "parameters": sum(value.numel() for value in training.net.parameters()),
        "train": {"loss": train["loss"], "error": train["error_top1"], "count": train["count"]},
        "test": {key: test[key] for key in ("error_top1", "error_top5", "count")} | {"protocol": "center"},
        **times,
    }


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--net", default="cifar_resnet20", help="or cifar_plain20; any 6n + 2 (%(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    help = "of the training, whose rate falls after a half and three quarters of them (%(default)s)"
    parser.add_argument("--steps", type=int, default=STEPS, help=help)
    parser.add_argument("--dataset", default="cifar10", help="(%(default)s)")
    parser.add_argument("--data_dir", help="folder of TFDS data sets (TFDS's own default)")
    parser.add_argument("--workdir", type=Path, required=True, help="for checkpoint.pt and record.json")
    parser.add_argument("--device", help="cpu or cuda (cuda where there is one)")
    parser.add_argument("--bf16", action="store_true", help="compute in bfloat16, by autocast")
    help = "torch.compile the net: default, reduce-overhead or max-autotune"
    parser.add_argument("--compile", metavar="MODE", nargs="?", const="default", help=help)
    parser.add_argument("--checkpoint_every", type=int, default=1000, help="steps (%(default)s)")
    flags = parser.parse_args(argv)
    if flags.steps < 1 or flags.checkpoint_every < 1:
        parser.error("--steps and --checkpoint_every must be at least 1")
    device = torch.device(flags.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    config = {key: getattr(flags, key) for key in ("net", "seed", "steps", "dataset", "bf16", "compile")}
    options = {"data_dir": flags.data_dir, "device": device, "every": flags.checkpoint_every}
    record = run(config, flags.workdir, **options)
    print(json.dumps({key: record[key] for key in ("model", "seed", "train", "test", "images_per_second")}))


if __name__ == "__main__":
    main()
