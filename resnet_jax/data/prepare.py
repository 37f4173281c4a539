"""Makes data sets: TFDS folders in ArrayRecord form, without TensorFlow."""

import contextlib
import difflib
import io
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

PathLike = str | os.PathLike[str]

DATASETS = ("digits", "cifar10", "cifar100", "image_folder", "imagenet2012", "tfds_folder")

# The options beside `source` that only some data sets take.
_OPTIONS = {"imagenet2012": ("splits",), "tfds_folder": ("splits", "short_side", "encoding", "quality")}


def prepare(
    dataset: str,
    *,
    data_dir: PathLike | None = None,
    source: PathLike | None = None,
    splits: Sequence[str] | None = None,
    short_side: int | None = None,
    encoding: str | None = None,
    quality: int | None = None,
) -> Path:
    """Makes a data set under `data_dir`, unless it is there, and returns its folder.

    - `digits`: from scikit-learn; no network.
    - `cifar10`, `cifar100`: from the original binary archive, downloaded into DATA_DIR/downloads or given as
      `source`; size and SHA-256 are checked in both cases.
    - `image_folder`: from the class folders in `source` (see `builders.image_folder.scan`); the data set is
      named after that folder (see `builders.image_folder.data_set_name`).
    - `imagenet2012`: from the folder `source`, which holds for each split the original archive or a folder (see
      `builders.imagenet.locate`); nothing is extracted, and the files are kept byte for byte.
    - `tfds_folder`: a copy in ArrayRecord form of the set that TFDS has made in the folder `source`,
      DIR/NAME/VERSION, stored as TFRecord or ArrayRecord. With `short_side` its images are made smaller once, which
      is another data set, called NAME_short256_jpeg95 or NAME_short256_bmp.

    Args:
      dataset: one of `DATASETS`.
      data_dir: where data sets live; None is TFDS's own default (see `default_data_dir`).
      source: a file (`cifar10`, `cifar100`) or a folder (the last three) to make the data set from.
      splits: of `imagenet2012` or `tfds_folder`, those to make; None is all of them, each of which has to be there.
      short_side: of `tfds_folder`: images whose shorter side has more pixels are resized to this one.
      encoding: with `short_side`, "jpeg" (None) or "bmp", uncompressed: six times the bytes and hardly any decoding.
      quality: with `short_side`, of the JPEG encoding, 1 to 100; None is 95.

    Returns:
      The folder DATA_DIR/NAME/VERSION. A set that is there already is left as it is.

    Raises:
      FileNotFoundError: `source` does not exist.
      ValueError: an unknown data set; a `source` that is missing, not wanted, not the published file or not
        readable; a `source` for a set that is there already; an option that the data set does not take, or a value
        that is not allowed; or a `data_dir` that cannot be written or has too little space.
      ConnectionError: the archive cannot be downloaded.
    """
    if dataset not in DATASETS:
        nearest = difflib.get_close_matches(dataset, DATASETS, n=1)
        hint = f" (did you mean {nearest[0]!r}?)" if nearest else ""
        raise ValueError(f"dataset={dataset!r} cannot be prepared{hint}; allowed: {', '.join(DATASETS)}")
    _check_options(dataset, {"splits": splits, "short_side": short_side, "encoding": encoding, "quality": quality})
    data_dir = default_data_dir() if data_dir is None else Path(data_dir).expanduser()
    source = None if source is None else Path(source).expanduser()
    if dataset == "imagenet2012":
        return _prepare_imagenet(data_dir, source, splits)
    if dataset == "tfds_folder":
        return _prepare_tfds_folder(data_dir, source, splits, short_side, encoding, quality)
    if dataset == "image_folder":
        return _prepare_image_folder(data_dir, source)
    if dataset == "digits":
        return _prepare_digits(data_dir, source)
    return _prepare_cifar(dataset, data_dir, source)


def _check_options(dataset: str, options: dict[str, Any]) -> None:
    for name, value in options.items():
        if value is not None and name not in _OPTIONS.get(dataset, ()):
            takers = ", ".join(taker for taker, names in _OPTIONS.items() if name in names)
            raise ValueError(f"{name}={value!r}: {dataset} takes no {name}; it is for {takers}")


