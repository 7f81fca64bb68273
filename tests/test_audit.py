"""Known vulnerabilities of the packages that constraints.txt pins, where PyPI can be asked for them."""

import json
import subprocess
import sys
from pathlib import Path
from urllib.request import urlopen

import pytest

ROOT = Path(__file__).parents[1]
PROBE = "https://pypi.org/pypi/pip/24.0/json"  # what pip-audit asks for each package; mirrors rarely have it


def pypi_tells_vulnerabilities() -> bool:
    try:
        with urlopen(PROBE, timeout=10) as answer:
            return "vulnerabilities" in json.load(answer)
    except (OSError, ValueError):
        return False


def test_no_pinned_package_has_a_known_vulnerability() -> None:
    if not pypi_tells_vulnerabilities():
        pytest.skip(f"{PROBE} cannot be had here; `make audit` where it can")
    words = ("--strict", "-r", str(ROOT / "constraints.txt"), "--no-deps", "--disable-pip")
    done = subprocess.run([sys.executable, "-m", "pip_audit", *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
