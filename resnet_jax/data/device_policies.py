"""RandAugment and TrivialAugment inside the jitted step, for images that lie in device memory.

Operations, ranges and draws are those of `resnet_jax.data.policies`, and the pixels, too, but for few that single
precision rounds to the neighbouring level or place.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, UInt8

from resnet_jax.data.policies import MAX_MAGNITUDE, RAND_AUGMENT, TRIVIAL_AUGMENT

Image = UInt8[Array, "h w c"]

# Shares of red, green and blue in a grey level, of 65536, as Pillow has them.
_GREY = (19595, 38470, 7471)
# Of RandAugment: translations are shares of the image's extent along this axis.
_SHARES = {"TranslateX": 1, "TranslateY": 0}


def apply_policy(
    images: UInt8[Array, "n h w c"],
    positions: Int[Array, " n"],
    key: Array,
    *,
    policy: str,
    operations: int,
    magnitude: int,
) -> UInt8[Array, "n h w c"]:
    """Applies the policy to every image by draws of its own.

    Args:
      images: whole images as they are stored.
      positions: each example's place in the endless stream of training examples; with `key` it fixes the draws.
      key: of the policy.
      policy: "none", "randaugment" or "trivialaugment".
      operations: of RandAugment, see `resnet_jax.data.policies.rand_augment`.
      magnitude: likewise.
    """
    if policy == "none":
        return images
    ways: dict[str, Callable[[Image, Array], Image]] = {
        "randaugment": partial(rand_augment, operations=operations, magnitude=magnitude),
        "trivialaugment": trivial_augment,
    }
    augment = ways[policy]
    return jax.vmap(lambda image, position: augment(image, jax.random.fold_in(key, position)))(images, positions)


def rand_augment(image: Image, key: Array, *, operations: int = 2, magnitude: int = 9) -> Image:
    """RandAugment (Cubuk et al. 2020): some operations of the same magnitude, each drawn from all of them."""
    for operation_key in jax.random.split(key, operations):
        choice, sign = jax.random.split(operation_key)
        number = jax.random.randint(choice, (), 0, len(RAND_AUGMENT))
        image = apply_operation("randaugment", image, number, magnitude, turned=jax.random.bernoulli(sign))
    return image


def trivial_augment(image: Image, key: Array) -> Image:
    """TrivialAugment, wide (Müller and Hutter 2021): one operation, its magnitude drawn from all of 0 to 30."""
    choice, sign, strength = jax.random.split(key, 3)
    number = jax.random.randint(choice, (), 0, len(TRIVIAL_AUGMENT))
    magnitude = jax.random.randint(strength, (), 0, MAX_MAGNITUDE + 1)
    return apply_operation("trivialaugment", image, number, magnitude, turned=jax.random.bernoulli(sign))


def apply_operation(policy: str, image: Image, number, magnitude, *, turned) -> Image:
    """Applies the operation of a number in the policy's table, at a magnitude of 0 to 30.

    Args:
      policy: "randaugment" or "trivialaugment".
      image: one image.
      number: of the operation, in the order of the table.
      magnitude: see `resnet_jax.data.policies.apply_operation`.
      turned: whether to turn the amount's sign, of an operation whose amount is signed.
    """
    table = {"randaugment": RAND_AUGMENT, "trivialaugment": TRIVIAL_AUGMENT}[policy]

    def of(name: str) -> Callable[[Image], Image]:
        low, high = table[name].amounts
        amount = low + (high - low) * jnp.asarray(magnitude, jnp.float32) / MAX_MAGNITUDE
        if policy == "randaugment" and name in _SHARES:
            amount = amount * image.shape[_SHARES[name]]
        if table[name].signed:
            amount = jnp.where(turned, -amount, amount)
        return lambda image: _OPERATIONS[name](image, amount)

    return jax.lax.switch(number, [of(name) for name in table], image)


def _affine(image: Image, row: tuple, column: tuple) -> Image:
    """Every pixel from where its centre (x, y) lies: row and column are (a, b, c) of a x + b y + c; black outside.

    Places are whole numbers of 1 / 65536 of a pixel, as Pillow's are: what lies between two pixels falls to the same.
    """
    height, width, _ = image.shape

    def places(a, b, c):
        a, b, start = (jnp.floor(65536 * jnp.float32(v) + 0.5).astype(jnp.int32) for v in (a, b, c + (a + b) / 2))
        return (start + a * jnp.arange(width)[None, :] + b * jnp.arange(height)[:, None]) >> 16

    rows, columns = places(*row), places(*column)
    inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
    found = image[rows.clip(0, height - 1), columns.clip(0, width - 1)]
    return jnp.where(inside[..., None], found, jnp.uint8(0))


def _shear_x(image: Image, slope) -> Image:
    return _affine(image, (0, 1, 0), (1, slope, 0))


def _shear_y(image: Image, slope) -> Image:
    return _affine(image, (slope, 1, 0), (1, 0, 0))


def _translate_x(image: Image, pixels) -> Image:
    return _affine(image, (0, 1, 0), (1, 0, -jnp.trunc(pixels)))


def _translate_y(image: Image, pixels) -> Image:
    return _affine(image, (0, 1, -jnp.trunc(pixels)), (1, 0, 0))


def _rotate(image: Image, degrees) -> Image:
    """Around the middle, against the clock."""
    middle_y, middle_x = image.shape[0] / 2, image.shape[1] / 2
    cos, sin = jnp.cos(jnp.radians(degrees)), jnp.sin(jnp.radians(degrees))
    row = (sin, cos, middle_y - sin * middle_x - cos * middle_y)
    return _affine(image, row, (cos, -sin, middle_x - cos * middle_x + sin * middle_y))


def _grey(image: Image) -> Array:
    """Luminance [h, w, 1], int32; that of one channel is itself."""
    levels = image.astype(jnp.int32)
    if image.shape[2] == 1:
        return levels
    red, green, blue = (share * levels[..., channel] for channel, share in enumerate(_GREY))
    return ((red + green + blue + 2**15) >> 16)[..., None]


def _blend(image: Image, other: Array, change) -> Image:
    """The image's difference from another one times 1 + change."""
    other = other.astype(jnp.float32)
    return _levels(other + (1 + change) * (image.astype(jnp.float32) - other))


