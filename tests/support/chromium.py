"""A real browser for the tests: chromium without a window, driven over two pipes with the standard library alone.

The DevTools protocol is JSON messages that end with a NUL byte; chromium reads them from descriptor 3 and writes them to 4.
"""

import base64
import fcntl
import functools
import http.server
import json
import os
import select
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

NAMES = ("chromium", "chromium-browser", "google-chrome")
PROGRAM = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), "")
FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
    "--no-first-run",
    "--mute-audio",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-extensions",
    "--force-color-profile=srgb",
    "--no-proxy-server",
    "--remote-debugging-pipe",
)
OFFLINE = "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"  # no name is looked up, whatever a page asks for
PATIENCE = 60  # seconds for one answer, on a busy machine
# A page has settled when its fonts and formulas are there, and its images, the late ones too.
SETTLED = """(async () => {
    if (document.readyState !== 'complete') await new Promise(done => addEventListener('load', done));
    if (window.MathJax && MathJax.startup) await MathJax.startup.promise;
    for (const image of document.images) image.loading = 'eager';
    await Promise.all([...document.images].map(image => image.decode().catch(() => 0)));
    await document.fonts.ready;
})()"""


class Browser:
    """One chromium with one page; all that it reports is gathered in `seen`, as pairs of an event's name and parameters."""

    def __init__(self, profile: str):
        (read, self._out), (self._in, write) = os.pipe(), os.pipe()
        # above 9, so that putting one in its place as 3 or 4 never overwrites the other
        high = [fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in (read, write)]
        places = [(os.POSIX_SPAWN_DUP2, end, place) for end, place in zip(high, (3, 4), strict=True)]
        silent = [(os.POSIX_SPAWN_OPEN, stream, os.devnull, os.O_RDWR, 0) for stream in (0, 1, 2)]
        command = [PROGRAM, *FLAGS, OFFLINE, f"--user-data-dir={profile}", "about:blank"]
        self._pid = os.posix_spawn(PROGRAM, command, os.environ, file_actions=[*silent, *places], setpgroup=0)
        for end in (read, write, *high):
            os.close(end)
        self._rest, self._count, self._session, self.seen = b"", 0, {}, []

    def start(self) -> None:
        """Opens the page, and asks to be told what happens in it."""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = {"sessionId": self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]}
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def stop(self) -> None:
        """Ends chromium and every process that it started."""
        os.killpg(self._pid, signal.SIGKILL)
        os.waitpid(self._pid, 0)
        os.close(self._in)
        os.close(self._out)

    def call(self, method: str, **parameters: object) -> dict:
        """What chromium answers to one command."""
        own, end = self._send(method, parameters), time.monotonic() + PATIENCE
        while (said := self._next(method, end)).get("id") != own:
            pass
        if "error" in said:
            raise RuntimeError(f"{method}: {said['error']['message']}")
        return said["result"]

    def _send(self, method: str, parameters: dict) -> int:
        self._count += 1
        message = json.dumps({"id": self._count, "method": method, "params": parameters, **self._session}).encode() + b"\0"
        while message:
            message = message[os.write(self._out, message) :]
        return self._count

    def _next(self, what: str, end: float) -> dict:
        """The next message; an event is kept, and a dialog is closed at once, or the page would wait for ever."""
        while b"\0" not in self._rest:
            if not select.select([self._in], [], [], max(0.0, end - time.monotonic()))[0]:
                raise TimeoutError(f"chromium did not answer {what} within {PATIENCE} s")
            piece = os.read(self._in, 1 << 20)
            if not piece:
                raise RuntimeError(f"chromium ended during {what}")
            self._rest += piece
        line, _, self._rest = self._rest.partition(b"\0")
        said = json.loads(line)
        if "method" in said:
            self.seen.append((said["method"], said["params"]))
        if said.get("method") == "Page.javascriptDialogOpening":
            self._send("Page.handleJavaScriptDialog", {"accept": False})
        return said

    def open(self, address: str) -> None:
        """Opens the address and waits until the page has settled; what was seen before is forgotten."""
        self.call("Page.navigate", url="about:blank")
        self.evaluate(SETTLED)  # a second navigation during the first would never be answered
        self.seen.clear()
        self.call("Page.navigate", url=address)
        self.evaluate(SETTLED)

    def evaluate(self, script: str) -> object:
        """The value of a script in the page; a promise is waited for."""
        answer = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in answer:
            details = answer["exceptionDetails"]
            raise RuntimeError(details.get("exception", details).get("description", details["text"]))
        return answer["result"].get("value")

    def size(self, width: int, height: int = 900) -> None:
        """Makes the window so wide and high."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)

    def picture(self, file: Path, whole: bool = False) -> None:
        """Writes a PNG of the window, or of the whole page, to the file."""
        found = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole, **self._clip(whole))
        file.write_bytes(base64.b64decode(found["data"]))

    def _clip(self, whole: bool) -> dict:
        size = self.call("Page.getLayoutMetrics")["cssContentSize"]
        return {"clip": {**size, "scale": 1}} if whole else {}

    def complaints(self, place: str) -> list[str]:
        """What went wrong in the page since it was opened: errors, dialogs, and requests that failed or left `place`."""
        return [text for name, event in self.seen if (text := _complaint(name, event, place))]


def _complaint(name: str, event: dict, place: str) -> str:
    """One event as a complaint; empty where it is none."""
    if name == "Runtime.consoleAPICalled" and event["type"] in {"error", "assert"}:
        return "console: " + " ".join(str(arg.get("value", arg.get("description", ""))) for arg in event["args"])
    if name == "Runtime.exceptionThrown":
        details = event["exceptionDetails"]
        return "exception: " + details.get("exception", details).get("description", details["text"])
    if name == "Log.entryAdded" and event["entry"]["level"] == "error":
        return f"{event['entry']['source']}: {event['entry']['text']} {event['entry'].get('url', '')}"
    if name == "Page.javascriptDialogOpening":
        return f"dialog: {event['message']}"
    if name == "Network.requestWillBeSent" and not event["request"]["url"].startswith((place, "data:", "blob:", "about:")):
        return f"request to elsewhere: {event['request']['url']}"
    if name == "Network.loadingFailed" and not event.get("canceled"):
        return f"failed request: {event['errorText']} {event.get('blockedReason', '')}"
    return ""


@contextmanager
def browser() -> Iterator[Browser]:
    """A browser that is gone afterwards, whatever happened."""
    with tempfile.TemporaryDirectory(prefix="chromium-", ignore_cleanup_errors=True) as profile:
        found = Browser(profile)
        try:
            found.start()
            yield found
        finally:
            found.stop()


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Says nothing."""


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """The address at which the folder is served on this machine alone, without a slash at its end."""
    handler = functools.partial(_Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
