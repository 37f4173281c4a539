"""Pictures of boxes: ground truth, proposals, and detections with their classes and scores."""

import colorsys
import math
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import matplotlib
import numpy as np
from jaxtyping import Bool, Float32, Int32
from PIL import Image, ImageDraw, ImageFont

Colour = tuple[int, int, int]
# The first and the last column and row of pixels, as Pillow counts them: (left, top, right, bottom).
_Pixels = tuple[int, int, int, int]

BLACK: Colour = (0, 0, 0)
_WHITE: Colour = (255, 255, 255)
# Turns a hue by the golden section: however many classes there are, each lies in the widest gap left, nearly.
_GOLDEN = (math.sqrt(5) - 1) / 2
# Luminances (of 0 to 1) at which a colour stands out from black and from white; neighbours in hue differ in them.
_LUMINANCES = (0.22, 0.32, 0.42)
# Of an image's mean side, in pixels: a line is so much of it, and a text's height.
_LINE, _TEXT = 1 / 300, 1 / 36
_LEAST_TEXT = 9
# Dashes and gaps are so many widths of the line.
_DASH = 4
_MARGIN = 8


def class_colour(label: int) -> Colour:
    """The colour of a class in every picture, (red, green, blue) of 0 to 255, legible on black and on white.

    Args:
      label: class number from 0.
    """
    pure = np.array(colorsys.hsv_to_rgb(label * _GOLDEN % 1, 1, 1))
    # Pure colours have components 0 and 1 but for one; the power is sRGB's, nearly.
    light = pure**2.2
    now, wanted = light @ (0.2126, 0.7152, 0.0722), _LUMINANCES[label % len(_LUMINANCES)]
    light = light * wanted / now if now > wanted else 1 - (1 - light) * (1 - wanted) / (1 - now)
    red, green, blue = (255 * light ** (1 / 2.2)).round().astype(int).tolist()
    return red, green, blue


def draw_boxes(
    image: Image.Image,
    boxes: Float32[np.ndarray, "n 4"],
    *,
    labels: Int32[np.ndarray, " _"] | None = None,
    scores: Float32[np.ndarray, " _"] | None = None,
    dashed: Bool[np.ndarray, " _"] | None = None,
    class_names: Sequence[str] = (),
) -> Image.Image:
    """A copy of an image with boxes on it; lines and text grow with the image.

    Ground truth has labels, detections have labels and scores, proposals neither: these are thin and white.

    Args:
      image: of any mode; the copy is RGB.
      boxes: (x1, y1, x2, y2) in pixels of the image, edges at continuous coordinates, as in `Annotated`.
      labels: n class numbers from 0; each box is drawn in its class's colour, with the class's name.
      scores: n, written after the names; surer boxes are drawn above the others.
      dashed: n, which boxes have a dashed line, such as ignored objects; None is none.
      class_names: one for each class, where there are labels.

    Raises:
      ValueError: arrays of different lengths, scores without labels, a label without a name, or a box that is not
        finite.
    """
    _check(boxes, labels, scores, dashed, class_names)
    # Transparent parts of a palette's or RGBA's image are drawn as their colours are.
    picture = image.convert("RGB")
    draw, side = ImageDraw.Draw(picture), math.sqrt(image.width * image.height)
    width = max(1, round(side * _LINE * (1 if labels is None else 2)))
    order = np.arange(len(boxes)) if scores is None else np.argsort(scores, kind="stable")
    for number in order:
        colour = _WHITE if labels is None else class_colour(int(labels[number]))
        _outline(draw, _pixels(boxes[number], image.size), colour, width, dashed is not None and bool(dashed[number]))
    if labels is None:
        return picture
    font = _font(max(_LEAST_TEXT, round(side * _TEXT)))
    taken: list[_Pixels] = []
    # The surest chooses its place first.
    for number in order[::-1]:
        text = class_names[labels[number]] + ("" if scores is None else f" {scores[number]:.2f}")
        plate = _place(text, font, _pixels(boxes[number], image.size), image.size, taken)
        draw.rectangle(plate, fill=class_colour(int(labels[number])))
        draw.text(((plate[0] + plate[2]) / 2, (plate[1] + plate[3]) / 2), text, fill=BLACK, font=font, anchor="mm")
        taken.append(plate)
    return picture


