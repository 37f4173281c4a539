"""PyTorch's training and inference steps: torchvision's nets, and those of section 4.2, on random images.

To train, images lie on the device as bytes and are normalised inside the step, as this library has it; to infer, as
floats. Channels last; bfloat16 is by autocast. On a GPU cuDNN tries its algorithms, float32 may use TF32, and the
optimizer is fused.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

REFERENCE = Path(__file__).resolve().parents[2] / "cifar10"
RATE, MOMENTUM, WEIGHT_DECAY = 0.1, 0.9, 1e-4
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SETTINGS = {
    **{"optimizer": "SGD, fused on a GPU", "rate": RATE, "momentum": MOMENTUM, "weight_decay": WEIGHT_DECAY},
    **{"memory_format": "channels_last", "bfloat16": "autocast", "training_images": "uint8 on the device"},
    **{"cudnn_benchmark": True, "tf32": True},
}


class Normalized(nn.Module):
    """A net that takes bytes [n, h, w, 3]."""

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net
        for name, values in (("mean", MEAN), ("std", STD)):
            self.register_buffer(name, 255 * torch.tensor(values))

    def forward(self, images: Tensor) -> Tensor:
        """Logits, of the dtype of computation."""
        return self.net(((images.float() - self.mean) / self.std).permute(0, 3, 1, 2))


def build_net(name: str) -> tuple[nn.Module, int]:
    """A net and the number of its classes; bottlenecks have the stride in the 3x3.

    Args:
      name: resnet18, 34, 50, 101 or 152, or a name of the CIFAR nets.
    """
    if name.startswith("cifar_"):
        if str(REFERENCE) not in sys.path:
            sys.path.append(str(REFERENCE))
        import pytorch_reference

        return pytorch_reference.Net(name, group=None), 10
    import torchvision

    return torchvision.models.get_model(name, weights=None), 1000


class Job:
    """A net on its device beside a batch of random images, as `train` and `infer` need it.

    Args:
      net: see `build_net`.
      batch_size: images.
      image_size: their height and width in pixels.
      bf16: compute in bfloat16.
      mode: of torch.compile; None leaves the net as it is, reduce-overhead records CUDA graphs.
      device: "cpu" or "cuda".
      as_bytes: the images, which the net then normalises; or floats.
    """

    def __init__(
        self, net: str, *, batch_size: int, image_size: int, bf16: bool, mode: str | None, device: str, as_bytes: bool
    ):
        torch.backends.cudnn.benchmark = True
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
        torch.manual_seed(0)
        module, classes = build_net(net)
        self.net = (Normalized(module) if as_bytes else module).to(device, memory_format=torch.channels_last)
        self.forward = self.net if mode is None else torch.compile(self.net, mode=mode, dynamic=False)
        self.device, self.bf16, self.graphs = device, bf16, mode == "reduce-overhead"
        pixels = torch.randint(256, (batch_size, image_size, image_size, 3), dtype=torch.uint8).to(device)
        # The view of [n, h, w, c] as [n, c, h, w] is channels last in memory.
        self.images = pixels if as_bytes else (pixels / 127.5 - 1).permute(0, 3, 1, 2)
        self.labels = torch.randint(classes, (batch_size,)).to(device)

    def logits(self) -> Tensor:
        """Of the batch."""
        if self.graphs:
            torch.compiler.cudagraph_mark_step_begin()
        with torch.autocast(self.device, torch.bfloat16, enabled=self.bf16):
            return self.forward(self.images)

    def wait(self) -> None:
        """For all that the device has to do."""
        if self.device == "cuda":
            torch.cuda.synchronize()


def make_train_step(job: Job) -> Callable[[], Tensor]:
    """One update; the function gives its loss, for which nothing waits."""
    options: dict[str, Any] = {"lr": RATE, "momentum": MOMENTUM, "weight_decay": WEIGHT_DECAY}
    optimizer = torch.optim.SGD(job.net.parameters(), **options, fused=job.device == "cuda")

    def step() -> Tensor:
        loss = F.cross_entropy(job.logits().float(), job.labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step


def make_inference(job: Job) -> Callable[[], Tensor]:
    """The logits of the batch by the running statistics; batch norm is not folded into the convolutions beforehand."""
    job.net.eval()
    return torch.inference_mode()(job.logits)
