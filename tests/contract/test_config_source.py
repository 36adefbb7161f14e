"""The config sources keep the promises of their port."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from agent_adapters.filesystem import FileConfigSource
from agent_adapters.memory import InMemoryConfigSource
from agent_adapters.wire import parse_config
from agent_core.errors import ConfigDeniedError, ConfigError, ConfigUnavailableError
from agent_core.testing import simulation
from agent_core.testing.contracts import ConfigSourceContract

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from pathlib import Path


class TestInMemoryConfigSource(ConfigSourceContract):
    """It holds configs, not texts: the back door reads them as the adapters of texts do."""

    def setup_method(self) -> None:
        self.source = InMemoryConfigSource()

    def run(self, main: Coroutine[Any, Any, Any]) -> Any:
        return simulation.run(lambda: main)

    def make(self) -> InMemoryConfigSource:
        return self.source

    def put(self, text: str) -> None:
        self.remove()
        try:
            self.source.config = parse_config(text)
        except ConfigError as exc:
            self.source.error = exc

    def remove(self) -> None:
        self.source.config = self.source.error = None

    def deny(self) -> None:
        self.source.error = ConfigDeniedError("it may not be read")

    def break_(self) -> None:
        self.source.error = ConfigUnavailableError("it does not answer")


class TestFileConfigSource(ConfigSourceContract):
    @pytest.fixture(autouse=True)
    def _place(self, tmp_path: Path, unprivileged: Callable[[], None]) -> None:
        self.path = tmp_path / "job.json"
        self.drop_privileges = unprivileged

    def make(self) -> FileConfigSource:
        return FileConfigSource(self.path)

    def put(self, text: str) -> None:
        self.path.write_text(text, "utf-8")

    def remove(self) -> None:
        self.path.unlink()

    def deny(self) -> None:
        self.path.chmod(0)
        self.drop_privileges()

    def break_(self) -> None:
        self.path.unlink()
        self.path.mkdir()