def default_data_dir() -> Path:
    """TFDS's own default: the environment variable TFDS_DATA_DIR, else ~/tensorflow_datasets."""
    return Path(os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()


def _prepare_digits(data_dir: Path, source: Path | None) -> Path:
    from resnet_jax.data.builders.digits import Digits

    if source is not None:
        raise ValueError(f"source={str(source)!r}: digits comes from scikit-learn and takes no source")
    target = data_dir / "digits" / str(Digits.VERSION)
    return target if is_prepared(target) else build(Digits, data_dir)


def _prepare_cifar(dataset: str, data_dir: Path, source: Path | None) -> Path:
    from resnet_jax.data.builders import cifar

    builder_class, archive = {
        "cifar10": (cifar.Cifar10, cifar.CIFAR10_ARCHIVE),
        "cifar100": (cifar.Cifar100, cifar.CIFAR100_ARCHIVE),
    }[dataset]
    target = data_dir / dataset / str(builder_class.VERSION)
    if is_prepared(target):
        if source is not None:
            raise ValueError(f"{target} is there already; remove it to make it from source={str(source)!r}")
        return target
    if source is None:
        source = cifar.download_archive(archive, writable_folder(data_dir) / "downloads")
    else:
        cifar.check_archive(source, archive)
    return build(builder_class, data_dir, archive=source)


def _prepare_image_folder(data_dir: Path, source: Path | None) -> Path:
    from resnet_jax.data.builders import image_folder

    if source is None:
        raise ValueError("image_folder needs a source: a folder of class folders")
    name = image_folder.data_set_name(source)
    if name in DATASETS:
        raise ValueError(f"source={str(source)!r} would be named {name!r}, like another set; rename the folder")
    if (data_dir / name).exists():
        raise ValueError(
            f"{data_dir / name} is there already; remove it to make it from source={str(source)!r}, "
            f"or rename the source"
        )
    layout = image_folder.scan(source)
    return write_files(Path(name, image_folder.VERSION), data_dir, lambda folder: image_folder.write(folder, layout))


def _prepare_imagenet(data_dir: Path, source: Path | None, splits: Sequence[str] | None) -> Path:
    from resnet_jax.data.builders import imagenet

    target = data_dir / imagenet.NAME / imagenet.VERSION
    if source is None:
        if is_prepared(target):
            return target
        raise ValueError("imagenet2012 needs a source: a folder with the two archives, or with train/ and val/")
    _require_absent(target, source)
    found = imagenet.locate(source, _chosen(splits, imagenet.SPLITS))
    files = {split: imagenet.scan(path, split) for split, path in found.items()}
    sizes = {split: sum(file.size for file in files[split]) for split in files}
    for split, path in found.items():
        _say(f"{split}: {len(files[split])} images, {_gigabytes(sizes[split])}, from {path}")
    _require_space(data_dir, sum(sizes.values()))
    return write_files(target.relative_to(data_dir), data_dir, lambda folder: imagenet.write(folder, files))


def _prepare_tfds_folder(
    data_dir: Path,
    source: Path | None,
    splits: Sequence[str] | None,
    short_side: int | None,
    encoding: str | None,
    quality: int | None,
) -> Path:
    from resnet_jax.data.builders import tfds_folder
    from resnet_jax.data.builders.smaller_images import smaller_images

    if source is None:
        raise ValueError("tfds_folder needs a source: the folder DIR/NAME/VERSION of a data set that TFDS has made")
    smaller = smaller_images(short_side, encoding, quality)
    builder = tfds_folder.open_folder(source)
    if smaller is not None:
        tfds_folder.check_images(builder.info)
    chosen = _chosen(splits, tuple(builder.info.splits))
    relative = Path(tfds_folder.copied_name(builder.info, smaller), builder.info.config_name, str(builder.info.version))
    _require_absent(data_dir / relative, source)
    num_bytes = tfds_folder.copied_bytes(builder, chosen, smaller)
    for split in chosen:
        _say(f"{split}: {builder.info.splits[split].num_examples} examples, from {source}")
    _require_space(data_dir, num_bytes)
    return write_files(relative, data_dir, lambda folder: tfds_folder.copy(folder, builder, chosen, smaller))


def _chosen(splits: Sequence[str] | None, known: tuple[str, ...]) -> tuple[str, ...]:
    if splits is None:
        return known
    if wrong := [split for split in splits if split not in known]:
        raise ValueError(f"splits={','.join(splits)}: {wrong[0]!r} is none of {', '.join(known)}")
    if not splits:
        raise ValueError(f"splits is empty; allowed are {', '.join(known)}")
    return tuple(split for split in known if split in splits)


def _require_absent(target: Path, source: Path) -> None:
    if target.exists():
        raise ValueError(f"{target} is there already; remove it to make it from source={str(source)!r}")


def _require_space(data_dir: Path, num_bytes: int) -> None:
    free = shutil.disk_usage(writable_folder(data_dir)).free
    _say(f"{data_dir}: about {_gigabytes(num_bytes)} to write, {_gigabytes(free)} free")
    if num_bytes > free:
        raise ValueError(
            f"data_dir={str(data_dir)!r} has {_gigabytes(free)} free, the data set takes about "
            f"{_gigabytes(num_bytes)}; name another"
        )


def _say(line: str) -> None:
    # Standard output is for the result, the folder.
    print(line, file=sys.stderr, flush=True)


def _gigabytes(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:.3g} GB"


def build(builder_class: type, data_dir: Path, **arguments: Any) -> Path:
    """Runs a TFDS builder and returns the folder it made, DATA_DIR/NAME/VERSION.

    The builder works in a temporary folder which is renamed at the end: there is never half a data set, and
    of several processes that start at once one wins and the others use its result.

    Args:
      builder_class: a subclass of `tfds.core.GeneratorBasedBuilder`.
      data_dir: where data sets live; made if need be.
      **arguments: the builder's own, beside `data_dir`.

    Raises:
      ValueError: `data_dir` cannot be written.
    """
    import tensorflow_datasets as tfds

    with _temporary_folder(data_dir) as temporary:
        builder = builder_class(data_dir=temporary, **arguments)
        target = data_dir / Path(builder.data_dir).relative_to(temporary)
        if not sys.stderr.isatty():
            tfds.disable_progress_bar()
        # TFDS prints about downloads that do not happen here, and of the temporary folder.
        with contextlib.redirect_stdout(io.StringIO()):
            builder.download_and_prepare(
                file_format="array_record",
                download_config=tfds.download.DownloadConfig(try_download_gcs=False),
            )
        _move(Path(builder.data_dir), target)
    return target


def write_files(relative: Path, data_dir: Path, write: Callable[[Path], None]) -> Path:
    """Lets a function write a data set's files and returns their folder, DATA_DIR/RELATIVE.

    Like `build` for what TFDS's builders cannot do, splits of more than a gigabyte among others.

    Args:
      relative: NAME/VERSION.
      data_dir: where data sets live; made if need be.
      write: is given an empty folder, temporary like that of `build`.

    Raises:
      ValueError: `data_dir` cannot be written.
    """
    with _temporary_folder(data_dir) as temporary:
        folder = temporary / relative
        folder.mkdir(parents=True)
        write(folder)
        _move(folder, data_dir / relative)
    return data_dir / relative


@contextlib.contextmanager
def _temporary_folder(data_dir: Path) -> Iterator[Path]:
    # TFDS draws its own temporary folder's name from `random`: processes with one seed would share it.
    temporary = Path(tempfile.mkdtemp(prefix=".incomplete_", dir=writable_folder(data_dir)))
    try:
        yield temporary
    finally:
        shutil.rmtree(temporary)


def _move(folder: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        folder.rename(target)
    except OSError:
        # Another process was first: a folder that holds files cannot be renamed over.
        if not is_prepared(target):
            raise


def is_prepared(folder: Path) -> bool:
    """Whether a folder holds a TFDS data set."""
    return (folder / "dataset_info.json").is_file()


def writable_folder(folder: Path, *, called: str = "data_dir") -> Path:
    """Makes a folder if need be and returns it; `called` is its name in the error.

    Raises:
      ValueError: it cannot be made or written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ValueError(f"{called}={str(folder)!r} cannot be written ({error}); name another") from error
    return folder
