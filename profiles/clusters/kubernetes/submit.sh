#!/usr/bin/env bash
# submit.sh THREADS MEMORY_MB JOBSCRIPT: makes a Job from job.yaml and prints its name
set -euo pipefail
plain() { printf %s "$1" | sed 's/[&|\\]/\\&/g'; }  # the text as sed takes it for a replacement
sed -e '/^#/d' -e "s|THREADS|$1|; s|MEMORY|$2|; s|JOBSCRIPT|$(plain "$(realpath "$3")")|; s|FOLDER|$(plain "$PWD")|" \
  "$(dirname "$0")/job.yaml" | kubectl create -f - -o name
