# Sourced by the scripts beside it, which set -euo pipefail.

root=$(cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/.." && pwd)

is_recent() {
  "$1" -c 'import sys; sys.exit(sys.version_info < (3, 10))' >/dev/null 2>&1
}

# Prints the Python of the project's environment, made or extended first where need be.
# Arguments: the extras it must hold.
set_up() {
  # python3 comes first: on a Jetson it is the one that sees the system's cv2 and tensorrt.
  local candidates=(python3 python3.13 python3.12 python3.11 python3.10 python3.14 python)
  if [[ -n ${PYTHON:-} ]]; then candidates=("$PYTHON"); fi
  local candidate
  for candidate in "${candidates[@]}"; do
    if is_recent "$candidate"; then
      "$candidate" -I "$root/scripts/environment.py" "$@"
      return
    fi
  done
  echo "tinysaver: expected Python 3.10 or newer, got none of: ${candidates[*]}" >&2
  echo "Install one, or name it: PYTHON=/path/to/python3.10 $0" >&2
  return 1
}
