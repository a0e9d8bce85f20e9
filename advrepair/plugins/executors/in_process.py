"""Threads of this process, one thread of torch each."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from itertools import islice
from typing import ClassVar

from attrs import frozen

from advrepair.core.interfaces import Executor, Item, Result
from advrepair.core.options import option


@frozen
class InProcess(Executor):
    """Threads of this process, as many as it has processors."""

    name: ClassVar[str] = "in-process"

    workers: int = option(0, "shards that are worked on at once; 0: one a processor", at_least=0)

    def map(
        self, function: Callable[[Item], Result], items: Iterable[Item]
    ) -> Iterator[tuple[int, Result]]:
        """See :class:`~advrepair.core.interfaces.Executor`."""
        workers, waiting = self.workers or _processors(), enumerate(items)
        if workers == 1:
            yield from ((place, function(item)) for place, item in waiting)
            return
        pool, open_ = ThreadPoolExecutor(workers), dict[Future[Result], int]()
        try:
            while True:
                for place, item in islice(waiting, workers + 1 - len(open_)):
                    open_[pool.submit(function, item)] = place
                if not open_:
                    return
                for done in wait(open_, return_when=FIRST_COMPLETED).done:
                    yield open_.pop(done), done.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)  # what stops the work is told at once


def _processors() -> int:
    """Processors that this process may use; OMP_NUM_THREADS says otherwise."""
    asked = os.environ.get("OMP_NUM_THREADS", "")
    if asked.isdecimal() and int(asked):
        return int(asked)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
