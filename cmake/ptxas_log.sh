#!/usr/bin/env bash
# Launches a CUDA compilation and keeps what ptxas says about registers, spills and stack beside the object file, as
# OBJECT.ptxas; scripts/check_ptxas judges it. The compiler cache replays these lines too.
set -euo pipefail
object=""
previous=""
for argument in "$@"; do
  [[ $previous == -o ]] && object=$argument
  previous=$argument
done
if [[ -z $object ]]; then
  exec "$@"
fi
report=$(mktemp "$object.ptxas.XXXXXX")
if "$@" 2>"$report"; then status=0; else status=$?; fi
# The report is not for the terminal; warnings and errors are.
grep -vE '^ptxas info|^ *[0-9]+ bytes stack frame|^$' "$report" >&2 || true
mv "$report" "$object.ptxas"
exit $status
