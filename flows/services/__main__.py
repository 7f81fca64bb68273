"""`python -m flows.services up|down|status|deploy`; the Makefile calls it."""

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from flows.services.settings import load_service_settings
from pipeline.engine.errors import USER_ERRORS
from pipeline.engine.logs import without_passwords


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command. Exit codes are `mapet`'s: 0, 1 (something is wrong), 2 (a user's mistake) or 130 (Ctrl-C)."""
    options = _parser().parse_args(arguments)
    try:
        return int(options.command(options))
    except KeyboardInterrupt:
        return _complain("stopped; what this command had started is stopped, too", code=130)
    except USER_ERRORS as error:
        return _complain(f"error: {error}", code=2)
    except OSError as error:
        where = f": {error.filename}" if error.filename else ""
        return _complain(f"error: {error.strerror or error}{where}", code=1)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m flows.services", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    added = commands.add_parser("up", help="start Prefect's server, MLflow's and the workers, what does not run yet")
    added.add_argument("--runs", type=int, metavar="N", help="flow runs at once (default: MAPET_RUNS, or one per GPU)")
    added.add_argument("--no-deploy", action="store_true", help="do not register the deployments")
    added.set_defaults(command=_up)
    added = commands.add_parser("down", help="stop them; runs write a checkpoint and can be retried")
    patience = "time that runs have to end by themselves (default: 10)"
    added.add_argument("--patience", type=float, default=10.0, metavar="SECONDS", help=patience)
    added.set_defaults(command=_down)
    added = commands.add_parser("status", help="what runs; exit code 1 if something of it does not work")
    added.set_defaults(command=_status)
    added = commands.add_parser("deploy", help="register every preset; what was changed in Prefect is kept")
    added.set_defaults(command=_deploy)
    return parser


def _up(options: argparse.Namespace) -> int:
    from flows.services.up import up

    settings = up(load_service_settings(options.runs), say=_say, deploy_all=not options.no_deploy)
    prefect = Path(sys.executable).with_name("prefect")
    shown = shlex.quote(str(prefect.relative_to(Path.cwd()) if prefect.is_relative_to(Path.cwd()) else prefect))
    _say(
        f"\nPrefect  {settings.prefect_url}   runs, schedules, a form for every deployment"
        f"\nMLflow   {without_passwords(settings.tracking_uri or settings.mlflow_url)}   curves and comparisons"
        "\n\nNext:"
        f"\n  export PREFECT_API_URL={settings.prefect_url}/api"
        f"\n  {shown} deployment run kclip-build/demo --watch"
        "\n  make status    # and `make down` to stop"
    )
    return 0


def _down(options: argparse.Namespace) -> int:
    from flows.services.down import down

    settings = load_service_settings()
    stopped = down(settings, patience=options.patience, say=_say)
    _say(f"stopped: {', '.join(stopped)}" if stopped else f"nothing runs that was started in {settings.layout.root}")
    return 0


def _status(options: argparse.Namespace) -> int:
    from flows.services.status import status

    settings = load_service_settings()
    rows = status(settings)
    if not rows:
        _say(f"nothing runs that was started in {settings.layout.root}; start it with `make up`")
    for row in rows:
        _say(f"{row.name:<10} {row.pid:>8}  {row.where:<23} since {row.since.astimezone():%Y-%m-%d %H:%M}  {row.state}")
    return 0 if all(row.healthy for row in rows) else 1


def _deploy(options: argparse.Namespace) -> int:
    from flows.services.deploy import deploy

    for line in deploy(load_service_settings()):
        _say(line)
    return 0


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def _complain(message: str, *, code: int) -> int:
    sys.stderr.write(f"mapet: {message}\n")
    return code


if __name__ == "__main__":
    sys.exit(main())
