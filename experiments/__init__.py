"""Commands and recipes; see README.md in this folder."""

import os
import signal
import sys

if sys.argv[0] == "-m" and signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
    # `python -m experiments.train` imports for seconds; `command_line.run` undoes this.
    signal.signal(signal.SIGINT, lambda *_: os._exit(130))
