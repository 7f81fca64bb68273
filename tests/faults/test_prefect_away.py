"""Prefect's server goes away in the middle of a flow run: the stages go on, and the run ends well once it is back."""

import json
import subprocess
import sys
from pathlib import Path

from pipeline.configuration.overrides import apply_overrides
from pipeline.configuration.presets import demo
from storage.artifact import list_artifacts
from storage.layout import Layout
from tests.faults.chain import SMALL_BUILD, Expected, wrong_results
from tests.flows.prefect_server import free_port, prefect_server, wait_for

SCRIPT = """\
import json, sys
from flows.kclip_build import kclip_build
from pipeline.configuration.config import KClipBuildConfig
state = kclip_build(KClipBuildConfig(**json.loads(sys.argv[1])), return_state=True)
print(state.state_details.flow_run_id)
"""


def test_a_server_that_is_away_for_a_while_stops_no_stage_and_hears_of_the_end(
    tmp_path: Path, expected: Expected
) -> None:
    home, port, layout = tmp_path / "prefect", free_port(), Layout(tmp_path / "data")
    home.mkdir()
    config = json.dumps(apply_overrides(demo(), SMALL_BUILD).model_dump(mode="json"))
    with prefect_server(home, port) as server:
        of_run = {"MAPET_DATA_ROOT": str(layout.root), "MAPET_DEVICE": "cpu", "MAPET_BATCH_SIZE": "4"}
        run = subprocess.Popen(
            [sys.executable, "-c", SCRIPT, config],
            cwd=tmp_path,
            env={**server.environment, **of_run},
            stdout=subprocess.PIPE,
            stderr=(tmp_path / "log").open("wb"),
            text=True,
        )
        wait_for("the first artifact", lambda: list_artifacts(layout, "make_demo_images"), 120)
        server.kill()
        assert not list_artifacts(layout, "fit_codebook"), "the server went too late"
    wait_for("a codebook without a server", lambda: list_artifacts(layout, "fit_codebook"), 120)
    with prefect_server(home, port) as server:
        out, _ = run.communicate(timeout=240)
        assert run.returncode == 0, (tmp_path / "log").read_text()[-3000:]
        assert server.get(f"/flow_runs/{out.split()[-1]}")["state"]["type"] == "COMPLETED"
    assert wrong_results(layout.root, expected) == []
