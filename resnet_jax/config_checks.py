"""What contradicts what in a config: several values together."""

import itertools
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

from resnet_jax.config_keys import KEYS
from resnet_jax.models.arrangements import ORDERS, arrangement_of
from resnet_jax.models.names import settings_of

_NO_RESIDUAL_NET = "vgg16"


def check_together(values: Mapping[str, Any]) -> None:
    """Raises ValueError for values that cannot be meant together.

    Args:
      values: of all keys of the config's task, each allowed by itself.
    """
    _check_net(values)
    _check_optimizer(values)
    check_divisible(values["train.batch_size"], divisors(values, 1))
    _check_schedule(values)
    of_task = {
        "classification": _check_classification,
        "detection": _check_detection,
        "localization": _check_localization,
    }
    of_task[values["task"]](values)


def _check_net(values: Mapping[str, Any]) -> None:
    options = {key.removeprefix("model."): value for key, value in values.items() if key.startswith("model.")}
    name = options.pop("name")
    if values["task"] == "detection" and name == _NO_RESIDUAL_NET:
        for key in ("block", "shortcut", "stride_in", "width"):
            if (value := options[key]) is not None:
                raise ValueError(f"model.{key}={value}: means nothing with model.name={name}; set None")
        return
    settings_of(name, options)


def _check_optimizer(values: Mapping[str, Any]) -> None:
    if values["optimizer.nesterov"] and values["optimizer.momentum"] == 0:
        raise ValueError("optimizer.nesterov=True: needs optimizer.momentum above 0")
    if values["optimizer.nesterov"] and values["optimizer.name"] != "sgd":
        raise ValueError(f"optimizer.nesterov=True: needs optimizer.name=sgd, not {values['optimizer.name']}")
    if values["train.non_finite"] == "stop" and (most := values["train.most_skipped"]) != (
        KEYS["train.most_skipped"].default
    ):
        raise ValueError(f"train.most_skipped={most}: needs train.non_finite=skip, not stop")
    if values["train.slices"] is not None and values["train.sharding"] == "none":
        raise ValueError(
            f"train.slices={values['train.slices']}: needs train.sharding=optimizer or parameters, not none"
        )


def _check_classification(values: Mapping[str, Any]) -> None:
    _check_accumulation(values)
    if values["train.determinism"] == "topology":
        _check_topology(values)
    _check_pipeline(values)
    _check_seeds(values)
    _check_splits(values)
    _check_diagnostics(values)


def _check_accumulation(values: Mapping[str, Any]) -> None:
    parts = values["train.accumulation_steps"]
    if parts > 1 and values["model.bn_group_size"] is None and values["model.norm"] == "batch":
        raise ValueError(
            f"train.accumulation_steps={parts}: needs model.bn_group_size (32 in the paper), so that batch statistics "
            "are the same as in one large step"
        )


def _check_topology(values: Mapping[str, Any]) -> None:
    if (norm := values["model.norm"]) != "batch":
        raise ValueError(f"train.determinism=topology: works by batch norm's groups, which model.norm={norm} has not")
    if values["schedule.name"] == "plateau":
        raise ValueError(
            "train.determinism=topology: not with schedule.name=plateau, whose drops follow test errors, and those "
            "may differ by rounding; choose piecewise or cosine"
        )
    if values["model.bn_group_size"] is None:
        raise ValueError(
            "train.determinism=topology: needs model.bn_group_size (32 in the paper), the examples that are never "
            "split: at most a device's share of the batch"
        )
    if (sharding := values["train.sharding"]) != "none":
        raise ValueError(
            f"train.sharding={sharding}: must be none with train.determinism=topology, because norms and averages "
            "of divided arrays round differently"
        )
    if (parts := values["train.accumulation_steps"]) > 1:
        raise ValueError(
            f"train.accumulation_steps={parts}: must be 1 with train.determinism=topology, which works through a "
            "device's groups one after the other anyway"
        )


def _check_seeds(values: Mapping[str, Any]) -> None:
    count, last = values["num_seeds"], values["seed"] + values["num_seeds"] - 1
    if count == 1:
        return
    below = KEYS["seed"].below
    if below is not None and last >= below:
        raise ValueError(f"num_seeds={count}: the last seed would be {last}, and must be below {below}")
    # A streamed image is decoded for one seed's view of it.
    for key, needed in (("data.pipeline", "resident"), ("train.sharding", "none")):
        if (value := values[key]) != needed:
            raise ValueError(f"num_seeds={count}: needs {key}={needed}, not {value}")
    if values["train.determinism"] == "topology":
        raise ValueError(f"num_seeds={count}: must be 1 with train.determinism=topology")


