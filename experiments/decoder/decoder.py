"""A trained net as the backbone under a small decoder: which pixels are a digit's ink?"""

import argparse
import json
import time
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from matplotlib.figure import Figure

import resnet_jax
from resnet_jax.atomic_files import write_text_atomically
from resnet_jax.data.arrays import load_arrays
from resnet_jax.data.datasets import dataset_info
from resnet_jax.data.resize import resize_image
from resnet_jax.environment import environment

HERE = Path(__file__).parent
# (is the backbone pretrained, is it trained) -> what a table calls it.
WAYS = {
    (True, True): "pretrained, trained with the decoder",
    (False, True): "random, trained with the decoder",
    (True, False): "pretrained, frozen",
    (False, False): "random, frozen",
}
STAGES = ("stage1", "stage2", "stage3")
SIZE, CLASSES, TRAIN_SCENES, TEST_SCENES, SHOWN = 32, 2, 2000, 200, 8
BATCH_SIZE, LEARNING_RATE = 32, 0.005


class Decoder(nn.Module):
    """From the coarsest stage to the finest: enlarge, add the next stage's features, convolve (Lin et al. 2017)."""

    features: int = 16

    @nn.compact
    def __call__(self, stages):
        x = None
        for stage in reversed(stages):
            side = nn.Conv(self.features, (1, 1))(stage)
            side = side if x is None else side + jax.image.resize(x, side.shape, "linear")
            x = nn.relu(nn.Conv(self.features, (3, 3))(side))
        return nn.Conv(CLASSES, (1, 1))(x)


def make_scenes(split, data_dir, *, count, seed):
    """Two to four digits of a split in any colour on a texture of any colours: pixels 0 to 255, and which are ink."""
    resnet_jax.prepare("digits", data_dir=data_dir)
    digits, _ = load_arrays(dataset_info("digits", data_dir=data_dir), split)
    rng = np.random.default_rng(seed)
    scenes, targets = np.empty((count, SIZE, SIZE, 3), np.float32), np.zeros((count, SIZE, SIZE), np.int32)
    for scene, target in zip(scenes, targets, strict=True):
        texture = rng.integers(0, 256, (8, 8, 3), np.uint8)
        scene[:] = resize_image(texture, (SIZE, SIZE), resize="bilinear") + rng.normal(0, 10, scene.shape)
        for index in rng.integers(0, len(digits), rng.integers(2, 5)):
            side = int(rng.integers(12, 20))
            top, left = rng.integers(0, SIZE - side, 2)
            place = np.s_[top : top + side, left : left + side]
            ink = resize_image(digits[index], (side, side), resize="bilinear") / 255
            scene[place] += ink * (rng.integers(0, 256, 3) - scene[place])
            target[place][ink[..., 0] > 0.5] = 1
    return scenes, targets


def start(pretrained, weights, input, seed):
    """The backbone, and the variables of backbone and decoder before training."""
    backbone, variables = resnet_jax.load_pretrained(weights)
    keys = jax.random.split(jax.random.key(seed))
    if not pretrained:
        variables = resnet_jax.initialize(backbone, keys[0], input.image_shape)
    _, features = backbone.apply(variables, jnp.zeros((1, SIZE, SIZE, 3)), train=False, return_features=True)
    decoder = Decoder().init(keys[1], [features[name] for name in STAGES])["params"]
    return backbone, {"backbone": variables["params"], "decoder": decoder}, variables["batch_stats"]


def forward(backbone, params, statistics, images, *, train):
    """Scores of each pixel [n, h, w, classes], and the batch statistics afterwards."""
    variables = {"params": params["backbone"], "batch_stats": statistics}
    (_, features), updated = backbone.apply(
        variables, images, train=train, return_features=True, mutable=["batch_stats"] if train else []
    )
    scores = Decoder().apply({"params": params["decoder"]}, [features[name] for name in STAGES])
    return scores, updated.get("batch_stats", statistics)


def make_optimizer(trained, steps):
    adam = optax.adam(optax.cosine_decay_schedule(LEARNING_RATE, steps))
    parts = {"backbone": "train" if trained else "freeze", "decoder": "train"}
    return optax.multi_transform({"train": adam, "freeze": optax.set_to_zero()}, parts)


@partial(jax.jit, static_argnames=("backbone", "trained", "steps"))
def train_step(backbone, trained, steps, params, statistics, state, images, targets):
    def loss(params):
        scores, after = forward(backbone, params, statistics, images, train=trained)
        return optax.softmax_cross_entropy_with_integer_labels(scores, targets).mean(), after

    (value, statistics), gradients = jax.value_and_grad(loss, has_aux=True)(params)
    updates, state = make_optimizer(trained, steps).update(gradients, state, params)
    return optax.apply_updates(params, updates), statistics, state, value


