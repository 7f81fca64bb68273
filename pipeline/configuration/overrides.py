"""`codebook.vocabulary=1024` on the command line: changes to a configuration, with an answer to every typing error."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from pipeline.engine.errors import PipelineError
from pipeline.engine.words import did_you_mean

Config = TypeVar("Config", bound=BaseModel)
_LONGEST = 80  # characters of a wrong value that are shown


def apply_overrides(config: Config, overrides: Sequence[str]) -> Config:
    """Return a new configuration with `section.option=value` applied in order.

    Values are JSON where they parse as JSON (`3`, `true`, `["train","val"]`, `null`), else text.

    Raises:
        PipelineError: a text without `=`, an unknown option (with what it may have meant), or a value out of bounds.
    """
    values = config.model_dump()
    for override in overrides:
        name, equals, text = override.partition("=")
        if not equals:
            raise PipelineError(f"{override!r} is not of the form option=value, such as codebook.vocabulary=1024")
        _set(values, name.split("."), _parse(text), type(config))
    return validated(type(config), values)


def merge(config: Config, given: Mapping[str, Any]) -> Config:
    """Return a new configuration with the options of `given`, sections within mappings; what it does not name stays.

    Raises:
        PipelineError: an unknown option (with what it may have meant), or a value out of bounds.
    """
    values = config.model_dump()
    for path, value in options_in(given, type(config)):
        _set(values, path, value, type(config))
    return validated(type(config), values)


def options_in(given: Mapping[str, Any], model: type[BaseModel]) -> Iterator[tuple[list[str], Any]]:
    """Yield the path and the value of every option in nested sections, as far as `model` has such sections."""
    for name, value in given.items():
        field = model.model_fields.get(name)
        section = _section(field.annotation) if field else None
        if section and isinstance(value, Mapping):
            yield from (([name, *path], option) for path, option in options_in(value, section))
        else:
            yield [name], value


def differences(config: BaseModel, usual: BaseModel) -> list[str]:
    """Return the options of `config` that `usual` has otherwise or not at all, written as on the command line."""
    values, others = (
        {".".join(path): value for path, value in options_in(one.model_dump(mode="json"), type(one))}
        for one in (config, usual)
    )
    return [f"{name}={_as_given(value)}" for name, value in values.items() if value != others.get(name)]


def validated(model: type[Config], values: dict[str, Any]) -> Config:
    """Return `model(**values)`, with pydantic's errors as one sentence each. Raises PipelineError."""
    try:
        return model(**values)
    except ValidationError as error:
        raise PipelineError("; ".join(_sentences(error))) from None


def _set(values: dict[str, Any], path: list[str], value: Any, model: type[BaseModel]) -> None:
    dotted = ".".join(path)
    for depth, name in enumerate(path):
        where = ".".join(path[:depth]) or "the configuration"
        if name not in model.model_fields:
            raise PipelineError(
                f"{dotted}: {where} has no option {name!r}{did_you_mean(name, model.model_fields)}; it has "
                f"{', '.join(model.model_fields)}"
            )
        section = _section(model.model_fields[name].annotation)
        is_last = depth == len(path) - 1
        if is_last and section:
            example = next(iter(section.model_fields))
            raise PipelineError(f"{dotted} is a section; set one of its options, such as {dotted}.{example}=")
        if not is_last and not section:
            raise PipelineError(f"{dotted}: {'.'.join(path[: depth + 1])} is an option, not a section")
        if section:
            values, model = values[name], section
        else:
            values[name] = value


def _section(annotation: Any) -> type[BaseModel] | None:
    return annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None


def _parse(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _as_given(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))


def _sentences(error: ValidationError) -> Iterator[str]:
    """Yield a sentence for each mistake. A list with a wrong entry is not too short as well: pydantic counts only what
    is left of it."""
    items = error.errors()
    for item in items:
        deeper = [other for other in items if len(other["loc"]) > len(item["loc"])]
        if item["type"] == "too_short" and any(other["loc"][: len(item["loc"])] == item["loc"] for other in deeper):
            continue
        yield _sentence(item)


def _sentence(item: Any) -> str:
    where = ".".join(str(part) for part in item["loc"]) or "the configuration"
    said = item["msg"].removeprefix("Value error, ")
    # A whole section is given by the rules that its options break together, which name what they were.
    given = "" if isinstance(item["input"], Mapping) else f", but {_short(item['input'])} was given"
    return f"{where}: {said[0].lower()}{said[1:]}{given}"


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."
