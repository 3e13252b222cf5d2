"""Locks a run folder for one training, which notices when the folder is gone."""

import fcntl
import logging
import os
import pathlib
import socket

import jax

from jaxdet.training.run_folder import RunError


class RunLock:
    """Holds the file `lock` of a run folder; of several hosts only the first does.

    The system releases it when the process ends, however that ends, so no run has to
    be unlocked by hand.
    """

    def __init__(self, workdir: str | os.PathLike):
        """Locks the folder, making it where needed.

        Args:
          workdir: the run folder.

        Raises:
          RunError: if another training has locked it, or it cannot be written to.
        """
        self.workdir = pathlib.Path(workdir).absolute()
        self._file = self.workdir / "lock"
        self._lock: int | None = None
        if jax.process_index() > 0:
            return
        try:
            self.workdir.mkdir(parents=True, exist_ok=True)
            self._lock = self._open()
        except OSError as error:
            reason = f"{workdir} cannot be a run folder: {error}"
            raise RunError(reason) from error

    def holds_folder(self) -> bool:
        """Returns whether the lock is still there, and with it the folder."""
        return self._lock is None or _is_at(self._lock, self._file)

    def close(self) -> None:
        """Unlocks the folder."""
        if self._lock is not None:
            if self.holds_folder():
                self._file.unlink(missing_ok=True)  # before it can be locked again
            os.close(self._lock)
            self._lock = None

    def _open(self) -> int:
        while True:
            lock = os.open(self._file, os.O_RDWR | os.O_CREAT, 0o666)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                owner = os.read(lock, 1000).decode(errors="replace").strip()
                os.close(lock)
                raise RunError(
                    f"{self.workdir} is in use by another training ({owner}); choose "
                    "another folder, or wait for its end"
                ) from None
            except OSError as error:  # of a file system without locks
                _LOG.warning("%s cannot be locked: %s", self.workdir, error)
            if _is_at(lock, self._file):  # else its owner has just removed it
                break
            os.close(lock)
        os.truncate(lock, 0)
        os.write(lock, f"process {os.getpid()} on {socket.gethostname()}\n".encode())
        return lock


def _is_at(descriptor: int, path: pathlib.Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except OSError:
        return False


_LOG = logging.getLogger(__name__)
