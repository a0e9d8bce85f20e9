"""Shards of a repair as tasks of a Ray cluster: https://docs.ray.io."""

from __future__ import annotations

import logging
import os
import pickle
import platform
import socket
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any, ClassVar, NoReturn, TypeVar

from attrs import frozen

from advrepair import AdvrepairError, Component, Executor, UsageError, hookimpl, option

Item = TypeVar("Item")
Result = TypeVar("Result")

DISTRIBUTIONS = ("advrepair", "advrepair-ray", "torch")  # the same ones give the same bytes
_KNOCK_SECONDS = 10.0
_PROBE_SECONDS = 120.0
_HEED_SECONDS = 5.0  # a cancelled task is given to end
_LOOK_SECONDS = 5.0  # a cluster may grow: its processors are counted again after so long


@frozen
class RayExecutor(Executor):
    """Tasks of a Ray cluster; what a lost worker or node had is done again."""

    name: ClassVar[str] = "ray"

    address: str = option(
        "", "of the cluster: auto finds a running one, or host:port, or ray://...; empty: a new one"
    )
    in_flight: int = option(
        0, "shards sent at once; 0: twice as many as the cluster can work on", at_least=0
    )
    cpus: float = option(1.0, "processors that Ray counts for a shard", above=0)
    memory: float = option(0.0, "GiB that Ray sets aside for a shard; 0: none", at_least=0)
    retries: int = option(
        5, "how often a shard is done again whose worker or node died; -1: always", at_least=-1
    )

    def require(self) -> None:
        """Raises UsageError unless Ray, the cluster and what its nodes have are as needed."""
        _ray()
        if self.address:
            with self._cluster() as ray:
                self._check_nodes(ray)

    def map(
        self, function: Callable[[Item], Result], items: Iterable[Item]
    ) -> Iterator[tuple[int, Result]]:
        """The results as they get done; see :class:`advrepair.Executor`."""
        outlives = _ray().is_initialized()
        with self._cluster() as ray:
            work = ray.remote(_work).options(
                num_cpus=self.cpus,
                memory=int(self.memory * 2**30) or None,
                max_retries=self.retries,
                retry_exceptions=False,
            )
            packed, facts = ray.cloudpickle.dumps, _facts()
            shared = ray.put(packed(function))
            open_: dict[Any, int] = {}
            waiting, window, looked = enumerate(items), 0, -_LOOK_SECONDS
            try:
                while True:
                    if time.monotonic() - looked >= _LOOK_SECONDS:
                        window, looked = self._window(ray), time.monotonic()
                    for place, item in islice(waiting, max(0, window - len(open_))):
                        open_[work.remote(facts, shared, packed(item))] = place
                    if not open_:
                        return
                    for done in ray.wait(list(open_), num_returns=1)[0]:
                        yield open_.pop(done), self._value(ray, done)
            finally:
                # The end of a connection ends its tasks. Ray may abort the process if it is told
                # to cancel one whose result is on its way and then disconnects.
                if outlives and open_:
                    _drop(ray, list(open_))

    @contextmanager
    def _cluster(self) -> Iterator[Any]:
        """Ray, connected. What was connected before stays so; what is started here ends here."""
        ray = _ray()
        if ray.is_initialized():
            yield ray
            return
        local = {} if self.address else {"include_dashboard": False}
        try:
            _knock(self.address)
            ray.init(
                address=self.address or "local",
                logging_level=logging.ERROR,
                log_to_driver=False,
                **local,
            )
        except (OSError, RuntimeError, ValueError, ImportError, AssertionError) as error:
            where = self.address or "a new one"
            raise UsageError(
                f"ray.address is {where!r}: no such Ray cluster can be reached "
                f"({_line(error)}); start one with 'ray start --head', or leave it empty"
            ) from None
        try:
            yield ray
        finally:
            ray.shutdown()

    def _window(self, ray: Any) -> int:
        """Shards sent at once: some wait on the cluster, so that no processor does."""
        if self.in_flight:
            return self.in_flight
        return max(2, int(2 * ray.cluster_resources().get("CPU", 0) / self.cpus))

    def _check_nodes(self, ray: Any) -> None:
        """Raises UsageError if no node can take a shard, or one has other versions."""
        nodes = [node for node in ray.nodes() if node["Alive"]]
        able = [node for node in nodes if self._fits(node["Resources"])]
        if not able:
            raise UsageError(
                f"no node of the Ray cluster has {self.cpus:g} processors and {self.memory:g} GiB "
                "for a shard: lower ray.cpus or ray.memory"
            )
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        probe = ray.remote(_probe())
        asked = {
            node["NodeManagerAddress"] + " " + node["NodeID"][:8]: probe.options(
                num_cpus=0,
                max_retries=0,
                scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False),
            ).remote(DISTRIBUTIONS)
            for node in able
        }
        for name, answer in asked.items():
            try:
                found = ray.get(answer, timeout=_PROBE_SECONDS)
            except ray.exceptions.RayError as error:
                raise UsageError(f"Ray node {name} does not answer: {_line(error)}") from None
            _check(found, _facts(), name)

    def _fits(self, has: dict[str, float]) -> bool:
        return has.get("CPU", 0) >= self.cpus and has.get("memory", 0) >= self.memory * 2**30

    def _value(self, ray: Any, done: Any) -> Any:
        """The result of a task; raises what the function raised, as it was raised."""
        try:
            return ray.get(done)
        except ray.exceptions.RayTaskError as error:
            _raise(error)
        except _losses(ray) as error:
            raise UsageError(
                f"Ray lost a shard more than {self.retries} times ({_line(error)}): raise "
                "ray.retries, or ray.memory if workers ran out of it; --resume keeps what is done"
            ) from None