def _levels(values: Array) -> Array:
    return values.clip(0, 255).astype(jnp.uint8)


def _brightness(image: Image, change) -> Image:
    return _blend(image, jnp.zeros(image.shape), change)


def _color(image: Image, change) -> Image:
    return _blend(image, _grey(image), change)


def _contrast(image: Image, change) -> Image:
    mean = jnp.floor(_grey(image).mean(dtype=jnp.float32) + 0.5)
    return _blend(image, jnp.full(image.shape, mean), change)


def _sharpness(image: Image, change) -> Image:
    """Against the image smoothed by a window of 3, whose border stays as it is."""
    height, width, _ = image.shape
    levels = image.astype(jnp.int32)
    if height < 3 or width < 3:
        return image
    total = sum(levels[y : y + height - 2, x : x + width - 2] for y in range(3) for x in range(3))
    inner = (2 * (total + 4 * levels[1:-1, 1:-1]) + 13) // 26
    return _blend(image, levels.at[1:-1, 1:-1].set(inner), change)


def _posterize(image: Image, bits) -> Image:
    dropped = (8 - jnp.round(bits)).astype(jnp.uint8)
    return (image >> dropped) << dropped


def _solarize(image: Image, threshold) -> Image:
    return jnp.where(image < jnp.ceil(threshold), image, 255 - image)


def _auto_contrast(image: Image, _) -> Image:
    """Each channel's levels spread over all of 0 to 255."""
    levels = image.astype(jnp.int32)
    low, high = (extreme((0, 1), keepdims=True) for extreme in (levels.min, levels.max))
    return jnp.where(high > low, _levels((levels - low) * 255 // jnp.maximum(high - low, 1)), image)


def _equalize(image: Image, _) -> Image:
    """Each channel's levels spread so that all are about equally frequent."""

    def channel(levels):
        brightest = (levels == levels.max()).sum()
        step = (levels.size - brightest) // 255
        every = jnp.arange(256, dtype=jnp.uint8)
        darker = jnp.searchsorted(jnp.sort(levels.ravel()), every, side="left", method="scan_unrolled")
        spread = _levels((step // 2 + darker) // jnp.maximum(step, 1))
        return jnp.where(step > 0, spread[levels], levels)

    return jax.vmap(channel, in_axes=2, out_axes=2)(image)


def _identity(image: Image, _) -> Image:
    return image


_OPERATIONS: dict[str, Callable[[Image, Array], Image]] = {
    **{"Identity": _identity, "ShearX": _shear_x, "ShearY": _shear_y, "Rotate": _rotate},
    **{"TranslateX": _translate_x, "TranslateY": _translate_y},
    **{"Brightness": _brightness, "Color": _color, "Contrast": _contrast, "Sharpness": _sharpness},
    **{"Posterize": _posterize, "Solarize": _solarize, "AutoContrast": _auto_contrast, "Equalize": _equalize},
}
