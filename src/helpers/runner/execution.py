"""Execution of one chapter: papermill in a kernel of this very environment, watched, and judged by our own status file.

The chapter is executed to a temporary name beside its target and renamed only when every cell has run; the status file
comes last. A failed one is kept under `logs/failed/`. Paths and host names are taken out of everything that is kept.
"""

import logging
import os
import platform
import shutil
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import papermill
from nbclient.exceptions import DeadKernelError
from papermill.exceptions import PapermillExecutionError

from helpers import console
from helpers.cache import write_whole
from helpers.console import peak_gb
from helpers.errors import ENVIRONMENT, StudyError
from helpers.models import compute, meter
from helpers.runner.kernels import KERNEL, Heartbeat, kernel_environment
from helpers.study import fingerprints, statuses
from helpers.study.chapters import Job

VERSIONS = (*fingerprints.NUMERIC, "papermill", "ipykernel")


def execute(job: Job, root: Path, notebook: Path, on_stop: Callable[[], object] = lambda: None) -> dict[str, Any]:
    """The status of the chapter after it has run; every failure is a StudyError that names chapter, cell and cause."""
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    os.chdir(root)  # from here on all paths are relative: none can leak, and the kernel starts in the project
    target = job.run.folder / "executed" / f"{job.chapter}.ipynb"
    temporary, runtime = target.with_name(f".{job.chapter}.{os.getpid()}.tmp.ipynb"), Path(f"build/jupyter/runtime-{os.getpid()}")
    watch, begun = Heartbeat(job, runtime / console.FILE, runtime / meter.FILE), datetime.now(UTC)
    _stop_on_signals(watch, temporary, runtime, on_stop)
    try:
        for folder in (target.parent, Path("logs/failed"), runtime):
            folder.mkdir(parents=True, exist_ok=True)
        kernel_environment(root, runtime, job.parameters.get("threads"))
        os.environ[compute.VARIABLE] = job.compute
        threading.Thread(target=watch.run, daemon=True).start()
        _papermill(notebook, temporary, watch)
        write_whole(target, console.notebook_text(temporary, root))
        return _finish(watch, root, begun)
    except OSError as error:
        raise StudyError(
            f"{job.chapter}: cannot write ({error.strerror}); free some disk or mend the rights", ENVIRONMENT
        ) from error
    except StudyError:
        with suppress(OSError, ValueError):  # a disk that is full must not hide the first error
            write_whole(Path("logs/failed") / f"{_name(job)}.ipynb", console.notebook_text(temporary, root))
        raise
    finally:
        watch.over.set()
        watch.kill()
        _clear(temporary, runtime)


def _name(job: Job) -> str:
    return f"{job.run.profile}-{job.run.slug}-seed-{job.run.seed}-{job.chapter}"


def _clear(*traces: Path) -> None:
    for path in traces:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            with suppress(OSError):
                path.unlink(missing_ok=True)


def _stop_on_signals(watch: Heartbeat, temporary: Path, runtime: Path, on_stop: Callable[[], object]) -> None:
    """On SIGTERM or SIGINT: kernel killed, traces removed, 143 or 130; no exception, for the event loop would swallow it."""

    def stop(number: int, frame: object) -> None:
        watch.kill()
        _clear(temporary, runtime)
        on_stop()
        with suppress(OSError):
            sys.stdout.flush()
        os._exit(128 + number)

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)


def _papermill(notebook: Path, temporary: Path, watch: Heartbeat) -> None:
    job = watch.job
    paths = [str(path).replace("{", "{{").replace("}", "}}") for path in (notebook, temporary)]  # papermill formats its paths
    options = {"kernel_name": KERNEL, "language": "python", "engine_name": "after-update", "progress_bar": False}
    try:
        with open(Path("logs") / f"{_name(job)}.log", "w", encoding="utf-8") as log:
            done = papermill.execute_notebook(*paths, parameters=job.parameters, watch=watch, log_file=log, **options)
    except PapermillExecutionError as error:
        raise _cell_failed(watch, error.ename, error.evalue) from error
    except (DeadKernelError, RuntimeError) as error:
        raise _kernel_died(watch, error) from error
    _refuse_exits(watch, [out for cell in done.cells for out in cell.get("outputs", [])])


