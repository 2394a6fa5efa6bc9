#!/usr/bin/env bash
# cancel.sh JOB...: deletes the Jobs and their pods
exec kubectl delete --ignore-not-found --wait=false "$@"
