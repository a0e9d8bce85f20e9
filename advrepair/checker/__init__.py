"""An independent checker of run folders; to read it, begin with ``verdict.py``."""

from advrepair.checker.verdict import Verdict, check

__all__ = ["Verdict", "check"]
