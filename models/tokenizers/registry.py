"""The tokenizers by name."""

from collections.abc import Mapping
from typing import Literal

from models.clip.options import ClipOptions
from models.encoders.options import EncoderOptions
from models.options import Options, entries_of
from models.tokenizers.sections import RANDOM, KnownTokenizer, TokenizerSections, TokenizerWords

_ENTRIES = entries_of(TokenizerSections, KnownTokenizer)
TOKENIZERS: Mapping[str, KnownTokenizer] = {known.name: known for known in _ENTRIES.values()}
SECTIONS: Mapping[str, str] = {known.name: section for section, known in _ENTRIES.items()}
"""Of the configuration, by the tokenizer whose choices it has."""

_BY_OPTIONS = {TokenizerSections.model_fields[section].annotation: known for section, known in _ENTRIES.items()}

_RANDOM_ENCODER = "random"  # k-CLIP whose CLIP has random weights: its tokens should say so
TokenizerName = Literal[*TOKENIZERS]  # type: ignore[valid-type]
ComparedName = Literal[*TOKENIZERS, _RANDOM_ENCODER]  # type: ignore[valid-type]
_WORDS = {name: known.words for name, known in TOKENIZERS.items()} | {_RANDOM_ENCODER: RANDOM}


def options_of(sections: TokenizerSections, tokenizer: str) -> Options:
    """Return the choices of a tokenizer's network: its section, or the one that the section `encoder` names by its
    kind."""
    options: Options = getattr(sections, SECTIONS[tokenizer])
    if isinstance(options, EncoderOptions) and options.kind != "timm":
        options = getattr(sections, options.kind)
    return options


def tokenizer_of(options: Options) -> KnownTokenizer:
    """Return the tokenizer whose choices these are."""
    return _BY_OPTIONS[type(options)]


def name_of_tokens(options: Options) -> str:
    """Return a tokenizer's name in token stores, such as `kclip`; `random` if its CLIP has no trained weights."""
    is_random = isinstance(options, ClipOptions) and not options.pretrained
    return _RANDOM_ENCODER if is_random else tokenizer_of(options).name


def tokenizer_words(name: str) -> TokenizerWords:
    """Return what is said of tokens of that name; a name that nobody has described speaks for itself."""
    return _WORDS.get(name, TokenizerWords(name))
