"""Draws what each recipe's augmentation makes of two photographs that come with scikit-learn."""

import argparse
import importlib.resources
from pathlib import Path

import jax
import matplotlib
import numpy as np

from resnet_jax.data.augment import TrainView, example_rng
from resnet_jax.data.device_augment import make_prepare
from resnet_jax.data.statistics import PUBLISHED_IMAGENET
from resnet_jax.distributed import data_mesh

HERE = Path(__file__).parent
SIZE, DRAWS = 224, 8
PHOTOGRAPHS = ("china.jpg", "flower.jpg")
# Title: the view on the host, and what the devices add.
ROWS = {
    "paper: shorter side in [256, 480], crop, mirror": ({"crop": "scale"}, {}),
    "paper, with PCA colour (drawn three times as strong)": ({"crop": "scale"}, {"pca_std": 0.3}),
    "Inception crop, mirror": ({"crop": "inception"}, {}),
    "RandAugment (2 operations, 9 of 30)": ({"crop": "inception", "policy": "randaugment"}, {}),
    "TrivialAugment": ({"crop": "inception", "policy": "trivialaugment"}, {}),
    "mixup (alpha 1)": ({"crop": "inception"}, {"mixup_alpha": 1.0}),
    "CutMix (alpha 1)": ({"crop": "inception"}, {"cutmix_alpha": 1.0}),
}


def augmented(view: dict, device: dict) -> np.ndarray:
    """DRAWS images [DRAWS, SIZE, SIZE, 3] as the net would get them, back on the scale 0 to 1."""
    photographs = importlib.resources.files("sklearn.datasets.images")
    encoded = [(photographs / name).read_bytes() for name in PHOTOGRAPHS]
    host = TrainView(image_size=SIZE, **view)
    images = np.stack([host(encoded[k % 2], example_rng(0, k)) for k in range(DRAWS)])
    mesh = data_mesh(jax.devices()[:1])
    nothing = np.zeros(3, np.float32)
    prepare = make_prepare(
        mesh,
        **{"seed": 0, "pca_std": 0.0, "mixup_alpha": 0.0, "cutmix_alpha": 0.0, "batch_size": DRAWS, **device},
        mean=nothing,
        std=nothing + 1,
        eigenvalues=PUBLISHED_IMAGENET.eigenvalues,
        eigenvectors=PUBLISHED_IMAGENET.eigenvectors,
    )
    # The same batch at other steps is mixed otherwise: one image of each.
    labels, weights = np.zeros(DRAWS, np.int32), np.ones(DRAWS, np.float32)
    if not device.get("mixup_alpha") and not device.get("cutmix_alpha"):
        return np.asarray(jax.jit(prepare)(images, labels, weights, 0).image) / 255
    steps = [np.asarray(jax.jit(prepare)(images, labels, weights, step).image[step]) for step in range(DRAWS)]
    return np.stack(steps) / 255


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=HERE / "contact_sheet.png")
    flags = parser.parse_args()
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(len(ROWS), DRAWS, figsize=(DRAWS * 1.25, len(ROWS) * 1.42), layout="constrained")
    for row, (title, settings) in zip(axes, ROWS.items(), strict=True):
        for axis, image in zip(row, augmented(*settings), strict=True):
            axis.imshow(image.clip(0, 1))
            axis.set_axis_off()
        # Not a title of the axes: the layout would make room for its width in the first column.
        row[0].annotate(title, (0, 1.05), xycoords="axes fraction", fontsize=9).set_in_layout(False)
    figure.get_layout_engine().set(h_pad=0.13, w_pad=0.01, rect=(0, 0, 1, 0.983))
    figure.savefig(flags.output, dpi=72, pil_kwargs={"optimize": True})
    print(flags.output)


if __name__ == "__main__":
    main()
