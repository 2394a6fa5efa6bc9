"""The order of running: one rule a chapter, over models x seeds. `python -m helpers study` writes the plan and calls this.

What is done is decided before (src/helpers/study/statuses.py): the plan holds only what must run, so times of files, parameters
and earlier records of snakemake play no part. Each job reads its parameters from a file and touches a mark when it is done.
"""

import json
import shlex
from pathlib import Path

PLAN = json.loads(Path("plan.json").read_text())
JOBS = {job["stem"]: job for job in PLAN["jobs"]}


wildcard_constraints:
    model="[a-z0-9._-]+",
    seed="[0-9]+",


rule all:
    input:
        [f"{stem}.done" for stem in JOBS],


def needed(chapter):
    """The marks of the chapters that this one needs and that are to run as well."""
    def marks(wildcards):
        return [ancient(f"{stem}.done") for stem in JOBS[f"{wildcards.model}/seed-{wildcards.seed}/{chapter}"]["needs"]]
    return marks


for chapter in sorted({stem.rsplit("/", 1)[1] for stem in JOBS}):

    rule:
        name: f"chapter_{chapter}"
        input: needed(chapter)
        output: touch(f"{{model}}/seed-{{seed}}/{chapter}.done")
        params:
            # functions, because a brace in a path would be read as a wildcard
            python=lambda wildcards: shlex.quote(PLAN["python"]),
            root=lambda wildcards: shlex.quote(PLAN["root"]),
            job=f"{{model}}/seed-{{seed}}/{chapter}.json",
        # what many others wait for goes first
        priority: max(job["priority"] for stem, job in JOBS.items() if stem.endswith(f"/{chapter}"))
        threads: max(job["threads"] for stem, job in JOBS.items() if stem.endswith(f"/{chapter}"))
        shell: "AFTER_UPDATE_ROOT={params.root} OMP_NUM_THREADS={threads} {params.python} -m helpers chapter --job {params.job} 2>&1"
