"""Defers Ctrl-C, SIGTERM and SIGHUP in training until the step is saved."""

import contextlib
import signal
import threading
from collections.abc import Iterator

import jax
from jax.experimental import multihost_utils


class DeferredSignals:
    """Defers the first Ctrl-C or SIGTERM until `act`; a second one acts at once.

    SIGHUP, which a terminal sends when it is closed, and often twice, waits for `act`
    however often it comes; under `nohup` it stays ignored.

    One of several hosts cannot stop alone, since the others would wait for it forever.
    There JAX itself catches SIGTERM and stops all of them after the same step, and
    Ctrl-C acts at once.
    """

    def __init__(self):
        self._caught: int | None = None
        self._previous: dict = {}  # handlers, by signal
        self._deferring = True

    def __enter__(self):
        # Python delivers signals to the main thread.
        main = threading.current_thread() is threading.main_thread()
        if main and jax.process_count() == 1:
            for number in _deferred():
                self._previous[number] = signal.signal(number, self._catch)
        return self

    def __exit__(self, *_):
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _catch(self, number, _frame):
        first, self._caught = self._caught is None, number
        if number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._previous[number])
        if first and not self._deferring:
            self.act()

    @contextlib.contextmanager
    def immediate(self) -> Iterator[None]:
        """Lets signals act at once within a block, also one that came before."""
        self._deferring = False
        try:
            if self._caught is not None:
                self.act()
            yield
        finally:
            self._deferring = True

    def should_stop(self, step: int) -> bool:
        """Returns whether to stop after this step; all hosts ask after every step."""
        if multihost_utils.reached_preemption_sync_point(step):
            self._caught = signal.SIGTERM
        return self._caught is not None

    def act(self) -> None:
        """Does what the signal asks for.

        Raises:
          KeyboardInterrupt: for Ctrl-C.
          SystemExit: for the others, with the exit code of a process that they end.
        """
        if self._caught == signal.SIGINT:
            raise KeyboardInterrupt
        raise SystemExit(128 + self._caught)


def _deferred() -> tuple[int, ...]:
    numbers = (signal.SIGINT, signal.SIGTERM)
    hangup = getattr(signal, "SIGHUP", None)  # not on all systems
    if hangup is None or signal.getsignal(hangup) is signal.SIG_IGN:
        return numbers
    return (*numbers, hangup)
