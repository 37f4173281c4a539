"""One encoded image to pixels on the host: JPEG, BMP, PNG and GIF, whole or only a resized box.

No wheel offers libjpeg-turbo's decoding of a region. What can be saved without it, is: decoding ends below the last row
that a box needs, because the decoder is told that the image does; and a box of at least twice the wanted size is
decoded at 1/2, 1/4 or 1/8 of the size, by a smaller inverse DCT. The other eighths that libjpeg-turbo knows are no
quicker than these or slower than the whole size. Left out after measuring: an output buffer that is used again (no
gain), and the fast DCT (TensorFlow's default) and upsampling: 3 % quicker, pixels change by 1.2 in the mean and by up
to 57.

What counts as an image: stray bytes, which ImageNet's files do hold, are passed over ("extraneous bytes before
marker"), as are bytes after the end; data that ends before the image does is an error, since the rest of the pixels
would be made up. Where decoding ends early, only a missing end of the file is noticed, not a gap within: whole images
are decoded by tests and by `resnet-jax measure`, which thereby checks a training set. EXIF orientation is ignored.
"""

import io
import struct

import cv2
import numpy as np
import simplejpeg
from jaxtyping import UInt8
from PIL import Image, UnidentifiedImageError

from resnet_jax.data.resize import resize_image

Box = tuple[int, int, int, int]

# Pillow's own limit against decompression bombs: beyond it nothing is allocated.
MAX_PIXELS = 178_956_970

_MODES = {1: "L", 3: "RGB"}
_JPEG_COLORS = {1: "GRAY", 3: "RGB"}
# The latter where it has no name for the file's chroma subsampling.
_SIMPLEJPEG_ERRORS = (ValueError, KeyError)
# What TFDS decodes with TensorFlow; Pillow alone would try some forty formats on bytes from anywhere.
_PILLOW_FORMATS = ("JPEG", "PNG", "BMP", "GIF")
_PILLOW_ERRORS = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)
# Offset of the pixels; bytes of the second header, width, height (negative: top row first), planes, bits, compression.
_BMP_HEADER = struct.Struct("<10xIIiiHHI")
_PNG_BIT_DEPTH = 24
# JPEG markers: frames whose blocks come in one scan from top to bottom; and what must not come before one.
_BASELINE_FRAMES = (0xC0, 0xC1)
_OTHER_FRAMES_AND_SCAN = (*range(0xC2, 0xC4), *range(0xC5, 0xC8), *range(0xC9, 0xCC), *range(0xCD, 0xD0), 0xDA)
# Eighths of the size at which libjpeg-turbo's inverse DCT is quicker than at the whole size.
_QUICK_EIGHTHS = (1, 2, 4)


class UndecodableImage(ValueError):
    """The bytes are no image that can be decoded; the message says why."""


def use_one_thread() -> None:
    """Keeps OpenCV to the calling thread; for the start of a worker process, which has a core to itself at best.

    It holds for the whole process, so importing this module does not do it. It matters for results of more than
    about 300 x 300 pixels alone: OpenCV resizes smaller ones on the calling thread in any case.
    """
    cv2.setNumThreads(0)


def image_size(encoded: bytes) -> tuple[int, int]:
    """(height, width) in pixels, from the header; the pixels themselves may still turn out to be undecodable.

    Raises:
      UndecodableImage: no header of a JPEG, PNG, BMP or GIF, or one that declares more than `MAX_PIXELS`.
    """
    if _is_jpeg(encoded):
        try:
            height, width, _, _ = simplejpeg.decode_jpeg_header(encoded)
        except _SIMPLEJPEG_ERRORS:
            return _pillow_size(encoded)
        return _checked_size(height, width)
    if (bmp := _bmp_view(encoded)) is not None:
        return bmp.shape[0], bmp.shape[1]
    return _pillow_size(encoded)


def decode(encoded: bytes, *, channels: int = 3) -> UInt8[np.ndarray, "h w {channels}"]:
    """Decodes a whole image at its own size.

    Grey becomes colour by repetition, colour becomes grey as Rec. 601 luma (of a JPEG the stored one, as TensorFlow
    has it), palettes are looked up, transparency is dropped, and of a CMYK JPEG the colours are Pillow's.

    Args:
      encoded: a JPEG, PNG, BMP or GIF (its first frame) with at most 8 bits a channel.
      channels: 3 for RGB, 1 for grey.

    Raises:
      UndecodableImage: corrupt or truncated, another format, more than 8 bits a channel or than `MAX_PIXELS`.
      ValueError: `channels` is neither 1 nor 3.
    """
    check_channels(channels)
    return _decode(encoded, channels)


