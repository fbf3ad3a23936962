//! `enisle-worker-attack`: the worker with natives to attack it with, for `tests/escape` only.
#![forbid(unsafe_code)]

fn main() -> std::process::ExitCode {
    enisle_worker::main()
}
