//! `enisle-worker`. All its code is in the library, which the benchmark of the bare engine uses
//! too.
#![forbid(unsafe_code)]

fn main() -> std::process::ExitCode {
    enisle_worker::main()
}
