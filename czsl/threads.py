"""Threads for work that releases the interpreter lock: reading files, decoding and resizing images, hashing."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

MAX_THREADS = 16  # a photograph of 100 megapixels takes 300 MB in each

T = TypeVar("T")
R = TypeVar("R")


def cores() -> int:
    """Number of CPU cores that this process may use, at most `MAX_THREADS`."""
    number = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(MAX_THREADS, number)


def ordered_map(function: Callable[[T], R], items: Iterable[T], workers: int = 0, window: int = 0) -> Iterator[R]:
    """``map`` over threads, in order, with a bounded number of results in memory.

    Uses threads: Pillow and hashlib release the interpreter lock while they work, and a fork can hang if other libraries run threads.

    Parameters
    ----------
    function : callable
    items : iterable
        Drawn in the calling thread.
    workers : int
        Threads; 0: :func:`cores`, at most 8.
    window : int
        Items in work ahead of the one that is handed out; 0: four for each thread.
    """
    workers = workers or min(8, cores())
    waiting: deque[Future[R]] = deque()
    pool = ThreadPoolExecutor(workers)
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > (window or 4 * workers):
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
