"""The command `mapet`. Heavy imports happen inside the commands, so that `mapet --help` answers at once."""

import argparse
import json
import logging
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipeline.config import KClipBuildConfig
    from pipeline.kclip_build import KClipBuild
    from pipeline.settings import Settings

_DESCRIPTION = "k-CLIP visual tokens: from images to a token store, every stage cached and tracked."
_EPILOG = """\
examples:
  mapet kclip-build demo                                    real images, nothing to download, minutes
  mapet kclip-build folder images.path=~/photos             tokens of your own images
  mapet plan imagenet images.path=/data/imagenet            what would run, what is cached and why not
  mapet kclip-build imagenet images.path=/data/imagenet codebook.vocabulary=1024
  mapet verify data                                         check every artifact against its checksums

Machine settings come from the environment (MAPET_DATA_ROOT, MAPET_DEVICE, MAPET_WORKERS, MAPET_TRACKING_URI, ...),
from a .env file, or as settings.workers=8.
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; exits with 0, 1 (something is wrong), 2 (a user's mistake) or 130 (Ctrl-C)."""
    options = _parser().parse_args(arguments)
    # FAISS and torch bring an OpenMP each, whose idle threads would spin on the cores that the other wants.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    _log_to_stderr()
    signal.signal(signal.SIGTERM, lambda *_: _interrupt())
    try:
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
        from pipeline.errors import USER_ERRORS

        if not isinstance(error, USER_ERRORS):
            raise
        sys.exit(_complain(f"error: {error}", code=2))


def _interrupt() -> None:
    raise KeyboardInterrupt


def _complain(message: str, *, code: int) -> int:
    print(f"mapet: {message}", file=sys.stderr)
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="mapet", description=_DESCRIPTION, epilog=_EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, run: Callable[[argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=text, description=text)
        added.set_defaults(command=run)
        return added

    configured = (
        ("kclip-build", _kclip_build, "build the tokens of a data set, or find them cached"),
        ("plan", _plan, "say what kclip-build would do and why, and what it costs; nothing is built"),
        ("show", _show, "print a preset's resolved configuration with the help of every option"),
    )
    for name, run, text in configured:
        added = command(name, run, text)
        added.add_argument("words", nargs="*", metavar="[PRESET] [option=value ...]", help="demo, imagenet or folder")
    added = command("verify", _verify, "check artifacts against their checksums, or the images of a preset")
    added.add_argument(
        "words", nargs="*", metavar="PATH | PRESET [option=value ...]", help="default: every artifact of the data root"
    )
    added = command("tokens", _tokens, "summarise a token store")
    added.add_argument("artifact", type=Path, help="folder of a tokenize_images artifact")
    return parser


def _log_to_stderr() -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    for name in ("mapet", "models", "pipeline", "storage"):
        logger = logging.getLogger(name)
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
        logger.propagate = False
    logging.getLogger("mapet.progress").setLevel(logging.WARNING)  # bars in a terminal, silence elsewhere


def _configure(words: Sequence[str]) -> tuple["KClipBuildConfig", "Settings", str]:
    """Preset and `option=value` words -> configuration, settings and the preset's name."""
    from pipeline.overrides import apply_overrides
    from pipeline.presets import preset
    from pipeline.settings import load_settings

    name, overrides = ("demo", words) if not words or "=" in words[0] else (words[0], words[1:])
    of_machine = [word.removeprefix("settings.") for word in overrides if word.startswith("settings.")]
    of_config = [word for word in overrides if not word.startswith("settings.")]
    return apply_overrides(preset(name), of_config), apply_overrides(load_settings(), of_machine), name


def _kclip_build(options: argparse.Namespace) -> int:
    from pipeline.kclip_build import kclip_build
    from pipeline.workspace import Workspace

    config, settings, name = _configure(options.words)
    with Workspace(settings).tracked(f"kclip-build {name}", config) as workspace:
        build = kclip_build(config, workspace)
    _print_build(build, settings)
    return 0


def _print_build(build: "KClipBuild", settings: "Settings") -> None:
    from pipeline.preflight import readable_bytes

    print()
    for result in build.results:
        made = result.artifact
        state = "cached" if result.cached else f"{made.notes['seconds']:.1f} s"
        print(f"  {made.stage:<17} {state:>8}  {readable_bytes(made.bytes):>9}  {made.path}")
    if build.all_cached:
        print("\nEvery stage was cached: nothing had to be done.")
    tokens = build["tokenize_images"].artifact
    print(f"\nTokens   {tokens.path / 'tokens.zarr'}")
    print(f"Report   {build['report'].artifact.path / 'report.html'}")
    print(f"MLflow   {_mlflow_hint(settings)}")


def _mlflow_hint(settings: "Settings") -> str:
    if settings.tracking_uri:
        return settings.tracking_uri
    return f"mlflow ui --backend-store-uri sqlite:///{settings.layout.tracking_database}"


def _plan(options: argparse.Namespace) -> int:
    from pipeline.plan import describe, estimate, plan

    config, settings, _ = _configure(options.words)
    cost = estimate(config, settings)
    planned = plan(config, settings)
    if cost:
        print(describe(cost))
    for stage in planned:
        print(f"  {stage.stage:<17} {stage.state:<7} {stage.reason}")
    return 2 if any(stage.state == "cannot" for stage in planned) else 0


def _show(options: argparse.Namespace) -> int:
    from pipeline.presets import PRESETS

    config, _, name = _configure(options.words)
    print(f"# preset {name}\n# {(PRESETS[name].__doc__ or '').strip()}")
    for section, fields in type(config).model_fields.items():
        print(f"\n# {fields.description}")
        values = getattr(config, section)
        for option, field in type(values).model_fields.items():
            text = " ".join((field.description or "").split())
            print(f"{section}.{option}={json.dumps(values.model_dump(mode='json')[option])}\n    {text}")
    return 0


def _verify(options: argparse.Namespace) -> int:
    from pipeline.presets import PRESETS
    from pipeline.settings import load_settings
    from pipeline.verify import verify_below, verify_source

    words = options.words
    if words and words[0] in PRESETS and not Path(words[0]).exists():
        config, settings, _ = _configure(words)
        verdicts = iter([verify_source(config, settings)])
    else:
        verdicts = (verdict for path in words or [load_settings().layout.root] for verdict in verify_below(Path(path)))
    wrong = 0
    for verdict in verdicts:
        print(f"{'damaged' if verdict.problems else 'ok':<8} {verdict.subject} ({verdict.checked})")
        for problem in verdict.problems:
            print(f"  {problem}")
        wrong += bool(verdict.problems)
    return 1 if wrong else 0


def _tokens(options: argparse.Namespace) -> int:
    from storage.artifact import read_artifact
    from storage.token_store import TokenStore

    artifact = read_artifact(options.artifact)
    store = TokenStore(artifact.path)
    tokens = store.load()
    values = {"artifact": str(artifact.path), "digest": artifact.digest, **artifact.summary, **store.attributes}
    values["classes"] = len(store.attributes.get("classes", []))
    values["shape"] = f"{tokens.shape[0]} images x {tokens.shape[1]} patches, {tokens.dtype}"
    for name, value in values.items():
        print(f"{name:<17} {value}")
    print(f"\nRead it:  zarr.open('{artifact.path / 'tokens.zarr'}')['tokens']")
    return 0


if __name__ == "__main__":
    main()
