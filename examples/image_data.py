"""Labeled images: CIFAR-10's Python batches, or scikit-learn's digits."""

import pickle
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np


class ImageDataError(Exception):
    """The images cannot be read; the message says why in one sentence."""


class Images(NamedTuple):
    """Images of shape (number, height, width, channels) in 0..255, and their labels.

    `padding` and `flip` say how an image may be changed without changing its label.
    """

    name: str
    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray
    padding: int
    flip: bool


def digits() -> Images:
    """Return the 1,797 digits of 8x8 gray pixels that ship with scikit-learn."""
    from sklearn.datasets import load_digits  # Slow to import; CIFAR-10 does without.

    bunch: Any = load_digits()
    images = np.rint(bunch.images[..., None] * (255 / 16)).astype(np.uint8)
    labels = bunch.target.astype(np.int32)
    order = np.random.default_rng(0).permutation(len(labels))
    test, train = order[:360], order[360:]
    # A mirrored digit is not a digit, and one pixel of eight is a large shift.
    return Images(
        "digits",
        images[train],
        labels[train],
        images[test],
        labels[test],
        padding=1,
        flip=False,
    )


def cifar10(folder: Path) -> Images:
    """Read CIFAR-10's Python batches, as many of the five as are in `folder`."""
    if not folder.is_dir():
        raise ImageDataError(f"There is no folder {folder}.")
    paths = [folder / f"data_batch_{i}" for i in range(1, 6)]
    batches = [_read_batch(path) for path in paths if path.exists()]
    if not batches:
        raise ImageDataError(
            f"{folder} holds none of CIFAR-10's files data_batch_1 to data_batch_5; "
            "they are in the folder cifar-10-batches-py of its python version."
        )
    images, labels = zip(*batches, strict=True)
    test_images, test_labels = _read_batch(folder / "test_batch")
    some = "" if len(batches) == 5 else f" ({len(batches)} of 5 batches)"
    return Images(
        f"CIFAR-10{some}",
        np.concatenate(images),
        np.concatenate(labels),
        test_images,
        test_labels,
        padding=4,
        flip=True,
    )


# A pickle can call any function that it can name, so an untrusted file could run
# anything. A batch is a dict of lists, bytes and one NumPy array; rebuilding that array
# takes only these three functions. NumPy 2 renamed `numpy.core`.
_rebuild_array = np.empty(0).__reduce__()[0]
_ALLOWED = {
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("numpy.core.multiarray", "_reconstruct"): _rebuild_array,
    ("numpy._core.multiarray", "_reconstruct"): _rebuild_array,
}


class _BatchUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return _ALLOWED[module, name]


def _read_batch(path: Path) -> tuple[np.ndarray, np.ndarray]:
    try:
        with path.open("rb") as file:
            # Python 2 wrote the original files, so their keys are bytes.
            return _images_and_labels(_BatchUnpickler(file, encoding="bytes").load())
    except OSError as error:
        raise ImageDataError(f"Cannot read {path}: {error.strerror}.") from error
    except Exception as error:  # A broken pickle can raise anything.
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ImageDataError(
            f"{path} is broken or not one of CIFAR-10's python batches: {reason}."
        ) from error


def _images_and_labels(batch: Any) -> tuple[np.ndarray, np.ndarray]:
    if not isinstance(batch, dict) or not {b"data", b"labels"} <= batch.keys():
        raise ValueError("it has no entries b'data' and b'labels'")
    data, labels = np.asarray(batch[b"data"]), np.asarray(batch[b"labels"])
    if data.dtype != np.uint8 or data.shape != (len(labels), 3072) or not len(labels):
        raise ValueError(
            f"its data must be uint8 of shape ({len(labels)}, 3072), a row for each "
            f"label, not {data.dtype} of shape {data.shape}"
        )
    if labels.dtype.kind not in "iu" or labels.min() < 0 or labels.max() > 9:
        raise ValueError("its labels must be integers from 0 to 9")
    # A row is the red plane, then the green, then the blue.
    images = data.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return np.ascontiguousarray(images), labels.astype(np.int32)
