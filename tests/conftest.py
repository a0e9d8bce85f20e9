"""Hypothesis profiles: `dev` by default, `ci` where the variable CI is set."""

import os

from hypothesis import settings

# At 25 examples two of eight planted bugs were missed, at 100 none.
settings.register_profile("dev", max_examples=50, deadline=None)
settings.register_profile("ci", max_examples=200, deadline=None, print_blob=True)
settings.load_profile("ci" if os.environ.get("CI") else "dev")
