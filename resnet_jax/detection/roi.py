"""Features of regions, all of one size: quantised maxima (the paper's) or bilinear samples, of a float box each."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, Int

# Bounds the memory of `roi_pool`: of 64 boxes' strips, 14 columns of each, the 16 that are made at once take 35 MB on a
# map of 38 x 63 x 1024.
_BOXES_AT_ONCE = 16

# Rows and columns.
Extent = Int[Array, "2"]

# The values of an array and the places that they come from.
_Placed = tuple[Array, ...]


def roi_align(
    features: Float[Array, "h w c"],
    boxes: Float32[Array, "r 4"],
    *,
    size: int,
    scale: float,
    extent: Extent | None = None,
    sampling: int = 2,
) -> Float[Array, "r size size c"]:
    """The mean of sampling * sampling bilinear samples in each bin of each box (He et al. 2017, section 3).

    Samples beyond the map take its border, those more than one cell beyond are 0. As torchvision with `aligned=True`.

    Args:
      features: of an image.
      boxes: pixels of the image.
      size: bins along each side.
      scale: cells of the map to a pixel, 1/16 after conv4.
      extent: rows and columns of the map that belong to the image, where the rest is padding; None is all.
      sampling: samples along each side of a bin.
    """
    x1, y1, x2, y2 = (scale * boxes - 0.5).T
    height, width = features.shape[:2]
    last_row, last_column = (height, width) if extent is None else extent
    rows = _bilinear_weights(y1, y2, size, sampling, height, last_row)
    columns = _bilinear_weights(x1, x2, size, sampling, width, last_column)
    # Products with weights need a sixth of the memory of gathered samples. Accelerators would round them to bfloat16.
    found = jnp.einsum("hwc,ryh,rxw->ryxc", features, rows, columns, precision=jax.lax.Precision.HIGHEST)
    return found.astype(features.dtype)


def _bilinear_weights(
    start: Array, stop: Array, size: int, sampling: int, cells: int, extent: int | Array
) -> Float32[Array, "r size n"]:
    """How much each cell, of which the first `extent` count, has in each bin of start [r] to stop [r].

    Whole numbers are centres of cells.
    """
    samples = (jnp.arange(size * sampling) + 0.5) / (size * sampling)
    places = start[:, None] + samples[None] * (stop - start)[:, None]
    near = (places >= -1) & (places <= extent)
    distances = jnp.clip(places, 0, extent - 1)[..., None] - jnp.arange(cells)[None, None]
    weights = jnp.where(near[..., None], jnp.maximum(1 - jnp.abs(distances), 0), 0)
    return weights.reshape(-1, size, sampling, cells).mean(2)


def roi_pool(
    features: Float[Array, "h w c"],
    boxes: Float32[Array, "r 4"],
    *,
    size: int,
    scale: float,
    extent: Extent | None = None,
) -> Float[Array, "r size size c"]:
    """The largest value of each bin of each box, whose corners are rounded to cells (Girshick 2015, section 2.1).

    A box ends with its last corner's cell, bins overlap where a box's cells cannot be divided by `size`, and a bin that
    has no cell in the map is 0. The gradient of a bin belongs to its largest value, the first one row by row of equals;
    what bins share is added in any order on a GPU, unless `train.determinism=repeatable`.

    The bins' edges are exact quotients. Caffe and torchvision round a bin's height and width to float32 first, and so a
    few of their bins have one row or column more: of 62 cells in 14 bins, the eighth.

    Args:
      features: of an image.
      boxes: pixels of the image.
      size: bins along each side; 14 before conv5.
      scale: cells of the map to a pixel, 1/16 after conv4.
      extent: as of `roi_align`.
    """
    x1, y1, x2, y2 = jax.lax.round(scale * boxes).astype(jnp.int32).T
    height, width, channels = features.shape
    rows, columns = (height, width) if extent is None else extent
    edges = _bins(y1, y2, size, rows), _bins(x1, x2, size, columns)
    by_column = jax.lax.stop_gradient(features).swapaxes(0, 1)

    def places(edges):
        (top, bottom), (left, right) = edges
        # Rows last, so that the first of equal values is the first row by row.
        strips, column = (part.swapaxes(0, 1) for part in _largest(by_column, left, right))
        row = _largest(strips, top, bottom)[1]
        return row * width + jnp.take_along_axis(column, row, axis=0)

    place = jax.lax.map(places, edges, batch_size=_BOXES_AT_ONCE)
    found = jnp.take_along_axis(features.reshape(-1, channels), place.reshape(-1, channels), axis=0)
    (top, bottom), (left, right) = edges
    empty = (bottom <= top)[:, :, None] | (right <= left)[:, None, :]
    return jnp.where(empty[..., None], 0, found.reshape(place.shape))


def _bins(start: Array, end: Array, size: int, extent: int | Array) -> tuple[Array, Array]:
    """The first cell and the one after the last of the bins [r size] of the cells start to end [r], in 0 to extent."""
    cells, number = jnp.maximum(end - start + 1, 1)[:, None], jnp.arange(size)[None]
    first = start[:, None] + number * cells // size
    last = start[:, None] + ((number + 1) * cells + size - 1) // size
    return jnp.clip(first, 0, extent), jnp.clip(last, 0, extent)


def _largest(x: Array, first: Array, last: Array) -> _Placed:
    """The largest of x[first[k]:last[k]] and its place in x, [k a b], the first of equal ones; of none -inf and 0.

    Any stretch is covered by two windows of the largest power of two that fits in it. The windows of 1, 2, 4 ... cells
    are made one from the other, so that the cost is that of log(n) passes, whatever the boxes are.
    """
    length = (last - first)[:, None, None]
    windows: _Placed = x, jnp.broadcast_to(jnp.arange(len(x))[:, None, None], x.shape)
    found: _Placed = (
        jnp.full((len(first), *x.shape[1:]), -jnp.inf, x.dtype),
        jnp.zeros((len(first), *x.shape[1:]), jnp.int32),
    )
    for span in (1 << level for level in range(len(x).bit_length())):
        if span > 1:
            half = span // 2
            windows = _larger(*(tuple(part[cut] for part in windows) for cut in (slice(-half), slice(half, None))))
        pair = _larger(*(tuple(part[start] for part in windows) for start in (first, last - span)))
        fits = (span <= length) & (length < 2 * span)
        found = tuple(jnp.where(fits, new, old) for new, old in zip(pair, found, strict=True))
    return found


def _larger(a: _Placed, b: _Placed) -> _Placed:
    """Value by value the larger one and its place; of equal ones that of `a`."""
    stays = a[0] >= b[0]
    return jnp.where(stays, a[0], b[0]), jnp.where(stays, a[1], b[1])
