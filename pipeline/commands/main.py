"""The command `mapet`. Heavy imports happen inside the commands, so that `mapet --help` answers at once."""

import argparse
import io
import os
import signal
import sys
from collections.abc import Callable, Collection, Sequence
from functools import partial
from pathlib import Path
from typing import NoReturn

from pipeline.engine.logs import log_to_stderr
from pipeline.engine.stops import remembered_stops
from pipeline.engine.threads import share_cores

_DESCRIPTION = "k-CLIP visual tokens and pre-training on them, every stage cached and tracked."
_EPILOG = """\
examples:
  mapet kclip-build demo                                    real images, nothing to download, minutes
  mapet kclip-build folder images.path=~/photos             tokens of your own images
  mapet pretrain demo pretrain.objective=pim                a ViT that learns to predict the tokens
  mapet reproduce demo                                      MIM, PIM and MaPeT side by side
  mapet plan reproduce table1 images.path=/data/imagenet    every cell of a table: cached, or what it costs
  mapet plan kclip-build imagenet images.path=/data/imagenet    what would run, what is cached and why not
  mapet pretrain vit_base images.path=/data/imagenet settings.processes=8
  mapet export data/pretrain/<fingerprint> --to my-vit      a directory that timm (1.0.16 or newer) loads
  mapet evaluate folder images.path=~/photos evaluate.keep_weights=true    and a classifier of them to export
  mapet codebook data/tokenize_images/<fingerprint> --to codebook    what tokens look like, as HTML and PNG
  mapet publish-tokens data/tokenize_images/<fingerprint> --to my-tokens    a data set to upload, without the images
  mapet verify data                                         check every artifact against its checksums

Machine settings come from the environment (MAPET_DATA_ROOT, MAPET_DEVICE, MAPET_WORKERS, MAPET_TRACKING_URI, ...),
from a .env file, or as settings.workers=8.
"""

