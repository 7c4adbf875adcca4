"""What several tests of the server start from."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.serve.running import Server, serving


@pytest.fixture(scope="module")
def server(trained: Path) -> Iterator[Server]:
    """A server of a trained run that writes at most eight texts at a time."""
    with serving(trained, "--rows", "8") as one:
        yield one
