"""Kernels: a notebook runs in one of this very environment, under a watch that limits its time and its output."""

import json
import os
import signal
import sys
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from subprocess import Popen

from papermill.clientwrap import PapermillNotebookClient
from papermill.engines import Engine, papermill_engines

from helpers import console
from helpers.cache import write_whole
from helpers.console import say
from helpers.models import meter
from helpers.runner.guards import orphaned
from helpers.study.chapters import Job

KERNEL = "python3"
HEARTBEAT, AT_A_TERMINAL = 30.0, 10.0  # seconds without a word, in a file and before somebody's eyes
START_LIMIT = 180  # seconds until a kernel on a busy machine has answered
LARGEST_OUTPUT = 4_000_000  # bytes a cell; a crowded figure, with its two drawings, its image and its data, takes 1.5 million


@dataclass
class Heartbeat:
    """What is known about a running chapter; its thread gives the heartbeat and enforces the limit."""

    job: Job
    bars: Path = Path(os.devnull)  # where the kernel writes how far it is
    tokens: Path = Path(os.devnull)  # where it counts what its models read
    started: float = field(default_factory=time.monotonic)
    process: Popen | None = None
    cell: int = 0
    cells: int = 0
    entered: float = 0.0  # when the cell began; bars of earlier cells say nothing about it
    timed_out: bool = False
    error: tuple[str, str, int | None] | None = None  # name, text, and the exit code of a StudyError
    over: threading.Event = field(default_factory=threading.Event)

    def kill(self) -> None:
        """Kills the kernel and all that it started: it leads a process group of its own."""
        if self.process is not None:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self.process.pid, signal.SIGKILL)

    def line(self) -> str:
        """Where the chapter stands: the bars of the work in its cell, the cell, the time so far, and what that work has left."""
        bars = console.state(self.bars, self.entered)
        counted, lasted = meter.read_counts(self.tokens).cost, time.monotonic() - self.started
        if self.job.planned and 0.05 * self.job.planned < counted < self.job.planned:
            rest = console.left(counted, self.job.planned, lasted)
        else:  # nothing is planned, little is done, or what is left reads no model: the bar knows more
            done = console.shares(bars)
            rest = console.left(done, 1, time.time() - bars[0].began) if done else ""
        parts = [console.words(bars), f"cell {self.cell} of {self.cells}", console.took(lasted), rest]
        return f"{self.job.chapter}: {', '.join(filter(None, parts))}"

    def run(self) -> None:
        """The thread: ends with the chapter."""
        said, rhythm = self.started, AT_A_TERMINAL if sys.stdout.isatty() else HEARTBEAT
        while not self.over.wait(0.5):
            now = time.monotonic()
            if now - self.started > self.job.seconds and not self.timed_out:
                self.timed_out = True
                self.kill()
            if now - said >= rhythm:
                said = now
                say(self.line())
            if orphaned(self.job.runner):
                self.kill()
                os._exit(143)


# ---------------------------------------------------------------- papermill


class _Client(PapermillNotebookClient):
    """papermill's client, with a limit on output and an eye on the kernel."""

    def __init__(self, nb_man, watch: Heartbeat, **options):
        super().__init__(nb_man, **options)
        self.watch, self.on_cell_error, self.on_cell_start = watch, self._remember, self._enter
        self.on_notebook_start = self._begin
        self.used: dict[int, int] = {}  # bytes of output, by cell
        watch.cells = len(self.nb.cells) - 1  # one is papermill's own

    def _begin(self, notebook):
        self.watch.process = self.km.provisioner.process
        say(f"{self.watch.job.chapter}: {self.watch.cells} cells, {self.watch.job.run.label}")

    def _enter(self, cell, cell_index):
        injected = any("injected-parameters" in c.metadata.get("tags", []) for c in self.nb.cells[:cell_index])
        self.watch.cell, self.watch.entered = cell_index + 1 - injected, time.time()

    async def _remember(self, cell, cell_index, execute_reply):
        content = execute_reply["content"]
        code = await self._code() if content["ename"] == "StudyError" else None
        self.watch.error = (content["ename"], content["evalue"], code)

    async def _code(self) -> int | None:
        """The exit code of the StudyError that was just raised in the kernel."""
        asked = self.kc.execute(
            "", silent=True, store_history=False, user_expressions={"code": "__import__('sys').last_value.code"}
        )
        with suppress(Exception):  # an answer that does not come leaves the code unknown
            while True:
                reply = await self.kc.shell_channel.get_msg(timeout=10)
                if reply["parent_header"].get("msg_id") == asked:
                    return int(reply["content"]["user_expressions"]["code"]["data"]["text/plain"])
        return None

    def output(self, outs, msg, display_id, cell_index):
        if msg["msg_type"] == "error":
            return super().output(outs, msg, display_id, cell_index)
        content, used = msg["content"], self.used.get(cell_index, 0)
        if used > LARGEST_OUTPUT:
            return None
        text = content.get("text")
        size = len(text.encode("utf-8", "replace")) if text is not None else len(json.dumps(content.get("data", {})))
        self.used[cell_index] = used + size
        if used + size > LARGEST_OUTPUT:
            kept = text[: max(0, LARGEST_OUTPUT - used) // 4] if text is not None else ""  # a character has at most four bytes
            msg["msg_type"] = msg["header"]["msg_type"] = "stream"
            msg["content"] = {
                "name": content.get("name", "stdout"),
                "text": f"{kept}\n[output cut: more than {LARGEST_OUTPUT // 10**6} MB in this cell]\n",
            }
        return super().output(outs, msg, display_id, cell_index)


class _Engine(Engine):
    """papermill's way to run a notebook through our client."""

    @classmethod
    def execute_managed_notebook(cls, nb_man, kernel_name, watch=None, log_file=None, **_):
        options = {"kernel_name": kernel_name, "startup_timeout": START_LIMIT, "iopub_timeout": 600, "timeout": None}
        return _Client(nb_man, watch, **options).execute(stdout=log_file, stderr=log_file)


papermill_engines.register("after-update", _Engine)


def kernel_environment(root: Path, runtime: Path, threads: object) -> None:
    """Sets the environment of a kernel: `python3` is this very Python, whatever else is installed, and no personal settings."""
    jupyter = root / "build" / "jupyter"
    spec = jupyter / "kernels" / KERNEL / "kernel.json"
    argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}", "--log-level=ERROR"]
    text = json.dumps({"argv": argv, "display_name": "Python 3", "language": "python"})
    if not spec.is_file() or spec.read_text(encoding="utf-8") != text:
        write_whole(spec, text)
    # A waiting thread gives its core away: on a shared machine, spinning made the same forward up to five times slower
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    count = {} if threads is None else dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(threads))
    os.environ.update(count, AFTER_UPDATE_ROOT=str(root), JUPYTER_PATH=str(jupyter), JUPYTER_RUNTIME_DIR=str(root / runtime))
    os.environ[console.VARIABLE] = str(root / runtime / console.FILE)
    os.environ[meter.VARIABLE] = str(root / runtime / meter.FILE)
    os.environ.update(JUPYTER_CONFIG_DIR=str(jupyter / "config"), IPYTHONDIR=str(jupyter / "ipython"), JUPYTER_PLATFORM_DIRS="1")
