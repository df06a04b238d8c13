#!/usr/bin/env bash
# Installs what a build needs and the machine lacks: a C++ compiler, cmake, libclang (for the bindings
# of llama.cpp) and Rust.  Called by quickstart.sh and test.sh; does nothing where all of it is there.
#   scripts/setup.sh [packages that are welcome but not needed …]
set -euo pipefail

missing=()
need() { # need PACKAGE COMMAND-THAT-SUCCEEDS-WHERE-IT-IS-INSTALLED…
  local package=$1
  shift
  "$@" >/dev/null 2>&1 || missing+=("$package")
}
has_libclang() { ldconfig -p | grep -q 'libclang[-0-9.]*\.so' || ls /usr/lib/llvm-*/lib/libclang.so* >/dev/null 2>&1; }
installed() { dpkg -s "$1"; }

if [ "$(uname)" = Linux ] && command -v apt-get >/dev/null; then
  need build-essential command -v g++
  need cmake command -v cmake
  need libclang-dev has_libclang
  need ca-certificates test -d /etc/ssl/certs
  need curl command -v curl
  needed=("${missing[@]}")
  missing=()
  for package in "$@"; do need "$package" installed "$package"; done
  if [ $((${#needed[@]} + ${#missing[@]})) -gt 0 ]; then
    echo "setup    installing ${needed[*]} ${missing[*]}"
    sudo=$([ "$(id -u)" = 0 ] || echo sudo)
    install() { DEBIAN_FRONTEND=noninteractive $sudo apt-get install -y -qq --no-install-recommends "$@" >/dev/null; }
    $sudo apt-get update -qq
    [ ${#needed[@]} = 0 ] || install "${needed[@]}"
    for package in "${missing[@]}"; do
      install "$package" || echo "setup    $package is not to be had here; what needs it will say that it was skipped"
    done
  fi
else
  for tool in cmake clang c++; do
    command -v $tool >/dev/null || { echo "setup    please install $tool (macOS: xcode-select --install; brew install cmake)" >&2; exit 1; }
  done
fi

if ! command -v cargo >/dev/null && [ -r "$HOME/.cargo/env" ]; then . "$HOME/.cargo/env"; fi
if ! command -v cargo >/dev/null; then
  echo "setup    installing Rust with rustup"
  curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs | sh -s -- -y -q --profile minimal --component rustfmt,clippy
fi
