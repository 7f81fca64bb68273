"""A signal that comes while Python runs a `__del__`, which swallows what handlers raise, and still ends the work."""

import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from pipeline.engine.stops import is_stopped, raise_if_stopped, remembered_stops
from storage.artifact import list_artifacts
from storage.layout import Layout
from tests.builds import make_photos
from tests.commands import mapet

SMALL = (
    "images.images_per_shard=2",
    "tokenizer=pixels",
    "pixels.image_size=64",
    "pixels.patch_size=16",
    "features.sample_fraction=0.5",
    "codebook.vocabulary=8",
    "codebook.iterations=50",
    "backbone.name=vit_demo",
    "backbone.image_size=64",
    "backbone.patch_size=16",
    "pretrain.objective=mim",
    "objectives.mim.masked=6",
    "training.precision=fp32",
    "training.epochs=50",
    "training.warmup_epochs=0",
    "training.batch_size=4",
)


class SignalsWhenItDies:
    def __init__(self, number: signal.Signals) -> None:
        self.number = number

    def __del__(self) -> None:
        signal.raise_signal(self.number)
        sum(range(3))  # the handler runs before the next instructions


def stop_swallowed(where: str, number: signal.Signals) -> None:
    """Send this process the signal, in a `__del__`, as soon as its main thread touches a path that matches `where`."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job of a shell ignores it
    left = [SignalsWhenItDies(number)]

    def touched(_: str, arguments: tuple[object, ...]) -> None:
        if not left or not arguments or threading.current_thread() is not threading.main_thread():
            return
        if isinstance(arguments[0], str | Path) and re.search(where, str(arguments[0])):
            left.clear()

    sys.addaudithook(touched)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photographs, and a data root in which each run goes on from where the one before was stopped."""
    found = tmp_path_factory.mktemp("stops")
    make_photos(found / "photos", train=24, val=4)
    return found


@pytest.mark.parametrize(
    ("stage", "where", "number"),
    [
        ("index_images", r"/index_images/\w+\.partial", signal.SIGTERM),
        ("extract_features", r"/extract_features/.*/units/", signal.SIGINT),
        ("fit_codebook", r"/fit_codebook/\w+\.partial/", signal.SIGTERM),
        ("pretrain", r"/pretrain/\w+\.partial", signal.SIGINT),
    ],
)
def test_a_stop_that_comes_inside_a_del_ends_the_run(
    stage: str, where: str, number: signal.Signals, folder: Path
) -> None:
    machine = (f"settings.data_root={folder / 'data'}", "settings.device=cpu", "settings.workers=0")
    words = ("pretrain", "folder", f"images.path={folder / 'photos'}", *SMALL, *machine)
    said = mapet(folder / "said", *words, shortage=partial(stop_swallowed, where, number))
    assert "Exception ignored in: <function SignalsWhenItDies.__del__" in said.err
    assert said.code == 130, said.err
    assert said.last == "mapet: stopped; what is done is kept: run the same command again to go on"
    done = list_artifacts(Layout(folder / "data"), stage)
    assert len(done) == (1 if stage == "index_images" else 0)  # which looks at nothing; the next stage does not begin


class Stopped(BaseException):
    pass


def stop(*_: object) -> None:
    raise Stopped


@pytest.fixture
def handle() -> Iterator[Callable[[Callable[..., object]], None]]:
    """Sets the handler of SIGTERM for a test."""
    before = signal.getsignal(signal.SIGTERM)
    yield lambda handler: signal.signal(signal.SIGTERM, handler)
    signal.signal(signal.SIGTERM, before)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_what_a_handler_raised_in_vain_is_raised_again(handle: Callable[[Callable[..., object]], None]) -> None:
    handle(stop)
    with remembered_stops():
        raise_if_stopped()
        SignalsWhenItDies(signal.SIGTERM)
        assert is_stopped()
        with pytest.raises(Stopped):
            raise_if_stopped()
        threads = threading.Thread(target=pytest.raises, args=(Stopped, raise_if_stopped))
        threads.start()
        threads.join()
    assert not is_stopped()
    assert signal.getsignal(signal.SIGTERM) is stop


def test_a_handler_that_raises_nothing_leaves_no_note(handle: Callable[[Callable[..., object]], None]) -> None:
    came = []
    handle(lambda number, _: came.append(number))
    with remembered_stops():
        signal.raise_signal(signal.SIGTERM)
        raise_if_stopped()
    assert came == [signal.SIGTERM]
