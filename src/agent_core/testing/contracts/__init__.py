"""What an adapter of each port promises, as suites of tests: subclass one, and pytest runs it.

    class TestMyNotifier(NotifierContract):
        def setup_method(self) -> None:
            self.queue = MyQueue()

        def make(self) -> Notifier:
            return MyNotifier(self.queue)

        def received(self) -> list[dict[str, object]]:  # past the port
            return [json.loads(body) for body in self.queue.bodies]

        def deny(self) -> None:
            self.queue.allows = False

A suite needs nothing but `assert`. For pytest to show more than "AssertionError", put
`pytest.register_assert_rewrite("agent_core.testing.contracts")` into a `conftest.py`.
"""

from agent_core.testing.contracts.binary_store import BinaryStoreContract, runner_archive
from agent_core.testing.contracts.config_source import ConfigSourceContract
from agent_core.testing.contracts.contract import Contract, impossible, on_loop
from agent_core.testing.contracts.diagnostics_store import DiagnosticsStoreContract
from agent_core.testing.contracts.host_probe import HostProbeContract
from agent_core.testing.contracts.journal import JournalContract
from agent_core.testing.contracts.log_sink import LogSinkContract
from agent_core.testing.contracts.log_spool import LogSpoolContract, Pop, Push
from agent_core.testing.contracts.notifier import NotifierContract
from agent_core.testing.contracts.runner_behaviour import JOB_NAME, RunnerBehaviour
from agent_core.testing.contracts.runner_process import RunnerProcessContract
from agent_core.testing.contracts.terminator import TerminatorContract

__all__ = [
    "JOB_NAME",
    "BinaryStoreContract",
    "ConfigSourceContract",
    "Contract",
    "DiagnosticsStoreContract",
    "HostProbeContract",
    "JournalContract",
    "LogSinkContract",
    "LogSpoolContract",
    "NotifierContract",
    "Pop",
    "Push",
    "RunnerBehaviour",
    "RunnerProcessContract",
    "TerminatorContract",
    "impossible",
    "on_loop",
    "runner_archive",
]
