"""Names of classes: what ImageNet's synsets are called, and what the classes of a net without names are.

imagenet_classes.txt holds the 1000 classes of ILSVRC 2012 (Russakovsky et al., 2015) in their order, which is that of
their WordNet synsets, and these synsets' lemmas from WordNet 3.0, Copyright 2006 by Princeton University; its licence
stands at the head of the file and asks to stay there.
"""

import functools
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

# As TFDS names and orders them.
CIFAR10_NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")

_FILE = Path(__file__).with_name("imagenet_classes.txt")
# Two of the 1000 have the same lemmas and others are often told apart by hand, "crane bird" for "crane".
_FEWEST_EQUAL = 990


def imagenet_class_names() -> tuple[str, ...]:
    """The synsets of ILSVRC 2012 by class number, "n01440764" and so on, as the TFDS set has them."""
    return tuple(_lemmas())


def default_class_names(num_classes: int, *, cifar: bool = False) -> tuple[str, ...]:
    """Names for the classes of a net that has none: ImageNet's synsets for 1000, else "0", "1" and so on.

    Args:
      num_classes: how many.
      cifar: whether it is a net for CIFAR images, whose 10 classes are taken for CIFAR-10's.
    """
    if num_classes == 1000:
        return imagenet_class_names()
    if cifar and num_classes == len(CIFAR10_NAMES):
        return CIFAR10_NAMES
    return tuple(str(number) for number in range(num_classes))


def recognized_class_names(labels: Sequence[str]) -> tuple[str, ...]:
    """A file's names, or ImageNet's synsets where it calls these 1000 classes by their lemmas.

    The first lemma counts ("tench" of "tench, Tinca tinca"), and a few may differ. Names that are mere numbers,
    "LABEL_0" and so on, are no names, see `default_class_names`.
    """
    if all(label == f"LABEL_{number}" for number, label in enumerate(labels)):
        return default_class_names(len(labels))
    lemmas = _lemmas()
    if len(labels) == len(lemmas):
        pairs = zip(labels, lemmas.values(), strict=True)
        equal = sum(label.split(",")[0].strip().lower() == lemma.split(",")[0].lower() for label, lemma in pairs)
        if equal >= _FEWEST_EQUAL:
            return imagenet_class_names()
    return tuple(labels)


def readable(class_name: str) -> str:
    """What people call a class: "tench" for "n01440764", and any other name as it is. No two classes share one."""
    return _readable_names().get(class_name, class_name)


@functools.cache
def _lemmas() -> dict[str, str]:
    """Synset -> all its lemmas, in the order of the classes."""
    lines = _FILE.read_text(encoding="utf-8").splitlines()
    pairs = (line.split("\t") for line in lines if not line.startswith("#"))
    return {synset: lemmas for synset, lemmas in pairs}


@functools.cache
def _readable_names() -> dict[str, str]:
    short = {synset: lemmas.split(",")[0] for synset, lemmas in _lemmas().items()}
    # First all the lemmas, then the synset tell apart those with one name: two maillots, two cranes.
    names = _without_doubles(short, _lemmas())
    return _without_doubles(names, {synset: f"{name} ({synset})" for synset, name in names.items()})


def _without_doubles(names: dict[str, str], longer: dict[str, str]) -> dict[str, str]:
    counts = Counter(names.values())
    return {synset: longer[synset] if counts[name] > 1 else name for synset, name in names.items()}
