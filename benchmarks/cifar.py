"""Read CIFAR-10: what there is to train on and to test on.

Images are uint8 [N,32,32,3], labels int64 [N]. Not every image is there without loss; those that
are not come from JPEG files, whose pixels differ from the originals by some 6 grey levels of 255.
"""

from pathlib import Path

import numpy as np
from attrs import frozen
from numpy.typing import NDArray

Images = NDArray[np.uint8]
Labels = NDArray[np.int64]


@frozen(eq=False)
class Part:
    """Images with labels."""

    x: Images
    y: Labels

    def __len__(self) -> int:
        return len(self.x)


@frozen(eq=False)
class Cifar:
    """exact: training images without loss. lossy: others, from JPEG files, where those are there.

    test: test images without loss. jpeg: all test images, from JPEG files.
    """

    exact: Part
    lossy: Part | None
    test: Part
    jpeg: Part

    @property
    def train(self) -> Part:
        """All that there is to train on."""
        if self.lossy is None:
            return self.exact
        x, y = (self.exact.x, self.lossy.x), (self.exact.y, self.lossy.y)
        return Part(np.concatenate(x), np.concatenate(y))


def load(data: Path) -> Cifar:
    """Read the folder cifar10/ of a data folder; raises OSError if a file is not there.

    Only ``cifar10_train10k_jpeg.npz`` may be missing; images that are also there without loss are
    left out of it.
    """
    folder = data / "cifar10"
    with np.load(folder / "cifar10_lossless.npz", allow_pickle=False) as stored:
        exact, test, known = _part(stored, "train"), _part(stored, "test"), stored["train_index"]
    with np.load(folder / "cifar10_test_jpeg.npz", allow_pickle=False) as stored:
        jpeg = _part(stored, "test")
    further, lossy = folder / "cifar10_train10k_jpeg.npz", None
    if further.exists():
        with np.load(further, allow_pickle=False) as stored:
            new, every = ~np.isin(stored["train_index"], known), _part(stored, "train")
        lossy = Part(every.x[new], every.y[new])
    return Cifar(exact, lossy, test, jpeg)


def _part(stored: np.lib.npyio.NpzFile, name: str) -> Part:
    return Part(stored[f"x_{name}"], stored[f"y_{name}"].astype(np.int64))
