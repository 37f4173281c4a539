"""The config's keys: their table, which of them a task has, and what is said of a wrong one.

`KEYS` is the single source: defaults, types, ranges, choices and the help text are made from it.
"""

from typing import Any

from resnet_jax.config_detection import DETECTION_KEYS
from resnet_jax.config_localization import LOCALIZATION_KEYS, SHARED_KEYS
from resnet_jax.config_rules import Rule, likeness
from resnet_jax.models.arrangements import NORMS, ORDERS

TASKS = ("classification", "detection", "localization")
UNITS = ("steps", "epochs", "examples")
NORMALIZATIONS = ("pixel_mean", "channel_mean", "channel_mean_std")
SCHEDULES = ("constant", "piecewise", "cosine", "plateau")
PIPELINES = ("resident", "streamed")
CROPS = ("scale", "inception")
RESIZES = ("area", "bilinear", "pillow_bilinear", "pillow_bicubic")
POLICIES = ("none", "randaugment", "trivialaugment")
UNREADABLE = ("stop", "skip")
LOSSES = ("softmax", "sigmoid")
OPTIMIZERS = ("sgd", "lamb")
DETERMINISM = ("default", "repeatable", "topology")
SHARDINGS = ("none", "optimizer", "parameters")
WARMUPS = ("none", "linear", "until_error")