def _refuse_exits(watch: Heartbeat, outputs: Iterable[dict]) -> None:
    """papermill takes sys.exit(0) in a cell for success; here it is a failure."""
    for output in outputs:
        if output["output_type"] == "error" and output["ename"] == "SystemExit":
            raise _cell_failed(watch, "SystemExit", output["evalue"])


def _cell_failed(watch: Heartbeat, name: str, text: str) -> StudyError:
    place = f"{watch.job.chapter}, cell {watch.cell} of {watch.cells}"
    kept = f"see logs/failed/{_name(watch.job)}.ipynb"
    lines = [line.strip() for line in console.ANSI.sub("", text).splitlines() if line.strip()] or [""]
    if name == "SystemExit":
        return StudyError(f"{place}: called sys.exit({text}), which counts as a failure; remove the call; {kept}", ENVIRONMENT)
    if name == "StudyError":
        code = watch.error[2] if watch.error else None
        return StudyError(f"{place}: {console.scrub(' '.join(lines), Path.cwd())}", code or ENVIRONMENT)
    return StudyError(f"{place}: {name}: {console.scrub(lines[-1], Path.cwd())[:500]}; {kept}", ENVIRONMENT)


def _kernel_died(watch: Heartbeat, error: Exception) -> StudyError:
    place = f"{watch.job.chapter}, cell {watch.cell} of {watch.cells}"
    if watch.timed_out:
        text = f"{place}: stopped at the chapter's limit of {watch.job.seconds:g} s; raise chapter_seconds in the profile"
        return StudyError(text, ENVIRONMENT)
    if watch.process is None:
        return StudyError(
            f"{watch.job.chapter}: kernel {KERNEL!r} did not start ({type(error).__name__}); run make env", ENVIRONMENT
        )
    code = watch.process.poll()
    if code == -signal.SIGKILL:
        return StudyError(
            f"{place}: kernel killed (signal 9), likely memory: peak {peak_gb():.1f} GB; use smaller sizes or free memory",
            ENVIRONMENT,
        )
    if code is not None and code < 0:
        cause = f"killed (signal {-code}, {signal.Signals(-code).name}): peak {peak_gb():.1f} GB"
    else:
        cause = f"ended by itself (exit code {code})"
    return StudyError(f"{place}: kernel {cause}; see logs/{_name(watch.job)}.log", ENVIRONMENT)


def _finish(watch: Heartbeat, root: Path, begun: datetime) -> dict[str, Any]:
    """Writes the status file, the last thing of a chapter."""
    from helpers import cache
    from helpers.runner import manifests

    job = watch.job
    entry = {
        "chapter": job.chapter,
        "fingerprint": job.fingerprint,
        **job.marks,
        "parameters": {
            name: console.scrub(value, root) if isinstance(value, str) else value for name, value in job.parameters.items()
        },
        "seconds": round(time.monotonic() - watch.started, 2),
        "started": begun.isoformat(timespec="milliseconds"),
        "finished": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "versions": versions(),
        "machine": machine(job.parameters, job.compute),
        "tokens": {kind: round(count) for kind, count in asdict(meter.read_counts(watch.tokens)).items()},
        "code": manifests.code_state(root),
        "files": statuses.written(job.run.folder, job.chapter),
    }
    cache.write_json(statuses.status_path(job.run.folder, job.chapter), entry)
    return entry


def versions() -> dict[str, str]:
    """The versions of Python and of the packages that numbers depend on."""
    return {"python": ".".join(map(str, sys.version_info[:3])), **console.installed(VERSIONS)}


def machine(parameters: dict[str, Any], computed_in: str) -> dict[str, Any]:
    """What the chapter ran on, and in which compute; no name of the host."""
    found: dict[str, Any] = {name: parameters[name] for name in ("device", "threads") if name in parameters}
    return {
        **found,
        "compute": "" if computed_in == "auto" else computed_in,
        "cpus": os.cpu_count(),
        "system": sys.platform,
        "processor": platform.machine(),
        "peak_gb": round(peak_gb(), 3),
    }
