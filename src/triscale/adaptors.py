"""How TensorBoard, Weights & Biases and MLflow are told what `log.jsonl` holds, each in its way.

Nothing goes over a network unless the user's own environment (`WANDB_MODE`, `MLFLOW_TRACKING_URI`)
says so. A run that goes on, or goes back, tells them what the log is now; each makes its own copy
equal to it as far as it can. Sources: the packages' documentation, and the format of event files.
"""

from __future__ import annotations

import json
import math
import os
import re
import secrets
import shutil
import socket
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol, TypeVar

from PIL import Image

from triscale.files import write_atomically

_PROJECT = "triscale"
_T = TypeVar("_T")

Record = Mapping[str, Any]


class Logger(Protocol):
    """What each of them can do; any exception ends it."""

    def begin(self, history: Sequence[Record], *, anew: bool) -> None:
        """Open, or open again, so that it holds what `history` says and nothing newer; `anew` if
        the run has just begun."""
        ...

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Log the values of a step."""
        ...

    def pictures(self, step: int, paths: Sequence[Path]) -> None:
        """Log some drawn pictures."""
        ...

    def end(self, *, done: bool) -> None:
        """Close; unless it is `done` the run may go on later."""
        ...


def scalars(record: Record) -> dict[str, float]:
    """The finite numbers of a train or eval record by their names in the loggers; else nothing."""
    if record["kind"] == "eval":
        named = {f"eval/{key}": value for key, value in record["metrics"].items()}
    elif record["kind"] == "train":
        named = {f"train/{k}": v for k, v in record.items() if k not in ("kind", "step")}
    else:
        return {}
    return {key: v for key, v in named.items() if v is not None and math.isfinite(v)}


def flat(recipe: Record) -> dict[str, str]:
    """`section.key` and value, as text, of a recipe."""
    return {
        f"{section}.{key}": value if isinstance(value, str) else json.dumps(value)
        for section, table in recipe.items()
        for key, value in table.items()
    }


class TensorBoard:
    """Event files in `tensorboard/`; a reader drops what a later file says it makes anew."""

    def __init__(self, folder: Path, recipe: Record) -> None:
        self._folder, self._recipe = folder / "tensorboard", recipe
        self._writer: Any = None

    def begin(self, history: Sequence[Record], *, anew: bool) -> None:
        """See Logger."""
        from tensorboard.summary.writer.record_writer import RecordWriter

        # protobuf makes their names when they are imported
        self._events = import_module("tensorboard.compat.proto.event_pb2")
        self._summaries = import_module("tensorboard.compat.proto.summary_pb2")
        if self._writer:
            self._writer.close()
        self._folder.mkdir(exist_ok=True)
        known = any(self._folder.glob("*.tfevents.*"))
        # a reader takes the files in the order of their names
        path = self._folder / f"events.out.tfevents.{time.time_ns():020d}.{socket.gethostname()}"
        # unbuffered, so that an error comes from the call that made it
        self._writer = RecordWriter(path.open("xb", buffering=0))
        # those of the last step are written again: it may be without its validation
        last = history[-1]["step"] if history else 0
        self._add(file_version="brain.Event:2")
        start = self._events.SessionLog.START
        self._add(step=last, session_log=self._events.SessionLog(status=start))
        self._add_recipe(last)
        for record in history:
            if (values := scalars(record)) and (not known or record["step"] == last):
                self.write(record["step"], values)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """See Logger."""
        one = self._summaries.Summary.Value
        self._add_values(step, [one(tag=k, simple_value=v) for k, v in values.items()])

    def pictures(self, step: int, paths: Sequence[Path]) -> None:
        """See Logger."""
        of = self._summaries.Summary
        values: list[Any] = []
        for path in paths:
            with Image.open(path) as picture:
                width, height = picture.size
            image = of.Image(
                width=width, height=height, colorspace=3, encoded_image_string=path.read_bytes()
            )
            values.append(of.Value(tag=f"predictions/{path.stem}", image=image))
        self._add_values(step, values)

    def end(self, *, done: bool) -> None:
        """See Logger."""
        self._writer.close()

    def _add_recipe(self, step: int) -> None:
        """The recipe as a text, in Markdown."""
        import tomli_w  # here: `predict` runs where it isn't installed

        text = "".join(f"    {line}\n" for line in tomli_w.dumps(self._recipe).splitlines())
        data = self._summaries.SummaryMetadata.PluginData(plugin_name="text")
        tensors = import_module("tensorboard.compat.proto.tensor_pb2")
        types = import_module("tensorboard.compat.proto.types_pb2")
        value = self._summaries.Summary.Value(
            tag="recipe",
            metadata=self._summaries.SummaryMetadata(plugin_data=data),
            tensor=tensors.TensorProto(dtype=types.DT_STRING, string_val=[text.encode()]),
        )
        self._add_values(step, [value])

    def _add_values(self, step: int, values: list[Any]) -> None:
        self._add(step=step, summary=self._summaries.Summary(value=values))

    def _add(self, **fields: Any) -> None:
        event = self._events.Event(wall_time=time.time(), **fields)
        self._writer.write(event.SerializeToString())


class WandB:
    """A run of Weights & Biases in `wandb/`, offline unless WANDB_MODE says otherwise."""

    def __init__(self, folder: Path, recipe: Record) -> None:
        self._folder, self._recipe = folder, recipe
        self._run: Any = None

    def begin(self, history: Sequence[Record], *, anew: bool) -> None:
        """See Logger. An offline run is written anew as a whole, so that it has each step once;
        an online one keeps the steps that it has."""
        if self._run is None:
            os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # read when it is imported
            import wandb

            mode = os.environ.get("WANDB_MODE") or "offline"
            settings = wandb.Settings(
                mode=mode,  # type: ignore[arg-type]
                console="off",
                silent=True,
                disable_code=True,
                disable_git=True,
                disable_job_creation=True,
                save_code=False,
                finish_timeout=600,  # seconds, for a network that is gone; the data stay here
                x_disable_stats=True,
                x_disable_meta=True,
                x_disable_machine_info=True,
                x_save_requirements=False,
            )
            run_id = _identity(self._folder, "wandb", lambda: secrets.token_hex(4), anew=anew)
            if mode == "offline":
                for old in (self._folder / "wandb").glob(f"offline-run-*-{run_id}"):
                    shutil.rmtree(old)
            self._run = wandb.init(
                project=os.environ.get("WANDB_PROJECT") or _PROJECT,
                name=os.environ.get("WANDB_NAME") or self._folder.absolute().name,
                id=run_id,
                dir=self._folder,
                config=dict(self._recipe),
                resume=None if mode == "offline" else "allow",
                allow_val_change=True,
                settings=settings,
            )
        for record in history:
            if values := scalars(record):
                self.write(record["step"], values)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """See Logger."""
        with _giving_up():
            if step >= self._run.step:  # it takes no other
                self._run.log(dict(values), step=step)

    def pictures(self, step: int, paths: Sequence[Path]) -> None:
        """See Logger."""
        import wandb

        images = [wandb.Image(str(path), caption=path.stem) for path in paths]
        with _giving_up():
            if step >= self._run.step:
                self._run.log({"eval/predictions": images}, step=step)

    def end(self, *, done: bool) -> None:
        """See Logger."""
        if self._run:
            with _giving_up():
                self._run.finish(exit_code=0 if done else 1)


@contextmanager
def _giving_up() -> Generator[None]:
    """W&B's service may have died. It is let go then: else W&B would look for it when the program
    ends, and show a traceback."""
    try:
        yield
    except Exception:
        with suppress(Exception, SystemExit):  # the first error is told
            import_module("wandb").teardown(exit_code=1)
        raise


class MLflow:
    """A run of MLflow in the folder `mlflow/`, or where MLFLOW_TRACKING_URI says."""

    def __init__(self, folder: Path, recipe: Record) -> None:
        self._folder, self._recipe = folder, recipe

    def begin(self, history: Sequence[Record], *, anew: bool) -> None:
        """See Logger. A store can't forget: steps that it has aren't written again."""
        for name, value in MLFLOW.items():
            os.environ.setdefault(name, value)  # read when it is imported, and later
        from mlflow.entities import Param
        from mlflow.tracking import MlflowClient

        here = (self._folder / "mlflow").absolute().as_uri()
        self._client = MlflowClient(os.environ.get("MLFLOW_TRACKING_URI") or here)

        def create() -> str:
            name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or _PROJECT
            there = self._client.get_experiment_by_name(name)
            experiment = there.experiment_id if there else self._client.create_experiment(name)
            run = self._client.create_run(experiment, run_name=self._folder.absolute().name)
            for some in _parts(list(flat(self._recipe).items()), 100):
                params = [Param(key, value[:500]) for key, value in some]
                self._client.log_batch(run.info.run_id, params=params)
            return run.info.run_id

        self._id = _identity(self._folder, "mlflow", create, anew=anew)
        self._client.update_run(self._id, status="RUNNING")
        self._last = {key: self._newest(key) for key in ("train/loss", "eval/mAP")}
        for record in history:
            if values := scalars(record):
                self.write(record["step"], values)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """See Logger."""
        from mlflow.entities import Metric

        kind = "eval/mAP" if next(iter(values)).startswith("eval/") else "train/loss"
        if step <= self._last[kind]:
            return
        self._last[kind] = step
        now = time.time_ns() // 1_000_000
        metrics = [Metric(mlflow_name(key), value, now, step) for key, value in values.items()]
        for some in _parts(metrics, 1000):
            self._client.log_batch(self._id, metrics=some)

    def pictures(self, step: int, paths: Sequence[Path]) -> None:
        """See Logger. The newest ones only."""
        for path in paths:
            self._client.log_artifact(self._id, str(path), "predictions")

    def end(self, *, done: bool) -> None:
        """See Logger."""
        self._client.set_terminated(self._id, "FINISHED" if done else "KILLED")

    def _newest(self, key: str) -> int:
        points = self._client.get_metric_history(self._id, key)
        return max((point.step for point in points), default=-1)


# without word home; its files are enough; a server that is gone is given up soon
MLFLOW = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ALLOW_FILE_STORE": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
}


def _identity(folder: Path, name: str, create: Callable[[], str], *, anew: bool) -> str:
    """The id of the run with a logger, which `loggers.json` keeps; a new one if there is none."""
    path = folder / "loggers.json"
    known: dict[str, str] = json.loads(path.read_bytes()) if path.is_file() else {}
    if anew or name not in known:
        known[name] = create()
        write_atomically(path, json.dumps(known).encode())
    return known[name]


def _parts(things: list[_T], most: int) -> Iterator[list[_T]]:
    return (things[k : k + most] for k in range(0, len(things), most))


def mlflow_name(key: str) -> str:
    """A name that MLflow takes; a class may have any, also that of a folder."""
    before, prefix, name = key.partition("eval/AP/")
    if not prefix:
        return key
    return before + prefix + re.sub(r"[^\w .:-]|^\.", lambda found: f"_{ord(found[0]):x}_", name)
