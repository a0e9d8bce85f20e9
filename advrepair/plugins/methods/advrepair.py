"""The repair of this package, as a method among others."""

from __future__ import annotations

from typing import ClassVar

from attrs import frozen

from advrepair.core.interfaces import Method
from advrepair.core.tasks import MethodResult, Task


@frozen
class Advrepair(Method):
    """What advrepair run deploys: patches beside the network, certified on the regions."""

    name: ClassVar[str] = "advrepair"

    def repair(self, task: Task) -> MethodResult:
        """With the indicator, allocator, patches and verifiers of the configuration.

        Its source is arXiv 2404.01642; docs/design.md says what is otherwise.
        """
        return task.hotfix()
