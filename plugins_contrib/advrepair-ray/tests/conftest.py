"""Ray clusters on this machine, that tell nobody and leave nothing running."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def cluster() -> Iterator[Any]:
    """Two nodes with one processor each."""
    from ray.cluster_utils import Cluster

    # A dead node is missed after three seconds instead of twenty.
    config = {"health_check_period_ms": 1000, "health_check_failure_threshold": 3}
    node = {"num_cpus": 1, "object_store_memory": 2**27, "include_dashboard": False}
    found = Cluster(
        initialize_head=True,
        head_node_args={**node, "_system_config": config},
        shutdown_at_exit=True,
    )
    found.add_node(**node)
    found.wait_for_nodes()
    yield found
    found.shutdown()


@pytest.fixture(scope="module")
def connected(cluster: Any) -> Iterator[Any]:
    """Ray, as the user of a cluster has it before advrepair comes; until the module's end."""
    import ray

    ray.init(address=cluster.address, log_to_driver=False)
    yield ray
    ray.shutdown()