def decode_box(
    encoded: bytes, box: Box, size: tuple[int, int], *, resize: str, channels: int = 3
) -> UInt8[np.ndarray, "{size[0]} {size[1]} {channels}"]:
    """Decodes a box of an image and resizes it alone.

    A JPEG of which the box is at least twice `size` in both axes is decoded at 1/2, 1/4 or 1/8, never below `size`; the
    box is then rounded to the coarser pixels, which moves its edges by at most half a pixel of the result.

    Args:
      encoded: as for `decode`.
      box: (top, left, height, width) in pixels of the image.
      size: (height, width) of the result.
      resize: see `resize_image`.
      channels: 3 for RGB, 1 for grey.

    Raises:
      UndecodableImage: see `decode`.
      ValueError: a box that is empty or not inside the image, or another bad argument.
    """
    check_channels(channels)
    height, width = image_size(encoded)
    top, left, box_height, box_width = box
    if not (0 <= top < top + box_height <= height and 0 <= left < left + box_width <= width):
        raise ValueError(f"box={box} is not inside the image of {height} x {width} pixels (height x width)")
    if channels == 3 and (bmp := _bmp_view(encoded)) is not None:
        part = np.ascontiguousarray(bmp[top : top + box_height, left : left + box_width])
        return _from_bgr(resize_image(part, size, resize=resize), channels)
    eighths = _eighths((box_height, box_width), size)
    image = _decode(encoded, channels, eighths, top + box_height)
    if image.shape[1] != width:
        # Half up at both edges: a length of whole pixels keeps them, and none falls below `size`.
        bottom, right = ((top + box_height) * eighths + 4) // 8, ((left + box_width) * eighths + 4) // 8
        top, left = (top * eighths + 4) // 8, (left * eighths + 4) // 8
        box_height, box_width = bottom - top, right - left
    return resize_image(image[top : top + box_height, left : left + box_width], size, resize=resize)


def check_channels(channels: int) -> None:
    """Raises a ValueError unless images can be decoded to that many channels."""
    if channels not in _MODES:
        raise ValueError(f"channels={channels!r}; allowed: 1 (grey), 3 (RGB)")


def _checked_size(height: int, width: int) -> tuple[int, int]:
    if height < 1 or width < 1 or height * width > MAX_PIXELS:
        raise UndecodableImage(f"{height} x {width} pixels (height x width); allowed are 1 to {MAX_PIXELS} pixels")
    return height, width


def _is_jpeg(encoded: bytes) -> bool:
    return encoded[:3] == b"\xff\xd8\xff"


def _eighths(size: tuple[int, int], wanted: tuple[int, int]) -> int:
    """The least M for which M/8 of `size` is no smaller than `wanted` and quick to decode; 8 is the whole size."""
    fits = (m for m in _QUICK_EIGHTHS if size[0] * m >= 8 * wanted[0] and size[1] * m >= 8 * wanted[1])
    return next(fits, 8)


def _decode(encoded: bytes, channels: int, eighths: int = 8, rows: int | None = None) -> np.ndarray:
    """At least the first `rows` rows of an image (None: all).

    They are at M/8 of the size (rounded up) or, where the format or a defect rules that out, in full.
    """
    if _is_jpeg(encoded):
        return _decode_jpeg(encoded, channels, eighths, rows)
    if (bmp := _bmp_view(encoded)) is not None:
        return _from_bgr(bmp, channels)
    return _decode_pillow(encoded, channels)


