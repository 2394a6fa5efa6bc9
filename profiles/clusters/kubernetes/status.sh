#!/usr/bin/env bash
# status.sh JOB: prints success, failed or running; a Job that is gone has failed
set -euo pipefail
state=$(kubectl get "$1" -o 'jsonpath={range .status.conditions[?(@.status=="True")]}{.type} {end}') || state=Failed
case " $state " in
  *" Complete "*) echo success ;;
  *" Failed "*) echo failed ;;
  *) echo running ;;
esac
