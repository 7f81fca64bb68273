"""The command `mapet` as a user has it: a process, its exit code, what it prints, and Ctrl-C in the middle."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from mlflow import MlflowClient

from pipeline.engine.mlflow_tracker import tracking_uri
from pipeline.engine.settings import Settings
from tests.builds import make_photos, write_tiny_clip
from tests.commands import mapet

SMALL_DEMO = [
    "demo",
    "demo_images.limit=80",
    "demo_images.renderings=1",
    "demo_clip.epochs=1",
    "demo_clip.width=4",
    "codebook.vocabulary=16",
]


def machine(root: Path) -> dict[str, str]:
    return {"MAPET_DATA_ROOT": str(root), "MAPET_WORKERS": "1", "MAPET_DEVICE": "cpu"}


def start(root: Path, *words: str) -> subprocess.Popen[str]:
    """Start a process of Python's own, as a user's is, with all of its imports."""
    command = [sys.executable, "-m", "pipeline.commands.main", *words]
    # In a background job of a shell Ctrl-C is ignored, and that is inherited: here it is a terminal's again.
    return subprocess.Popen(
        command,
        env={**os.environ, **machine(root)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


def call(root: Path, *words: str) -> tuple[int, str, str]:
    """Do the same, sooner: in a process that was forked after the imports."""
    said = mapet(root.parent / "said", *words, environment=machine(root))
    return said.code, said.out, said.err


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    root = tmp_path_factory.mktemp("demo")
    code, out, err = finish(start(root, "kclip-build", *SMALL_DEMO))
    assert code == 0, err
    return root, out


def test_the_demo_prints_where_tokens_report_and_mlflow_are(first: tuple[Path, str]) -> None:
    _, out = first
    tokens = re.search(r"^Tokens +(\S+)$", out, re.M)
    report = re.search(r"^Report +(\S+)$", out, re.M)
    assert tokens is not None
    assert report is not None
    assert Path(tokens[1]).is_dir()
    assert "handwritten" in Path(report[1]).read_text()
    assert re.search(r"^MLflow +mlflow ui --backend-store-uri sqlite:///", out, re.M)


def test_the_demo_run_again_says_that_every_stage_was_cached(first: tuple[Path, str]) -> None:
    code, out, err = call(first[0], "kclip-build", *SMALL_DEMO)
    assert code == 0, err
    assert "Every stage was cached" in out
    assert len(re.findall(r"^  \w+ +cached ", out, re.M)) == 7
    assert "%" not in err, "no progress bars where nobody looks"


def test_tokens_are_summarised(first: tuple[Path, str]) -> None:
    root, _ = first
    [artifact] = (root / "tokenize_images").iterdir()
    code, out, err = call(root, "tokens", str(artifact))
    assert code == 0, err
    assert "x 16 patches, uint16" in out
    assert re.search(r"^vocabulary +16$", out, re.M)


def test_one_damaged_byte_is_found_with_exit_code_1(first: tuple[Path, str]) -> None:
    root, _ = first
    code, out, _ = call(root, "verify")
    assert code == 0
    assert len(re.findall(r"^ok ", out, re.M)) == 7
    [picture, *_] = sorted((root / "make_demo_images").rglob("*.png"))
    whole = picture.read_bytes()
    picture.write_bytes(whole[:-1] + b"!")
    code, out, _ = call(root, "verify", str(root / "make_demo_images"))
    picture.write_bytes(whole)
    assert code == 1
    assert f"{picture}: the bytes changed" in out


PRETRAIN = [*SMALL_DEMO, "pretrain.objective=pim", "training.epochs=1", "training.batch_size=16"]


def test_a_demo_pretraining_prints_its_backbone_and_is_found_the_second_time(first: tuple[Path, str]) -> None:
    root, _ = first
    code, out, err = call(root, "plan", "pretrain", *PRETRAIN)
    assert code == 0, err
    assert re.search(r"^ +tokenize_images +cached ", out, re.M)
    assert re.search(r"^ +pretrain-pim +run ", out, re.M)
    code, out, err = call(root, "pretrain", *PRETRAIN)
    assert code == 0, err
    assert "pim predicts 12 of 16 patches (75.0 %)" in err
    backbone = re.search(r"^Backbone +(\S+)$", out, re.M)
    assert backbone is not None
    code, out, err = call(root, "pretrain", *PRETRAIN)
    assert code == 0, err
    assert "Every stage was cached" in out
    code, out, err = call(root, "export", backbone[1], "--to", str(root / "exported"))
    assert code == 0, err
    assert f"timm.create_model('local-dir:{root / 'exported'}', pretrained=True)" in out
    assert sorted(path.name for path in (root / "exported").iterdir()) == ["config.json", "model.safetensors"]


def test_a_wrong_checkpoint_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "released.tar").write_bytes(b"nothing")
    words = ("import-official", str(tmp_path / "released.tar"), "--to", str(tmp_path / "out"))
    code, _, err = call(tmp_path, *words)
    assert code == 2
    assert err.startswith("mapet: error: ")
    assert len(err.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_ctrl_c_keeps_what_is_done_and_says_how_to_go_on(tmp_path: Path) -> None:
    photos = make_photos(tmp_path / "photos", train=60, val=1)
    clip = write_tiny_clip(tmp_path / "clip")
    root = tmp_path / "data"
    words = [
        "kclip-build",
        "folder",
        f"images.path={photos}",
        "images.images_per_shard=4",
        f"clip.model={clip}",
        "clip.precision=fp32",
        "codebook.vocabulary=8",
        "settings.batch_size=2",
    ]
    process = start(root, *words)
    while process.poll() is None and len(list(root.glob("extract_features/*.partial/units/*.json"))) < 3:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    code, _, err = finish(process)
    assert code == 130, err
    assert err.splitlines()[-1] == "mapet: stopped; what is done is kept: run the same command again to go on"
    assert "Traceback" not in err
    client = MlflowClient(tracking_uri(Settings(data_root=root)))
    runs = client.search_runs([client.get_experiment_by_name("mapet").experiment_id])
    assert {" ".join(run.info.run_name.split()[:2]): run.info.status for run in runs} == {
        "kclip-build folder": "KILLED",
        "extract_features": "KILLED",
        "index_images": "FINISHED",
    }
    code, out, err = call(root, *words)
    assert code == 0, err
    done = re.search(r"extract features: (\d+) of 30 shards are done, going on", err)
    assert done is not None
    assert int(done[1]) >= 3
    assert "Tokens" in out
