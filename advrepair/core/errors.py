"""What can go wrong, and who can mend it.

::

    AdvrepairError
    ├── UsageError                   the user can fix it                  exit 2
    │   └── UnsupportedNetworkError  names the node and the verifier
    ├── PluginError                  its author must fix it               exit 3
    └── SoundnessError               a certified property was falsified   exit 4

Not proving something is no error: it is a :class:`~advrepair.core.types.Status`.
"""

from typing import ClassVar


class AdvrepairError(Exception):
    """Anything advrepair raises on purpose; its message is one line."""

    exit_code: ClassVar[int] = 1


class UsageError(AdvrepairError):
    """The user can fix it: the message says what, where and what to do."""

    exit_code: ClassVar[int] = 2


class UnsupportedNetworkError(UsageError):
    """The network holds an operation that cannot be read or bounded; names the node."""


class PluginError(AdvrepairError):
    """A plugin broke its contract; its author must fix it."""

    exit_code: ClassVar[int] = 3


class SoundnessError(AdvrepairError):
    """A certified property was falsified. Never caught: a proof was wrong."""

    exit_code: ClassVar[int] = 4
