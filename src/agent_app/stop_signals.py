"""The signals that ask an agent to stop; a module that costs nothing, since they are taken first."""

import signal

__all__ = ["STOP_SIGNALS"]

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
