"""ImageNet's classes are called what people call them, and a net's outputs keep their order."""

import pytest

from resnet_jax.data.datasets import dataset_info
from resnet_jax.pretrained.class_names import (
    CIFAR10_NAMES,
    default_class_names,
    imagenet_class_names,
    readable,
    recognized_class_names,
)


def test_there_are_1000_synsets_in_their_order():
    names = imagenet_class_names()
    assert len(names) == 1000 and list(names) == sorted(set(names))
    assert all(name[0] == "n" and name[1:].isdecimal() and len(name) == 9 for name in names)
    # From the lists that torchvision and TFDS hold.
    known = {
        0: "tench",
        1: "goldfish",
        134: "crane (n02012849)",
        207: "golden retriever",
        281: "tabby",
        999: "toilet tissue",
    }
    assert {number: readable(names[number]) for number in known} == known


@pytest.mark.parametrize("dataset, names", [("imagenet2012", imagenet_class_names()), ("cifar10", CIFAR10_NAMES)])
def test_names_are_those_of_the_data_set(real_data, dataset, names):
    assert dataset_info(dataset, data_dir=real_data).class_names == names


def test_readable_names_are_short_and_no_two_are_the_same():
    names = [readable(name) for name in imagenet_class_names()]
    assert len(set(names)) == 1000
    assert not set(names) & set(imagenet_class_names())
    assert [name for name in names if "," in name or "(" in name] == [
        "crane (n02012849)", "crane (n03126707)", "maillot, tank suit",
    ]  # fmt: skip
    assert readable("n03710637") == "maillot"


@pytest.mark.parametrize("name", ["cat", "n00000000", "n01440764 ", "", "7", "tench, Tinca tinca"])
def test_any_other_name_stays(name):
    assert readable(name) == name


@pytest.mark.parametrize(
    "num_classes, cifar, first, last",
    [
        (1000, False, "n01440764", "n15075141"),
        (10, True, "airplane", "truck"),
        (10, False, "0", "9"),
        (100, True, "0", "99"),
        (1, False, "0", "0"),
    ],
)
def test_classes_without_names_get_some(num_classes, cifar, first, last):
    names = default_class_names(num_classes, cifar=cifar)
    assert (len(names), names[0], names[-1]) == (num_classes, first, last)


def lemmas():
    return [readable(name) for name in imagenet_class_names()]


def test_imagenet_is_recognized_by_its_lemmas():
    assert recognized_class_names(lemmas()) == imagenet_class_names()
    assert recognized_class_names([f"{name.upper()}, some other, lemma" for name in lemmas()]) == imagenet_class_names()
    changed = [f"{name} bird" if number < 7 else name for number, name in enumerate(lemmas())]
    assert recognized_class_names(changed) == imagenet_class_names()


def test_other_names_are_kept():
    other_order = tuple(reversed(lemmas()))
    assert recognized_class_names(other_order) == other_order
    assert recognized_class_names(lemmas()[:999]) == tuple(lemmas()[:999])
    half = tuple(name if number % 2 else f"{name}x" for number, name in enumerate(lemmas()))
    assert recognized_class_names(half) == half
    assert recognized_class_names(("cat", "dog")) == ("cat", "dog")
    assert recognized_class_names(imagenet_class_names()) == imagenet_class_names()


def test_numbered_labels_are_no_names():
    assert recognized_class_names([f"LABEL_{i}" for i in range(3)]) == ("0", "1", "2")
    assert recognized_class_names([f"LABEL_{i}" for i in range(1000)]) == imagenet_class_names()
    assert recognized_class_names(("LABEL_1", "LABEL_0")) == ("LABEL_1", "LABEL_0")
