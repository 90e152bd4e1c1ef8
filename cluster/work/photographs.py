"""Image features of files: read, decoded and resized by threads while the device computes, or found among those of an earlier question.

Features of an image do not depend on the images that share its batch, so what is new is gathered from several batches of names.
"""

from __future__ import annotations

import hashlib
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from cluster.work.profile import Profile
from cluster.work.request import BATCH
from czsl.data.images import BadImage, decode
from czsl.data.inputs import ImageSource, Stamp
from czsl.data.kept_features import FeatureStore, Kept
from czsl.data.photographs import DecodeOptions
from czsl.threads import cores, ordered_map

HALF = BATCH // 2
MAX_WAITING = 16 * BATCH  # images that wait for a new one before them until it is encoded in a batch that is not full


@dataclass
class Photograph:
    """One image on its way: ``prepared`` tensors, then ``features``; or the ``error`` that ended it."""

    name: str
    stamp: Stamp | None = None
    content: bytes = b""
    prepared: dict[str, Tensor] | None = None
    features: np.ndarray | None = None
    error: BadImage | None = None

    @property
    def ready(self) -> bool:
        """Return whether nothing is left to be computed."""
        return self.features is not None or self.error is not None


@dataclass(frozen=True)
class Preparation:
    """Steps from a file to the tensors of one image.

    prepare : PIL image and name -> tensors by key
    options : how stored pixels become a picture
    named : the result follows from the image's name as well, which is then part of the key that features are kept under
    reduced_for : see :func:`czsl.data.images.decode`
    """

    prepare: Callable[[Image.Image, str], dict[str, Tensor]]
    options: DecodeOptions
    named: bool = False
    reduced_for: int | None = None


class Photographs:
    """Features of files by batches of names, in order.

    Parameters
    ----------
    how : Preparation
    encode : callable
        Tensors [n, ...] by key -> features [n, ...]; called with n = `BATCH`, or `HALF` if ``halves``.
    halves : bool
        Whether n = `HALF` gives the same digits as n = `BATCH`, so that few images cost half.
    store : FeatureStore, optional
        Features of earlier questions; without one nothing is kept.
    threads : int
        Number of threads that read and decode; 0: one for each core. It changes no result.
    profile : Profile, optional
    """

    def __init__(
        self,
        how: Preparation,
        encode: Callable[[Mapping[str, Tensor]], Tensor],
        *,
        halves: bool = False,
        store: FeatureStore | None = None,
        threads: int = 0,
        profile: Profile | None = None,
    ):
        self.how, self.encode, self.halves, self.store = how, encode, halves, store
        self.threads, self.profile = threads or cores(), profile or Profile()

    def batches(self, source: ImageSource, batches: Iterable[list[str]]) -> Iterator[list[Photograph]]:
        """The images of each batch of names, ready."""
        waiting: deque[list[Photograph]] = deque()
        missing: list[Photograph] = []
        for photographs in self._read(source, batches):
            waiting.append(photographs)
            missing += [p for p in photographs if not p.ready]
            while len(missing) >= BATCH:
                self._encode(missing[:BATCH])
                del missing[:BATCH]
            if missing and sum(map(len, waiting)) > MAX_WAITING:
                self._encode(missing)
                missing = []
            while waiting and all(p.ready for p in waiting[0]):
                yield waiting.popleft()
        if missing:
            self._encode(missing)
        yield from waiting

    def _read(self, source: ImageSource, batches: Iterable[list[str]]) -> Iterator[list[Photograph]]:
        """Batches of images that are prepared, known or bad; the next ones are read while the caller computes."""
        sizes: deque[int] = deque()
        # An archive is read from its beginning to its end: in a compressed one every step back starts again.
        with ExitStack() as stack:
            serial = stack.enter_context(ThreadPoolExecutor(1))
            stack.callback(serial.shutdown, cancel_futures=True)
            window = max(BATCH, 2 * self.threads)
            slots = threading.Semaphore(2 * self.threads)  # for members of archives that are read and not yet decoded
            stack.callback(slots.release, window + 2)  # the thread that waits for it can end

            def read(name: str) -> bytes:
                slots.acquire()
                return self._bytes(source, name)

            def prepared(item: tuple[Photograph, Future[bytes] | None]) -> Photograph:
                p, content = item
                if content is None:
                    return self._prepared(p, lambda: self._bytes(source, p.name))
                try:
                    return self._prepared(p, content.result)
                finally:
                    slots.release()

            def todo() -> Iterator[tuple[Photograph, Future[bytes] | None]]:
                for names in batches:
                    found = self._kept(source, names)
                    sizes.append(len(found))
                    for p in found:
                        within = p.features is None and source.file(p.name) is None
                        yield p, serial.submit(read, p.name) if within else None

            results = ordered_map(prepared, todo(), self.threads, window)
            stack.callback(results.close)  # type: ignore[attr-defined]
            batch: list[Photograph] = []
            while True:
                with self.profile.phase("waiting"):
                    photograph = next(results, None)
                if photograph is None:
                    return
                batch.append(photograph)
                if len(batch) == sizes[0]:
                    sizes.popleft()
                    yield batch
                    batch = []

    def _kept(self, source: ImageSource, names: list[str]) -> list[Photograph]:
        """The images of a batch of names; those that have not changed since an earlier question have their features."""
        if self.store is None:
            return [Photograph(name) for name in names]
        stamps = [self._stamp(source, name) for name in names]
        found = [Photograph(n, s, features=f) for n, s, f in zip(names, stamps, self.store.find(stamps), strict=True)]
        self.profile.count("kept", sum(p.features is not None for p in found))
        return found

    def _stamp(self, source: ImageSource, name: str) -> Stamp | None:
        stamp = source.version(name)
        if stamp is None or not self.how.named:
            return stamp
        place, *rest = stamp
        return (place + b"\0\0" + name.encode(errors="surrogateescape"), *rest)  # type: ignore[return-value]

    def _bytes(self, source: ImageSource, name: str) -> bytes:
        with self.profile.phase("reading"):
            return source.open(name)

    def _prepared(self, p: Photograph, read: Callable[[], bytes]) -> Photograph:
        """Prepare one image; called by the threads."""
        if p.ready:
            return p
        try:
            data = read()
            if self.store is not None:
                named = p.name.encode(errors="surrogateescape") if self.how.named else b""
                p.content = hashlib.sha256(hashlib.sha256(data).digest() + named).digest()
                p.features = self.store.find_content(p.content, p.stamp)
            if p.features is not None:
                self.profile.count("kept")
                return p
            with self.profile.phase("decoding"):
                image = decode(data, options=self.how.options, reduced_for=self.how.reduced_for)
                p.prepared = self.how.prepare(image, p.name)
        except BadImage as error:
            p.error = error
            self.profile.count("bad")
        return p

    def _encode(self, photographs: list[Photograph]) -> None:
        """Fill in the features of at most `BATCH` images."""
        with self.profile.phase("encoding"):
            prepared = [p.prepared for p in photographs if p.prepared is not None]
            size = HALF if self.halves and len(prepared) <= HALF else BATCH
            padded = prepared + [prepared[-1]] * (size - len(prepared))
            features = self.encode({key: torch.stack([p[key] for p in padded]) for key in padded[0]}).cpu().numpy()
        for p, own in zip(photographs, features, strict=False):
            p.features, p.prepared = own.copy(), None
        self.profile.count("encoded", len(photographs))
        if self.store is not None:
            self.store.add([Kept(p.content, p.stamp, p.features) for p in photographs if p.features is not None])
