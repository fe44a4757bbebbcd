#!/bin/sh
# Called by cargo in place of rustc for the crates of the workspace: adds what libFuzzer learns from, with flags of the stable compiler.
# Build scripts and procedural macros run in the compiler, not under the fuzzer: they are compiled without --target and stay as they are.
case " $* " in
*" --target "*) ;;
*) exec "$@" ;;
esac
# Generated protobuf code takes minutes to optimize, and next to nothing of it runs.
case " $* " in
*" --crate-name byre_api "* | *" --crate-name byre_api_server "*) optimize=0 ;;
*) optimize=1 ;;
esac
# libFuzzer stands in for memcmp and its kind to learn from them, and finds the real ones through the dynamic linker.
for argument; do
  shift
  case $argument in
  -Ctarget-feature=+crt-static) ;;
  *) set -- "$@" "$argument" ;;
  esac
done
exec "$@" -Copt-level=$optimize -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
  -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
  -Cllvm-args=-sanitizer-coverage-trace-compares
