"""Signals become a flag that is looked at between units of work."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from dagrow.errors import Interrupted

SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))


class Stopping:
    """`requested` is the number of the first signal received, or None."""

    def __init__(self) -> None:
        self.requested: int | None = None

    def check(self, message: str = "interrupted; everything finished so far is saved") -> None:
        """Raises Interrupted if a signal has come; called where everything finished is committed."""
        if self.requested is not None:
            raise Interrupted(self.requested, message)


@contextmanager
def graceful(notice: str = "") -> Iterator[Stopping]:
    """Inside the block the first SIGINT, SIGTERM or SIGHUP only sets `requested`; a second one raises Interrupted at once.

    `notice` is what a terminal on stderr is told then. Handlers are restored on leaving. A signal the caller had ignored (nohup, a background job) stays ignored.
    Outside the main thread Python allows no handlers: the flag then never rises.
    """
    stopping = Stopping()

    def receive(signum: int, frame: object) -> None:
        if stopping.requested is not None:
            raise Interrupted(signum, "interrupted twice: the work in progress is lost, everything committed is saved")
        stopping.requested = signum
        if notice:
            with suppress(OSError):
                os.write(2, notice.encode())  # not through sys.stderr, which may be in the middle of a write

    before = {}
    try:
        if threading.current_thread() is threading.main_thread():
            for signum in SIGNALS:
                # None: a handler that was not installed from Python, which could not be restored.
                if signal.getsignal(signum) not in (signal.SIG_IGN, None):
                    before[signum] = signal.signal(signum, receive)
        yield stopping
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
