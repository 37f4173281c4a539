"""Makes data sets: TFDS folders in ArrayRecord form, without TensorFlow."""

import contextlib
import difflib
import io
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

PathLike = str | os.PathLike[str]

DATASETS = ("digits", "cifar10", "cifar100", "image_folder")


def prepare(dataset: str, *, data_dir: PathLike | None = None, source: PathLike | None = None) -> Path:
    """Makes a data set under `data_dir`, unless it is there, and returns its folder.

    - `digits`: from scikit-learn; no network.
    - `cifar10`, `cifar100`: from the original binary archive, downloaded into DATA_DIR/downloads or given as
      `source`; size and SHA-256 are checked in both cases.
    - `image_folder`: from the class folders in `source` (see `builders.image_folder.scan`); the data set is
      named after that folder (see `builders.image_folder.data_set_name`).

    Args:
      dataset: one of `DATASETS`.
      data_dir: where data sets live; None is TFDS's own default (see `default_data_dir`).
      source: a file (`cifar10`, `cifar100`) or a folder (`image_folder`) to make the data set from.

    Returns:
      The folder DATA_DIR/NAME/VERSION. A set that is there already is left as it is.

    Raises:
      FileNotFoundError: `source` does not exist.
      ValueError: an unknown data set; a `source` that is missing, not wanted, not the published file or not
        readable; a `source` for a set that is there already; or a `data_dir` that cannot be written.
      ConnectionError: the archive cannot be downloaded.
    """
    if dataset not in DATASETS:
        nearest = difflib.get_close_matches(dataset, DATASETS, n=1)
        hint = f" (did you mean {nearest[0]!r}?)" if nearest else ""
        raise ValueError(f"dataset={dataset!r} cannot be prepared{hint}; allowed: {', '.join(DATASETS)}")
    data_dir = default_data_dir() if data_dir is None else Path(data_dir).expanduser()
    source = None if source is None else Path(source).expanduser()
    if dataset == "image_folder":
        return _prepare_image_folder(data_dir, source)
    if dataset == "digits":
        return _prepare_digits(data_dir, source)
    return _prepare_cifar(dataset, data_dir, source)


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
    return build(image_folder.ImageFolder, data_dir, layout=image_folder.scan(source))


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

    # TFDS draws its own temporary folder's name from `random`: processes with one seed would share it.
    temporary = Path(tempfile.mkdtemp(prefix=".incomplete_", dir=writable_folder(data_dir)))
    try:
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
    finally:
        shutil.rmtree(temporary)
    return target


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


def writable_folder(folder: Path) -> Path:
    """Makes a folder if need be and returns it.

    Raises:
      ValueError: it cannot be made or written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ValueError(f"data_dir={str(folder)!r} cannot be written ({error}); name another") from error
    return folder
