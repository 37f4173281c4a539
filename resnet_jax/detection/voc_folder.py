"""A folder in the form of PASCAL VOC's development kit, such as VOCdevkit/VOC2007."""

import hashlib
import xml.etree.ElementTree as ET
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from xml.parsers import expat

from resnet_jax.data.prepare import PathLike
from resnet_jax.detection.annotations import Annotated, BoxSource, annotated, size_of

VOC_CLASSES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)
_EXTENSIONS = (".jpg", ".jpeg", ".png")
_CORNERS = ("xmin", "ymin", "xmax", "ymax")


class _Object(NamedTuple):
    """(x1, y1, x2, y2) in pixels as in `Annotated`, class, and whether it is difficult."""

    box: tuple[float, ...]
    class_name: str
    difficult: bool


class _Parsed(NamedTuple):
    """What an annotation says: (height, width) in pixels, and the objects."""

    size: tuple[int, int]
    objects: tuple[_Object, ...]


class VocFolder(BoxSource):
    """A split of a folder of `Annotations/ID.xml`, `JPEGImages/ID.jpg` (or .png) and `ImageSets/Main/SPLIT.txt`.

    Coordinates are those of VOC: numbers of the first and the last pixel, counted from 1, so that 1 is taken from xmin
    and ymin. The classes are VOC's twenty where all annotations of the folder, whatever the split, have no others, else
    the names that these have, sorted.

    Raises (when an image is read):
      FileNotFoundError: there is no file of it.
      UndecodableImage: its image has no readable header.
      ValueError: the image has another size than its annotation, or objects that `annotations.annotated` refuses.
    """

    def __init__(self, folder: PathLike, split: str):
        """Reads the annotations of all splits: 17,000 files in some seconds.

        Raises:
          FileNotFoundError: there is no such folder or split, or no annotation of an image.
          ValueError: an annotation that cannot be read; the message names the file.
        """
        self.folder, self.split = Path(folder).expanduser(), split
        lists = self.folder / "ImageSets" / "Main"
        if not (lists / f"{split}.txt").is_file():
            known = ", ".join(sorted(path.stem for path in lists.glob("*.txt") if "_" not in path.stem)) or "none"
            raise FileNotFoundError(f"split={split!r}: no {lists / split}.txt; the splits there are {known}")
        lines = (lists / f"{split}.txt").read_text().splitlines()
        # A second column, of lists for one class, says whether the image has it.
        self._ids = [line.split()[0] for line in lines if line.strip()]
        if not self._ids:
            raise ValueError(f"split={split!r}: {lists / split}.txt lists no images")
        parsed = {path.stem: _parse(path) for path in sorted((self.folder / "Annotations").glob("*.xml"))}
        if missing := [name for name in self._ids if name not in parsed]:
            raise FileNotFoundError(
                f"split={split!r}: no {self.folder / 'Annotations' / missing[0]}.xml, "
                f"and {len(missing) - 1} more of {len(self._ids)} annotations are missing"
            )
        named = {thing.class_name for each in parsed.values() for thing in each.objects}
        self.class_names = VOC_CLASSES if named <= set(VOC_CLASSES) else tuple(sorted(named))
        self._parsed = [parsed[name] for name in self._ids]

    def __len__(self) -> int:
        return len(self._ids)

    def __getitem__(self, index: int) -> Annotated:
        parsed, path, where = self._parsed[index], self._image_path(index), partial(self.where, index)
        image = path.read_bytes()
        return annotated(
            image,
            path.name,
            [thing.box for thing in parsed.objects],
            [self.class_names.index(thing.class_name) for thing in parsed.objects],
            size=size_of(image, where, parsed.size),
            num_classes=len(self.class_names),
            where=where,
            ignored=[thing.difficult for thing in parsed.objects],
        )

    def size(self, index: int) -> tuple[int, int]:
        """(height, width) of an image in pixels, as its annotation says."""
        return self._parsed[index].size

    def count(self, index: int) -> int:
        """How many objects an image has."""
        return len(self._parsed[index].objects)

    def digest(self) -> str:
        """Of all that the annotations say, and the images' names; see `BoxSource.digest`."""
        return hashlib.sha256(repr((self.class_names, self._ids, self._parsed)).encode()).hexdigest()

    def where(self, index: int) -> str:
        """Names an image in a message: folder, split, index, file."""
        return f"{self.folder}, split {self.split!r}, example {index} ({self._ids[index]})"

    def _image_path(self, index: int) -> Path:
        paths = [self.folder / "JPEGImages" / f"{self._ids[index]}{extension}" for extension in _EXTENSIONS]
        found = next((path for path in paths if path.is_file()), None)
        if found is None:
            raise FileNotFoundError(f"{self.where(index)}: no {paths[0]} (nor {', '.join(_EXTENSIONS[1:])})")
        return found


def _parse(path: Path) -> _Parsed:
    try:
        root = parse_xml(path.read_bytes())
        size = int(_text(root, "size/height")), int(_text(root, "size/width"))
        return _Parsed(size, tuple(_object(thing) for thing in root.findall("object")))
    except (ValueError, expat.ExpatError) as error:
        raise ValueError(f"{path} is no annotation in VOC's form: {error}") from error


def _object(thing: ET.Element) -> _Object:
    x1, y1, x2, y2 = (float(_text(thing, f"bndbox/{corner}")) for corner in _CORNERS)
    difficult = thing.findtext("difficult", "0").strip()
    if difficult not in ("0", "1"):
        raise ValueError(f"<difficult> is {difficult!r}; allowed are 0 and 1")
    return _Object((x1 - 1, y1 - 1, x2, y2), _text(thing, "name"), difficult == "1")


def _text(element: ET.Element, path: str) -> str:
    text = element.findtext(path)
    if text is None or not text.strip():
        raise ValueError(f"<{element.tag}> has no <{path}>")
    return text.strip()


def parse_xml(data: bytes) -> ET.Element:
    """The root of an XML document, in which no entities may be declared: a few lines of them expand to gigabytes.

    Raises:
      ValueError: it has a document type, where entities are declared.
      expat.ExpatError: it is not well-formed.
    """
    builder, parser = ET.TreeBuilder(), expat.ParserCreate()

    def refuse(*_: Any) -> None:
        raise ValueError("it declares a document type (DOCTYPE), which can declare entities; allowed is none")

    parser.StartDoctypeDeclHandler = refuse
    parser.StartElementHandler = builder.start
    parser.EndElementHandler = builder.end
    parser.CharacterDataHandler = builder.data
    parser.Parse(data, True)
    return builder.close()
