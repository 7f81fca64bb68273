"""The captions of zero-shot classification: sentences with a gap, and what the classes are called in it."""

import re
from collections.abc import Sequence

from models.clip.demo import TEMPLATES, class_words
from models.clip.encoder import Template, imagenet_class_names, openai_templates
from pipeline.data.sources.names import in_order_of_number
from pipeline.engine.errors import PipelineError
from pipeline.engine.words import counted
from pipeline.stages.evaluate.caption_options import ClassNames, ClassOrder, Templates

_WNID = re.compile(r"n\d{8}")
_IMAGENET_CLASSES = 1000


def caption_templates(templates: Templates) -> tuple[Template, ...]:
    """Return the captions that a name stands for, or those that are given."""
    if not isinstance(templates, str):
        return templates
    return TEMPLATES if templates == "demo" else openai_templates(templates)


def caption_names(
    given: ClassNames, templates: Templates, indexed: Sequence[str], *, classes: int, order: ClassOrder = ""
) -> list[str]:
    """Return what captions call each class.

    Args:
        indexed: the names of the image index, in the order of the classes.
        classes: how many there are.
        order: that of the given names, where classes are called by numbers.

    Raises:
        PipelineError: there are more or fewer names than classes, names that are wnids or numbers, or names of which
            it is not clear whose they are.
    """
    names = _names(given, templates, indexed)
    if len(names) != classes:
        given_names, wanted = counted(len(names), "name"), counted(classes, "class", "classes")
        starts_at_one = len(names) == classes - 1 and list(indexed[:1]) == ["0"]
        hint = "; if labels count from 1, set images.first_label=1" if starts_at_one else ""
        raise PipelineError(
            f"zero_shot.class_names: {given_names} for {wanted}; give one for each, in the order of the image index's "
            f"classes{hint}"
        )
    if given == "auto" and all(name.isdecimal() for name in names):
        raise PipelineError(
            f"zero_shot: the classes are called by numbers ({', '.join(names[:3])}, ...), which tell CLIP nothing; "
            "give words in zero_shot.class_names"
        )
    if given != "auto" and list(indexed) != (by_number := in_order_of_number(indexed)):
        names = _in_order(names, by_number, indexed, order)
    if wnids := [name for name in names if _WNID.fullmatch(name)]:
        raise PipelineError(
            f"zero_shot: a class is called {wnids[0]}, which CLIP cannot read; give words in zero_shot.class_names, "
            "such as a text file with one name a line, in the order of the image index's classes"
        )
    return names


def _in_order(names: list[str], by_number: list[str], indexed: Sequence[str], order: ClassOrder) -> list[str]:
    """Put names in the order of classes that are numbers sorted as words. Raises PipelineError where nobody said whose
    each name is."""
    if not order:
        raise PipelineError(
            f"zero_shot.class_names: the classes are called by numbers and sorted as words ({', '.join(indexed[:3])}, "
            "...); are the names in the order of the numbers (zero_shot.class_order=number) or of the image index's "
            "classes (zero_shot.class_order=index)?"
        )
    called = dict(zip(by_number, names, strict=True))
    return [called[name] for name in indexed] if order == "number" else names


def _names(given: ClassNames, templates: Templates, indexed: Sequence[str]) -> list[str]:
    if given == "imagenet" or (given == "auto" and _is_imagenet(indexed)):
        return list(imagenet_class_names())
    if given != "auto":
        return list(given)
    return class_words(indexed) if templates == "demo" else [name.replace("_", " ") for name in indexed]


def _is_imagenet(indexed: Sequence[str]) -> bool:
    """Return whether these are wnids in the order in which OpenAI's names are."""
    wnids = len(indexed) == _IMAGENET_CLASSES and all(_WNID.fullmatch(name) for name in indexed)
    return wnids and list(indexed) == sorted(indexed)
