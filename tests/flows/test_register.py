"""Registering deployments with a server that cannot be asked. What it keeps is seen in test_services.py."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from prefect.settings import PREFECT_API_URL, temporary_settings

from flows.register import main
from tests.flows.prefect_server import free_port


class _Guarded(BaseHTTPRequestHandler):
    """Wants a password, as the server of the compose file does."""

    def do_GET(self) -> None:
        self.send_error(401)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def guarded() -> Iterator[int]:
    with HTTPServer(("127.0.0.1", 0), _Guarded) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()


def _complaint(port: int, capsys: pytest.CaptureFixture[str]) -> str:
    with temporary_settings({PREFECT_API_URL: f"http://127.0.0.1:{port}/api"}):
        assert main() == 2
    said = capsys.readouterr().err
    assert said.startswith(f"mapet: error: Prefect at http://127.0.0.1:{port}/api: ")
    assert said.count("\n") == 1
    return said


def test_a_server_that_is_not_there_is_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert "Connection refused" in _complaint(free_port(), capsys)


def test_a_server_that_wants_a_password_is_one_sentence(guarded: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert "401" in _complaint(guarded, capsys)
