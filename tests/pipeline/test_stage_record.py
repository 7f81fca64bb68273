"""What artifacts say of themselves is read through types with fields."""

import re
from pathlib import Path

import pytest

from pipeline.engine.stage_record import BuildNotes, Record, RecordUnreadable
from pipeline.stages.records import EvaluateRecord, IndexRecord, VQKDRecord
from storage.artifact import Artifact, Built, Recipe

ROOT = Path(__file__).parents[2]
FITTED = VQKDRecord(
    vocabulary=8,
    train_images=10,
    val_images=0,
    bad_images=1,
    steps=5,
    cosine=0.5,
    used_share=0.5,
    perplexity=3.0,
    largest_share=0.4,
    teacher="ViT-B-16, openai",
)


def published(record: Record, built: Built) -> Artifact:
    recipe = Recipe(record.STAGE, 1, {})
    return Artifact(Path("/data"), record.STAGE, "", "", recipe, {}, built.summary, built.notes)


@pytest.mark.parametrize(
    "record",
    [
        FITTED,
        IndexRecord(images=3, classes=2, shards=1, bytes=9, splits={"train": 2, "val": 1}, source="/photos"),
        EvaluateRecord(scores={"top1": 60.0, "top5": 90.0}, val_images=10, what="fine_tune mapet vit_demo"),
    ],
)
def test_a_record_is_read_as_it_was_written(record: Record) -> None:
    assert type(record).of(published(record, record.built({"seconds": 1.5}))) == record


def test_what_was_not_measured_is_not_written() -> None:
    built = FITTED.built({"seconds": 1.5})
    assert "val_cosine" not in built.summary
    assert dict(built.notes) == {"teacher": "ViT-B-16, openai", "seconds": 1.5}


def test_names_on_the_disk_are_those_of_before() -> None:
    index = IndexRecord(images=3, classes=2, shards=1, bytes=9, splits={"train": 2, "val": 1})
    assert set(index.built({}).summary) == {"images", "classes", "shards", "bytes", "train_images", "val_images"}
    scores = EvaluateRecord(scores={"top1": 60.0}, val_images=10, what="it").built({})
    assert dict(scores.summary) == {"top1": 60.0, "val_images": 10, "what": "it"}


def test_an_artifact_that_lacks_a_field_is_named_with_what_to_do() -> None:
    built = FITTED.built({})
    older = Built({name: value for name, value in built.summary.items() if name != "bad_images"}, built.notes)
    with pytest.raises(RecordUnreadable, match=r"/data: .*fit_vqkd writes today \(bad_images: .*\); delete the folder"):
        VQKDRecord.of(published(FITTED, older))


def test_notes_that_nobody_took_are_none() -> None:
    notes = BuildNotes.of(published(FITTED, FITTED.built({})))
    assert (notes.seconds, notes.device, notes.processes, notes.tracking_run) == (None, None, 1, "")


def test_nobody_else_looks_into_a_record_by_name() -> None:
    digging = re.compile(r"\.(summary|notes|recipe)(\[|\.get\()")
    files = [path for folder in ("pipeline", "flows", "benchmarks") for path in (ROOT / folder).rglob("*.py")]
    found = [str(path.relative_to(ROOT)) for path in files if digging.search(path.read_text(encoding="utf-8"))]
    assert found == []
