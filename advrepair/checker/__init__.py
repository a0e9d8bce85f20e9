"""An independent checker of run folders: numpy and the standard library, nothing else.

It shares no code with the repair. ``python -m advrepair.checker FOLDER`` prints its verdict.
"""

from advrepair.checker.verdict import Verdict, check

__all__ = ["Verdict", "check"]
