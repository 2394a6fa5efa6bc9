"""PDF: the whole book in one file, printed by chromium with cover and contents.

It is printed twice: the first print tells on which sheet each page begins, the second has these numbers in its contents.
"""

import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml

from helpers.book import pages
from helpers.book.away import document
from helpers.cache import write_file, write_whole
from helpers.console import say
from helpers.errors import ENVIRONMENT, StudyError
from helpers.folders import file_hash

CHROMIUM = ("chromium", "chromium-browser", "google-chrome")
LONGEST = 900  # seconds that one print may take; two busy cores took 90
PRINTS = 4  # the second has the numbers, the third is for a contents that they made longer
FLAGS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--no-proxy-server"),
    *("--host-resolver-rules=MAP * ~NOTFOUND", "--allow-file-access-from-files", "--hide-scrollbars"),
    *("--no-pdf-header-footer", "--generate-pdf-document-outline", "--virtual-time-budget=600000", "--window-size=900,1200"),
)


def sheets(printed: bytes) -> dict[str, int]:
    """The number of the sheet on which each linked anchor stands, from 1, as chromium notes them in what it printed.

    Chromium writes the tree of pages and the named places as plain text, so nothing is unpacked. Errors: they are not there.
    """
    roots = re.search(rb"/Type /Catalog\s*/Pages (\d+) 0 R\s*/Dests (\d+) 0 R", printed)
    trees = re.finditer(rb"^(\d+) 0 obj\s*<</Type /Pages\b[^\[]*/Kids \[([^\]]*)\]", printed, re.MULTILINE)
    below = {int(tree[1]): [int(number) for number in re.findall(rb"(\d+) 0 R", tree[2])] for tree in trees}

    def leaves(number: int) -> list[int]:
        return [leaf for child in below[number] for leaf in leaves(child)] if number in below else [number]

    noted = roots and re.search(rb"^%s 0 obj\s*<<(.*?)>>\s*endobj" % roots[2], printed, re.MULTILINE | re.DOTALL)
    if not roots or not noted:
        raise StudyError("the print names no places, so the contents have no numbers; take another chromium", ENVIRONMENT)
    order = {page: place for place, page in enumerate(leaves(int(roots[1])), 1)}
    return {name.decode(): order[int(page)] for name, page in re.findall(rb"/([\w.-]+) \[(\d+) 0 R /XYZ", noted[1])}


def program() -> str:
    """The path of chromium: CHROMIUM, else the first of its names on the path. Errors: none is there."""
    named = os.environ.get("CHROMIUM") or next(filter(shutil.which, CHROMIUM), "")
    found = shutil.which(named) if named else None
    if not found:
        asked = f"{named!r} is no program" if named else "none was found"
        raise StudyError(f"the PDF needs chromium, and {asked}; install it, or name it: CHROMIUM=path make pdf", ENVIRONMENT)
    return found


def printed(page: Path) -> bytes:
    """The document as chromium prints it; what chromium writes stays in its folder. Errors: it fails, or takes too long."""
    target = page.with_suffix(".pdf")
    target.unlink(missing_ok=True)
    places = (f"--user-data-dir={page.parent / 'chromium'}", f"--print-to-pdf={target}", page.as_uri())
    try:
        done = subprocess.run([program(), *FLAGS, *places], capture_output=True, check=False, timeout=LONGEST)
    except subprocess.TimeoutExpired:
        raise StudyError(f"chromium did not print within {LONGEST} s; try again on a free machine", ENVIRONMENT) from None
    if done.returncode or not target.is_file():
        said = (done.stderr.decode(errors="replace").strip().splitlines() or ["nothing"])[-1]
        raise StudyError(f"chromium ended with {done.returncode} and said: {said[:200]}; no PDF was made", ENVIRONMENT)
    return target.read_bytes()


def numbered(html: Path, about: Mapping[str, str], work: Path) -> bytes:
    """The printed book whose contents name the sheets on which its pages begin. Errors: they move from print to print."""
    for path in html.iterdir():  # so that one file beside them finds what the pages show, and the site stays as it is
        (work / path.name).symlink_to(path)
    entries, numbers, whole = document.contents(html), dict[str, int](), work / "the-book.html"
    for _ in range(PRINTS):
        whole.write_text(document.combined(html, entries, about, numbers), encoding="utf-8")
        found = printed(whole)
        places = sheets(found)
        if document.DONE not in places:
            raise StudyError("chromium printed before formulas and figures were set; try again on a free machine", ENVIRONMENT)
        before, numbers = numbers, {entry.anchor: places[entry.anchor] for entry in entries}
        if numbers == before:
            return found
    raise StudyError(f"the pages of the book moved in each of {PRINTS} prints; take another chromium", ENVIRONMENT)


def pdf(root: Path, profile: str, folder: Path, force: bool = False) -> dict[str, Any]:
    """Where the PDF of the book lies, relative to the project, and whether it was printed anew; the book is built first.

    `folder` is the run that the book shows. Errors: no chromium, or one that fails; those of the build.
    """
    from filelock import FileLock

    program()  # without it the build would be for nothing
    pages.build(root, profile, folder)
    place = root / "build" / "book" / profile
    target, mark = place / "book.pdf", place / "pdf.sha256"
    with FileLock(root / "build" / f".book-{profile}.lock"):  # no build replaces the pages under the print
        made = (place / "inputs.sha256", Path(__file__), Path(document.__file__))
        fresh = " ".join(map(file_hash, made))
        new = force or not target.is_file() or not mark.is_file() or mark.read_text(encoding="utf-8") != fresh
        if new:
            settings = yaml.safe_load((root / "_config.yml").read_text(encoding="utf-8"))
            with TemporaryDirectory(prefix=".pdf-", dir=place, ignore_cleanup_errors=True) as work:
                found = numbered(place / "html", _about(settings, profile, folder, place / "html"), Path(work))
            write_file(target, lambda path: path.write_bytes(found))
            write_whole(mark, fresh)
    say(f"book of profile {profile}: {target.relative_to(root)}{'' if new else ' (unchanged)'}")
    return {"profile": profile, "pdf": str(target.relative_to(root)), "printed": new}


def _about(settings: Mapping[str, Any], profile: str, folder: Path, html: Path) -> dict[str, str]:
    """What the cover says."""
    logo = f"_static/{Path(str(settings.get('logo') or '')).name}"
    run = f"Results: profile {profile}, model {folder.parent.name}, chapters of {folder.name.replace('-', ' ')}."
    return {
        "title": str(settings["title"]),
        "description": str(settings.get("description") or ""),
        "author": str(settings.get("author") or ""),
        "run": f"{run} {(settings.get('html') or {}).get('extra_footer') or ''}".strip(),
        "logo": logo if (html / logo).is_file() else "",
    }
