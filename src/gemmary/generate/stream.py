"""Reading a request while it runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from types import TracebackType

from gemmary.generate.request import Completion, Piece, Request, Stats
from gemmary.generate.scheduler import Scheduler


class Stream(Iterator[Piece]):
    """The pieces of one request as they come. Closing it, leaving its `with` block, an exception inside the loop that
    drops it, or Ctrl-C cancels the request and gives its memory back.

    notices: what should be known before the first piece. told: what becomes of the completion. Several streams of one
    model may be open; they share steps.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        request: Request,
        notices: Sequence[str] = (),
        told: Callable[[Completion], Completion] | None = None,
    ) -> None:
        self.notices = tuple(notices)
        self._told = told or (lambda completion: completion)
        self._scheduler = scheduler
        self._request = request
        self._read: list[Piece] = []
        scheduler.submit(request)

    def __next__(self) -> Piece:
        try:
            while not self._request.unread:
                if self._request.finish_reason is not None:
                    # The step that failed may have been run for another stream, by another thread.
                    raise self._request.error or StopIteration
                self._scheduler.advance(self._request)
        except BaseException:
            self.close()
            raise
        piece = self._request.unread.popleft()
        self._read.append(piece)
        return piece

    def read(self) -> Completion:
        """Runs to the end."""
        for _ in self:
            pass
        return self.completion

    @property
    def stats(self) -> Stats:
        """So far; final once the last piece was read."""
        return self._request.stats()

    @property
    def completion(self) -> Completion:
        """All that was read, as `generate` gives it. Reads nothing itself."""
        return self._told(self._request.completion(self._read, self.notices))

    def close(self) -> None:
        """Cancels what has not ended."""
        self._scheduler.cancel(self._request)

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *error: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.close()

    def __del__(self) -> None:
        if hasattr(self, "_request"):
            self.close()
