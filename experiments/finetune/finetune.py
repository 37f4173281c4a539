"""Fine-tunes a trained net on the digits in three ways, beside the same net from scratch: plain Flax and optax."""

import argparse
import json
import time
from functools import partial
from pathlib import Path

import jax
import numpy as np
import optax
from flax import linen as nn

import resnet_jax
from resnet_jax.atomic_files import write_text_atomically
from resnet_jax.data.arrays import load_arrays
from resnet_jax.data.datasets import dataset_info
from resnet_jax.data.resize import resize_image
from resnet_jax.environment import environment

WAYS = {
    "head": "a new classifier alone, the rest frozen",
    "frozen": "everything but batch norm, which is frozen",
    "all": "everything, batch norm training",
    "scratch": "everything, from scratch",
}
# Of 0.02, 0.1 and 0.3 each way has the one with the lowest training loss, chosen once with seed 0.
LEARNING_RATES = {"head": 0.3, "frozen": 0.02, "all": 0.3, "scratch": 0.1}
CLASSES, BATCH_SIZE, MOMENTUM = 10, 64, 0.9


def load_digits(split, data_dir, input):
    """Images as the net expects them, and labels: enlarged, grey as colour, the net's mean and deviation."""
    resnet_jax.prepare("digits", data_dir=data_dir)
    images, labels = load_arrays(dataset_info("digits", data_dir=data_dir), split)
    height, width, channels = input.image_shape
    images = np.stack([resize_image(image, (height, width), resize="bilinear") for image in images])
    return (np.repeat(images, channels, axis=-1) - input.mean) / input.std, labels


def start(way, weights, input, seed):
    """The net and its variables before training. The new classifier is the seed's; from scratch, all of it."""
    key = jax.random.key(seed)
    model, variables = resnet_jax.load_pretrained(weights, num_classes=CLASSES, key=key)
    if way == "scratch":
        variables = resnet_jax.initialize(model, key, input.image_shape)
    if way == "frozen":
        model, variables = model.clone(norm="frozen"), resnet_jax.freeze_batch_norm(variables)
    return model, variables


@partial(jax.jit, static_argnames="model")
def outputs(model, variables, images):
    """Logits, and the outputs of the stages by name."""
    return model.apply(variables, images, train=False, return_features=True)


def forward(way, model, params, statistics, inputs):
    """Logits in training, and the batch statistics afterwards; the inputs are images, or the features below a head."""
    variables = {"params": params, "batch_stats": statistics}
    if way == "head":
        return nn.Dense(CLASSES).apply({"params": params["classifier"]}, inputs), statistics
    if way == "frozen":
        return model.apply(variables, inputs, train=False), statistics
    logits, updated = model.apply(variables, inputs, train=True, mutable=["batch_stats"])
    return logits, updated["batch_stats"]


def optimizer(way, steps):
    return optax.sgd(optax.cosine_decay_schedule(LEARNING_RATES[way], steps), MOMENTUM)


@partial(jax.jit, static_argnames=("way", "model", "steps"))
def train_step(way, model, steps, trained, statistics, state, inputs, labels):
    def loss(trained):
        logits, after = forward(way, model, trained, statistics, inputs)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean(), after

    (value, statistics), gradients = jax.value_and_grad(loss, has_aux=True)(trained)
    updates, state = optimizer(way, steps).update(gradients, state)
    return optax.apply_updates(trained, updates), statistics, state, value


def fine_tune(way, model, variables, train, *, steps, seed):
    """The variables after training, and the loss of every step."""
    inputs, labels = train
    trained, statistics = variables["params"], variables["batch_stats"]
    if way == "head":
        # Only the classifier gets a gradient, and what lies below it is computed once.
        trained = {"classifier": trained["classifier"]}
        inputs = outputs(model, variables, inputs)[1]["pooled"]
    state, rng, rows, losses = optimizer(way, steps).init(trained), np.random.default_rng(seed), [], []
    for _ in range(steps):
        if len(rows) < BATCH_SIZE:
            rows = rng.permutation(len(labels))
        batch, rows = rows[:BATCH_SIZE], rows[BATCH_SIZE:]
        trained, statistics, state, loss = train_step(
            way, model, steps, trained, statistics, state, inputs[batch], labels[batch]
        )
        losses.append(float(loss))
    return {"params": {**variables["params"], **trained}, "batch_stats": statistics}, losses


def run(way, weights, data, input, *, steps, seed):
    """One run's entry in the record."""
    began = time.process_time()
    model, variables = start(way, weights, input, seed)
    variables, losses = fine_tune(way, model, variables, data["train"], steps=steps, seed=seed)
    images, labels = data["test"]
    wrong = int((outputs(model, variables, images)[0].argmax(-1) != labels).sum())
    seconds = round(time.process_time() - began, 1)
    result = {"way": way, "seed": seed, "first_loss": losses[0], "last_loss": losses[-1]}
    return {**result, "test_error": wrong / len(labels), "test_count": len(labels), "cpu_seconds": seconds}


def table(record):
    """In Markdown: mean and sample standard deviation over the seeds."""
    lines = ["| what is trained | test error, % | seeds | test images |", "| --- | ---: | ---: | ---: |"]
    for way, label in WAYS.items():
        runs = [run for run in record["runs"] if run["way"] == way]
        errors = 100 * np.asarray([run["test_error"] for run in runs])
        spread = f" ± {errors.std(ddof=1):.2f}" if len(runs) > 1 else ""
        lines.append(f"| {label} | {errors.mean():.2f}{spread} | {len(runs)} | {runs[0]['test_count']} |")
    return "\n".join(lines)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weights", required=True, help="a weight file, or the name of a net in the catalogue")
    parser.add_argument("--data_dir", help="folder of data sets, where the digits are made (TFDS's own default)")
    parser.add_argument("--steps", type=int, default=66, help="of each run (%(default)s: three epochs)")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "records" / "finetune.json")
    flags = parser.parse_args(argv)
    file = resnet_jax.load_weights(flags.weights)
    data = {split: load_digits(split, flags.data_dir, file.input) for split in ("train", "test")}
    runs = []
    for way in WAYS:
        for seed in range(flags.seeds):
            runs.append(run(way, flags.weights, data, file.input, steps=flags.steps, seed=seed))
            print(json.dumps(runs[-1]), flush=True)
    config = {"weights": Path(flags.weights).name, "steps": flags.steps, "seeds": flags.seeds}
    config |= {"batch_size": BATCH_SIZE, "learning_rates": LEARNING_RATES, "momentum": MOMENTUM}
    record = {"config": config, "source": file.source, **environment(), "runs": runs}
    write_text_atomically(flags.output, json.dumps(record, indent=1) + "\n")
    print(table(record))


if __name__ == "__main__":
    main()
