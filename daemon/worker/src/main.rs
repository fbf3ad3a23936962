//! `enisle-worker`; everything is in the library, which the benchmark of the bare engine uses as
//! well.
#![forbid(unsafe_code)]

fn main() -> std::process::ExitCode {
    enisle_worker::main()
}
