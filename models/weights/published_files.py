"""Published files by name, URL or path; the first 8 hex digits of their SHA-256 stand in the file's name, as torch.hub
has it: `name-0123abcd.pth`."""

import hashlib
import re
from collections.abc import Mapping
from http.client import HTTPException
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

from models.errors import ModelError, in_short

_HASH = re.compile(r"-([0-9a-f]{8})\.\w+$")


def published_file(where: str, *, published: Mapping[str, str], option: str) -> Path:
    """Return the file on this machine that `where` names: a path, a URL, or a name in `published`.

    What has to be fetched goes to torch.hub's folder (`TORCH_HOME`), once. A file from a URL, and one on this machine
    that bears the name of a published file, is compared with the hash in its name.

    Args:
        published: URLs by name.
        option: where the user has set `where`, for the message.

    Raises:
        ModelError: no such file or name, it cannot be fetched, or it is not the file that its name promises.
    """
    url = published.get(where, where)
    if "://" in url:
        return _fetched(url, option)
    path = Path(where).expanduser()
    if not path.is_file():
        names = ", ".join(published)
        raise ModelError(f"{option}: {where!r} is neither a file nor published; give a path, a URL, or one of {names}")
    if path.name in {_file_name(url) for url in published.values()}:
        _require_hash(path)
    return path


def _file_name(url: str) -> str:
    return PurePosixPath(urlsplit(url).path).name


def _fetched(url: str, option: str) -> Path:
    name = _file_name(url)
    hash_in_name = _HASH.search(name)
    if hash_in_name is None:
        raise ModelError(
            f"{option}: {url} has no hash in its file name (name-0123abcd.pth); fetch it yourself and give its path"
        )
    import torch  # seconds, which a file that is here need not wait for

    path = Path(torch.hub.get_dir()) / "checkpoints" / name
    if path.is_file():
        _require_hash(path)
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(path), hash_prefix=hash_in_name[1])
    except (OSError, RuntimeError, ValueError, HTTPException) as error:
        raise ModelError(
            f"{url} could not be fetched ({in_short(error)}); without a connection, bring that file and set {option} "
            "to its path"
        ) from error
    return path


def _require_hash(path: Path) -> None:
    promised = _HASH.search(path.name)
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if promised is None or not found.startswith(promised[1]):
        raise ModelError(
            f"{path}: its SHA-256 starts with {found[:8]}, not as its name says; delete the file and fetch it again"
        )