def _decode_jpeg(encoded: bytes, channels: int, eighths: int, rows: int | None) -> np.ndarray:
    try:
        height, width, color, _ = simplejpeg.decode_jpeg_header(encoded)
        _checked_size(height, width)
        if color in ("CMYK", "YCCK"):
            return _decode_pillow(encoded, channels)
        if eighths == 8 and rows is not None and (shortened := _shortened(encoded, height, rows)) is not None:
            # Not strictly: the data goes on below the rows that the header declares.
            return simplejpeg.decode_jpeg(shortened, _JPEG_COLORS[channels], strict=False)
        min_height, min_width = -(-height * eighths // 8), -(-width * eighths // 8)
        return simplejpeg.decode_jpeg(encoded, _JPEG_COLORS[channels], min_height=min_height, min_width=min_width)
    except UndecodableImage:
        raise
    except _SIMPLEJPEG_ERRORS as error:
        # Of a file that has a gap and yet an end, Pillow would make up the rest without a word.
        if "remature end" in str(error):
            raise UndecodableImage(_reason(error)) from error
        # Otherwise simplejpeg raises on every defect or on none; Pillow passes over stray bytes, and what is unusual.
        return _decode_pillow(encoded, channels)


def _shortened(encoded: bytes, height: int, rows: int) -> bytes | None:
    """A JPEG whose header declares only as many rows as are wanted; None where that gains little or is not possible.

    Blocks of baseline JPEG follow each other from top to bottom, and the decoder ends with the last that it needs. One
    row more than is wanted, and then whole blocks of 16: the smoothing of colours looks at the row below.
    """
    needed = -(-(rows + 1) // 16) * 16
    # A file that is cut off has no end marker; it is left to the decoder's own judgement.
    if needed > 0.95 * height or not encoded.endswith(b"\xff\xd9"):
        return None
    place = 2
    while place + 9 <= len(encoded) and encoded[place] == 0xFF:
        marker = encoded[place + 1]
        if marker in _BASELINE_FRAMES:
            place += 5
            return b"".join((encoded[:place], needed.to_bytes(2, "big"), encoded[place + 2 :]))
        if marker in _OTHER_FRAMES_AND_SCAN:
            return None
        place += 2 + int.from_bytes(encoded[place + 2 : place + 4], "big")
    return None


def _decode_pillow(encoded: bytes, channels: int) -> np.ndarray:
    try:
        with Image.open(io.BytesIO(encoded), formats=_PILLOW_FORMATS) as image:
            _checked_size(image.height, image.width)
            # Pillow's mode does not tell: it reads PNG's 16-bit colours as 8-bit ones without a word.
            if image.format == "PNG" and encoded[_PNG_BIT_DEPTH] > 8:
                raise UndecodableImage(f"PNG with {encoded[_PNG_BIT_DEPTH]}, more than 8 bits a channel")
            mode = _MODES[channels]
            if mode == "L":
                image.draft(mode, None)
            # Otherwise Pillow warns of a palette's transparency, which is dropped here.
            image.info.pop("transparency", None)
            pixels = np.asarray(image if image.mode == mode else image.convert(mode))
    except UndecodableImage:
        raise
    except _PILLOW_ERRORS as error:
        raise UndecodableImage(_reason(error)) from error
    return pixels.reshape(*pixels.shape[:2], channels)


def _reason(error: Exception) -> str:
    # Pillow's own text has the address of the bytes in memory.
    return f"no {', '.join(_PILLOW_FORMATS)} file" if isinstance(error, UnidentifiedImageError) else str(error)


def _pillow_size(encoded: bytes) -> tuple[int, int]:
    try:
        with Image.open(io.BytesIO(encoded), formats=_PILLOW_FORMATS) as image:
            return _checked_size(image.height, image.width)
    except UndecodableImage:
        raise
    except _PILLOW_ERRORS as error:
        raise UndecodableImage(_reason(error)) from error


def _bmp_view(encoded: bytes) -> np.ndarray | None:
    """The pixels [h, w, 3] of an uncompressed 24-bit BMP, blue first, as a view of its bytes; None for other bytes."""
    if encoded[:2] != b"BM" or len(encoded) < _BMP_HEADER.size:
        return None
    start, header_bytes, width, signed_height, planes, bits, compression = _BMP_HEADER.unpack_from(encoded)
    if header_bytes < 40 or (planes, bits, compression) != (1, 24, 0) or start < 14 + header_bytes:
        return None
    height, width = _checked_size(abs(signed_height), width)
    row_bytes = -(-3 * width // 4) * 4
    if len(encoded) < start + height * row_bytes:
        raise UndecodableImage(f"BMP of {height} x {width} pixels ends after {len(encoded)} bytes")
    rows = np.frombuffer(encoded, np.uint8, count=height * row_bytes, offset=start).reshape(height, row_bytes)
    pixels = rows[:, : 3 * width].reshape(height, width, 3)
    return pixels if signed_height < 0 else pixels[::-1]


def _from_bgr(pixels: np.ndarray, channels: int) -> np.ndarray:
    rgb = cv2.cvtColor(np.ascontiguousarray(pixels), cv2.COLOR_BGR2RGB)
    return rgb if channels == 3 else np.asarray(Image.fromarray(rgb).convert("L"))[..., None]
