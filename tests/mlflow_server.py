"""A real MLflow server that goes down and comes up again on the same port, over the same database."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen


class MlflowServer:
    """On 127.0.0.1; a context manager that stops it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self._port}"
        self._process: subprocess.Popen[bytes] | None = None

    def up(self, seconds: float = 180) -> None:
        store = ("--backend-store-uri", f"sqlite:///{self._folder / 'mlflow.db'}")
        files = ("--default-artifact-root", (self._folder / "files").as_uri(), "--no-serve-artifacts")
        words = ["server", "--host=127.0.0.1", f"--port={self._port}", "--workers=1", *store, *files]
        environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        with (self._folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "mlflow", *words],
                env=environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        deadline = time.monotonic() + seconds
        while not self._answers():
            assert self._process.poll() is None, (self._folder / "server.log").read_text()[-3000:]
            assert time.monotonic() < deadline, f"MLflow does not answer within {seconds:.0f} s"
            time.sleep(0.1)

    def down(self) -> None:
        """Take it down as a power cut: every process of it at once."""
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None

    def _answers(self) -> bool:
        try:
            with urlopen(f"{self.url}/health", timeout=2) as answer:
                return bool(answer.status == 200)
        except (URLError, OSError):
            return False

    def __enter__(self) -> "MlflowServer":
        self.up()
        return self

    def __exit__(self, *_: object) -> None:
        self.down()
