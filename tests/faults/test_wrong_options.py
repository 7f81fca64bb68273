"""Every option of every section set to what it cannot be: one sentence that names it, exit code 2, no traceback.

The wrong values are derived from the fields themselves, so an option that is added tomorrow is tried tomorrow.
"""

import json
from collections.abc import Iterator
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

import annotated_types
import pytest
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from pipeline.commands.main import main
from pipeline.configuration.config import ReproduceConfig
from pipeline.engine.settings import Settings

Case = tuple[str, str]  # the option's name, and a value that it cannot have, as JSON


def cases_of(config: type[BaseModel], path: str = "", seen: set[type[BaseModel]] | None = None) -> Iterator[Case]:
    """Yield sections of one class, of which there are eight for training, are tried once."""
    seen = set() if seen is None else seen
    for name, field in config.model_fields.items():
        kind = field.annotation
        if not (isinstance(kind, type) and issubclass(kind, BaseModel)):
            yield from ((f"{path}{name}", json.dumps(value)) for value in wrong_values(kind, field))
        elif kind not in seen:
            seen.add(kind)
            yield from cases_of(kind, f"{path}{name}.", seen)


def wrong_values(kind: Any, field: FieldInfo) -> Iterator[Any]:
    """Yield a value beyond each bound, of another type, and no member of a choice."""
    kinds = get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)
    if {str, Any} & set(kinds):
        return  # a text may be anything; whether it names something is asked where it is used
    yield {"not": "an option"}
    if NoneType not in kinds:
        yield None
    if any(get_origin(one) is Literal for one in kinds):
        yield "no such choice"
    if bool in kinds:
        yield "perhaps"
    if {int, float} & set(kinds):
        yield "many"
        yield from beyond_bounds(field, step=1 if int in kinds else 1e-6)
        yield from ([0.5] if float not in kinds else [float("nan"), float("inf")])
    if any(get_origin(one) is tuple for one in kinds):
        yield from (7, [{"not": "an item"}], [-1])


def beyond_bounds(field: FieldInfo, *, step: float) -> Iterator[float]:
    for rule in field.metadata:
        match rule:
            case annotated_types.Ge(ge):
                yield ge - step  # type: ignore[operator]
            case annotated_types.Gt(gt):
                yield gt  # type: ignore[misc]
            case annotated_types.Le(le):
                yield le + step  # type: ignore[operator]
            case annotated_types.Lt(lt):
                yield lt  # type: ignore[misc]
            case annotated_types.MultipleOf(multiple_of):
                yield multiple_of + 1  # type: ignore[operator]


CASES = [*cases_of(ReproduceConfig), *cases_of(Settings, "settings.")]


def refusal(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """Return what the command says on stderr when it refuses."""
    with pytest.raises(SystemExit) as stopped:
        main([*words])
    out, err = capsys.readouterr()
    assert stopped.value.code == 2, (words, out[:200], err)
    assert out == ""
    assert err.startswith("mapet: error: "), err
    assert err.count("\n") == 1, err
    return err


def test_wrong_values_of_every_kind_are_found() -> None:
    assert len(CASES) > 400
    assert {
        ("codebook.vocabulary", "1"),
        ("codebook.vocabulary", "65536"),
        ("features.sample_fraction", "NaN"),
        ("decoding.preset", '"no such choice"'),
        ("settings.workers", "-2"),
        ("grid.seeds", "7"),
    } <= set(CASES)


def test_every_wrong_value_is_refused_in_one_sentence_that_names_its_option(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name, value in CASES:
        said = refusal(capsys, "show", "reproduce", "demo", f"{name}={value}")
        assert name.removeprefix("settings.").split(".")[0] in said, said
        assert name.split(".")[-1] in said, said


def test_every_misspelt_option_is_refused_with_the_one_that_was_meant(capsys: pytest.CaptureFixture[str]) -> None:
    for name in dict.fromkeys(name for name, _ in CASES):
        said = refusal(capsys, "show", "reproduce", "demo", f"{name}x=1")
        assert f"(did you mean '{name.split('.')[-1]}'?)" in said, said


@pytest.mark.parametrize("flow", ["kclip-build", "pretrain", "evaluate", "reproduce"])
@pytest.mark.parametrize("command", ["show", "plan", ""])
def test_a_wrong_value_is_refused_by_every_command_that_takes_it(
    flow: str, command: str, capsys: pytest.CaptureFixture[str], tmp_path: object
) -> None:
    words = [command] if command else []
    said = refusal(capsys, *words, flow, "demo", f"settings.data_root={tmp_path}", "codebook.vocabulary=0")
    assert "codebook.vocabulary: input should be greater than or equal to 2, but 0 was given" in said
