"""What the comparison with PyTorch shares: the nets, the numbers that fill them, samples of results, and our results.

Both sides fill a net's tensors with numbers that follow from the tensors' names alone, so that a fixture needs no
parameters, only a few results. numpy keeps the streams of `RandomState` as they are for good.
"""

import gzip
import json
import re
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

from resnet_jax.data.batch import Batch
from resnet_jax.pretrained.pytorch.torch_layout import places
from resnet_jax.pretrained.pytorch.torch_variables import TorchNet, channel_orders, read_variables
from resnet_jax.pretrained.stored_tensor import StoredTensor
from resnet_jax.training.objective import classification
from resnet_jax.training.optimizers import sgd
from resnet_jax.training.schedules import constant
from resnet_jax.training.state import Progress, TrainState
from resnet_jax.training.steps import make_train_step

FIXTURES = Path(__file__).parent / "fixtures" / "parity"

# Library -> nets. torchvision's resnet14 is its `ResNet` with one bottleneck in each stage; "1x1" stands for Hugging
# Face's `downsample_in_bottleneck=True`.
NETS = {
    "torchvision": tuple(f"resnet{depth}" for depth in (14, 18, 34, 50, 101, 152)),
    "timm": tuple(f"resnet{depth}" for depth in (18, 34, 50, 101, 152)),
    "huggingface": (*(f"resnet{depth}" for depth in (18, 34, 50, 101, 152)), "resnet50_1x1"),
    "cifar": ("resnet20",),
}
# What is trained for three steps, by the images' side: images in the batch, and the data's seed. With the seeds of the
# first two, no activation of the first step comes so near 0 that rounding could decide whether a ReLU passes its
# gradient: `make_parity.smallest_activation` is 3e-5 and 1e-5, the differences of features are below 1.4e-6.
TRAINED = {
    "cifar/resnet20/8": (16, 107),
    "torchvision/resnet14/32": (8, 87),
    "cifar/resnet20/32": (16, 0),
    "torchvision/resnet50/64": (8, 0),
}
# All running statistics keep this share of their old value, which PyTorch calls a momentum of 0.1.
RUNNING_MOMENTUM = 0.9
STEPS, LEARNING_RATE, MOMENTUM, WEIGHT_DECAY = 3, 0.1, 0.9, 1e-4

_FEATURE_SAMPLES, _TENSOR_SAMPLES = 64, 8


def fill(shapes: Mapping[str, tuple[int, ...]]) -> Iterator[tuple[str, np.ndarray]]:
    """Values for tensors of these names in PyTorch's layout: kernels of He's size, gammas and variances around 1.

    Each block's last gamma is around 0.3, which keeps 152 layers in a sane range. The counts of batches are 0.
    """
    for name, shape in shapes.items():
        if name.endswith("num_batches_tracked"):
            yield name, np.zeros(shape, np.int64)
            continue
        noise = np.random.RandomState(zlib.crc32(name.encode())).random_sample(shape) * 2 - 1
        if len(shape) == 4:
            # A uniform number in [-1, 1) has the variance 1/3.
            value = noise * np.sqrt(3 * 2 / np.prod(shape[1:]))
        elif len(shape) == 2:
            value = noise * np.sqrt(3 / shape[1])
        elif name.endswith("running_var"):
            value = 1 + 0.5 * noise
        elif name.endswith(".weight"):
            value = (1 + 0.2 * noise) * (0.3 if _ends_a_block(name, shapes) else 1)
        else:
            value = 0.2 * noise
        yield name, value.astype(np.float32)


def _ends_a_block(name: str, names: Mapping) -> bool:
    match = re.fullmatch(r"(.*layer.*\.(?:bn|layer\.))(\d)((?:\.normalization)?\.weight)", name)
    return match is not None and f"{match[1]}{int(match[2]) + 1}{match[3]}" not in names


def images(library: str, *, count: int = 2, side: int | None = None, seed: int = 0) -> np.ndarray:
    """Normal noise [count, 3, side, side]; by default the side is 64 pixels, 32 for CIFAR's nets."""
    side = side or (32 if library == "cifar" else 64)
    return np.random.RandomState(seed).standard_normal((count, 3, side, side)).astype(np.float32)


def training_data(key: str) -> tuple[np.ndarray, np.ndarray]:
    """Images [n, 3, h, w] and class numbers [n] of one of `TRAINED`."""
    (library, _, side), (count, seed) = key.split("/"), TRAINED[key]
    targets = np.random.RandomState(seed).randint(0, 10 if library == "cifar" else 1000, count)
    return images(library, count=count, side=int(side), seed=seed), targets


def samples(name: str, value: np.ndarray, count: int) -> np.ndarray:
    """Values at `count` places of an array in PyTorch's layout, chosen by its name."""
    places = np.random.RandomState(zlib.crc32(name.encode())).randint(0, value.size, count)
    return value.ravel()[places]


def feature_summary(name: str, value: np.ndarray) -> np.ndarray:
    """64 of a feature's values, or all logits; then the L2 norm and the largest absolute value; float32."""
    norm = np.linalg.norm(value.astype(np.float64))
    kept = value.ravel() if name == "logits" else samples(name, value, _FEATURE_SAMPLES)
    return np.array([*kept, norm, np.abs(value).max()], np.float32)


def tensor_summary(name: str, value: np.ndarray) -> np.ndarray:
    """8 of a tensor's values and its L2 norm, float32."""
    norm = np.linalg.norm(value.astype(np.float64))
    return np.array([*samples(name, value, _TENSOR_SAMPLES), norm], np.float32)


