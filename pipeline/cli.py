"""The command `mapet`. Heavy imports happen inside the commands, so that `mapet --help` answers at once."""

import argparse
import json
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.console import head_what_follows, log_to_stderr, without_passwords
from pipeline.openmp import share_cores

if TYPE_CHECKING:
    from models.options import Options
    from pipeline.config import KClipBuildConfig
    from pipeline.settings import Settings
    from pipeline.wiring.base import ExpectedCall, FlowResult, RunStage, StageCall
    from pipeline.workspace import StageResult


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
  mapet export data/pretrain/<fingerprint> --to my-vit      a directory that timm loads
  mapet codebook data/tokenize_images/<fingerprint> --to codebook    what tokens look like, as HTML and PNG
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


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; exits with 0, 1 (something is wrong), 2 (a user's mistake) or 130 (Ctrl-C)."""
    options = _parser().parse_args(arguments)
    share_cores()
    log_to_stderr()
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

        if isinstance(error, USER_ERRORS):
            sys.exit(_complain(f"error: {error}", code=2))
        from pipeline.memory import is_out_of_memory  # whose torch a user's mistake need not wait for

        if not is_out_of_memory(error):
            raise
        text = "memory does not suffice; settings.batch_size and settings.micro_batch_size make it need less"
        sys.exit(_complain(f"error: {text}; what is done is kept, run it again", code=1))


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

    preset_words = "[PRESET] [option=value ...]"
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
    added.add_argument(
        "words", nargs="*", metavar="PATH | PRESET [option=value ...]", help="default: every artifact of the data root"
    )
    added = command("export", _export, "copy a pre-trained backbone to a directory that timm loads (`local-dir:DIR`)")
    added.add_argument("artifact", type=Path, help="folder of a pretrain artifact")
    added.add_argument("--to", type=Path, required=True, metavar="DIR", help="a new directory")
    added = command("import-official", _import_official, "turn a released fine-tuned checkpoint into such a directory")
    added.add_argument("checkpoint", type=Path, help="vit_standard_*.pth.tar of the paper's authors")
    added.add_argument("--to", type=Path, required=True, metavar="DIR", help="a new directory")
    added = command("convert-dalle", _convert_dalle, "turn DALL-E's pickled encoder into plain tensors, in a sandbox")
    added.add_argument("pickle", type=Path, help="encoder.pkl as published")
    added.add_argument("--to", type=Path, required=True, metavar="FILE", help="a new file that ends in .safetensors")
    added = command("tokens", _tokens, "summarise a token store")
    added.add_argument("artifact", type=Path, help="folder of a tokenize_images artifact")
    added = command("codebook", _codebook, "show what tokens look like: images with a token's patch outlined, by class")
    added.add_argument("artifact", type=Path, help="folder of a tokenize_images artifact")
    which = added.add_mutually_exclusive_group()
    which.add_argument("--tokens", metavar="3,17,40", help="ids of the tokens to show")
    purest = "the N most class-pure tokens, without labels the most used ones (default: 8)"
    which.add_argument("--purest", type=int, default=8, metavar="N", help=purest)
    added.add_argument(
        "--images", type=int, default=8, metavar="N", help="per token at most N matches and N mismatches (default: 8)"
    )
    added.add_argument("--split", default="", help="whose images (default: the split with the most labelled ones)")
    added.add_argument("--source", type=Path, metavar="PATH", help="where the images lie, if they were moved")
    added.add_argument("--to", type=Path, required=True, metavar="DIR", help="a new directory")
    return parser


def _configure(flow: str, words: Sequence[str]) -> tuple["KClipBuildConfig", "Settings", str]:
    """Preset and `option=value` words -> configuration, settings and the preset's name."""
    from pipeline.overrides import apply_overrides
    from pipeline.presets import preset
    from pipeline.settings import load_settings

    name, overrides = ("demo", words) if not words or "=" in words[0] else (words[0], words[1:])
    of_machine = [word.removeprefix("settings.") for word in overrides if word.startswith("settings.")]
    of_config = [word for word in overrides if not word.startswith("settings.")]
    return apply_overrides(preset(flow, name), of_config), apply_overrides(load_settings(), of_machine), name


def _flow_of(words: Sequence[str]) -> tuple[str, Sequence[str]]:
    """A flow's name may stand first; the rest is its preset and options."""
    return (words[0], words[1:]) if words and words[0] in _FLOWS else ("kclip-build", words)


def _run_flow(flow: str, options: argparse.Namespace) -> int:
    from pipeline.wiring.flows import WIRINGS
    from pipeline.workspace import Workspace

    config, settings, name = _configure(flow, options.words)
    if settings.node_rank:
        from pipeline.training.launch import join_training

        join_training(settings)
        return 0
    with Workspace(settings).tracked(f"{flow} {name}", config) as workspace:
        result = WIRINGS[flow].run(config, workspace, _announced(WIRINGS[flow].expected_calls(config)))
    _print_result(result, settings)
    return 1 if result.failures else 0


def _announced(expected: "Sequence[ExpectedCall]") -> "RunStage":
    """Runs stages and says before each which it is, of how many."""
    places = {call.name: place for place, call in enumerate(expected, start=1)}

    def run_stage(call: "StageCall") -> "StageResult":
        head_what_follows(f"[{places[call.name]}/{len(places)}] {call.name}")
        return call.run()

    return run_stage


def _print_result(result: "FlowResult", settings: "Settings") -> None:
    from pipeline.preflight import readable_bytes

    print()
    width = max(len(one.label) for one in result.results)
    for one in result.results:
        made = one.artifact
        state = "cached" if one.cached else f"{made.notes['seconds']:.1f} s"
        print(f"  {one.label:<{width}} {state:>8}  {readable_bytes(made.bytes):>9}  {made.path}")
    if result.all_cached:
        print("\nEvery stage was cached: nothing had to be done.")
    for failure in result.failures:
        print(f"\nFAILED: {failure.part}\n  {failure.reason}")
    if result.failures:
        print("\nEverything else is done; run the same command again for what failed.")
    print()
    for title, path in _products(result):
        print(f"{title:<9}{path}")
    print(f"{'MLflow':<9}{_mlflow_hint(settings)}")


def _products(result: "FlowResult") -> Iterator[tuple[str, Path]]:
    """What a user came for."""
    files = {"tokenize_images": "tokens.zarr", "pretrain": "", "report": "report.html"}
    titles = {"tokenize_images": "Tokens", "pretrain": "Backbone", "report": "Report"}
    for one in result.results:
        if one.stage in files:
            yield titles[one.stage], one.artifact.path / files[one.stage]


def _mlflow_hint(settings: "Settings") -> str:
    if settings.tracking_uri:
        return without_passwords(settings.tracking_uri)
    return f"mlflow ui --backend-store-uri sqlite:///{settings.layout.tracking_database}"


def _plan(options: argparse.Namespace) -> int:
    from pipeline.plan import describe, estimate, images_in_words, plan, total_words

    flow, words = _flow_of(options.words)
    config, settings, _ = _configure(flow, words)
    cost = estimate(config, settings)
    planned = plan(flow, config, settings)
    if understood := images_in_words(config):
        print(understood)
    if cost:
        print(describe(cost))
    width = max(len(stage.stage) for stage in planned)
    for stage in planned:
        training = f" ({stage.cost.words})" if stage.cost else ""
        print(f"  {stage.stage:<{width}} {stage.state:<7} {stage.reason}{training}")
    if total := total_words(planned):
        print(f"\n{total}")
    return 2 if any(stage.state == "cannot" for stage in planned) else 0


def _show(options: argparse.Namespace) -> int:
    from pipeline.presets import PRESETS

    flow, words = _flow_of(options.words)
    config, _, name = _configure(flow, words)
    print(f"# {flow} {name}; presets: {', '.join(PRESETS[flow])}\n# {(PRESETS[flow][name].__doc__ or '').strip()}")
    for name, field in type(config).model_fields.items():
        value = getattr(config, name)
        if hasattr(value, "model_fields"):
            _show_section(name, field.description, value)
        else:
            _show_option(name, value, field.description)
    return 0


def _show_section(path: str, text: str | None, options: "Options") -> None:
    print(f"\n# {' '.join((text or '').split())}")
    for name, field in type(options).model_fields.items():
        value = getattr(options, name)
        if hasattr(value, "model_fields"):
            _show_section(f"{path}.{name}", field.description, value)
        else:
            _show_option(f"{path}.{name}", options.model_dump(mode="json")[name], field.description)


def _show_option(path: str, value: object, text: str | None) -> None:
    print(f"{path}={json.dumps(value)}\n    {' '.join((text or '').split())}")


def _verify(options: argparse.Namespace) -> int:
    from pipeline.presets import PRESETS
    from pipeline.settings import load_settings
    from pipeline.verify import verify_below, verify_source

    words = options.words
    if words and words[0] in PRESETS["kclip-build"] and not Path(words[0]).exists():
        config, settings, _ = _configure("kclip-build", words)
        verdicts = iter([verify_source(config, settings)])
    else:
        verdicts = (verdict for path in words or [load_settings().layout.root] for verdict in verify_below(Path(path)))
    wrong = 0
    for verdict in verdicts:
        print(f"{'damaged' if verdict.problems else 'ok':<8} {verdict.subject} ({verdict.checked})")
        for line in (*verdict.notes, *verdict.problems):
            print(f"  {line}")
        wrong += bool(verdict.problems)
    return 1 if wrong else 0


def _export(options: argparse.Namespace) -> int:
    from pipeline.export import export_backbone

    return _show_directory(options.to, export_backbone(options.artifact, options.to))


def _import_official(options: argparse.Namespace) -> int:
    from pipeline.export import import_official

    return _show_directory(options.to, import_official(options.checkpoint, options.to))


def _convert_dalle(options: argparse.Namespace) -> int:
    from pipeline.convert_dalle import convert_dalle

    print(f"{options.to}: {convert_dalle(options.pickle, options.to)}")
    return 0


def _show_directory(to: Path, made: str) -> int:
    print(f"{to}: {made}\n\nLoad it:  timm.create_model('local-dir:{to}', pretrained=True)")
    return 0


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


def _codebook(options: argparse.Namespace) -> int:
    from pipeline.report.codebook_pages import parse_tokens, write_codebook_pages
    from pipeline.settings import load_settings

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
