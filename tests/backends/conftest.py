"""What tests of runs in processes of their own share."""

from collections.abc import Iterator

import pytest

from tests.backends.launch import Launcher


@pytest.fixture(scope="module")
def launcher() -> Iterator[Launcher]:
    launcher = Launcher()
    yield launcher
    launcher.close()
