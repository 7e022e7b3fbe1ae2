"""`Batcher`: what requests ask at the same time is computed together, in one thread, and in turn."""

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

# The most to compute at once. More is hardly faster, and those who come next would wait longer.
_TEXTS = 64
_CHARACTERS = 32_000


class QueueFull(RuntimeError):
    """More is waiting than the queue holds.

    Attributes:
        seconds: About how long what waits will take.
    """

    def __init__(self, message: str, seconds: int = 1) -> None:
        super().__init__(message)
        self.seconds = seconds


@dataclass(eq=False)
class _Request:
    waiting: deque[Any]
    wanted: int
    answers: list[Any]
    done: asyncio.Future[list[Any]]


class Batcher:
    """Collects the texts of waiting requests and answers them together, while the next ones gather.

    No request waits for others to come. Requests take turns, text by text, so a short one does not wait for all of a
    long one that came before. A text that cannot be computed fails its own request alone.

    Args:
        compute: Answers texts, or other values that have a length, one answer for each, whatever the others are. It is
            called in a thread, one call at a time.
        most_waiting: The number of texts that may wait.
        most_texts: The most texts of a call.

    Example:
        >>> import asyncio
        >>> asyncio.run(Batcher(lambda texts: [len(text) for text in texts], 100).answer(["one", "three"]))
        [3, 5]
    """

    def __init__(
        self, compute: Callable[[list[Any]], list[Any]], most_waiting: int, *, most_texts: int = _TEXTS
    ) -> None:
        self._compute, self._most_waiting, self._most_texts = compute, most_waiting, most_texts
        self._requests: deque[_Request] = deque()
        self._waiting = 0
        self._pace = 0.0  # seconds a text, in the last batch
        self._worker: asyncio.Task[None] | None = None

    async def answer(self, texts: Sequence[Any]) -> list[Any]:
        """Return the answer to each text.

        Raises:
            QueueFull: These would be more than may wait.
        """
        if self._waiting + len(texts) > self._most_waiting:
            problem = f"{self._waiting} texts are waiting already, and {self._most_waiting} may; try again later"
            raise QueueFull(problem, max(1, math.ceil(self._waiting * self._pace)))
        if not texts:
            return []
        request = _Request(deque(texts), len(texts), [], asyncio.get_running_loop().create_future())
        self._waiting += len(texts)
        self._requests.append(request)
        if self._worker is None or self._worker.done():
            self._worker = asyncio.create_task(self._work())
        try:
            return await request.done
        except asyncio.CancelledError:  # nobody waits any longer: what was not begun makes room for others
            self._waiting -= len(request.waiting)
            request.waiting.clear()
            raise

    async def _work(self) -> None:
        while batch := self._take():
            await self._settle(batch)

    def _take(self) -> list[tuple[_Request, Any]]:
        """Return the texts to compute next, one of each request in turn."""
        batch: list[tuple[_Request, Any]] = []
        characters = 0
        while self._requests and len(batch) < self._most_texts and characters < _CHARACTERS:
            request = self._requests.popleft()
            if request.done.done() or not request.waiting:  # it failed, or nobody waits any longer
                self._waiting -= len(request.waiting)
                continue
            batch.append((request, request.waiting.popleft()))
            characters += len(batch[-1][1])
            if request.waiting:
                self._requests.append(request)
        self._waiting -= len(batch)
        return batch

    async def _settle(self, batch: list[tuple[_Request, Any]]) -> None:
        """Compute a batch, and finish the requests that this completes."""
        start = time.monotonic()
        computing = asyncio.to_thread(self._compute, [text for _, text in batch])
        found = (await asyncio.gather(computing, return_exceptions=True))[0]
        self._pace = (time.monotonic() - start) / len(batch)
        if isinstance(found, BaseException) and len(batch) > 1:  # one text may be at fault: the others are answered
            for one in batch:
                await self._settle([one])
            return
        for i, (request, _) in enumerate(batch):
            if request.done.done():
                continue
            if isinstance(found, BaseException):
                request.done.set_exception(found)
                continue
            request.answers.append(found[i])
            if len(request.answers) == request.wanted:
                request.done.set_result(request.answers)
