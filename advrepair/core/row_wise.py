"""Models whose rows are different functions: what an attack may be given."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn


class RowWise(nn.Module, ABC):
    """A model whose rows are different functions, as when each row's route is fixed."""

    @abstractmethod
    def of_rows(self, index: Tensor) -> nn.Module:
        """The model of some of its rows, [n]."""


def of_rows(model: nn.Module, index: Tensor) -> nn.Module:
    """A model as it is for some of the rows, [n]: the same one, unless it is row-wise."""
    return model.of_rows(index) if isinstance(model, RowWise) else model
