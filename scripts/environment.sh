# Sourced by run, test and check: makes .venv from requirements.lock once, and again when the lock changes.
# Needs Python 3.11 or newer and a way to install packages; nothing else.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv=${JAXRL_VENV:-$root/.venv}
lock=${JAXRL_LOCK:-requirements.lock}

find_python() {
  local candidate
  for candidate in ${JAXRL_PYTHON:-} python3.11 python3.12 python3.13 python3 python; do
    if command -v "$candidate" >/dev/null 2>&1 &&
      "$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' 2>/dev/null; then
      echo "$candidate"
      return
    fi
  done
  echo "jaxrl needs Python 3.11, 3.12 or 3.13; none was found. Set JAXRL_PYTHON to one." >&2
  return 1
}

set_up() {
  local want have python
  want=$(cksum <"$root/$lock")
  have=$(cat "$venv/.lock-checksum" 2>/dev/null || true)
  [ "$want" = "$have" ] && return
  python=$(find_python) || return 1
  echo "Setting up $(basename "$venv") with $("$python" --version) from $lock (once; a minute or two) …" >&2
  "$python" -m venv --clear "$venv" || return 1
  "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --require-hashes -r "$root/$lock" || return 1
  "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-build-isolation --no-deps -e "$root" || return 1
  echo "$want" >"$venv/.lock-checksum"
}

# One at a time: two commands started together must not both build the environment.
if command -v flock >/dev/null 2>&1; then
  exec 9>"$root/.venv.lock"
  flock 9
  set_up || exit 1
  exec 9>&-
else
  set_up || exit 1
fi

# For programs that run for a blink: compiled without optimization and, where jaxlib can still do without, without its newer
# code for fusions, which takes a third of the time. Nothing of it goes to the cache, which others would read.
compile_quickly() {
  export JAX_DISABLE_MOST_OPTIMIZATIONS=1 JAX_ENABLE_COMPILATION_CACHE=0
  if "$venv/bin/python" -c 'import sys; from importlib.metadata import version; sys.exit(not version("jaxlib").startswith("0.10."))'; then
    export XLA_FLAGS="${XLA_FLAGS:-} --xla_cpu_use_fusion_emitters=false"
  fi
}