_KEYS: dict[str, Rule] = {
    "task": Rule("str", "classification", "what is trained; it decides which keys there are", TASKS),
    "seed": Rule("int", 0, "gives initial parameters, image order, augmentation", minimum=0, below=2**31),
    "num_seeds": Rule("int", 1, "train so many, seed and those after it, in one program", minimum=1),
    "model.name": Rule("str", "cifar_resnet20", "as resnet_jax.list_models() names them; detection: or vgg16"),
    "model.num_classes": Rule("int", None, "None: as many as the data set has", minimum=1, none=True),
    "model.block": Rule("str", None, "None: the name's own; CIFAR's depth stays", ("basic", "bottleneck"), none=True),
    "model.shortcut": Rule("str", None, "section 3.3; None: the family's own", ("A", "B", "C"), none=True),
    "model.stride_in": Rule("str", None, "of bottlenecks; None: the name's own", ("1x1", "3x3"), none=True),
    "model.pool_padding": Rule("str", "both", "of the first maximum; end: as the authors' own nets", ("both", "end")),
    "model.activation_order": Rule("str", "post", "post: the paper; pre: pre-activation", tuple(ORDERS)),
    "model.norm": Rule("str", "batch", "frozen: constants; none, skipinit, fixup: without", NORMS),
    "model.bn_group_size": Rule("int", None, "examples sharing statistics; None: all", minimum=1, none=True),
    "model.zero_init_residual": Rule("bool", False, "start the last scale of each block at 0"),
    "model.dropout_rate": Rule("float", 0.0, "before the classifier", minimum=0, below=1),
    "model.stochastic_depth": Rule("float", 0.0, "drop rate of the last block's branch", minimum=0, below=1),
    "model.width": Rule("int", None, "filters of stage 1; None: the family's own", minimum=1, none=True),
    "model.scan": Rule("bool", False, "stack the identical blocks of a stage"),
    "model.remat": Rule("bool", False, "recompute blocks in the backward pass to save memory"),
    "model.dtype": Rule("str", "float32", "of computation; parameters are float32", ("float32", "bfloat16")),
    "data.name": Rule("str", "digits", "a TFDS image-classification set"),
    "data.data_dir": Rule("str", None, "folder of TFDS data sets; None: TFDS's own default", none=True),
    "data.pipeline": Rule("str", "resident", "resident: in device memory; streamed: from disk", PIPELINES),
    "data.train_split": Rule("str", "train", "in TFDS's syntax, such as train[:45000]"),
    "data.validation_split": Rule("str", None, "None: no validation", none=True),
    "data.test_split": Rule("str", "test", "evaluated in whole"),
    "data.pad": Rule("int", 4, "resident: zero pixels on each side before the random crop", minimum=0),
    "data.flip": Rule("bool", True, "mirror half of the training images"),
    "data.normalization": Rule("str", "pixel_mean", "of the training images", NORMALIZATIONS),
    "data.statistics": Rule("str", None, "streamed: a file of `measure`; None: beside the data", none=True),
    "data.image_size": Rule(
        "int", 224, "streamed: pixels of a training crop's side; localization: of a region's, too", minimum=8
    ),
    "data.crop": Rule("str", "scale", "streamed: scale: section 3.4; inception: random area and aspect", CROPS),
    "data.short_sides": Rule("numbers", (256, 480), "crop scale: range of the shorter side, pixels", minimum=1),
    "data.crop_area": Rule("numbers", (0.08, 1), "crop inception: range of the area's share", above=0),
    "data.crop_aspect": Rule("numbers", (0.75, 4 / 3), "crop inception: range of width / height", above=0),
    "data.resize": Rule("str", "area", "streamed: bilinear alone is not antialiased", RESIZES),
    "data.pca_std": Rule("float", 0.0, "streamed: of PCA colour; 0.1 in the paper", minimum=0),
    "data.policy": Rule("str", "none", "learned augmentation of each image", POLICIES),
    "data.policy_operations": Rule("int", 2, "randaugment: operations an image", minimum=1),
    "data.policy_magnitude": Rule("int", 9, "randaugment: strength", minimum=0, below=31),
    "data.cutout": Rule("int", 0, "side of a square of each image set to the mean, pixels; 0 is off", minimum=0),
    "data.mixup": Rule("float", 0.0, "alpha of Beta(alpha, alpha); 0 is off", minimum=0),
    "data.cutmix": Rule("float", 0.0, "alpha; with mixup, each takes half of the batches", minimum=0),
    "data.unreadable": Rule("str", "stop", "a training image that cannot be decoded", UNREADABLE),
    "data.workers": Rule("int", None, "streamed: decoding processes; 0: threads; None: by cores", minimum=0, none=True),
    "train.batch_size": Rule("int", 128, "images of one step, all devices together", minimum=1),
    "train.duration": Rule("number", 64_000, "length of the training, in train.unit", above=0),
    "train.unit": Rule("str", "steps", "of train.duration and of every .every", UNITS),
    "train.steps_per_dispatch": Rule("int", None, "None: by device and net", minimum=1, none=True),
    "train.non_finite": Rule("str", "stop", "a non-finite loss: stop, or skip the update", ("stop", "skip")),
    "train.most_skipped": Rule("int", 100, "non_finite=skip: more updates in a row end the run", minimum=1),
    "train.determinism": Rule(
        "str", "default", "repeatable: on GPUs, too; topology: the same bits on any devices", DETERMINISM
    ),
    "train.sharding": Rule("str", "none", "what is divided among the devices, not copied", SHARDINGS),
    "train.slices": Rule("int", None, "device groups with a fast network; None: by device", minimum=1, none=True),
    "train.accumulation_steps": Rule("int", 1, "parts of a batch, one after the other", minimum=1),
    "train.loss": Rule("str", "softmax", "sigmoid: one binary cross-entropy a class", LOSSES),
    "train.ema_decay": Rule("float", 0.0, "of averaged parameters, which are tested; 0 is off", minimum=0, below=1),
    "train.label_smoothing": Rule("float", 0.0, "probability spread over all classes", minimum=0, below=1),
    "train.log_every": Rule("int", 100, "steps between training metrics", minimum=1),
    "optimizer.name": Rule("str", "sgd", "lamb: for large batches", OPTIMIZERS),
    "optimizer.momentum": Rule("float", 0.9, "of SGD; LAMB's first moment", minimum=0, below=1),
    "optimizer.nesterov": Rule("bool", False, "the paper's is not"),
    "optimizer.weight_decay": Rule(
        "float", 1e-4, "SGD: L2, before the momentum; LAMB: after Adam's scaling", minimum=0
    ),
    "optimizer.clip_norm": Rule("float", None, "longest gradient", above=0, none=True),
    "optimizer.decay": Rule(
        "str", "kernels", "kernels: convolutions and dense only; LAMB scales the same", ("kernels", "all")
    ),
    "schedule.name": Rule("str", "piecewise", "of the learning rate", SCHEDULES),
    "schedule.learning_rate": Rule("float", 0.1, "the highest; see reference_batch_size", above=0),
    "schedule.reference_batch_size": Rule("int", None, "rates are for this batch, and scale", minimum=1, none=True),
    "schedule.unit": Rule("str", "steps", "of boundaries and warmup_duration", (*UNITS, "percent")),
    "schedule.boundaries": Rule("numbers", (32_000, 48_000), "piecewise: when the rate drops", above=0),
    "schedule.factor": Rule("float", 0.1, "piecewise, plateau: times this at a drop", above=0, below=1),
    "schedule.patience": Rule("int", 5, "plateau: evaluations without improvement before a drop", minimum=1),
    "schedule.min_improvement": Rule("float", 0.0, "plateau: a smaller one is none", minimum=0, below=1),
    "schedule.warmup": Rule("str", "none", "until_error: section 4.2, the 110-layer net", WARMUPS),
    "schedule.warmup_duration": Rule("number", 0, "linear: length, in schedule.unit", minimum=0),
    "schedule.warmup_start": Rule("float", 0.0, "linear: the rate that it begins at", minimum=0),
    "schedule.warmup_learning_rate": Rule("float", 0.01, "until_error: the rate meanwhile", above=0),
    "schedule.warmup_error": Rule("float", 0.8, "until_error: training error that ends it", above=0, below=1),
    "schedule.warmup_window": Rule("int", 100, "until_error: steps the error is taken over", minimum=1),
    "evaluate.batch_size": Rule("int", 500, "images of one evaluation step", minimum=1),
    "evaluate.image_size": Rule("int", None, "streamed: None: data.image_size", minimum=8, none=True),
    "evaluate.short_side": Rule("int", 256, "streamed: shorter side before the crop", minimum=8),
    "evaluate.train_split": Rule("str", None, "for the record's training error; None: data.train_split", none=True),
    "evaluate.every": Rule("number", 1000, "in train.unit", above=0),
    "checkpoint.every": Rule("number", 1000, "in train.unit; each is tested, too, outside a plateau's count", above=0),
    "checkpoint.keep_latest": Rule("int", 2, "checkpoints kept by age", minimum=1),
    "checkpoint.keep_best": Rule("int", 1, "kept by validation error, else test error", minimum=0),
    "diagnostics.every": Rule("number", 0, "in train.unit, and at start and end; 0: no diagnosis", minimum=0),
    "diagnostics.images": Rule("int", 256, "the first of the training split, not augmented", minimum=1),
    "diagnostics.curvature": Rule("bool", False, "Hessian, noise scale, singular values: most of the time"),
    "limits.compile_seconds": Rule("float", 3600.0, "longest compilation; 0: no limit, as of the next", minimum=0),
    "limits.step_seconds": Rule("float", 1800.0, "longest time without a step, in training", minimum=0),
    "limits.evaluation_seconds": Rule("float", 7200.0, "longest evaluation", minimum=0),
    "limits.save_seconds": Rule("float", 3600.0, "longest wait for a checkpoint", minimum=0),
}

