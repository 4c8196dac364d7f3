"""Images for the examples: black and white, in three parts, from your own machine.

Pixels are binary, so that a Bernoulli likelihood is a proper one, and nats are comparable between
programs on the same data. The test part is never trained on.

* ``digits``: scikit-learn's 1,797 images of 8 x 8 pixels, in the package: nothing to download. A
  pixel is 1 where it is brighter than half.
* ``mnist`` and ``fashion-mnist``: 70,000 images of 28 x 28, from IDX files in ``path`` (gzipped or
  not; Debian: ``apt install dataset-fashion-mnist``). With ``download`` they are fetched to
  ``path`` and their published checksums are verified. Each grey pixel is drawn once from a
  Bernoulli of its intensity, with a fixed seed, as in the literature ("static binarization").
* ``binarized-mnist``: the binarization of Larochelle & Murray 2011, from the ``.npz`` file ``path``
  with arrays ``train``, ``valid``, ``test`` of 784 bits a row, packed (``numpy.packbits``) or not.
"""

from __future__ import annotations

import gzip
import hashlib
import urllib.request
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

import amortized as am

DEBIAN = "/usr/share/datasets/fashion-mnist"
SOURCES = {
    "mnist": "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "fashion-mnist": "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
}
# As published, of FILES in order.
MD5 = {
    "mnist": (
        "f68b3c2dcbeaaa9fbdd348bbdeb94873",
        "d53e105ee54ea40749a09fcbcd1e9432",
        "9fb629c4189551a2d022fa330f9573f3",
        "ec29112dd5afa0611ce80d1b7f02629c",
    ),
    "fashion-mnist": (
        "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
        "25c81989df183df01b3e8a0aad5dffbe",
        "bef4ecab320f06d8554ea6380940ec79",
        "bb300cfdad3c16e7a12a480ee83cd310",
    ),
}
FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)


@dataclass(frozen=True)
class Images:
    """Binary images ``[n, height * width]`` as floats, and the labels of the test part if known."""

    train: torch.Tensor
    val: torch.Tensor
    test: torch.Tensor
    labels: torch.Tensor | None
    shape: tuple[int, int]


def load(data: str = "digits", path: str = "", download: bool = False) -> Images:
    """The data set of that name."""
    if data == "digits":
        return _digits()
    if data in SOURCES:
        return _mnist_like(data, path, download)
    if data == "binarized-mnist":
        return _binarized(Path(path).expanduser())
    raise am.UsageError(f"data={data!r}: expected digits, {', '.join(SOURCES)} or binarized-mnist")


def _digits() -> Images:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise am.UsageError("data=digits needs: pip install scikit-learn") from error
    bunch = load_digits()
    order = np.random.default_rng(0).permutation(len(bunch.data))
    train, val, test = np.split(order, [1257, 1437])
    x = torch.tensor(bunch.data > 8, dtype=torch.float32)
    return Images(x[train], x[val], x[test], torch.tensor(bunch.target[test]), (8, 8))


def _mnist_like(data: str, path: str, download: bool) -> Images:
    folder = Path(path or (DEBIAN if data == "fashion-mnist" else data)).expanduser()
    if download:
        _fetch(data, folder)
    train, _, test, labels = (_idx(folder / name, data) for name in FILES)
    images = [_drawn(part.reshape(len(part), -1) / 255.0) for part in (train, test)]
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(0))
    val, rest = order[: len(train) // 12], order[len(train) // 12 :]
    height, width = train.shape[1:]
    label = torch.tensor(labels).long()
    return Images(images[0][rest], images[0][val], images[1], label, (height, width))


def _binarized(file: Path) -> Images:
    if not file.is_file():
        raise am.UsageError(
            f"data=binarized-mnist: no file {str(file)!r}; give it as path=FILE.npz"
        )
    with np.load(file, allow_pickle=False) as held:
        parts = [held[name] for name in ("train", "valid", "test")]
    bits = [np.unpackbits(part, axis=1) if part.shape[1] == 98 else part for part in parts]
    return Images(*(torch.tensor(part).float() for part in bits), None, (28, 28))


def _drawn(intensity: np.ndarray) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.bernoulli(torch.tensor(intensity, dtype=torch.float32), generator=generator)


def _idx(stem: Path, data: str) -> np.ndarray:
    """An IDX file of bytes: two zeros, the type 8, the number of dims, big-endian sizes, bytes."""
    zipped = stem.with_name(stem.name + ".gz")
    if not zipped.is_file() and not stem.is_file():
        raise am.UsageError(
            f"data={data}: no {zipped.name} in {stem.parent}; give its folder as path=..., or add "
            "download=true to fetch it there"
        )
    raw = gzip.decompress(zipped.read_bytes()) if zipped.is_file() else stem.read_bytes()
    if raw[:3] != b"\0\0\x08":
        raise am.UsageError(f"{stem.name} in {stem.parent} is no IDX file of bytes")
    sizes = np.frombuffer(raw, ">i4", count=raw[3], offset=4)
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * raw[3]).reshape(sizes)


def _fetch(data: str, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, expected in zip(FILES, MD5[data], strict=True):
        target = folder / f"{name}.gz"
        if target.is_file():
            continue
        try:
            with urllib.request.urlopen(SOURCES[data] + target.name, timeout=60) as answer:
                content = answer.read()
        except OSError as error:
            raise am.UsageError(f"could not download {target.name}: {error}") from error
        found = hashlib.md5(content).hexdigest()
        if found != expected:
            raise am.UsageError(f"{target.name}: md5 {found}, expected {expected}; not kept")
        target.write_bytes(content)