@hookimpl
def advrepair_components() -> tuple[type[Component], ...]:
    """What this distribution brings."""
    return (RayExecutor,)


def _ray() -> Any:
    """The module; raises UsageError without it."""
    # Ray would tell its authors about every cluster otherwise.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # else a warning at each start
    try:
        import ray
    except ImportError:
        raise UsageError(
            "executor 'ray' needs Ray, which is not installed: pip install 'ray>=2.40'"
        ) from None
    return ray


def _knock(address: str) -> None:
    """Raises OSError if nothing listens at host:port, which Ray takes minutes to say."""
    known = os.environ.get("RAY_ADDRESS", "") if address == "auto" else address
    host, colon, port = known.removeprefix("ray://").rpartition(":")
    if colon and port.isdecimal():
        socket.create_connection((host.strip("[]"), int(port)), _KNOCK_SECONDS).close()


def _work(facts: dict[str, str], function: bytes, item: bytes) -> Any:
    """One shard, on whatever node: a node may have come after the others were asked.

    Both are pickled, so that whatever another version makes of them, versions come first.
    """
    _check(_facts(), facts, platform.node())
    return pickle.loads(function)(pickle.loads(item))


def _probe() -> Callable[[tuple[str, ...]], dict[str, str]]:
    """A function that says what a process runs on; it travels as code, so it needs nothing."""

    def probe(distributions: tuple[str, ...]) -> dict[str, str]:
        import platform
        from importlib import metadata

        found = {"python": platform.python_version()}
        for name in distributions:
            try:
                found[name] = metadata.version(name)
            except metadata.PackageNotFoundError:
                found[name] = "none"
        return found

    return probe


_known: dict[str, str] = {}


def _facts() -> dict[str, str]:
    """What this process runs on, asked once."""
    if not _known:
        _known.update(_probe()(DISTRIBUTIONS))
    return _known


def _check(found: dict[str, str], here: dict[str, str], node: str) -> None:
    for name, version in here.items():
        if found[name] != version:
            raise UsageError(
                f"Ray node {node} has {name} {found[name]} and the driver {version}: every node "
                "needs the same environment"
            )


def _losses(ray: Any) -> tuple[type[Exception], ...]:
    """What Ray says when the task itself is not to blame."""
    known = ray.exceptions
    return (
        known.WorkerCrashedError,
        known.NodeDiedError,
        known.ObjectLostError,
        known.OutOfMemoryError,
        known.LocalRayletDiedError,
    )


def _drop(ray: Any, left: list[Any]) -> None:
    """Cancel tasks, and kill the workers of those that do not heed it."""
    for task in left:
        ray.cancel(task)
    _, deaf = ray.wait(left, num_returns=len(left), timeout=_HEED_SECONDS)
    for task in deaf:
        ray.cancel(task, force=True)


def _raise(error: Any) -> NoReturn:
    """What the function raised, without Ray's wrapping; where, in a note."""
    cause = error.cause
    if isinstance(cause, ImportError):
        raise UsageError(
            f"a Ray node cannot import what the driver has ({_line(cause)}): every node needs the "
            "same environment"
        ) from None
    if not isinstance(cause, Exception) or type(cause).__module__.startswith("ray."):
        raise error
    if not isinstance(cause, AdvrepairError):  # their messages are one line
        cause.add_note(str(error))
    raise cause from None


def _line(error: BaseException) -> str:
    """The first line of a message that may have many."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
