"""Threads that keep the order of their work."""

import threading
import time

import pytest

from czsl.threads import cores, ordered_map


def test_ordered_map_is_ordered_and_bounded():
    pulled = []

    def items():
        for i in range(100):
            pulled.append(i)
            yield i

    results = ordered_map(lambda x: x * x, items(), workers=2)
    assert next(results) == 0
    assert len(pulled) < 20
    assert list(results) == [x * x for x in range(1, 100)]


def test_a_window_is_filled_while_nobody_asks():
    began = []
    results = ordered_map(lambda x: began.append(x) or x, range(100), workers=3, window=20)
    assert next(results) == 0
    until = time.monotonic() + 10
    while len(began) < 21 and time.monotonic() < until:
        time.sleep(0.001)
    assert sorted(began) == list(range(21))
    assert list(results) == list(range(1, 100))


def test_an_error_comes_in_its_turn_and_ends_the_threads():
    before = threading.active_count()

    def work(x):
        if x == 5:
            raise ValueError("five")
        return x

    results = ordered_map(work, range(50), workers=2)
    assert [next(results) for _ in range(5)] == list(range(5))
    with pytest.raises(ValueError, match="five"):
        next(results)
    assert threading.active_count() == before


def test_there_is_a_core():
    assert 1 <= cores() <= 16
