"""The executor by itself: what it refuses, raises, repeats and leaves behind."""

from __future__ import annotations

import os
import signal
import sys
import time
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from work import Odd, until

from advrepair import AdvrepairError, UsageError
from advrepair_ray import RayExecutor

CLOSED = "127.0.0.1:1"


def squares(connected: Any, several: int, **options: Any) -> list[tuple[int, int]]:
    return sorted(RayExecutor(**options).map(lambda x: x * x, range(several)))


# Before the work ------------------------------------------------------------------------


def test_without_ray_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UsageError, match="not installed: pip install 'ray"):
        RayExecutor().require()


@pytest.mark.parametrize("address", [CLOSED, f"ray://{CLOSED}", "auto", "nonsense"])
def test_a_cluster_that_is_not_there(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", CLOSED)
    begin = time.monotonic()
    with pytest.raises(UsageError, match=r"^ray.address is .* can be reached \([^\n]*\); start"):
        RayExecutor(address=address).require()
    assert time.monotonic() - begin < 30


def test_a_cluster_that_is_there(cluster: Any) -> None:
    import ray

    RayExecutor(address=cluster.address).require()
    assert not ray.is_initialized()


def test_a_shard_that_fits_no_node(connected: Any, cluster: Any) -> None:
    for asked in ({"cpus": 64}, {"memory": 1e6}):
        with pytest.raises(UsageError, match="no node of the Ray cluster has"):
            RayExecutor(address=cluster.address, **asked).require()


def test_a_node_with_another_version(connected: Any, cluster: Any, tmp_path: Path) -> None:
    info = tmp_path / "advrepair-9.9.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: advrepair\nVersion: 9.9\n")
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    environment = {"env_vars": {"PYTHONPATH": path}, "object_store_memory": 2**27}
    other = cluster.add_node(num_cpus=3, **environment)
    cluster.wait_for_nodes()
    try:
        said = r"^Ray node .* has advrepair 9.9 and the driver [^\n]*same environment$"
        with pytest.raises(UsageError, match=said):
            RayExecutor(address=cluster.address).require()
        with pytest.raises(UsageError, match=said):  # if it came after require
            list(RayExecutor(address=cluster.address, cpus=3).map(abs, range(3)))
    finally:
        cluster.remove_node(other)


# The work -------------------------------------------------------------------------------


def test_every_place_once(connected: Any) -> None:
    assert squares(connected, 50) == [(x, x * x) for x in range(50)]
    assert squares(connected, 5, in_flight=1, retries=-1) == [(x, x * x) for x in range(5)]
    assert squares(connected, 0) == []


def test_few_items_are_asked_for_at_a_time(connected: Any) -> None:
    asked: list[int] = []
    items = (asked.append(x) or x for x in count())  # type: ignore[func-returns-value]
    found = RayExecutor(in_flight=3).map(abs, items)
    next(found)
    assert len(asked) <= 3
    found.close()  # type: ignore[attr-defined]


def test_an_error_arrives_as_itself(connected: Any) -> None:
    def refuse(item: int) -> int:
        raise UsageError(f"item {item} will not do")

    def fail(item: int) -> int:
        raise KeyError(item)

    with pytest.raises(AdvrepairError) as caught:
        list(RayExecutor().map(refuse, [7]))
    assert type(caught.value) is UsageError
    assert str(caught.value) == "item 7 will not do"
    with pytest.raises(KeyError) as other:
        list(RayExecutor().map(fail, [7]))
    assert type(other.value) is KeyError
    assert "in fail" in "".join(other.value.__notes__)  # where, on the node


def test_an_error_that_cannot_travel_is_an_error_still(connected: Any) -> None:
    def fail(item: int) -> int:
        raise Odd("first", "second")

    with pytest.raises(connected.exceptions.RayError, match="exception"):
        list(RayExecutor().map(fail, [7]))


def test_what_a_node_cannot_import(connected: Any, tmp_path: Path) -> None:
    (tmp_path / "only_here.py").write_text("def work(item):\n    return item\n")
    sys.path.insert(0, str(tmp_path))
    try:
        from only_here import work  # type: ignore[import-not-found]

        with pytest.raises(UsageError, match=r"cannot import .*only_here"):
            list(RayExecutor().map(work, range(3)))
    finally:
        sys.path.remove(str(tmp_path))


def test_a_worker_that_always_dies(connected: Any, tmp_path: Path) -> None:
    def die(item: int) -> None:
        (tmp_path / f"{time.monotonic_ns()}").touch()
        os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(UsageError, match=r"^Ray lost a shard more than 1 times [^\n]*ray.retries"):
        list(RayExecutor(retries=1).map(die, [0]))
    assert len(list(tmp_path.iterdir())) == 2


# Afterwards -----------------------------------------------------------------------------


def test_what_is_in_flight_is_cancelled(connected: Any, tmp_path: Path) -> None:
    def work(item: int) -> int:
        (tmp_path / str(item)).touch()
        if item:
            time.sleep(600)
        return item

    found = RayExecutor().map(work, range(9))
    assert next(found) == (0, 0)
    until(lambda: len(list(tmp_path.iterdir())) >= 2)
    found.close()  # type: ignore[attr-defined]
    assert squares(connected, 4) == [(x, x * x) for x in range(4)]  # both nodes are free
    assert len(list(tmp_path.iterdir())) <= 4
