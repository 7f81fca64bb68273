"""Settings of the machine: where data lies, which device, how many workers. They never change a result.

Read from the environment with the prefix `MAPET_` (`MAPET_DATA_ROOT=/data`), or from a `.env` file in the current
folder; on the command line as `settings.workers=8`.
"""

import logging
import os
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, DotEnvSettingsSource, SettingsConfigDict

from pipeline.engine.devices import attend_with, chosen_device
from pipeline.engine.errors import PipelineError
from pipeline.engine.threads import threads_of_each
from pipeline.engine.words import did_you_mean
from storage.files import sha256_text
from storage.layout import Layout
from storage.remote import RemoteRoot
from storage.remote_folder import RemoteFolder

logger = logging.getLogger("mapet.stages")
PREFIX, ENV_FILE = "MAPET_", Path(".env")
# What else of ours is read from the environment: ports and workers of flows/services, and the mark of its processes.
_OF_SERVICES = ("PREFECT_PORT", "MLFLOW_PORT", "RUNS", "SERVICE")
UserPath = Annotated[Path, AfterValidator(Path.expanduser)]
LOCAL_DASK = "local"  # a Dask cluster of this machine, as long as it is needed


class Settings(BaseSettings):
    """What this machine is and where it keeps things."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        env_file=ENV_FILE,
        env_file_encoding="utf-8-sig",  # editors on Windows write a mark before the first name, which is none of it
        extra="ignore",
        frozen=True,
        use_attribute_docstrings=True,
    )

    data_root: UserPath = Path("data")
    """Folder of all artifacts; also of the MLflow database unless `tracking_uri` is set. An address such as
    `s3://bucket/prefix` stands for `remote_root`, with a folder below `cache_root` as this machine's copy."""

    remote_root: str = ""
    """Object store, `s3://bucket/prefix` or another address that fsspec knows, on which every artifact is too and from
    which other machines take it; its keys stay in the environment (`AWS_ACCESS_KEY_ID`, ...). Empty: none."""

    cache_root: UserPath = Path("~/.cache/mapet")
    """Where the local copies are when `data_root` is an address."""

    tracking_uri: str = ""
    """MLflow tracking server, e.g. `http://127.0.0.1:5000`, its user and password in `MLFLOW_TRACKING_USERNAME` and
    `MLFLOW_TRACKING_PASSWORD`; empty: SQLite and a folder under the data root."""

    tracking_page: str = ""
    """Where people's browsers find that server, for links in reports; empty: where the runs do."""

    experiment: str = "mapet"
    """MLflow experiment that the runs go to."""

    device: str = "auto"
    """`cpu`; `cuda`, this machine's GPUs: all of them encode images, and as many train as `processes` says; `cuda:1`,
    ..., that one alone; `auto`, the GPUs if there are any."""

    workers: int = Field(default=-1, ge=-1, le=1024)
    """Processes that read and decode images, of each process that trains or encodes; 0 decodes in the main process, -1
    is one per CPU core, at most 16; several processes that train, or encode, share the cores."""

    batch_size: int = Field(default=0, ge=0, le=2**16)
    """Images per encoder batch; 0 takes 128 on a GPU and 32 on a CPU."""

    compile: bool = False
    """Compile encoder and training step with `torch.compile` (minutes once; an encoder then does about 1.5 times the
    images per second on a GPU)."""

    attention: Literal["auto", "flash", "efficient", "cudnn", "math", "blocks", "windows", "flex"] = "auto"
    """Kernels that compute attention on a GPU: `flash` and, with a mask, torch's memory-efficient one; `efficient`, the
    latter everywhere; `cudnn`, NVIDIA's on Hopper and Blackwell, but for shapes of which NaN gradients are reported;
    `math`, plain matrix products; `auto`, flash until the others have been measured. The rest as `auto`, but MaPeT and
    PIM without their large mask: `blocks`, in blocks with a small one (on a CPU too, where it is slower); `windows`, by
    flash's sliding windows, where it takes them; `flex`, by FlexAttention, which Triton compiles."""

    dask_address: str = ""
    """Where images are encoded to features and tokens: empty, on this machine, by a process for each GPU or, without
    one, in this process; `local`, by a Dask cluster that is started on this machine, whose workers share its GPUs;
    `tcp://host:8786`, by the workers of that Dask scheduler, which see the data root and the images under the same
    paths."""

    dask_workers: int = Field(default=2, ge=1, le=10_000)
    """Workers of the local Dask cluster; with an address, how many are expected, as a batch system starts them late."""

    jobs: int = Field(default=0, ge=0, le=1024)
    """Stages of one run that are made at once on this machine, where none needs what the other makes: each in a process
    of its own, with its share of GPUs and cores. 0: one per GPU; without a GPU one per core, at most 4, where what is
    trained is small; one where a training takes several processes or machines, or Dask encodes. 1: one after the
    other, in this process."""

    processes: int = Field(default=1, ge=1, le=1024)
    """Processes that train together on this machine, one per GPU; a step's batch is divided among them. Where it is
    more than one, images are encoded by as many GPUs, otherwise by all that there are."""

    nodes: int = Field(default=1, ge=1, le=10_000)
    """Machines that train together, each with `processes` processes; the same command is started on all of them."""

    node_rank: int = Field(default=0, ge=0, lt=10_000)
    """Which of the nodes this is. Node 0 runs all stages; the others only train."""

    rendezvous: str = ""
    """`host:port` of node 0, where the nodes meet; needed when there are several."""

    micro_batch_size: int = Field(default=0, ge=0, le=2**20)
    """Images of a training step that a process computes at once; smaller needs less memory, and gradients accumulate
    over the pieces of a step. 0: all of them."""

    gradient_checkpointing: bool = False
    """Keep only the input of each block for the backward pass and compute the rest again: a third slower."""

    head_rows: int = Field(default=0, ge=0, le=2**31 - 1)
    """Predicted patches whose logits exist at once while training, computed again for the gradient; 0: all of them."""

    stored_squares: bool = False
    """Keep the central square of every image as pixels (stage `store_squares`), which pre-training then copies from
    memory maps instead of decoding each image in each epoch; evaluations judge on it where it is what they would cut.
    193 GB for ImageNet at 224 pixels. They are the very pixels, so every result stays the same."""

    checkpoint_steps: int = Field(default=500, ge=1, le=10**9)
    """Training steps between checkpoints; a killed run goes on from the last one."""

    keep_checkpoints: int = Field(default=2, ge=1, le=10_000)
    """Checkpoints that are kept, the newest ones."""

    @model_validator(mode="before")
    @classmethod
    def _separate_address_from_folder(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Let whatever reads the settings find a folder in `data_root`: memory maps, locks and Zarr need one."""
        root = str(values.get("data_root", ""))
        if "://" not in root:
            return values
        copies = Path(values.get("cache_root", cls.model_fields["cache_root"].default))
        return {**values, "remote_root": root, "data_root": copies / sha256_text(root)[:16]}

    @field_validator("remote_root")
    @classmethod
    def _is_an_address(cls, url: str) -> str:
        # Its StorageError passes through pydantic, whose own error would repeat the keys in an address.
        return RemoteFolder(url).url if url else ""

    @property
    def layout(self) -> Layout:
        remote = RemoteRoot(RemoteFolder(self.remote_root)) if self.remote_root else None
        return Layout(self.data_root.absolute(), remote)

    @property
    def decoding_processes(self) -> int:
        return self.workers if self.workers >= 0 else min(threads_of_each(self.jobs), 16)

    @property
    def loading_together(self) -> int:
        """How many processes of this machine may load images for a training at once."""
        return self.processes * max(1, self.jobs)

    def of_one_of(self, together: int) -> "Settings":
        """Return the settings of one of so many processes that encode images on this machine: its part of it, and no
        password."""
        return self.model_copy(update={"processes": together, "tracking_uri": ""}).of_one_process()

    def of_one_process(self) -> "Settings":
        """Return the settings of one of the processes that train together: its part of the machine's decoding
        workers."""
        if self.workers >= 0 or self.processes == 1:
            return self
        return self.model_copy(update={"workers": threads_of_each(self.loading_together)})

    def of_job(self, jobs: int) -> "Settings":
        """Return the settings of one of so many jobs that run at once; of 1, which has the machine to itself."""
        return self.model_copy(update={"jobs": jobs})

    def torch_device(self) -> str:
        """Return the device to compute on; from then on this process computes attention as the settings say. Imports
        torch.

        Raises:
            PipelineError: there is no such device here.
        """
        device = chosen_device(self.device)
        attend_with(self.attention, device)
        return device

    def meeting_point(self) -> tuple[str, str]:
        """Return the host and port of node 0, where the processes of several nodes meet.

        Raises:
            PipelineError: none is given, or this is not one of the nodes.
        """
        host, _, port = self.rendezvous.partition(":")
        if not host or not port.isdigit():
            raise PipelineError(
                f"settings.nodes={self.nodes} needs settings.rendezvous=HOST:PORT of node 0, got {self.rendezvous!r}"
            )
        if self.node_rank >= self.nodes:
            raise PipelineError(
                f"settings.node_rank={self.node_rank} of settings.nodes={self.nodes}: give each one its own, from 0 to "
                f"{self.nodes - 1}"
            )
        return host, port

    def encoder_batch(self) -> int:
        return self.batch_size or (128 if self.torch_device().startswith("cuda") else 32)


def load_settings() -> Settings:
    """Return the settings of this process's environment. Raises PipelineError, one sentence, for values that cannot
    be."""
    check_environment()
    try:
        return Settings()
    except ValidationError as error:
        wrong = "; ".join(
            f"MAPET_{str(item['loc'][0]).upper()}={item['input']!r}: {item['msg'].lower()}" for item in error.errors()
        )
        raise PipelineError(f"{wrong}; correct the environment or .env") from None


def check_environment() -> None:
    """Warn of variables that look like ours and are none. Raises PipelineError when `.env` is no text."""
    try:
        written = DotEnvSettingsSource(Settings).env_vars
        if any("\0" in name for name in written):  # UTF-16 without its mark
            raise UnicodeError("null bytes between the letters")
    except UnicodeError as error:
        raise PipelineError(
            f"{ENV_FILE.absolute()} is not UTF-8 text ({error}); save it as UTF-8, in an editor on Windows without "
            '"Unicode" or "UTF-16"'
        ) from None
    warn_of_unknown(tuple(sorted({name.upper() for name in (*os.environ, *written)})))


@lru_cache(maxsize=1)  # settings are loaded more than once, the warning is said once
def warn_of_unknown(names: Iterable[str]) -> None:
    """Warn of variables with our prefix that set nothing, with the names that were meant."""
    known = [PREFIX + name.upper() for name in (*Settings.model_fields, *_OF_SERVICES)]
    for name in names:
        if name.startswith(PREFIX) and name not in known:
            logger.warning("%s is no setting%s and is ignored", name, did_you_mean(name, known))
