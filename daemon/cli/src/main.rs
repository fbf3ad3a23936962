//! `enisle`: the command line. Nothing here runs JavaScript: commands go through the daemon's
//! socket, except `completions`. `doctor` also probes this machine, and `audit verify` also reads
//! the files of the log.
//!
//! Exit codes: 0 the script succeeded; 1 the script failed, or the audit log is broken; 2 the
//! command was wrong; 3 the daemon refused, failed or does not answer; 4 a limit ended the script;
//! 5 a layer stopped an attack; 70 an answer that cannot be read, a private daemon that did not
//! start, or a run that ended with `workerLost` or `internalError`.
#![forbid(unsafe_code)]

/// Prints a line, of text or of JSON. Nothing in the line can drive the terminal, be shown as
/// something else ([`show::safe`]), or appear in a place where it was not written.
macro_rules! outln {
    ($($text:tt)*) => { crate::show::out_safe(&format!($($text)*)) };
}

/// Prints a line on standard error, with the same care.
macro_rules! errln {
    ($($text:tt)*) => { crate::show::err_safe(&format!($($text)*)) };
}

mod audit;
mod cordon;
mod doctor;
mod run;
mod show;
mod standalone;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};
use enisle_api::client::{self, Client, ClientError};
use enisle_api::types::tenant::{TenantRow, TenantView};
use enisle_api::types::worker::Worker;
use serde_json::Value;

/// Runs untrusted JavaScript, each tenant on its own island.
#[derive(Debug, Parser)]
#[command(name = "enisle", version)]
struct Arguments {
    /// The daemon's socket.
    #[arg(long, env = "ENISLE_SOCKET", global = true, value_name = "PATH")]
    socket: Option<PathBuf>,
    /// The uid that the daemon runs as, accepted besides root and your own.
    #[arg(long, env = "ENISLE_DAEMON_UID", global = true, value_name = "UID")]
    daemon_uid: Option<u32>,
    /// Print JSON, for machines.
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run one file.
    Run(run::RunFile),
    /// Send a load request as the API takes it, from a file or from standard input (`-`).
    Load(run::LoadFile),
    /// List the worker processes and the tenants that live in them.
    Ps,
    /// List every tenant that the daemon knows, with its cordon level and its usage.
    Tenants,
    /// Show one tenant: its cordon level and the reasons for it, its policy, its usage.
    Inspect {
        /// The tenant's name.
        tenant: String,
    },
    /// Order that a tenant live at least as far out as a level (solo, sealed or expelled), or lift
    /// such an order and forgive what has counted against the tenant.
    Cordon(cordon::Change),
    /// Check the log of every decision.
    #[command(subcommand)]
    Audit(audit::Audit),
    /// Print past events, and with `-f` also new ones as they come.
    Events {
        /// Go on until interrupted.
        #[arg(short, long)]
        follow: bool,
    },
    /// Show which layers this machine has, and how to get those that it lacks.
    Doctor,
    /// Print a completion script.
    Completions {
        /// The shell to print it for.
        shell: clap_complete::Shell,
    },
}

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("{}", advice(.0))]
    Client(#[from] ClientError),
    #[error("{0}")]
    Usage(String),
    #[error("{0}")]
    Standalone(String),
    #[error("{0}")]
    Damaged(String),
}

/// A client's error, and what to do about it with this command line.
fn advice(error: &ClientError) -> String {
    match error {
        ClientError::Unreachable { .. } => {
            format!("{error}; start one with `enisled`, or use `enisle run --standalone`")
        }
        ClientError::Stranger { uid, .. } => {
            format!("{error}. If that is the daemon you mean, pass --daemon-uid {uid}")
        }
        ClientError::Problem { .. } | ClientError::BadAnswer(_) => error.to_string(),
    }
}

/// A tenant's name as a segment of a path.
fn segment(name: &str) -> Result<&str, Failure> {
    client::segment(name).ok_or_else(|| Failure::Usage(format!("{name:?} cannot be a tenant's name")))
}

impl Failure {
    fn exit_code(&self) -> u8 {
        match self {
            Self::Usage(_) => 2,
            Self::Client(ClientError::Problem { status: 400..=402 | 404..=428, .. }) => 2,
            Self::Client(
                ClientError::Problem { .. } | ClientError::Unreachable { .. } | ClientError::Stranger { .. },
            ) => 3,
            Self::Damaged(_) => 1,
            Self::Client(ClientError::BadAnswer(_)) | Self::Standalone(_) => 70,
        }
    }
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            errln!("enisle: {error}");
            return ExitCode::from(70);
        }
    };
    match runtime.block_on(act(arguments)) {
        Ok(code) => ExitCode::from(code),
        Err(failure) => {
            errln!("enisle: {failure}");
            ExitCode::from(failure.exit_code())
        }
    }
}

async fn act(arguments: Arguments) -> Result<u8, Failure> {
    let client = Client::new(arguments.socket.unwrap_or_else(enisle_hardening::paths::socket), arguments.daemon_uid);
    let json = arguments.json;
    match arguments.command {
        Command::Run(command) => run::file(command, client, json).await,
        Command::Load(command) => run::request(command, client, json).await,
        Command::Ps => {
            match pages(&client, "workers").await? {
                workers if json => outln!("{workers}"),
                workers => show::workers(&typed::<Vec<Worker>>(workers)?),
            }
            Ok(0)
        }
        Command::Tenants => {
            match pages(&client, "tenants").await? {
                tenants if json => outln!("{tenants}"),
                tenants => show::tenants(&typed::<Vec<TenantRow>>(tenants)?),
            }
            Ok(0)
        }
        Command::Inspect { tenant } => {
            let tenant = client.get(&format!("/v1/tenants/{}", segment(&tenant)?)).await?;
            if json {
                show::json(&tenant)?;
            } else {
                cordon::inspect(&tenant.read::<TenantView>()?);
            }
            Ok(0)
        }
        Command::Cordon(change) => cordon::change(change, &client, json).await,
        Command::Audit(audit::Audit::Verify { folder }) => audit::verify(folder, &client, json).await,
        Command::Events { follow } => {
            let path = if follow { "/v1/events?follow=1" } else { "/v1/events" };
            client.lines(path, |line| show::event(line, json)).await?;
            Ok(0)
        }
        Command::Doctor => {
            doctor::examine(&client, json).await;
            Ok(0)
        }
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut Arguments::command(), "enisle", &mut std::io::stdout());
            Ok(0)
        }
    }
}

fn typed<T: serde::de::DeserializeOwned>(value: Value) -> Result<T, ClientError> {
    serde_json::from_value(value).map_err(|error| ClientError::BadAnswer(error.to_string()))
}

/// Every item of one of the daemon's lists, from all its pages.
async fn pages(client: &Client, name: &str) -> Result<Value, ClientError> {
    let (mut all, mut path) = (Vec::new(), format!("/v1/{name}"));
    loop {
        let mut page = client.get(&path).await?.read::<Value>()?;
        if let Some(items) = page[name].as_array_mut() {
            all.append(items);
        }
        let next = match &page["next"] {
            Value::Null => return Ok(all.into()),
            Value::String(name) => client::encoded(name.as_str()),
            next => next.to_string(),
        };
        path = format!("/v1/{name}?after={next}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn the_status_of_a_problem_decides_the_exit_code() {
        let problem = |status| Failure::Client(ClientError::Problem { status, detail: String::new() });
        assert_eq!(problem(400).exit_code(), 2);
        assert_eq!(problem(403).exit_code(), 3);
        assert_eq!(problem(429).exit_code(), 3);
        assert_eq!(problem(503).exit_code(), 3);
    }
}
