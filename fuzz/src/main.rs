//! `enisle-fuzz`, which `cargo xtask fuzz` and `cargo xtask chaos` start.
#![forbid(unsafe_code)]
#![allow(clippy::print_stdout, reason = "a command line tool talks to its terminal")]

use std::process::ExitCode;

use clap::Parser;
use enisle_fuzz::{chaos, engine, escape, parsers};

#[derive(Debug, Parser)]
#[command(name = "enisle-fuzz", version)]
enum Task {
    /// Fuzz the code that reads bytes from others.
    Parsers(parsers::Options),
    /// Fuzz the confinement of workers.
    Escape(escape::Options),
    /// Fuzz V8.
    Engine(engine::Options),
    /// Disturb a daemon under load.
    Chaos(chaos::Options),
}

fn main() -> ExitCode {
    let ended = match Task::parse() {
        Task::Parsers(options) => parsers::run(&options),
        Task::Escape(options) => escape::run(&options),
        Task::Engine(options) => engine::run(&options),
        Task::Chaos(options) => chaos::run(&options),
    };
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("{error:#}");
            ExitCode::FAILURE
        }
    }
}
