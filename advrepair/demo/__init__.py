"""A small network and its images: what ``advrepair run`` repairs when it is given nothing.

``NETWORK`` is an ONNX file: a fully connected ReLU network 64-32-16-10, input ``input``
[N,1,8,8] in [0,1], output ``logits`` [N,10]. We trained it, without any defence; it is right on
97.6 % of the test images. ``IMAGES`` is an npz with ``x_train`` uint8 [1297,1,8,8], ``y_train``,
``x_test`` [500,1,8,8] and ``y_test``: pixel / 255 is what the network expects, and a pixel is
``round(level * 255 / 16)`` of the original grey level 0..16. In a checkout,
``benchmarks/train_digits.py`` makes both files.

The images are the test part of "Optical Recognition of Handwritten Digits", E. Alpaydin and
C. Kaynak, UCI Machine Learning Repository, 1998, https://doi.org/10.24432/C50P49, licensed
under CC BY 4.0, as scikit-learn distributes them; shuffled, rescaled and split by us.
"""

from importlib.resources import files
from pathlib import Path

NETWORK = Path(str(files(__name__) / "digits.onnx"))
IMAGES = Path(str(files(__name__) / "digits.npz"))
