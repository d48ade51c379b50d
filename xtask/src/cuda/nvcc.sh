#!/bin/sh
# nvcc as cargo calls it during `cargo xtask cuda`. Only what it is asked to do for candle's own kernels differs: they take a
# quarter of an hour of processor time and do not change. OQVL_NVCC is the real compiler. Then either
#   OQVL_NVCC_FAST=1   compiles them without optimisation: enough to see that the workspace builds and links; or
#   OQVL_NVCC_CACHE=D  keeps what they compile to in D, under a hash of all it depends on. Whatever goes wrong with D, the
#                      compiler runs as if there were none.
set -eu
real=$OQVL_NVCC
[ "${CARGO_PKG_NAME:-}" = candle-kernels ] || exec "$real" "$@"

output='' source='' is_compile=0 previous=''
for argument in "$@"; do
  case $previous in
    -o) output=$argument ;;
    --output-directory) output=$argument/ ;;
  esac
  case $argument in
    -c | --ptx) is_compile=1 ;;
    *.cu) source=$argument ;;
  esac
  previous=$argument
done
if [ $is_compile = 0 ] || [ -z "$output" ] || [ -z "$source" ]; then exec "$real" "$@"; fi
if [ -n "${OQVL_NVCC_FAST:-}" ]; then
  # Toolkits that do not know the option compile as ever.
  if "$real" --help | grep -q -- --Ofast-compile; then exec "$real" --Ofast-compile=max "$@"; fi
  exec "$real" "$@"
fi
case $output in */) output=$output$(basename "$source" .cu).ptx ;; esac

cache=${OQVL_NVCC_CACHE:-}
key=''
if [ -n "$cache" ] && mkdir -p "$cache" 2>/dev/null; then
  key=$(
    {
      "$real" --version && "${NVCC_CCBIN:-c++}" --version
      printf '%s\n' "${NVCC_PREPEND_FLAGS:-}" "${NVCC_APPEND_FLAGS:-}"
      printf '%s\n' "$@" | sed "s|$OUT_DIR|OUT_DIR|g"
      cd "$CARGO_MANIFEST_DIR" && find src -type f | LC_ALL=C sort | xargs sha256sum
    } 2>/dev/null | sha256sum 2>/dev/null | cut -c 1-32
  ) || key=''
fi
kept=$cache/$(basename "$output" | sed 's/-[0-9a-f]*\.o$/.o/').$key
if [ -n "$key" ] && cp "$kept" "$output" 2>/dev/null; then exit 0; fi
"$real" "$@"
if [ -n "$key" ] && cp "$output" "$kept.$$" 2>/dev/null; then mv "$kept.$$" "$kept" || rm -f "$kept.$$"; fi
exit 0