_FLOWS = {
    "kclip-build": "build the tokens of a data set, or find them cached",
    "pretrain": "pre-train a backbone on tokens, or find it cached",
    "evaluate": "evaluate a pre-training: linear probe, fine-tuning, segmentation, transfer, tokens as input",
    "reproduce": "run a grid of pre-trainings and evaluations, and compare it with the paper's tables",
}
_WHAT_VERIFY_TAKES = (
    "default: every artifact of the data root; a preset's name means the preset, a folder of that name is ./NAME"
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; exits with 0, 1 (something is wrong), 2 (a user's mistake) or 130 (Ctrl-C)."""
    _print_whatever_comes()
    options = _understood(sys.argv[1:] if arguments is None else arguments)
    share_cores()
    log_to_stderr()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with remembered_stops():
            sys.exit(options.command(options))
    except KeyboardInterrupt:
        sys.exit(_complain("stopped; what is done is kept: run the same command again to go on", code=130))
    except BrokenPipeError:  # `mapet ... | head`
        sys.stderr.close()
        sys.exit(1)
    except OSError as error:  # a full disk, a missing permission, a file server that went away
        where = f": {error.filename}" if error.filename else ""
        sys.exit(_complain(f"error: {error.strerror or error}{where}; what is done is kept, run it again", code=1))
    except Exception as error:
        from pipeline.engine.errors import USER_ERRORS

        if isinstance(error, USER_ERRORS):
            sys.exit(_complain(f"error: {error}", code=2))
        from pipeline.engine.memory import is_out_of_memory

        if not is_out_of_memory(error):
            raise
        text = "memory does not suffice; settings.batch_size and settings.micro_batch_size make it need less"
        sys.exit(_complain(f"error: {text}; what is done is kept, run it again", code=1))


def _print_whatever_comes() -> None:
    """Let a class name be printed that the terminal's encoding has no letters for: in escapes, `b\\xe4r`."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _complain(message: str, *, code: int) -> int:
    print(f"mapet: {message}", file=sys.stderr)
    return code


class _Parser(argparse.ArgumentParser):
    """Says what is wrong as every other mistake is said: in one sentence."""

    def error(self, message: str) -> NoReturn:
        sys.exit(_complain(f"error: {message}; `{self.prog} --help` says what there is", code=2))


def _understood(words: Sequence[str]) -> argparse.Namespace:
    parser, commands = _parser()
    if words and not words[0].startswith("-") and words[0] not in commands:
        from pipeline.engine.words import did_you_mean

        parser.error(f"there is no command {words[0]!r}{did_you_mean(words[0], commands)}")
    options, others = parser.parse_known_args(words)
    if others:
        dashes = f"; options have no dashes: {others[0].lstrip('-')}" if "=" in others[0] else ""
        parser.error(f"{others[0]!r} is not understood{dashes}")
    return options


def _parser() -> tuple[argparse.ArgumentParser, Collection[str]]:
    """Build the parser, and return the names of all commands with it."""
    parser = _Parser(
        prog="mapet", description=_DESCRIPTION, epilog=_EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, run: Callable[[argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=text, description=text)
        added.set_defaults(command=run)
        return added

    preset_words = "[PRESET [option=value ...]]"
    for name, text in _FLOWS.items():
        added = command(name, partial(_run_flow, name), text)
        added.add_argument("words", nargs="*", metavar=preset_words, help="default: demo; `mapet show` lists all")
    for name, run, text in (
        ("plan", _plan, "say what a command would do and why, and what it costs; nothing is built"),
        ("show", _show, "print a preset's resolved configuration with the help of every option"),
    ):
        added = command(name, run, text)
        added.add_argument("words", nargs="*", metavar=f"[FLOW] {preset_words}", help="default: kclip-build")
    added = command("verify", _verify, "check artifacts against their checksums, or the images of a preset")
    added.add_argument("words", nargs="*", metavar="PATH | PRESET [option=value ...]", help=_WHAT_VERIFY_TAKES)
    added = command("export", _export, "copy trained weights to a directory that timm loads (`local-dir:DIR`)")
    added.add_argument("artifact", type=_path, help="folder of a pretrain artifact, or of a fine-tuning that kept its")
    added.add_argument("--to", type=_path, required=True, metavar="DIR", help="a new directory")
    added = command("import-official", _import_official, "turn a released fine-tuned checkpoint into such a directory")
    added.add_argument("checkpoint", type=_path, help="vit_standard_*.pth.tar of the paper's authors")
    added.add_argument("--to", type=_path, required=True, metavar="DIR", help="a new directory")
    added = command("convert-dalle", _convert_dalle, "turn DALL-E's pickled encoder into plain tensors, in a sandbox")
    added.add_argument("pickle", type=_path, help="encoder.pkl as published")
    added.add_argument("--to", type=_path, required=True, metavar="FILE", help="a new file that ends in .safetensors")
    added = command("tokens", _tokens, "summarise a token store")
    added.add_argument("artifact", type=_path, help="folder of a tokenize_images artifact")
    added = command("publish-tokens", _publish_tokens, "turn a token store into a data set that can be uploaded")
    added.add_argument("artifact", type=_path, help="folder of a tokenize_images artifact")
    added.add_argument("--to", type=_path, required=True, metavar="DIR", help="a new directory")
    added = command("import-tokens", _import_tokens, "join published tokens to your own copy of the images")
    added.add_argument("folder", type=_path, metavar="DIR", help="what publish-tokens made")
    added.add_argument("words", nargs="*", metavar="option=value", help="images.path=..., images.kind=..., settings.*")
    by = "what tells which image is which: its name (default), or the bytes of its file, all of which are then read"
    added.add_argument("--by", choices=("name", "content"), default="name", help=by)
    added = command("codebook", _codebook, "show what tokens look like: images with a token's patch outlined, by class")
    added.add_argument("artifact", type=_path, help="folder of a tokenize_images artifact")
    which = added.add_mutually_exclusive_group()
    which.add_argument("--tokens", metavar="3,17,40", help="ids of the tokens to show")
    purest = "the N most class-pure tokens, without labels the most used ones (default: 8)"
    which.add_argument("--purest", type=int, default=8, metavar="N", help=purest)
    added.add_argument(
        "--images", type=int, default=8, metavar="N", help="per token at most N matches and N mismatches (default: 8)"
    )
    added.add_argument("--split", default="", help="whose images (default: the split with the most labelled ones)")
    added.add_argument("--source", type=_path, metavar="PATH", help="where the images lie, if they were moved")
    added.add_argument("--to", type=_path, required=True, metavar="DIR", help="a new directory")
    return parser, commands.choices


def _path(text: str) -> Path:
    """Expand it as shells do, which leave the ~ of `--to=~/my-vit` as it is."""
    return Path(os.path.expanduser(text))  # Path's own raises where there is no home


def _run_flow(flow: str, options: argparse.Namespace) -> int:
    # A wrong word is answered before what runs is imported.
    from pipeline.commands.configured import configure
    from pipeline.commands.words import read_words

    words = read_words(flow, options.words, flow=flow)
    configured = configure(words)
    from pipeline.commands.run import run_flow

    return run_flow(words, *configured)


def _plan(options: argparse.Namespace) -> int:
    from pipeline.commands.configured import configure
    from pipeline.commands.words import read_words

    words = read_words("plan", options.words)
    configured = configure(words)
    from pipeline.commands.plan import print_plan

    return print_plan(words, *configured)


def _show(options: argparse.Namespace) -> int:
    from pipeline.commands.show import show

    return show(options)


def _tokens(options: argparse.Namespace) -> int:
    from pipeline.commands.tokens import show_tokens

    return show_tokens(options)


def _publish_tokens(options: argparse.Namespace) -> int:
    from pipeline.commands.publish_tokens import publish_tokens
    from pipeline.engine.settings import load_settings

    print(f"{options.to}: {publish_tokens(options.artifact, options.to, data_root=load_settings().layout.root)}")
    return 0


def _import_tokens(options: argparse.Namespace) -> int:
    from pipeline.commands.publish_tokens import import_tokens

    made = import_tokens(options.folder, tuple(options.words), by=options.by)
    print(
        f"Tokens   {made.path}\n\nPre-train on them:  mapet pretrain PRESET pretrain.tokens={made.path} images.path=..."
    )
    return 0


def _verify(options: argparse.Namespace) -> int:
    from pipeline.commands.configured import configure
    from pipeline.commands.verify import verify_below, verify_source
    from pipeline.commands.words import is_option, read_words
    from pipeline.configuration.presets import PRESETS
    from pipeline.engine.settings import load_settings

    words = options.words
    if words and (words[0] in PRESETS["kclip-build"] or any(map(is_option, words))):
        config, settings = configure(read_words("verify", words, flow="kclip-build"))
        verdicts = iter([verify_source(config, settings)])
    else:
        folders = [_existing(word) for word in words] or [load_settings().layout.root]
        verdicts = (verdict for folder in folders for verdict in verify_below(folder))
    wrong = 0
    for verdict in verdicts:
        print(f"{'damaged' if verdict.problems else 'ok':<8} {verdict.subject} ({verdict.checked})")
        for line in (*verdict.notes, *verdict.problems):
            print(f"  {line}")
        wrong += bool(verdict.problems)
    return 1 if wrong else 0


def _existing(word: str) -> Path:
    """Return the folder that is to be verified."""
    from pipeline.configuration.presets import PRESETS
    from pipeline.engine.errors import PipelineError
    from pipeline.engine.words import did_you_mean

    path = _path(word)
    if not path.exists():
        presets = PRESETS["kclip-build"]
        hint = did_you_mean(word, presets)
        raise PipelineError(
            f"{word} does not exist, and no preset has that name{hint}; give a folder of artifacts, or one of "
            f"{', '.join(presets)} with images.path="
        )
    return path


def _export(options: argparse.Namespace) -> int:
    from pipeline.commands.export import export_weights

    return _show_directory(options.to, export_weights(options.artifact, options.to))


def _import_official(options: argparse.Namespace) -> int:
    from pipeline.commands.export import import_official

    return _show_directory(options.to, import_official(options.checkpoint, options.to))


def _convert_dalle(options: argparse.Namespace) -> int:
    from pipeline.commands.convert_dalle import convert_dalle

    print(f"{options.to}: {convert_dalle(options.pickle, options.to)}")
    return 0


def _show_directory(to: Path, made: str) -> int:
    name = f"local-dir:{to}"
    print(f"{to}: {made}\n\nLoad it:  timm.create_model({name!r}, pretrained=True)   # timm 1.0.16 or newer")
    return 0


def _codebook(options: argparse.Namespace) -> int:
    from pipeline.commands.codebook import parse_tokens, write_codebook_pages
    from pipeline.engine.settings import load_settings

    section = write_codebook_pages(
        options.artifact,
        options.to,
        data_root=load_settings().layout.root,
        tokens=parse_tokens(options.tokens) if options.tokens is not None else (),
        count=options.purest,
        pictures=options.images,
        source=options.source,
        split=options.split,
    )
    for panel in section.panels:
        print(f"  {panel.title}, {panel.detail}")
    print(f"\nOpen it:  {options.to / 'index.html'}")
    return 0


if __name__ == "__main__":
    main()
