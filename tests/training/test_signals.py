import os
import signal

import pytest

from jaxdet.training.signals import DeferredSignals


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_waits_and_the_second_acts_at_once(number):
    previous = signal.getsignal(number)
    with DeferredSignals() as signals:
        assert not signals.should_stop(1)
        os.kill(os.getpid(), number)
        assert signals.should_stop(2)
        with pytest.raises((KeyboardInterrupt, SystemExit)) as ending:
            signals.act()
        assert signal.getsignal(number) is previous
    if number == signal.SIGTERM:
        assert ending.value.code == 128 + number
    assert signal.getsignal(number) is previous


def test_a_closed_terminal_waits_however_often_it_signals():
    previous = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # else the process ends
    try:
        with DeferredSignals() as signals:
            for _ in range(2):
                os.kill(os.getpid(), signal.SIGHUP)
            assert signals.should_stop(1)
            with pytest.raises(SystemExit) as ending, signals.immediate():
                pass
            os.kill(os.getpid(), signal.SIGHUP)  # while the run ends
        assert ending.value.code == 128 + signal.SIGHUP
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        with DeferredSignals() as signals:  # under nohup
            os.kill(os.getpid(), signal.SIGHUP)
            assert not signals.should_stop(1)
    finally:
        signal.signal(signal.SIGHUP, previous)


@pytest.mark.parametrize("before", [True, False])
def test_within_an_immediate_block_signals_act_at_once(before):
    with DeferredSignals() as signals:
        if before:
            os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt), signals.immediate():
            assert not before
            os.kill(os.getpid(), signal.SIGINT)