def train(backbone, params, statistics, data, *, trained, steps, seed):
    """Parameters and statistics after training, and the loss of every step."""
    images, targets = data
    state, rng, losses = make_optimizer(trained, steps).init(params), np.random.default_rng(seed), []
    for _ in range(steps):
        rows = rng.choice(len(images), BATCH_SIZE, replace=False)
        params, statistics, state, loss = train_step(
            backbone, trained, steps, params, statistics, state, images[rows], targets[rows]
        )
        losses.append(float(loss))
    return params, statistics, losses


@partial(jax.jit, static_argnames="backbone")
def classify(backbone, params, statistics, images):
    return forward(backbone, params, statistics, images, train=False)[0].argmax(-1)


def mean_iou(found, targets):
    """Intersection over union of each class over all pixels, averaged over classes."""
    both = [((found == k) & (targets == k)).sum() / ((found == k) | (targets == k)).sum() for k in range(CLASSES)]
    return float(np.mean(both))


def normalized(scenes, input):
    """As the backbone expects its images."""
    images, targets = scenes
    return (images - input.channel_mean) / input.std, targets


def run(way, weights, data, input, *, steps, seed):
    """One run's entry in the record, and the class it finds for each pixel of the test scenes."""
    began, (pretrained, trained) = time.process_time(), way
    backbone, params, statistics = start(pretrained, weights, input, seed)
    params, statistics, losses = train(
        backbone, params, statistics, data["train"], trained=trained, steps=steps, seed=seed
    )
    images, targets = data["test"]
    found = np.asarray(classify(backbone, params, statistics, images))
    seconds = round(time.process_time() - began, 1)
    result = {"backbone": WAYS[way], "seed": seed, "first_loss": losses[0], "last_loss": losses[-1]}
    return {**result, "mean_iou": mean_iou(found, targets), "cpu_seconds": seconds}, found


def table(record):
    """In Markdown: mean and sample standard deviation over the seeds."""
    lines = ["| backbone | mean intersection over union, % | seeds | test scenes |", "| --- | ---: | ---: | ---: |"]
    for label in WAYS.values():
        runs = [run for run in record["runs"] if run["backbone"] == label]
        found = 100 * np.asarray([run["mean_iou"] for run in runs])
        spread = f" ± {found.std(ddof=1):.1f}" if len(runs) > 1 else ""
        lines.append(f"| {label} | {found.mean():.1f}{spread} | {len(runs)} | {record['config']['test_scenes']} |")
    return "\n".join(lines)


def draw(scenes, targets, found, path):
    """A column for each scene: image, target, and what each way finds."""
    rows = {"scene": scenes / 255, "target": targets, **found}
    figure = Figure(figsize=(1.5 * len(scenes), 1.65 * len(rows)), layout="constrained")
    for axes, (title, images) in zip(figure.subplots(len(rows), len(scenes)), rows.items(), strict=True):
        for axis, image in zip(axes, images, strict=True):
            axis.imshow(image.clip(0, 1) if image.ndim == 3 else image, cmap="gray", vmin=0, vmax=1)
            axis.set_axis_off()
        axes[0].set_title(title, loc="left", fontsize=9)
    figure.savefig(path, dpi=80)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weights", required=True, help="a weight file, or the name of a net in the catalogue")
    parser.add_argument("--data_dir", help="folder of data sets, where the digits are made (TFDS's own default)")
    parser.add_argument("--steps", type=int, default=120, help="of each run (%(default)s)")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=HERE, help="of records/decoder.json and scenes.png (this one)")
    flags = parser.parse_args(argv)
    file = resnet_jax.load_weights(flags.weights)
    scenes, targets = make_scenes("test", flags.data_dir, count=TEST_SCENES, seed=0)
    data = {
        "train": normalized(make_scenes("train", flags.data_dir, count=TRAIN_SCENES, seed=0), file.input),
        "test": normalized((scenes, targets), file.input),
    }
    runs, shown = [], {}
    for way in WAYS:
        for seed in range(flags.seeds):
            result, found = run(way, flags.weights, data, file.input, steps=flags.steps, seed=seed)
            runs.append(result)
            shown.setdefault(WAYS[way], found[:SHOWN])
            print(json.dumps(result), flush=True)
    config = {"weights": Path(flags.weights).name, "steps": flags.steps, "seeds": flags.seeds, "size": SIZE}
    config |= {"train_scenes": TRAIN_SCENES, "test_scenes": TEST_SCENES}
    config |= {"batch_size": BATCH_SIZE, "learning_rate": LEARNING_RATE}
    record = {"config": config, "source": file.source, **environment(), "runs": runs}
    write_text_atomically(flags.folder / "records" / "decoder.json", json.dumps(record, indent=1) + "\n")
    draw(scenes[:SHOWN], targets[:SHOWN], shown, flags.folder / "scenes.png")
    print(table(record))


if __name__ == "__main__":
    main()
