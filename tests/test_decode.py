"""Decoding: which bytes are an image, the pixels they give, and boxes that show the right place."""

import io
import struct
import zlib

import cv2
import numpy as np
import pytest
import simplejpeg
import tensorflow_datasets as tfds
from PIL import Image

from resnet_jax.data import decode as decode_module
from resnet_jax.data.datasets import dataset_info
from resnet_jax.data.decode import MAX_PIXELS, UndecodableImage, decode, decode_box, image_size, use_one_thread
from resnet_jax.data.examples import Examples
from resnet_jax.data.resize import resize_image

HEIGHT, WIDTH = 40, 60


def gradient(height=HEIGHT, width=WIDTH):
    """Red counts rows, green columns, both up to 255; blue is constant."""
    rows, columns = np.mgrid[:height, :width]
    return np.stack([rows * 255 / height, columns * 255 / width, np.full((height, width), 90)], -1).astype(np.uint8)


def noise(height=HEIGHT, width=WIDTH, channels=3):
    return np.random.default_rng(0).integers(0, 256, (height, width, channels)).astype(np.uint8)


def encode(image, form, **options):
    if isinstance(image, np.ndarray):
        image = Image.fromarray(image[..., 0] if image.shape[2:] == (1,) else image)
    file = io.BytesIO()
    image.save(file, format=form, **options)
    return file.getvalue()


def pillow_pixels(encoded, mode="RGB"):
    with Image.open(io.BytesIO(encoded)) as image:
        return np.asarray(image.convert(mode)).reshape(image.height, image.width, -1)


def cmyk_jpeg(*, adobe_transform):
    inks = np.concatenate([gradient(), np.arange(WIDTH, dtype=np.uint8)[None, :, None].repeat(HEIGHT, 0)], -1)
    encoded = bytearray(encode(Image.fromarray(inks, "CMYK"), "JPEG", quality=95))
    marker = encoded.index(b"Adobe")
    encoded[marker + 11] = adobe_transform
    return bytes(encoded)


JPEG = encode(gradient(), "JPEG", quality=95)


NOISY_JPEG = encode(noise(), "JPEG", quality=95)


def stray_bytes_before_marker():
    place = NOISY_JPEG.index(b"\xff\xc0")
    return NOISY_JPEG[:place] + b"abc" + NOISY_JPEG[place:]


@pytest.mark.parametrize("form", ["PNG", "BMP"])
@pytest.mark.parametrize("shape", [(HEIGHT, WIDTH), (1, 1), (7, 5), (3, 2)])
def test_lossless_formats_give_the_pixels_that_were_stored(form, shape):
    image = noise(*shape)
    encoded = encode(image, form)
    np.testing.assert_array_equal(decode(encoded), image)
    assert image_size(encoded) == shape


@pytest.mark.parametrize("subsampling", [0, 1, 2])
@pytest.mark.parametrize("progressive", [False, True])
def test_a_jpeg_gives_the_pixels_that_pillow_gives(subsampling, progressive):
    encoded = encode(noise(), "JPEG", subsampling=subsampling, progressive=progressive)
    np.testing.assert_array_equal(decode(encoded), pillow_pixels(encoded))
    assert image_size(encoded) == (HEIGHT, WIDTH)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "BMP", "GIF"])
def test_grey_becomes_colour_by_repetition(form):
    image = gradient()[..., :1]
    encoded = encode(image, form, **({"quality": 100} if form == "JPEG" else {}))
    grey, colour = decode(encoded, channels=1), decode(encoded)
    np.testing.assert_allclose(grey.astype(int), image, atol=1 if form == "JPEG" else 0)
    np.testing.assert_array_equal(colour, grey.repeat(3, -1))


@pytest.mark.parametrize("form", ["JPEG", "PNG", "BMP"])
def test_colour_becomes_grey_as_luma(form):
    encoded = encode(gradient(), form, **({"quality": 100, "subsampling": 0} if form == "JPEG" else {}))
    expected = gradient() @ np.array([0.299, 0.587, 0.114])
    np.testing.assert_allclose(decode(encoded, channels=1)[..., 0], expected, atol=2)


