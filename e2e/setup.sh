# Shared by e2e/up and e2e/test: says what it does, installs what is missing, builds.
# Sourced, not run.

set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

say() { printf '\n== %s\n' "$*"; }
stop() {
  printf '\nstopped: %s\n' "$1" >&2
  shift
  for line in "$@"; do printf '  %s\n' "$line" >&2; done
  exit 1
}

# Runs a command as root: directly, or by sudo where that works without a question or at a terminal.
as_root() {
  if [ "$(id -u)" = 0 ]; then "$@"; elif [ -t 0 ]; then sudo "$@"; else sudo -n "$@"; fi
}

# What RocksDB is built with: a C++ compiler, make, pkg-config, and libclang to read its header.
missing_packages() {
  command -v g++ >/dev/null || echo g++
  command -v make >/dev/null || echo make
  command -v pkg-config >/dev/null || echo pkg-config
  has_libclang || echo libclang-dev
}

has_libclang() {
  [ -n "${LIBCLANG_PATH:-}" ] && return 0
  local found headers
  found=$(find /usr/lib /usr/local/lib /usr/lib64 -name 'libclang*.so*' -not -name 'libclang-cpp*' -print -quit 2>/dev/null)
  # The library without the compiler's own headers is not enough: they come in another package.
  headers=$(find /usr/lib /usr/local/lib /usr/lib64 -path '*clang*/include/stdbool.h' -print -quit 2>/dev/null)
  [ -n "$found" ] && [ -n "$headers" ]
}

install_packages() {
  local packages
  packages=$(missing_packages | xargs)
  if [ -z "$packages" ]; then
    echo "compiler packages: all there"
    return
  fi
  local advice="as root, run: apt-get install $packages (or what your system calls these)"
  command -v apt-get >/dev/null || stop "missing: $packages, and there is no apt-get here" "$advice"
  if [ "$(id -u)" != 0 ] && ! command -v sudo >/dev/null; then
    stop "missing: $packages, and installing them needs root" "$advice"
  fi
  say "installing $packages"
  # shellcheck disable=SC2086 # one word for each package
  { as_root apt-get update -q && as_root env DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends $packages; } ||
    stop "could not install: $packages" "$advice"
}

check_rust() {
  [ -f "$HOME/.cargo/env" ] && . "$HOME/.cargo/env"
  command -v cargo >/dev/null || stop "there is no Rust toolchain (cargo) here" \
    "install rustup from https://rustup.rs and run this again; rustup then fetches the version that rust-toolchain.toml names"
  local wanted found
  wanted=$(sed -n 's/^rust-version = "\(.*\)"$/\1/p' Cargo.toml)
  found=$(cargo --version 2>&1) || stop "cargo does not run: $found" \
    "rust-toolchain.toml names the version; install it with: rustup toolchain install"
  echo "$found"
  local version=${found#cargo }
  version=${version%% *}
  if [ "$(printf '%s\n%s\n' "$wanted" "$version" | sort -V | head -1)" != "$wanted" ]; then
    stop "Rust $wanted or newer is needed, this is $version" "with rustup: rustup toolchain install"
  fi
}

# One target directory for all clones and both commands, outside of the clone: RocksDB is built once.
choose_target() {
  if [ -z "${CARGO_TARGET_DIR:-}" ]; then
    local cache=${XDG_CACHE_HOME:-${HOME:-/tmp}/.cache}/dtkv/target
    if mkdir -p "$cache" 2>/dev/null && [ -w "$cache" ]; then
      export CARGO_TARGET_DIR=$cache
    else
      export CARGO_TARGET_DIR=$PWD/target
    fi
  fi
  echo "build directory: $CARGO_TARGET_DIR"
  local free_mib
  mkdir -p "$CARGO_TARGET_DIR"
  free_mib=$(df -Pm "$CARGO_TARGET_DIR" | awk 'NR == 2 { print $4 }')
  [ "$free_mib" -ge 4096 ] || stop "only $free_mib MiB are free in $CARGO_TARGET_DIR, the build needs 4096" \
    "make room, or name another place: export CARGO_TARGET_DIR=..."
}

# A long build without a terminal shows a line now and then, so that nobody takes it for dead.
with_progress() {
  local what=$1 began=$SECONDS beat
  shift
  (
    while sleep 60; do echo "   ... still $what, $((SECONDS - began)) s"; done
  ) &
  beat=$!
  trap 'kill "$beat" 2>/dev/null || true' EXIT
  local result=0
  "$@" || result=$?
  kill "$beat" 2>/dev/null || true
  wait "$beat" 2>/dev/null || true
  trap - EXIT
  return "$result"
}

prepare() {
  say "looking for what the build needs"
  install_packages
  check_rust
  choose_target
  if ! compgen -G "$CARGO_TARGET_DIR/release/build/librocksdb-sys-*/out" >/dev/null; then
    echo "the first build compiles RocksDB: about 15 minutes on two cores, once"
  fi
}
