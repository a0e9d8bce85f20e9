"""Hypothesis profiles: `dev` by default, `ci` where the variable CI is set."""

import os

from hypothesis import settings

# Test processes run side by side; threads of each would only wait for one another. Set
# before torch is imported, so that programs the tests start have it too.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# At 25 examples two of eight planted bugs were missed, at 100 none.
settings.register_profile("dev", max_examples=50, deadline=None)
settings.register_profile("ci", max_examples=200, deadline=None, print_blob=True)
settings.load_profile("ci" if os.environ.get("CI") else "dev")
