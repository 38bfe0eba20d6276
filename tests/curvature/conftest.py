"""One thread for every test here."""

from small import one_thread  # noqa: F401 - a fixture
