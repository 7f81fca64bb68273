"""A real browser without a window: what a page shows once its scripts have run."""

import html
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.flows.prefect_server import wait_for

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
_QUIET = (
    "--headless",
    "--no-sandbox",  # a root user has none
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--virtual-time-budget=20000",
    "--window-size=1400,1600",
)


def shown_text(url: str, profile: Path, *, until: tuple[str, ...]) -> str:
    """Return the words of a page, one text node a line, and the values of its inputs; fails unless all of `until` are
    there.

    A page is opened again as long as they are not: on a busy machine its requests may take longer than the browser
    waits.
    """
    seen = ""

    def probe() -> str | None:
        nonlocal seen
        seen = _words(_document(url, profile))
        return seen if all(word in seen for word in until) else None

    try:
        return wait_for(url, probe, 90)
    except AssertionError as error:
        missing = [word for word in until if word not in seen]
        raise AssertionError(f"{error}; not shown: {missing}; shown: {seen[-3000:]}") from None


def _document(url: str, profile: Path) -> str:
    assert CHROMIUM
    command = [CHROMIUM, *_QUIET, f"--user-data-dir={profile}", "--dump-dom", url]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout


def _words(document: str) -> str:
    without_code = re.sub(r"<(script|style)\b.*?</\1>", "", document, flags=re.DOTALL)
    with_values = re.sub(r'<input\b[^>]*?\bvalue="([^"]*)"[^>]*>', r" \1 ", without_code)
    return re.sub(r"\s*\n\s*", "\n", html.unescape(re.sub(r"<[^>]+>", "\n", with_values)))
