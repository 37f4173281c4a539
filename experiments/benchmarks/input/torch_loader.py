"""PyTorch's DataLoader: worker processes read JPEG files with Pillow and crop and mirror them with torchvision.

Inception crops are `RandomResizedCrop`; for scale crops the whole image is resized to a random shorter side and then
cropped, which is how torchvision's transforms say it. Values stay uint8.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import PIL
import PIL.features
import torch
import torchvision
from ours import open_examples
from PIL import Image
from pipelines import IMAGE_SIZE, SHORT_SIDES, Source
from torchvision.transforms import v2 as transforms


class JpegFiles(torch.utils.data.Dataset):
    """Image files named INDEX_LABEL.jpg, each opened when asked for."""

    def __init__(self, folder: Path, transform: transforms.Transform):
        self.paths = sorted(folder.glob("*.jpg"))
        self.transform = transform

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        path = self.paths[index]
        with Image.open(path) as image:
            return self.transform(image.convert("RGB")), int(path.stem.rpartition("_")[2])


class EndlessShuffle(torch.utils.data.Sampler):
    """Permutation after permutation, so that no end of an epoch empties the workers' queues."""

    def __init__(self, count: int):
        self.count = count

    def __iter__(self) -> Iterator[int]:
        while True:
            yield from torch.randperm(self.count).tolist()


def prepare(source: Source) -> dict[str, str]:
    """Writes the JPEG files; returns the versions of what is measured."""
    examples, folder = open_examples(source), _folder(source)
    folder.mkdir()
    for index in range(len(examples)):
        image, label = examples[index]
        (folder / f"{index:07d}_{label}.jpg").write_bytes(image)
    jpeg = f"libjpeg-turbo {PIL.features.version('libjpeg_turbo')}"
    return {"torch": torch.__version__, "torchvision": torchvision.__version__, "pillow": f"{PIL.__version__}, {jpeg}"}


@contextmanager
def open_batches(source: Source, *, crop: str, workers: int, batch_size: int) -> Iterator[Iterator[torch.Tensor]]:
    if crop == "scale":
        # The greatest size is left out by this transform.
        crops = [transforms.RandomResize(SHORT_SIDES[0], SHORT_SIDES[1] + 1), transforms.RandomCrop(IMAGE_SIZE)]
    else:
        crops = [transforms.RandomResizedCrop(IMAGE_SIZE)]
    view = transforms.Compose([*crops, transforms.RandomHorizontalFlip(), transforms.PILToTensor()])
    dataset = JpegFiles(_folder(source), view)
    sampler = EndlessShuffle(len(dataset))
    loader = torch.utils.data.DataLoader(dataset, batch_size, sampler=sampler, num_workers=workers, drop_last=True)
    yield (image for image, _ in loader)


def _folder(source: Source) -> Path:
    return Path(source.scratch) / "jpeg_files"
