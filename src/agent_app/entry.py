"""The console script. Signals are taken first, everything else is imported after.

Python takes tenths of a second to import an agent; a SIGTERM in that time must not kill it silently.
"""

import os
import signal
import sys
from types import FrameType

from agent_app.stop_signals import STOP_SIGNALS

__all__ = ["main"]

_RUN_ONLY_FLAGS = ("--json", "--reflect-job")
"""`reap` does not know them."""

_SHOW_SECONDS = 3.0
_UMASK = 0o022
"""Nobody else writes where the agent writes."""


def main() -> None:
    """Runs the command line, and exits with its status."""
    early: list[signal.Signals] = []

    def keep(number: int, _frame: FrameType | None) -> None:
        early.append(signal.Signals(number))

    command = sys.argv[1:2]
    try:
        if command in (["run"], ["reap"]):
            for number in STOP_SIGNALS:
                if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup wants it
                    signal.signal(number, keep)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
        _complete_descriptors()
        os.umask(os.umask(_UMASK) | _UMASK)
        from agent_app.cli import main as run_command_line  # noqa: PLC0415 - see above

        status = run_command_line(sys.argv[1:], early)
    except BaseException as exc:
        if command == ["run"]:
            _let_reap_finish(exc)
        if command != ["reap"] and isinstance(exc, KeyboardInterrupt):
            sys.exit(128 + signal.SIGINT)  # of a command that only looks: the others take the signal
        raise
    sys.exit(status)


def _let_reap_finish(exc: BaseException) -> None:
    """Begins the process anew as the successor of the agent that it was, whatever is broken in it."""
    for number in STOP_SIGNALS:
        # It goes as soon as it can, whoever asks; and while Python begins, a signal would kill it.
        signal.signal(number, signal.SIG_IGN)
    _show(exc)
    own = len(sys.orig_argv) - len(sys.argv) + 1
    flags = [flag for flag in sys.argv[2:] if flag not in _RUN_ONLY_FLAGS]
    successor = [*sys.orig_argv[:own], "reap", "--fault", type(exc).__name__, *flags]
    # Not the environment as C has it: the agent has blanked that.
    os.execve(sys.executable, successor, os.environ)  # noqa: S606 - no shell is wanted


def _show(exc: BaseException) -> None:
    """Prints the traceback, if stderr takes it in time: it may be a pipe that nobody reads."""
    try:
        import _thread  # noqa: PLC0415 - these are for this rare case only
        import traceback  # noqa: PLC0415

        shown = _thread.allocate_lock()
        shown.acquire()

        def show() -> None:
            traceback.print_exception(exc)
            shown.release()

        # Not threading's: its start waits for ever where there is no memory.
        _thread.start_new_thread(show, ())
        shown.acquire(timeout=_SHOW_SECONDS)
    except Exception:  # noqa: BLE001, S110 - no memory, no thread: that is not what matters now
        pass


def _complete_descriptors() -> None:
    """Opens what is closed of 0, 1 and 2: no file that the agent opens may pass for its stderr."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:  # noqa: PLR2004 - stdin, stdout, stderr
        pass
    os.close(descriptor)
