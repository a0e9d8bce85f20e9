"""No repair, as a method among others."""

from __future__ import annotations

from typing import ClassVar

from attrs import frozen

from advrepair.core.interfaces import Method
from advrepair.core.tasks import MethodResult, MethodStatus, Scope, Task


@frozen
class NoMethod(Method):
    """The network as it is."""

    name: ClassVar[str] = "none"

    def repair(self, task: Task) -> MethodResult:
        """The network itself."""
        return MethodResult(task.network, MethodStatus.NOT_REPAIRED, Scope.NONE, {})