# Those of images with one class each; what else stands above is every task's.
_OF_CLASSIFICATION = (
    *("model.num_classes", "model.norm", "model.bn_group_size", "model.zero_init_residual", "model.dropout_rate"),
    "model.stochastic_depth",
    *("data.name", "data.pipeline", "data.train_split", "data.validation_split", "data.test_split"),
    *("data.pad", "data.normalization", "data.statistics", "data.image_size"),
    *("data.crop", "data.short_sides", "data.crop_area", "data.crop_aspect", "data.pca_std"),
    *("data.policy", "data.policy_operations", "data.policy_magnitude", "data.cutout", "data.mixup", "data.cutmix"),
    *("train.steps_per_dispatch", "train.loss", "train.label_smoothing"),
    *("evaluate.image_size", "evaluate.short_side", "evaluate.train_split"),
    *("diagnostics.every", "diagnostics.images", "diagnostics.curvature"),
)

_OF_TASK = {
    "classification": _OF_CLASSIFICATION,
    "detection": tuple(DETECTION_KEYS),
    "localization": (*LOCALIZATION_KEYS, *SHARED_KEYS),
}

KEYS = {
    key: rule._replace(tasks=tuple(task for task in TASKS if key in _OF_TASK[task]))
    for key, rule in {**_KEYS, **DETECTION_KEYS, **LOCALIZATION_KEYS}.items()
}


def keys_of(task: str) -> dict[str, Rule]:
    """The keys that a task's config has, and no others."""
    return {key: rule for key, rule in KEYS.items() if not rule.tasks or task in rule.tasks}


def describe_keys() -> str:
    """Returns two lines a key, for the command line's help: default, what it may hold, meaning."""
    return "\n".join(
        f"  --config.{key}={rule.default}\n      {rule.allowed}; {rule.doc}"
        + (f" (task={' or '.join(rule.tasks)})" if rule.tasks and "classification" not in rule.tasks else "")
        for key, rule in KEYS.items()
    )


def parse_value(key: str, text: str) -> Any:
    """Reads an override's text by the key's declared type; ValueError says what is allowed.

    Example:
      >>> parse_value("schedule.boundaries", "50, 75")
      (50, 75)
      >>> parse_value("train.batch_size", "0")
      Traceback (most recent call last):
      ...
      ValueError: train.batch_size=0: must be an integer at least 1
    """
    if key not in KEYS:
        raise ValueError(unknown_key(key))
    rule, text = KEYS[key], text.strip()
    try:
        value = rule.read(text)
    except ValueError:
        raise ValueError(f"{key}={text}: must be {rule.allowed}") from None
    check_value(key, value)
    return value


def check_value(key: str, value: Any) -> None:
    """Raises ValueError if a known key may not hold the value."""
    if problem := KEYS[key].problem(value):
        raise ValueError(f"{key}={value}: {problem}")


def unknown_key(key: str, task: str | None = None) -> str:
    """Returns the message for a key that is not in `KEYS`, or not of the task."""
    known = KEYS if task is None else keys_of(task)
    if key in KEYS:
        return f"config key {key} is of task={' or '.join(KEYS[key].tasks)}, and this config is of task={task}"
    leaves = [name.removeprefix(f"{key}.") for name in known if name.startswith(f"{key}.")]
    if leaves:
        return f"config key {key} is a section; its keys: {', '.join(leaves)}"
    # The last part counts twice, so that the right name in the wrong section finds its section.
    leaf = key.rpartition(".")[2]
    near = max(known, key=lambda name: likeness(key, name) + likeness(leaf, name.rpartition(".")[2]))
    return f"unknown config key {key}; did you mean {near}?"