def divisors(values: Mapping[str, Any], device_count: int) -> dict[str, int]:
    """What the batch size is to be a multiple of, by name."""
    parts, group = values["train.accumulation_steps"], values.get("model.bn_group_size")
    if group is not None and values.get("localizer.trains") == "regions":
        # A batch of the net is of regions, and the step's of images.
        group = max(1, group // values["sampling.regions"])
    if parts > 1 or values["train.determinism"] == "topology":
        # Each device's share of each part holds whole groups.
        factors = {"devices": device_count, "train.accumulation_steps": parts, "model.bn_group_size": group}
        factors = {name: factor for name, factor in factors.items() if factor not in (None, 1)}
        return {" x ".join(factors): math.prod(factors.values())} if factors else {}
    devices = {"devices": device_count} if device_count > 1 else {}
    return devices | ({} if group is None else {"model.bn_group_size": group})


def _check_schedule(values: Mapping[str, Any]) -> None:
    warmup, duration, start = (values[f"schedule.{key}"] for key in ("warmup", "warmup_duration", "warmup_start"))
    if warmup == "linear" and duration == 0:
        raise ValueError("schedule.warmup=linear: needs schedule.warmup_duration above 0")
    for key, value in (("warmup_duration", duration), ("warmup_start", start)):
        if warmup != "linear" and value > 0:
            raise ValueError(f"schedule.{key}={value}: needs schedule.warmup=linear, not {warmup}")
    if start > (highest := learning_rate(values)):
        raise ValueError(
            f"schedule.warmup_start={start}: must be at most the rate it leads to, {highest:g}; a batch below "
            "schedule.reference_batch_size needs no warm-up from there: set schedule.warmup_start=0"
        )
    if values["schedule.name"] == "piecewise" and not values["schedule.boundaries"]:
        raise ValueError("schedule.boundaries=(): schedule.name=piecewise needs one; no drop is constant")


def learning_rate(values: Mapping[str, Any]) -> float:
    """The highest learning rate: as given, or, with a reference batch size, in proportion to the batch."""
    rate, reference = values["schedule.learning_rate"], values["schedule.reference_batch_size"]
    return rate if reference is None else rate * values["train.batch_size"] / reference


_STREAMED = (
    *("data.statistics", "data.image_size", "data.crop", "data.short_sides", "data.crop_area", "data.crop_aspect"),
    *("data.resize", "data.pca_std", "data.unreadable", "data.workers"),
    *("evaluate.image_size", "evaluate.short_side"),
)


def _check_pipeline(values: Mapping[str, Any]) -> None:
    if values["data.pipeline"] == "resident":
        # What the base config has means nothing to images that are taken as they are.
        for key in _STREAMED:
            if (value := values[key]) != KEYS[key].default:
                raise ValueError(f"{key}={value}: needs data.pipeline=streamed, not resident")
        return
    if (calls := values["train.steps_per_dispatch"]) not in (None, 1):
        raise ValueError(f"train.steps_per_dispatch={calls}: needs data.pipeline=resident, not streamed")
    for key, highest in (("data.crop_area", 1), ("data.crop_aspect", 1e3)):
        _check_range(values, key, highest=highest)
    _check_range(values, "data.short_sides", whole=True)
    if values["data.crop"] == "scale":
        _check_crop_fits(values)
    crop = values["data.image_size"]
    tested = values["evaluate.image_size"] or crop
    if values["evaluate.short_side"] < tested:
        raise ValueError(f"evaluate.short_side={values['evaluate.short_side']}: must be at least the crop of {tested}")
    if tested != crop and values["data.normalization"] == "pixel_mean":
        raise ValueError(
            f"evaluate.image_size={tested}: a mean image has the size of data.image_size={crop}; for two sizes "
            "choose data.normalization=channel_mean or channel_mean_std"
        )


def _check_range(values: Mapping[str, Any], key: str, *, whole: bool = False, highest: int | float = math.inf) -> None:
    value = values[key]
    kind = "two whole numbers" if whole else "two numbers"
    if len(value) != 2 or value[0] > value[1] or value[1] > highest or (whole and value != tuple(map(int, value))):
        limit = f", at most {highest}" if math.isfinite(highest) else ""
        raise ValueError(f"{key}={value}: must be {kind}, the lower one first{limit}")


def _check_crop_fits(values: Mapping[str, Any]) -> None:
    crop = values["data.image_size"]
    if values["data.short_sides"][0] < crop:
        raise ValueError(f"data.short_sides={values['data.short_sides']}: must be at least data.image_size={crop}")


def check_divisible(batch_size: int, divisors: Mapping[str, int]) -> None:
    """Raises ValueError, with the nearest that would do, unless the batch size is a multiple of all divisors."""
    if all(batch_size % divisor == 0 for divisor in divisors.values()):
        return
    multiple = math.lcm(*divisors.values())
    lower = batch_size // multiple * multiple
    nearest = f"{lower} and {lower + multiple}" if lower else str(multiple)
    names = " and ".join(f"{name}={divisor}" for name, divisor in divisors.items())
    raise ValueError(f"train.batch_size={batch_size}: not divisible by {names}; nearest that are: {nearest}")


def _check_splits(values: Mapping[str, Any]) -> None:
    given = {key: values[f"data.{key}_split"] for key in ("train", "validation", "test")}
    for (a, left), (b, right) in itertools.combinations(given.items(), 2):
        if left is not None and right is not None and _overlap(left, right):
            raise ValueError(
                f"data.{a}_split={left} and data.{b}_split={right}: must share no image; "
                "give disjoint parts such as train[:45000] and train[45000:]"
            )


# Of the images, whose gradients the noise scale compares; where batch normalization is over groups, each is one.
NOISE_PARTS = 4


def _check_diagnostics(values: Mapping[str, Any]) -> None:
    every, images, curvature = (values[f"diagnostics.{key}"] for key in ("every", "images", "curvature"))
    group = values["model.bn_group_size"]
    if every == 0:
        if curvature:
            raise ValueError("diagnostics.curvature=True: needs diagnostics.every above 0")
        return
    if group is not None and images % group:
        raise ValueError(f"diagnostics.images={images}: must be a multiple of model.bn_group_size={group}")
    if curvature and images % (NOISE_PARTS if group is None else 2 * group):
        least = f"{NOISE_PARTS}" if group is None else f"2 x model.bn_group_size={group}"
        raise ValueError(
            f"diagnostics.images={images}: must be a multiple of {least} with diagnostics.curvature=True, whose noise "
            "scale compares the gradients of parts"
        )


def check_probe(values: Mapping[str, Any], *, train_examples: int, device_count: int) -> None:
    """Raises ValueError for images to diagnose that the training split has not, or the devices cannot share."""
    images = values.get("diagnostics.images", 0)
    if not values.get("diagnostics.every"):
        return
    if images > train_examples:
        raise ValueError(
            f"diagnostics.images={images}: more than the {train_examples} images of "
            f"data.train_split={values['data.train_split']!r}"
        )
    if images % device_count:
        raise ValueError(f"diagnostics.images={images}: must be a multiple of the {device_count} devices")


def _check_detection(values: Mapping[str, Any]) -> None:
    _check_boxes(values, section="detector", sides=("data.train_short_sides", "evaluate.short_sides"))
    if arrangement_of(order := values["model.activation_order"], "frozen").before:
        whole = ", ".join(name for name, arrangement in ORDERS.items() if not arrangement.before)
        raise ValueError(
            f"model.activation_order={order}: must be one of {whole} with task=detection, because a net that is cut "
            "between two blocks would leave the sum there without its normalization or ReLU"
        )
    if values["detector.proposals_from"] is not None and (trains := values["detector.trains"]) != "regions":
        raise ValueError(f"detector.proposals_from: needs detector.trains=regions, not {trains}")
    if values["detector.start_from"] is not None and values["detector.weights"] is not None:
        raise ValueError("detector.weights: must be None with detector.start_from, which has all variables")
    if values["detector.new_classes"] and values["detector.start_from"] is None:
        raise ValueError(
            "detector.new_classes=True: needs detector.start_from; without it all layers begin anew, set False"
        )


def _check_localization(values: Mapping[str, Any]) -> None:
    _check_boxes(values, section="localizer", sides=("evaluate.short_sides",))
    _check_accumulation(values)
    crop, tested, group = values["data.image_size"], values["evaluate.short_side"], values["model.bn_group_size"]
    _check_range(values, "data.short_sides", whole=True)
    _check_crop_fits(values)
    if tested < crop:
        raise ValueError(f"evaluate.short_side={tested}: must be at least data.image_size={crop}")
    regions = values["localizer.trains"] == "regions"
    # Regions without a proposer are refused where the run is built: a variant of a config file cannot know its workdir.
    if values["localizer.proposals_from"] is not None and not regions:
        raise ValueError("localizer.proposals_from: needs localizer.trains=regions, not proposals")
    if regions and group is not None and group % (own := values["sampling.regions"]):
        raise ValueError(
            f"model.bn_group_size={group}: counts regions here, and must be a multiple of sampling.regions={own}"
        )


def _check_boxes(values: Mapping[str, Any], *, section: str, sides: tuple[str, ...]) -> None:
    """What is asked of images with boxes, whatever is done with them.

    Args:
      values: of all keys.
      section: which has the anchors.
      sides: keys of shorter sides of images, in pixels.
    """
    possible = {"num_seeds": (1,), "train.determinism": ("default", "repeatable"), "data.unreadable": ("stop",)}
    for key, allowed in possible.items():
        if (value := values[key]) not in allowed:
            raise ValueError(f"{key}={value}: must be {' or '.join(map(str, allowed))} with task={values['task']}")
    short, long = values["data.short_side"], values["data.long_side"]
    for key, given in {"data.short_side": (short,), **{key: values[key] for key in sides}}.items():
        if any(side != int(side) for side in given) or max(given, default=0) > long:
            shown = given[0] if key == "data.short_side" else given
            raise ValueError(f"{key}={shown}: must be whole pixels, at most data.long_side={long}")
    if list(values["evaluate.short_sides"]) != sorted(set(values["evaluate.short_sides"])):
        raise ValueError(f"evaluate.short_sides={values['evaluate.short_sides']}: must rise")
    for key in ("anchor_sizes", "anchor_ratios"):
        if not values[f"{section}.{key}"]:
            raise ValueError(f"{section}.{key}=(): needs at least one")
    if (low := values["sampling.anchor_negative"]) > (high := values["sampling.anchor_positive"]):
        raise ValueError(f"sampling.anchor_negative={low}: must be at most sampling.anchor_positive={high}")
    _check_sets(values)


def _check_sets(values: Mapping[str, Any]) -> None:
    given = {key: _sets(values[f"data.{key}_sets"]) for key in ("train", "validation", "test")}
    for (a, left), (b, right) in itertools.combinations(given.items(), 2):
        for (name, split), (other_name, other_split) in itertools.product(left, right):
            if name == other_name and _overlap(split, other_split):
                raise ValueError(
                    f"data.{a}_sets has {name}:{split} and data.{b}_sets {other_name}:{other_split}: "
                    "must share no image"
                )


def _sets(text: str | None) -> list[tuple[str, str]]:
    """(name, split) of each set."""
    parts = [part.strip().rpartition(":") for part in (text or "").split(",")] if text else []
    for name, _, split in parts:
        if not (name and split):
            raise ValueError(f"sets={text!r}: must be NAME:SPLIT, or several with commas between them")
    return [(name, split) for name, _, split in parts]


def _overlap(a: str, b: str) -> bool:
    # What is not of the forms NAME, NAME[i:j] and NAME[i%:j%] is compared as text alone.
    return a == b or any(
        left == right and max(left_start, right_start) < min(left_end, right_end)
        for (left, left_start, left_end), (right, right_start, right_end) in itertools.product(_spans(a), _spans(b))
    )


def _spans(split: str) -> Iterator[tuple[tuple[str, str], float, float]]:
    for part in split.split("+"):
        match = re.fullmatch(r"\s*(\w+)(?:\[(\d*)(%?):(\d*)(%?)\])?\s*", part)
        if match:
            name, start, start_percent, end, end_percent = match.groups(default="")
            units = ["percent"] if start_percent + end_percent else ["images"]
            # A whole split can be compared with part of it in either unit.
            for unit in units if start + end else ["images", "percent"]:
                yield (name, unit), float(start or 0), float(end or "inf")