def real_names(library: str, net: str) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the library's own tensors, as `make_parity.py` stored them."""
    listing = json.loads(gzip.decompress((FIXTURES / "names.json.gz").read_bytes()))
    return {name: tuple(shape) for name, shape in listing[f"{library}/{net}"].items()}


def huggingface_config(net: str) -> dict:
    """What config.json says of one of `NETS["huggingface"]`."""
    depth, _, variant = net.removeprefix("resnet").partition("_")
    sizes = {
        "18": [2, 2, 2, 2],
        "34": [3, 4, 6, 3],
        "50": [3, 4, 6, 3],
        "101": [3, 4, 23, 3],
        "152": [3, 8, 36, 3],
    }[depth]
    basic = depth in ("18", "34")
    return {
        "model_type": "resnet",
        "layer_type": "basic" if basic else "bottleneck",
        "depths": sizes,
        "hidden_sizes": [64, 128, 256, 512] if basic else [256, 512, 1024, 2048],
        "downsample_in_bottleneck": variant == "1x1",
        "num_labels": 1000,
    }


def stored(values: Mapping[str, np.ndarray]) -> dict[str, StoredTensor]:
    """Arrays as a file reader gives them."""
    return {name: StoredTensor(v.shape, v.dtype.name, lambda v=v: v) for name, v in values.items()}


def our_features(net: TorchNet, variables: dict, pictures: np.ndarray) -> dict[str, np.ndarray]:
    """Logits and features of images [n, 3, h, w], in PyTorch's layout and order of channels."""
    variables = jax.tree.map(jnp.asarray, variables)
    logits, features = net.model.apply(variables, pictures.transpose(0, 2, 3, 1), train=False, return_features=True)
    found = {name: np.asarray(value) for name, value in features.items()}
    found = {name: value.transpose(0, 3, 1, 2) if value.ndim == 4 else value for name, value in found.items()}
    if net.model.shortcut == "A":
        orders = dict(zip(found, [*channel_orders(net.model), channel_orders(net.model)[-1]], strict=True))
        found = {name: value[:, np.argsort(orders[name])] for name, value in found.items()}
    return {"logits": np.asarray(logits), **found}


def together(path: Path) -> dict[str, np.ndarray]:
    """Reads what `make_parity.write_together` wrote."""
    with np.load(path) as file:
        parts = np.split(file["values"], np.cumsum(file["lengths"])[:-1])
        return dict(zip(str(file["keys"]).split("\n"), parts, strict=True))


def our_training(net: TorchNet, values: Mapping[str, np.ndarray], pictures: np.ndarray, targets: np.ndarray):
    """Trains a net as the trainer does; yields after each step (loss, gradients, variables) under their names.

    Gradients come from the optimizer's momentum, which after the first step is gradient + decay * w; {} later. The
    variances are ours, biased.
    """
    optimizer = sgd(momentum=MOMENTUM, nesterov=False, weight_decay=WEIGHT_DECAY, decay="all")
    schedule = constant(LEARNING_RATE)
    step = jax.jit(
        make_train_step(classification(net.model), optimizer, schedule, seed=0),
        # Compiling takes most of the time; level 0 halves it.
        compiler_options={"xla_backend_optimization_level": 0},
    )
    variables = jax.tree.map(jnp.asarray, read_variables(net, stored(values)))
    state = TrainState.create(variables, optimizer, schedule)
    weights = jnp.ones(len(targets), jnp.float32)
    batch = Batch(jnp.asarray(pictures.transpose(0, 2, 3, 1)), jnp.asarray(targets, jnp.int32), weights)
    order = their_places(net, values)
    for number in range(STEPS):
        before = state.params
        state, progress = step(state, Progress.zero(), batch)
        gradients = {}
        if number == 0:
            (momentum,) = (part.trace for part in state.opt_state if isinstance(part, optax.TraceState))
            gradients = jax.tree.map(lambda v, w: v - WEIGHT_DECAY * w, momentum, before)
            gradients = in_their_layout({"params": gradients}, order)
        yield float(progress.sums.loss) / len(targets), gradients, in_their_layout(state.variables, order)


def unbiased(name: str, value: np.ndarray, initial: np.ndarray, steps: int, counts: Mapping[str, int]) -> np.ndarray:
    """Our running variance as PyTorch keeps it, which corrects each batch's by n / (n - 1); the rest as it is.

    `counts` says of how many values, n, each normalization took its statistics.
    """
    if not name.endswith(".running_var"):
        return value
    count = counts[name.removesuffix(".running_var")]
    kept = RUNNING_MOMENTUM**steps * initial
    return kept + (value - kept) * count / (count - 1)


def their_places(net: TorchNet, values: Mapping[str, np.ndarray]) -> dict[str, tuple]:
    """Path of ours, shape of theirs, and which of their values each of ours is, by their names.

    Found by converting tensors of consecutive numbers, so that it holds for any order of channels.
    """
    numbers = {name: np.arange(value.size, dtype=np.float32).reshape(value.shape) for name, value in values.items()}
    tree = read_variables(net, stored(numbers))
    listing = places(net.model, net.spelling, net.channels)
    return {p.name: (p.path, p.shape, _leaf(tree, p.path).astype(np.int64).ravel()) for p in listing}


def in_their_layout(tree: dict, order: Mapping[str, tuple]) -> dict[str, np.ndarray]:
    """Variables, or gradients without statistics, in PyTorch's layout; `order` is from `their_places`."""
    found = {}
    for name, (path, shape, theirs) in order.items():
        if path[0] in tree:
            value = np.empty(shape, np.float32)
            value.ravel()[theirs] = np.asarray(_leaf(tree, path)).ravel()
            found[name] = value
    return found


def _leaf(tree: dict, path: tuple[str, ...]):
    for key in path:
        tree = tree[key]
    return tree