def contact_sheet(pictures: Sequence[tuple[str, Image.Image]], *, columns: int, side: int = 480) -> Image.Image:
    """Pictures row by row in cells of one size on white, each with its caption above.

    Args:
      pictures: pairs of a caption and a picture, such as ground truth and detections by turns for `columns=2`. Larger
        ones are made smaller, none larger; a caption that is too long for its cell is cut.
      columns: pictures in a row.
      side: a cell's largest width and height, in pixels.

    Raises:
      ValueError: no picture, or `columns` or `side` below 1.
    """
    if not pictures or columns < 1 or side < 1:
        raise ValueError(f"{len(pictures)} pictures, columns={columns}, side={side}; allowed are numbers from 1")
    shrunk = [_shrunk(picture, side) for _, picture in pictures]
    width, height = (max(each.size[axis] for each in shrunk) for axis in (0, 1))
    font = _font(max(_LEAST_TEXT, round(width / 28)))
    caption = 2 * int(font.size)
    rows = -(-len(shrunk) // columns)
    step = width + _MARGIN, height + caption + _MARGIN
    sheet = Image.new("RGB", (columns * step[0] + _MARGIN, rows * step[1] + _MARGIN), _WHITE)
    draw = ImageDraw.Draw(sheet)
    for number, ((text, _), picture) in enumerate(zip(pictures, shrunk, strict=True)):
        row, column = divmod(number, columns)
        left, top = _MARGIN + column * step[0], _MARGIN + row * step[1]
        draw.text((left, top + caption / 2), _cut(text, font, width), fill=BLACK, font=font, anchor="lm")
        sheet.paste(picture, (left, top + caption))
    return sheet


def _check(boxes, labels, scores, dashed, class_names: Sequence[str]) -> None:
    given = {"boxes": boxes, "labels": labels, "scores": scores, "dashed": dashed}
    lengths = {name: len(array) for name, array in given.items() if array is not None}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"arrays of different lengths: {lengths}; all must be as many as the boxes")
    if not np.isfinite(boxes).all():
        number = int((~np.isfinite(boxes).all(1)).argmax())
        raise ValueError(f"box {number} is {boxes[number].tolist()}; boxes must be finite")
    if labels is None:
        if scores is not None:
            raise ValueError("scores without labels; a score is written after the class's name")
    elif len(labels) and not 0 <= labels.min() <= labels.max() < len(class_names):
        raise ValueError(f"labels {labels.min()} to {labels.max()} of {len(class_names)} class_names")


def _pixels(box: np.ndarray, size: tuple[int, int]) -> _Pixels:
    """The pixels of a box within the image, one at least."""
    x1, y1, x2, y2 = (round(value) for value in box.tolist())
    left, top = min(max(x1, 0), size[0] - 1), min(max(y1, 0), size[1] - 1)
    return left, top, min(max(x2 - 1, left), size[0] - 1), min(max(y2 - 1, top), size[1] - 1)


def _outline(draw: ImageDraw.ImageDraw, box: _Pixels, colour: Colour, width: int, dashed: bool) -> None:
    """A line within the box, on a black one that is wider: one of the two is seen on any image."""
    x1, y1, x2, y2 = box
    edge = max(1, width // 3)
    draw.rectangle((x1 - edge, y1 - edge, x2 + edge, y2 + edge), outline=BLACK, width=width + 2 * edge)
    if not dashed:
        draw.rectangle(box, outline=colour, width=width)
        return
    dash = _DASH * width
    for x in range(x1, x2 + 1, 2 * dash):
        for y in (y1, max(y1, y2 - width + 1)):
            draw.rectangle((x, y, min(x + dash - 1, x2), min(y + width - 1, y2)), fill=colour)
    for y in range(y1, y2 + 1, 2 * dash):
        for x in (x1, max(x1, x2 - width + 1)):
            draw.rectangle((x, y, min(x + width - 1, x2), min(y + dash - 1, y2)), fill=colour)


def _place(
    text: str,
    font: ImageFont.FreeTypeFont,
    box: _Pixels,
    size: tuple[int, int],
    taken: Sequence[_Pixels],
) -> _Pixels:
    """Where a text goes: above, below or within its box, in the image, where it hides least of the others."""
    # Of one height, whatever the letters.
    width, height = math.ceil(font.getlength(text) + font.size / 3), sum(font.getmetrics())
    x1, y1, x2, y2 = box
    corners = [(x, y) for y in (y1 - height, y1, y2 + 1, y2 + 1 - height) for x in (x1, x2 + 1 - width)]
    places = []
    for x, y in corners:
        x, y = max(0, min(x, size[0] - width)), max(0, min(y, size[1] - height))
        places.append((x, y, x + width - 1, y + height - 1))
    # The first of equals.
    return min(places, key=lambda place: sum(_common(place, other) for other in taken))


def _common(a: _Pixels, b: _Pixels) -> int:
    """Pixels that two rectangles share."""
    return max(0, min(a[2], b[2]) - max(a[0], b[0]) + 1) * max(0, min(a[3], b[3]) - max(a[1], b[1]) + 1)


def _shrunk(picture: Image.Image, side: int) -> Image.Image:
    picture = picture.convert("RGB")
    factor = min(1.0, side / max(picture.size))
    size = max(1, round(picture.width * factor)), max(1, round(picture.height * factor))
    return picture if factor == 1 else picture.resize(size, Image.Resampling.LANCZOS)


def _cut(text: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    if font.getlength(text) <= width:
        return text
    return next((cut for end in range(len(text), 0, -1) if font.getlength(cut := f"{text[:end]}…") <= width), "")


@cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    """The font that comes with matplotlib, which has the letters of most languages."""
    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"), size)
