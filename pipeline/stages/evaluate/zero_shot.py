"""CLIP zero-shot: the reference in Table 7's caption. Nothing is trained and no backbone looked at: the CLIP whose
features became tokens classifies the validation images itself, by captions (73.6 % with RN50x64 on ImageNet).
"""

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from models.clip.encoder import load_whole_clip, outline_clip
from models.clip.options import LOCAL_DIR, ClipOptions
from models.clip.zero_shot import ZeroShotClassifier
from pipeline.data.decoding_options import DecodingOptions
from pipeline.data.image_batches import ImageBatch, ImageSet
from pipeline.encoding.networks import parameter_count
from pipeline.engine.batches import WaitClock, on_device
from pipeline.engine.errors import PipelineError
from pipeline.engine.parts import Parts
from pipeline.engine.processes import Processes
from pipeline.engine.words import counted
from pipeline.stages.evaluate.captions import Templates, caption_names, caption_templates
from pipeline.stages.evaluate.evaluation_options import ZeroShotOptions
from pipeline.stages.evaluate.protocol import (
    EvaluationJob,
    Metric,
    Protocol,
    judged_together,
    top_correct,
    write_top_scores,
)
from pipeline.training.energy import EnergyMeter
from pipeline.training.loop import Reporter
from storage.image_index import ImageIndex


def zero_shot(job: EvaluationJob, processes: Processes, reporter: Reporter) -> dict[str, Any]:
    """Do one process's part: its share of the validation images; return notes on how it went. The first process writes
    the scores.

    Raises:
        PipelineError: no CLIP is given, its captions cannot be made, or an image cannot be decoded.
        ModelError: the CLIP cannot be loaded, or has no text tower.
    """
    options, clip = job.options, job.clip
    assert isinstance(options, ZeroShotOptions)
    if clip is None:
        raise PipelineError("zero_shot classifies with a CLIP, and none is given; set clip.model and clip.pretrained")
    index = ImageIndex.read(job.images.path)
    # Nothing is trained, so there may be no training images.
    splits = replace(job, options=options.model_copy(update={"train_split": options.val_split})).splits()
    names = caption_names(
        options.class_names, options.templates, index.classes, classes=splits.classes, order=options.class_order
    )
    templates = caption_templates(options.templates)
    whole = load_whole_clip(clip)
    whole.model.to(processes.device)
    classifier = ZeroShotClassifier(whole, names, templates, precision=clip.precision)
    correct, speed = _judged(job, classifier, index, splits.val, processes, reporter)
    reading = _reading(clip, options.templates, len(templates))
    processes.by_first(lambda: write_top_scores(job.folder, correct, splits.classes, reading))
    return {**speed, "parameters": parameter_count(outline_clip(clip))}  # of its image tower


def _judged(
    job: EvaluationJob,
    classifier: ZeroShotClassifier,
    index: ImageIndex,
    rows: np.ndarray,
    processes: Processes,
    reporter: Reporter,
) -> tuple[Tensor, dict[str, Any]]:
    """Return `top_correct` of the rows, and how fast it went."""
    images, clock = ImageSet(index, job.unchanged(index), DecodingOptions()), WaitClock()
    loading = images.batches([(0, processes.share(rows))], classifier.preprocessing, job.settings.of_one_process())

    def batches() -> Iterator[ImageBatch]:
        for batch in on_device(clock.timed(loading), processes.device):
            _require_decoded(batch, index)
            yield batch
            reporter.advance(len(batch) * processes.size, "")

    def judge(batch: ImageBatch) -> Tensor:
        labels = torch.from_numpy(index.labels[batch.rows].astype(np.int64)).to(processes.device)
        return top_correct(classifier(batch.pixels)[: len(batch)], labels)

    started, energy = time.monotonic(), EnergyMeter(processes.device)
    reporter.begin(len(rows), done=0)
    correct = judged_together(classifier, batches(), judge, processes, total=len(rows))
    seconds = max(time.monotonic() - started, 1e-9)
    parts = Parts()
    parts.add("judging", len(rows), seconds)
    speed = {"images_per_second": parts.rate("judging"), "data_wait_share": round(clock.seconds / seconds, 4)}
    speed |= processes.notes(energy.watt_hours())
    return correct, parts.notes(speed)


def _require_decoded(batch: ImageBatch, index: ImageIndex) -> None:
    if not batch.valid.all():
        place = int(np.flatnonzero(~batch.valid)[0])
        reason = batch.records["reason"][place].as_py()
        raise PipelineError(
            f"{index.name(int(batch.rows[place]))}: cannot be decoded ({reason}); mend or remove it, and index the "
            "data set again"
        )


def _reading(clip: ClipOptions, templates: Templates, count: int) -> str:
    """Say what was measured, in the same words wherever the CLIP lies."""
    is_local = clip.model.startswith(LOCAL_DIR)
    model = "a local directory's CLIP" if is_local else f"{clip.model} {Path(clip.pretrained).name}"
    kind, whose = (f"{templates} ", "") if isinstance(templates, str) else ("", " of one's own")
    captions = counted(count, f"{kind}caption{whose}", f"{kind}captions{whose}")
    return f"zero-shot, {model}, {captions} a class, one centre crop"


ZERO_SHOT = Protocol(
    "CLIP zero-shot",
    (Metric("top1", "zero_shot_top1", "CLIP zero-shot, top-1"), Metric("top5", "zero_shot_top5")),
    zero_shot,
)
