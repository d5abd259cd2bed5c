import pytest
from trust.faults import write_bundle


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    """A bundle with random weights; tests that spoil one make their own."""
    return write_bundle(tmp_path_factory.mktemp("model") / "bundle")
