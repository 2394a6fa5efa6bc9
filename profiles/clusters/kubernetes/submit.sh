#!/usr/bin/env bash
# submit.sh THREADS MEMORY_MB JOBSCRIPT: makes a Job from job.yaml and prints its name
set -euo pipefail
script=$(realpath "$3")
sed -e '/^#/d' -e "s|THREADS|$1|; s|MEMORY|$2|; s|JOBSCRIPT|${script//|/\\|}|; s|FOLDER|$PWD|" "$(dirname "$0")/job.yaml" | kubectl create -f - -o name
