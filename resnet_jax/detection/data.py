"""Images with boxes by name: TFDS sets, VOC and COCO folders, COCO files, and several of them as one."""

import hashlib
import itertools
from bisect import bisect_right
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from resnet_jax.data.prepare import PathLike
from resnet_jax.detection.annotations import Annotated, BoxSource
from resnet_jax.detection.coco_json import CocoJson
from resnet_jax.detection.tfds_boxes import TfdsBoxes
from resnet_jax.detection.voc_folder import VocFolder

# What a path begins with; anything else is a TFDS set's name.
_PATHS = ("/", "./", "../", "~")
# Of the files in COCO's folder `annotations`; the latter are of images whose objects are not public.
_COCO_FILES = ("instances", "image_info")


class JoinedBoxes(BoxSource):
    """The images of several sources, one source after the other, such as the union of VOC 2007 and 2012."""

    def __init__(self, sources: Sequence[BoxSource]):
        """Takes one source or more.

        Raises:
          ValueError: no source, or sources with different classes.
        """
        if not sources:
            raise ValueError("no sources to join; allowed are one or more")
        self.class_names = sources[0].class_names
        for source in sources[1:]:
            if source.class_names != self.class_names:
                raise ValueError(
                    f"{source.where(0)}: its set's classes {_listed(source.class_names)} are not "
                    f"{_listed(self.class_names)}, those of {sources[0].where(0)}; the same in one order are required"
                )
        self.sources = tuple(sources)
        self._ends = list(itertools.accumulate(map(len, sources)))

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> Annotated:
        source, place = self._place(index)
        return source[place]

    def size(self, index: int) -> tuple[int, int]:
        """(height, width) of an image in pixels."""
        source, place = self._place(index)
        return source.size(place)

    def sizes(self) -> list[tuple[int, int]]:
        """(height, width) of all images in pixels."""
        return [size for source in self.sources for size in source.sizes()]

    def count(self, index: int) -> int:
        """How many objects an image has."""
        source, place = self._place(index)
        return source.count(place)

    def digest(self) -> str:
        """Of the sources', in their order; see `BoxSource.digest`."""
        return hashlib.sha256(" ".join(source.digest() for source in self.sources).encode()).hexdigest()

    def where(self, index: int) -> str:
        """Names an image in a message, as its own source does."""
        source, place = self._place(index)
        return source.where(place)

    def _place(self, index: int) -> tuple[BoxSource, int]:
        index = range(len(self))[index]
        number = bisect_right(self._ends, index)
        return self.sources[number], index - (self._ends[number] - len(self.sources[number]))


def open_boxes(name: str, split: str, *, data_dir: PathLike | None = None) -> BoxSource:
    """Opens one set of images with boxes.

    Args:
      name: of a TFDS set, such as "voc/2007" or "coco/2014"; or a path, which begins with /, ./, ../ or ~:
        - of a folder in VOC's form (`ImageSets/Main/SPLIT.txt`, see `VocFolder`),
        - of a folder in COCO's form (`annotations/instances_SPLIT.json`, with the images in `SPLIT/`),
        - of a JSON file in COCO's form (`CocoJson`), whose images lie beside it and whose only split is "all".
      split: as the set calls it, such as "train" and "validation" of TFDS, "trainval" of a VOC folder and "train2014"
        of a COCO folder; several joined with "+".
      data_dir: where TFDS sets live, see `dataset_info`.

    Raises:
      FileNotFoundError: no such set, split or path.
      ValueError: what is there cannot be read as one of these.
    """
    if not name.startswith(_PATHS):
        return TfdsBoxes(name, split, data_dir=data_dir)
    path = Path(name).expanduser()
    if not path.exists():
        raise FileNotFoundError(f"name={name!r}: there is no such file or folder")
    if path.is_file():
        if split != "all":
            raise ValueError(f"split={split!r} of {path}; allowed is 'all', the images that the file lists")
        return CocoJson(path, path.parent)
    if (path / "ImageSets" / "Main").is_dir():
        return _joined([VocFolder(path, part) for part in split.split("+")])
    if (path / "annotations").is_dir():
        return _joined([_coco_split(path, part) for part in split.split("+")])
    raise ValueError(
        f"name={name!r} has neither ImageSets/Main, as a folder in VOC's form does, nor annotations, as one in COCO's"
    )


def open_union(sets: str, *, data_dir: PathLike | None = None) -> BoxSource:
    """Opens several sets as one: "voc/2007:train+validation,voc/2012:train+validation" is the paper's 07+12.

    Args:
      sets: NAME:SPLIT for each, joined with commas, see `open_boxes`.
      data_dir: where TFDS sets live.

    Raises:
      FileNotFoundError: no such set, split or path.
      ValueError: `sets` is not of that form, a set cannot be read, or the sets have different classes.
    """
    parts = [part.strip().partition(":") for part in sets.split(",")]
    if not all(name and split for name, _, split in parts):
        raise ValueError(f"sets={sets!r}; allowed is NAME:SPLIT, or several of them joined with commas")
    return _joined([open_boxes(name, split, data_dir=data_dir) for name, _, split in parts])


def open_splits(config: Any) -> dict[str, BoxSource]:
    """The sources of a config's data.train_sets, test_sets and, if it has them, validation_sets, by the splits' names.

    Raises:
      FileNotFoundError: as `open_union`.
      ValueError: likewise, or splits of different classes, or one without any object.
    """
    named = {"train": config.data.train_sets, "test": config.data.test_sets}
    if config.data.validation_sets is not None:
        named["validation"] = config.data.validation_sets
    sources = {name: open_union(sets, data_dir=config.data.data_dir) for name, sets in named.items()}
    for name, source in sources.items():
        if source.class_names != sources["train"].class_names:
            raise ValueError(
                f"data.{name}_sets={named[name]}: its {len(source.class_names)} classes are not the "
                f"{len(sources['train'].class_names)} of data.train_sets={named['train']}; the same in one order are "
                "required"
            )
        if not any(source.count(index) for index in range(len(source))):
            raise ValueError(
                f"data.{name}_sets={named[name]}: none of its {len(source)} images has an object, as in tests whose "
                "objects are not public; take another set, and find boxes in these with `resnet-jax evaluate --results`"
            )
    return sources


def _joined(sources: list[BoxSource]) -> BoxSource:
    return sources[0] if len(sources) == 1 else JoinedBoxes(sources)


def _coco_split(folder: Path, split: str) -> CocoJson:
    paths = [folder / "annotations" / f"{kind}_{split}.json" for kind in _COCO_FILES]
    found = next((path for path in paths if path.is_file()), None)
    if found is None:
        names = sorted(path.name for path in paths[0].parent.glob("*.json"))
        raise FileNotFoundError(f"split={split!r}: no {paths[0]}; there are {', '.join(names) or 'none'}")
    return CocoJson(found, folder / split)


def _listed(names: tuple[str, ...]) -> str:
    shown = ", ".join(names[:5])
    return f"({shown}, ... {len(names)} in all)" if len(names) > 5 else f"({shown})"
