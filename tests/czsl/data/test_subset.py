"""A few images a pair of a dataset: the same ones each time, with their own bytes and labels."""

from collections import Counter

import numpy as np

from czsl.data.subset import Subset
from czsl.data.table import open_data


def test_a_part_holds_at_most_so_many_of_each_pair_with_their_bytes():
    whole = open_data("toy")
    part, split = Subset(whole, 2, 0).split("test"), whole.split("test")
    counts = Counter(map(tuple, split.pairs.tolist()))
    assert max(counts.values()) > 2  # something is left out
    assert Counter(map(tuple, part.pairs.tolist())) == {pair: min(n, 2) for pair, n in counts.items()}
    assert len(part) == len(part.ids) == len(part.sha256)
    places = [split.ids.index(name) for name in part.ids]
    assert places == sorted(places)
    assert part.image_bytes(5) == split.image_bytes(places[5])
    assert [(row, content) for row, content in part.iter_images(3, 6)] == [
        (row, split.image_bytes(places[row])) for row in (3, 4, 5)
    ]
    assert len(list(part.iter_images())) == len(part)


def test_the_seed_alone_decides_which():
    whole = open_data("toy")
    first, again, other = (Subset(whole, 2, seed).split("val").ids for seed in (0, 0, 1))
    assert first == again
    assert not np.array_equal(first, other)
    assert Subset(whole, 2, 0).sha256 == whole.sha256