@pytest.mark.parametrize("adobe_transform", [0, 2], ids=["CMYK", "YCCK"])
def test_a_cmyk_jpeg_has_the_colours_that_pillow_gives(adobe_transform):
    encoded = cmyk_jpeg(adobe_transform=adobe_transform)
    assert simplejpeg.decode_jpeg_header(encoded)[2] == ("YCCK" if adobe_transform else "CMYK")
    np.testing.assert_array_equal(decode(encoded), pillow_pixels(encoded))
    np.testing.assert_array_equal(decode(encoded, channels=1), pillow_pixels(encoded, "L"))
    assert image_size(encoded) == (HEIGHT, WIDTH)


def test_inks_of_a_cmyk_jpeg_darken():
    encoded = encode(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG", quality=100)
    np.testing.assert_allclose(decode(encoded)[8, 8].astype(int), [255, 0, 0], atol=2)


@pytest.mark.parametrize(
    ("image", "options"),
    [
        (Image.fromarray(noise()).quantize(16), {}),
        (Image.fromarray(noise()).quantize(16), {"transparency": bytes(range(16))}),
        (Image.fromarray(noise(channels=4)), {}),
        (Image.fromarray(noise(channels=2)), {}),
        (Image.fromarray(noise()[..., 0] > 127), {}),
    ],
    ids=["palette", "transparent palette", "alpha", "grey and alpha", "one bit"],
)
def test_palettes_are_looked_up_and_transparency_is_dropped(image, options):
    expected = np.asarray(image.convert("RGBA"))[..., :3]
    np.testing.assert_array_equal(decode(encode(image, "PNG", **options)), expected)


def test_orientation_is_ignored():
    exif = Image.Exif()
    exif[274] = 6
    encoded = encode(gradient(), "JPEG", quality=95, exif=exif)
    assert image_size(encoded) == (HEIGHT, WIDTH)
    np.testing.assert_array_equal(decode(encoded), decode(JPEG))


@pytest.mark.parametrize("sampling", [0x14, 0x42, 0x31])
def test_unusual_chroma_subsampling_is_read_too(sampling):
    encoded = bytearray(encode(noise(), "JPEG", subsampling=0))
    encoded[encoded.index(b"\xff\xc0") + 11] = sampling
    encoded = bytes(encoded)
    with pytest.raises((ValueError, KeyError)):
        simplejpeg.decode_jpeg_header(encoded)
    np.testing.assert_array_equal(decode(encoded), pillow_pixels(encoded))
    assert image_size(encoded) == (HEIGHT, WIDTH)


def test_damaged_bytes_give_an_image_or_are_refused():
    draw = np.random.default_rng(0)
    outcomes = {"image": 0, "refused": 0}
    for form in ("JPEG", "PNG", "BMP", "GIF"):
        original = np.frombuffer(encode(noise(9, 9), form), np.uint8)
        for _ in range(100):
            damaged = original.copy()
            damaged[draw.integers(len(damaged), size=2)] = draw.integers(256, size=2)
            try:
                height, width, channels = decode(damaged.tobytes()).shape
                assert height * width <= MAX_PIXELS and channels == 3
                outcomes["image"] += 1
            except UndecodableImage:
                outcomes["refused"] += 1
    assert min(outcomes.values()) > 50


def test_what_libjpeg_only_warns_of_is_passed_over():
    encoded = stray_bytes_before_marker()
    with pytest.raises(ValueError, match="extraneous bytes"):
        simplejpeg.decode_jpeg(encoded)
    for channels in (1, 3):
        np.testing.assert_array_equal(decode(encoded, channels=channels), decode(NOISY_JPEG, channels=channels))
    np.testing.assert_array_equal(decode(JPEG + b"after the end"), decode(JPEG))
    assert image_size(encoded) == (HEIGHT, WIDTH)
    box = (0, 0, HEIGHT, WIDTH)
    found = decode_box(encoded, box, (10, 15), resize="area").astype(int)
    # It comes at the whole size, and is resized to what sound bytes give at a quarter.
    expected = resize_image(decode(NOISY_JPEG), (10, 15), resize="area")
    np.testing.assert_array_equal(found, expected)
    assert np.abs(found - decode_box(NOISY_JPEG, box, (10, 15), resize="area")).mean() < 8


def sixteen_bit_colour_png():
    """A PNG of one black pixel with 16 bits a channel, which Pillow reads and does not write."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", 1, 1, 16, 2, 0, 0, 0)
    data = zlib.compress(bytes(7))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def huge_jpeg():
    """A JPEG whose header declares 65,500 x 65,500 pixels."""
    place = JPEG.index(b"\xff\xc0") + 5
    return JPEG[:place] + struct.pack(">HH", 65500, 65500) + JPEG[place + 4 :]


def huge_bmp():
    encoded = bytearray(encode(noise(), "BMP"))
    encoded[18:26] = struct.pack("<ii", 20_000, 20_000)
    return bytes(encoded)


BROKEN = {
    "empty": (b"", "^no JPEG, PNG, BMP, GIF file$"),
    "noise": (noise().tobytes(), "^no JPEG, PNG, BMP, GIF file$"),
    "only a JPEG's first bytes": (JPEG[:3], "^no JPEG, PNG, BMP, GIF file$"),
    "JPEG's header": (JPEG[:200], "."),
    "half a JPEG": (encode(noise(), "JPEG")[:1500], "Premature end of JPEG file"),
    "JPEG without an end": (JPEG[:-2], "Premature end of JPEG file"),
    "half a PNG": (encode(noise(), "PNG")[:2000], "truncated"),
    "half a BMP": (encode(noise(), "BMP")[:2000], "BMP of 40 x 60 pixels ends after 2000 bytes"),
    "half a grey BMP": (encode(noise()[..., 0], "BMP")[:2000], "truncated"),
    "WebP": (encode(noise(), "WEBP"), "^no JPEG, PNG, BMP, GIF file$"),
    "16-bit grey PNG": (encode(np.zeros((4, 4), np.uint16), "PNG"), "more than 8 bits a channel"),
    "16-bit colour PNG": (sixteen_bit_colour_png(), "more than 8 bits a channel"),
    "huge JPEG": (huge_jpeg(), "65500 x 65500 pixels"),
    "huge BMP": (huge_bmp(), "20000 x 20000 pixels"),
}


@pytest.mark.parametrize("name", BROKEN)
@pytest.mark.parametrize("channels", [1, 3])
def test_broken_images_are_refused(name, channels):
    encoded, message = BROKEN[name]
    with pytest.raises(UndecodableImage, match=message):
        decode(encoded, channels=channels)
    with pytest.raises(UndecodableImage, match=message):
        decode_box(encoded, (0, 0, 1, 1), (1, 1), resize="area", channels=channels)


@pytest.mark.parametrize("name", ["empty", "noise", "only a JPEG's first bytes", "WebP", "huge JPEG", "huge BMP"])
def test_the_size_of_what_has_no_sound_header_is_refused(name):
    encoded, message = BROKEN[name]
    with pytest.raises(UndecodableImage, match=message):
        image_size(encoded)


def test_every_beginning_of_a_file_is_refused():
    for encoded in (encode(noise(9, 9), "JPEG"), encode(noise(9, 9), "BMP"), encode(noise(9, 9), "GIF")):
        for length in range(0, len(encoded) - 1, 7):
            with pytest.raises(UndecodableImage):
                decode(encoded[:length])


@pytest.mark.parametrize("top_first", [False, True])
def test_rows_of_a_bmp_may_stand_in_either_order(top_first):
    image = noise(5, 7)
    encoded = bytearray(encode(image, "BMP"))
    if top_first:
        encoded[22:26] = struct.pack("<i", -5)
    found = decode(bytes(encoded))
    np.testing.assert_array_equal(found, image[::-1] if top_first else image)
    box = decode_box(bytes(encoded), (1, 2, 3, 4), (3, 4), resize="area")
    np.testing.assert_array_equal(box, found[1:4, 2:6])


@pytest.mark.parametrize("mode", ["L", "P", "1", "RGBA"])
def test_a_bmp_that_is_not_24_bit_is_read_too(mode):
    image = Image.fromarray(noise()).convert(mode)
    np.testing.assert_array_equal(decode(encode(image, "BMP")), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("resize", ["area", "bilinear"])
@pytest.mark.parametrize("form", ["JPEG", "PNG", "BMP"])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    "box", [(0, 0, HEIGHT, WIDTH), (3, 5, 20, 30), (HEIGHT - 1, WIDTH - 1, 1, 1), (10, 0, 1, WIDTH)]
)
def test_a_box_less_than_twice_the_wanted_size_is_the_crop_resized(resize, form, channels, box):
    encoded = encode(noise(), form)
    top, left, height, width = box
    expected = resize_image(
        decode(encoded, channels=channels)[top : top + height, left : left + width], (24, 18), resize=resize
    )
    found = decode_box(encoded, box, (24, 18), resize=resize, channels=channels)
    # Grey from colours is rounded before the resize or after it.
    np.testing.assert_allclose(found.astype(int), expected, atol=1)


@pytest.mark.parametrize("times", [1, 1.5, 2, 3, 4, 8, 11])
def test_a_box_shows_its_place(times):
    # Read off a gradient: at a new pixel's centre lies the source's row and column.
    size = (16, 20)
    height, width = round(size[0] * times), round(size[1] * times)
    image = gradient(16 * 16, 20 * 16)
    encoded = encode(image, "JPEG", quality=100, subsampling=0)
    for top, left in [(0, 0), (5, 11), (256 - height, 320 - width), (33, 7)]:
        found = decode_box(encoded, (top, left, height, width), size, resize="area").astype(float)
        # Means along the other axis take the JPEG's noise away; the gradient's values were floored, by half on average.
        rows = (found[..., 0].mean(1) + 0.5) * 256 / 255 + 0.5
        columns = (found[..., 1].mean(0) + 0.5) * 320 / 255 + 0.5
        # Half a new pixel for the rounding of a box that is decoded at less than the whole size.
        tolerance = (0.5 * times if times >= 2 else 0) + 1.2
        expected_rows = top + (np.arange(size[0]) + 0.5) * height / size[0]
        expected_columns = left + (np.arange(size[1]) + 0.5) * width / size[1]
        np.testing.assert_allclose(rows, expected_rows, atol=tolerance)
        np.testing.assert_allclose(columns, expected_columns, atol=tolerance)


@pytest.mark.parametrize(
    ("box", "eighths"),
    [
        ((0, 0, 31, 300), 8),
        ((0, 0, 32, 300), 4),
        ((1, 1, 32, 32), 4),
        ((0, 0, 63, 64), 4),
        ((0, 0, 64, 64), 2),
        ((3, 3, 127, 200), 2),
        ((3, 3, 128, 128), 1),
        ((0, 0, 255, 300), 1),
    ],
)
def test_a_large_box_is_decoded_at_the_least_size_that_suffices(box, eighths, monkeypatch):
    image = noise(255, 301)
    encoded = encode(image, "JPEG")
    seen = []

    def resize_and_note(part, size, *, resize):
        seen.append(part.shape[:2])
        return resize_image(part, size, resize=resize)

    monkeypatch.setattr(decode_module, "resize_image", resize_and_note)
    decode_box(encoded, box, (16, 16), resize="area")
    [(height, width)] = seen
    assert min(height, width) >= 16
    assert abs(height - box[2] * eighths / 8) <= 1 and abs(width - box[3] * eighths / 8) <= 1


def test_the_reduced_decoding_of_a_whole_image_is_close_to_its_area_means():
    smooth = cv2.GaussianBlur(noise(256, 256), (0, 0), 3)
    encoded = encode(smooth, "JPEG", quality=95)
    for size in (128, 64, 32):
        found = decode_box(encoded, (0, 0, 256, 256), (size, size), resize="area").astype(int)
        expected = resize_image(decode(encoded), (size, size), resize="area")
        assert np.abs(found - expected).mean() < 1


@pytest.mark.parametrize("box", [(0, 0, 41, 60), (0, 1, 40, 60), (-1, 0, 5, 5), (0, 0, 0, 5), (5, 5, -2, 2)])
def test_a_box_outside_the_image_is_refused(box):
    with pytest.raises(ValueError, match=r"box=\(.*\) is not inside the image of 40 x 60 pixels") as caught:
        decode_box(JPEG, box, (4, 4), resize="area")
    assert not isinstance(caught.value, UndecodableImage)


@pytest.mark.parametrize("channels", [0, 2, 4])
def test_other_channels_are_refused(channels):
    with pytest.raises(ValueError, match=f"channels={channels}; allowed: 1"):
        decode(JPEG, channels=channels)
    with pytest.raises(ValueError, match=f"channels={channels}; allowed: 1"):
        decode_box(JPEG, (0, 0, 4, 4), (4, 4), resize="area", channels=channels)


def test_a_worker_can_keep_opencv_to_one_thread():
    before = cv2.getNumThreads()
    try:
        use_one_thread()
        assert cv2.getNumThreads() == 1
    finally:
        cv2.setNumThreads(before)


def test_real_photographs_all_decode_to_what_pillow_gives(real_data):
    builder = tfds.builder_from_directory(real_data / "imagenet2012" / "5.1.0")
    for split in ("train[:5%]", "validation"):
        for example in builder.as_data_source(split, decoders={"image": tfds.decode.SkipDecoding()}):
            image = decode(example["image"])
            np.testing.assert_array_equal(image, pillow_pixels(example["image"]))
            assert image_size(example["image"]) == image.shape[:2]


@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0"])
@pytest.mark.parametrize("options", [{}, {"restart_marker_rows": 1}, {"progressive": True}])
def test_decoding_that_ends_below_the_box_gives_the_pixels_of_the_whole(subsampling, options):
    pixels = np.random.default_rng(0).integers(0, 256, (131, 77, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=90, subsampling=subsampling, **options)
    whole = decode(file.getvalue())
    for top, height in [(0, 1), (0, 15), (0, 16), (0, 17), (3, 44), (30, 34), (63, 1), (64, 16), (100, 31)]:
        box = decode_box(file.getvalue(), (top, 5, height, 60), (height, 60), resize="area")
        np.testing.assert_array_equal(box, whole[top : top + height, 5:65], err_msg=f"{top}, {height}")


def test_a_gap_before_the_end_is_found_where_the_whole_image_is_decoded():
    encoded = encode(noise(), "JPEG")[:1500] + b"\xff\xd9"
    with pytest.raises(UndecodableImage, match="premature end of data"):
        decode(encoded)
    with pytest.raises(UndecodableImage, match="premature end of data"):
        decode_box(encoded, (0, 0, HEIGHT, WIDTH), (HEIGHT, WIDTH), resize="area")


def test_a_file_that_is_cut_off_is_found_whatever_the_box():
    pixels = np.random.default_rng(0).integers(0, 256, (160, 64, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG")
    encoded = file.getvalue()
    for length in (len(encoded) // 2, len(encoded) - 2):
        with pytest.raises(UndecodableImage):
            decode_box(encoded[:length], (0, 0, 16, 64), (16, 64), resize="area")


def test_real_boxes_are_those_of_the_whole_image(real_data):
    examples = Examples(dataset_info("imagenet2012", data_dir=real_data), "validation")
    rng = np.random.default_rng(0)
    for index in range(40):
        encoded = examples[index].image
        whole = decode(encoded)
        top, height = sorted(rng.choice(len(whole), 2, replace=False).tolist())
        box = decode_box(encoded, (top, 0, height - top, whole.shape[1]), (height - top, whole.shape[1]), resize="area")
        np.testing.assert_array_equal(box, whole[top:height], err_msg=str(index))
