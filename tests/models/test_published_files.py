"""Published files: fetched once, compared with the hash in their name, never taken on trust."""

import hashlib
from pathlib import Path

import pytest

from models.errors import ModelError
from models.weights.published_files import published_file

CONTENTS = b"weights"
HASH = hashlib.sha256(CONTENTS).hexdigest()[:8]


@pytest.fixture(autouse=True)
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    return tmp_path / "torch" / "hub" / "checkpoints"


def on_a_server(tmp_path: Path, *, digits: str = HASH) -> str:
    (tmp_path / "server").mkdir(exist_ok=True)
    path = tmp_path / "server" / f"net-{digits}.pth"
    path.write_bytes(CONTENTS)
    return path.as_uri()


def find(where: str | Path, **published: str) -> Path:
    return published_file(str(where), published=published, option="net.checkpoint")


def test_a_name_is_fetched_once(tmp_path: Path, hub: Path) -> None:
    url = on_a_server(tmp_path)
    assert find("net", net=url) == find(url) == hub / f"net-{HASH}.pth"
    (tmp_path / "server" / f"net-{HASH}.pth").unlink()
    assert find("net", net=url).read_bytes() == CONTENTS


def test_a_download_with_another_hash_is_refused_and_not_kept(tmp_path: Path, hub: Path) -> None:
    with pytest.raises(ModelError, match=r"could not be fetched \(RuntimeError: invalid hash value"):
        find("net", net=on_a_server(tmp_path, digits="00000000"))
    assert list(hub.iterdir()) == []


def test_a_fetched_file_that_was_damaged_since_is_refused(tmp_path: Path) -> None:
    url = on_a_server(tmp_path)
    find(url).write_bytes(CONTENTS[:-1])
    with pytest.raises(ModelError, match="not as its name says; delete the file"):
        find(url)


def test_a_file_that_cannot_be_fetched_may_be_brought(tmp_path: Path) -> None:
    url = (tmp_path / f"none-{HASH}.pth").as_uri()
    with pytest.raises(ModelError, match=r"bring that file and set net\.checkpoint to its path"):
        find("net", net=url)


def test_a_url_without_a_hash_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no hash in its file name"):
        find((tmp_path / "net.pth").as_uri())


def test_a_path_is_itself_and_held_to_its_hash_only_under_a_published_name(tmp_path: Path) -> None:
    own = tmp_path / "net-12345678.pth"
    own.write_bytes(CONTENTS)
    assert find(own) == own
    with pytest.raises(ModelError, match=f"starts with {HASH}, not as its name says"):
        find(own, net="https://example.org/net-12345678.pth?raw=1")


def test_what_is_neither_is_refused_with_the_published_names(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"'nett' is neither a file nor published; .* one of net"):
        find("nett", net=on_a_server(tmp_path))
