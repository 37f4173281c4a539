"""tf.data with the fused `decode_and_crop_jpeg`, from TFRecord files, as Flax's ImageNet example arranges it.

Of each image the header is read, a box drawn, the box alone decoded and resized, and the result mirrored at random; all
in TensorFlow's threads, whose number is the number of workers. Inception boxes are drawn as that example does, by
`sample_distorted_bounding_box`; the box of a scale crop is the source window of the paper's crop, so that the whole
image need not be resized. Values stay uint8: the normalisation in float32 of that example would slow it down.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from ours import open_examples
from pipelines import IMAGE_SIZE, SHORT_SIDES, Source

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ["CUDA_VISIBLE_DEVICES"] = "-1"

import tensorflow as tf

SHUFFLE_BATCHES = 16
PREFETCHED_BATCHES = 2
FEATURES = {"image": tf.io.FixedLenFeature([], tf.string), "label": tf.io.FixedLenFeature([], tf.int64)}


def prepare(source: Source) -> dict[str, str]:
    """Writes the TFRecord file; returns the versions of what is measured."""
    examples = open_examples(source)
    with tf.io.TFRecordWriter(str(_records(source))) as writer:
        for index in range(len(examples)):
            image, label = examples[index]
            feature = {
                "image": tf.train.Feature(bytes_list=tf.train.BytesList(value=[image])),
                "label": tf.train.Feature(int64_list=tf.train.Int64List(value=[label])),
            }
            writer.write(tf.train.Example(features=tf.train.Features(feature=feature)).SerializeToString())
    return {"tensorflow": tf.__version__}


@contextmanager
def open_batches(
    source: Source, *, crop: str, workers: int, batch_size: int, antialias: bool
) -> Iterator[Iterator[np.ndarray]]:
    def view(record: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        example = tf.io.parse_single_example(record, FEATURES)
        shape = tf.io.extract_jpeg_shape(example["image"])
        box = _scale_box(shape) if crop == "scale" else _inception_box(shape)
        image = tf.io.decode_and_crop_jpeg(example["image"], box, channels=3)
        image = tf.image.resize(image, (IMAGE_SIZE, IMAGE_SIZE), method="bilinear", antialias=antialias)
        image = tf.image.random_flip_left_right(tf.cast(tf.round(image), tf.uint8))
        return image, tf.cast(example["label"], tf.int32)

    options = tf.data.Options()
    options.threading.private_threadpool_size = workers
    options.threading.max_intra_op_parallelism = 1
    options.autotune.enabled = False
    options.deterministic = False
    dataset = (
        tf.data.TFRecordDataset(str(_records(source)))
        .repeat()
        .shuffle(SHUFFLE_BATCHES * batch_size)
        .map(view, num_parallel_calls=workers)
        .batch(batch_size, drop_remainder=True)
        .prefetch(PREFETCHED_BATCHES)
        .with_options(options)
    )
    yield (image for image, _ in dataset.as_numpy_iterator())


def _records(source: Source) -> Path:
    return Path(source.scratch) / "images.tfrecord"


def _inception_box(shape: tf.Tensor) -> tf.Tensor:
    begin, size, _ = tf.image.sample_distorted_bounding_box(
        shape,
        bounding_boxes=tf.constant([0.0, 0.0, 1.0, 1.0], shape=[1, 1, 4]),
        min_object_covered=0.1,
        aspect_ratio_range=(3 / 4, 4 / 3),
        area_range=(0.08, 1.0),
        max_attempts=10,
        use_image_if_no_bounding_boxes=True,
    )
    return tf.concat([begin[:2], size[:2]], axis=0)


def _scale_box(shape: tf.Tensor) -> tf.Tensor:
    """The window of the source image that a crop of the resized image shows, in whole source pixels."""
    source = tf.cast(shape[:2], tf.float32)
    short_side = tf.random.uniform([], SHORT_SIDES[0], SHORT_SIDES[1] + 1, tf.int32)
    scale = tf.cast(short_side, tf.float32) / tf.reduce_min(source)
    room = tf.maximum(tf.floor(source * scale) - IMAGE_SIZE, 0.0)
    offset = tf.floor(tf.random.uniform([2]) * (room + 1.0))
    begin = tf.cast(tf.round(offset / scale), tf.int32)
    end = tf.minimum(tf.cast(tf.round((offset + IMAGE_SIZE) / scale), tf.int32), shape[:2])
    return tf.concat([begin, end - begin], axis=0)
