"""Two nodes, and what dies on them: the same bytes as in one process, each shard once."""

from __future__ import annotations

import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from work import SHARDS, die_once, recording, records, repaired, until, wait_for_both

from advrepair_ray import RayExecutor

RAY = {"plan": {"executor": "ray"}}


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    return repaired(tmp_path_factory.mktemp("here"))


def test_two_nodes_give_the_same_bytes(
    cluster: Any, expected: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    came = recording(monkeypatch, tmp_path / "seen", wait_for_both)
    found = repaired(tmp_path / "out", **RAY, executor={"address": cluster.address})
    assert found == expected
    assert sorted(came) == list(range(SHARDS))
    seen = records(tmp_path / "seen")
    assert Counter(each.place for each in seen) == Counter(range(SHARDS))  # each once
    assert len({each.node for each in seen}) == 2
    assert not ray.is_initialized()  # it connected, so it went


def test_a_killed_worker_is_replaced(
    connected: Any, expected: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    came = recording(monkeypatch, tmp_path / "seen", die_once)
    assert repaired(tmp_path / "out", **RAY) == expected
    assert sorted(came) == list(range(SHARDS))
    tries = [each.done for each in records(tmp_path / "seen") if each.place == 1]
    assert sorted(tries) == [False, True]
    assert connected.is_initialized()  # it was connected before, so it stays


def test_a_node_killed_in_the_middle_loses_nothing(
    cluster: Any,
    connected: Any,
    expected: dict[str, bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its second shard is begun there, never ends there, and is done on the other node."""
    mine = connected.get_runtime_context().get_node_id()
    (victim,) = [n for n in cluster.worker_nodes if n.node_id != mine]
    doomed, seen = victim.node_id, tmp_path / "seen"

    def stuck(place: int, node: str, folder: Path) -> None:
        if node != doomed:  # its first is done, its second is begun
            until(lambda: sum(each.node == doomed for each in records(folder)) == 2)
        elif sum(each.node == doomed for each in records(folder)) == 2:
            time.sleep(600)

    def on_victim(done: bool) -> list[int]:
        return [e.place for e in records(seen) if e.node == doomed and e.done == done]

    def kill() -> None:
        until(lambda: bool(on_victim(True) and on_victim(False)))
        cluster.remove_node(victim, allow_graceful=False)

    came = recording(monkeypatch, seen, stuck)
    killer = threading.Thread(target=kill)
    killer.start()
    try:
        found = repaired(tmp_path / "out", **RAY)
    finally:
        killer.join()
    assert found == expected
    assert sorted(came) == list(range(SHARDS))  # nothing lost, nothing twice
    done = Counter(each.place for each in records(seen) if each.done)
    assert set(done) == set(range(SHARDS))
    lost = on_victim(False)
    assert len(on_victim(True)) == 1
    assert len(lost) == 1
    again = [each for each in records(seen) if each.place == lost[0] and each.done]
    assert [each.node for each in again] == [mine]


def test_a_result_that_died_with_its_node_is_made_again(
    cluster: Any, connected: Any, tmp_path: Path
) -> None:
    """It was done, and lay in the memory of a node that was killed before anybody fetched it."""
    node = cluster.add_node(num_cpus=2, object_store_memory=2**27)
    cluster.wait_for_nodes()

    def large(item: int) -> bytes:
        (tmp_path / str(time.monotonic_ns())).touch()
        return bytes([item]) * 2_000_000

    found = RayExecutor(cpus=2, in_flight=3).map(large, range(1, 4))  # fits the new node only
    got = dict([next(found)])
    until(lambda: len(list(tmp_path.iterdir())) == 3)
    time.sleep(1)  # the others are done now
    cluster.remove_node(node, allow_graceful=False)
    cluster.add_node(num_cpus=2, object_store_memory=2**27)
    got |= dict(found)
    assert len(list(tmp_path.iterdir())) > 3
    assert got == {place: large(place + 1) for place in range(3)}
