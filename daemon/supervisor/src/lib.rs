//! `enisled`, the supervisor: the API, the tenants and their placement. V8 runs only in its
//! workers. The program is a library so that its parsers can be fuzzed (`seams`).
#![forbid(unsafe_code)]
#![deny(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
#![cfg_attr(
    test,
    allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic, reason = "tests")
)]

mod api;
mod clock;
mod config;
mod cordons;
mod daemon;
mod descriptors;
mod events;
mod files;
mod homes;
mod housekeeping;
mod json_text;
mod logging;
mod paths;
mod peers;
mod ranges;
mod rights;
mod run_id;
mod runs;
#[cfg(feature = "seams")]
pub mod seams;
mod share;
mod state;
mod tenants;
#[cfg(test)]
mod waiting;
mod workers;

use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use clap::Parser;
use tokio::signal::unix::{SignalKind, signal};

use crate::config::Config;
use crate::daemon::Daemon;
use crate::events::EventKind;
use crate::files::{Folder, How};
use crate::share::Parts;

/// Runs untrusted JavaScript for many tenants, each on an island of its own.
#[derive(Debug, Parser)]
#[command(name = "enisled", version)]
struct Arguments {
    /// The Unix socket of the API.
    #[arg(long, env = "ENISLE_SOCKET", value_name = "PATH")]
    socket: Option<PathBuf>,
    /// Where policies, standings and the audit log are kept.
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,
    /// The configuration file.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Read the database of standings on standard input and exit. The daemon starts itself with
    /// this option before it opens the database.
    #[arg(long, hide = true)]
    examine: bool,
    /// Check the configuration and whether the daemon could start on this machine, and exit.
    #[arg(long)]
    check_config: bool,
    /// Print the configuration with every value in effect, and exit.
    #[arg(long)]
    print_config: bool,
}

/// The whole program.
pub fn main() -> ExitCode {
    // The umask is set before any file is made. Only the daemon's user can then access a file that
    // is made without a mode of its own.
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o077));
    let arguments = Arguments::parse();
    if arguments.examine {
        return examine();
    }
    let log = match logging::start() {
        Ok(log) => log,
        Err(error) => {
            let _ = std::io::Write::write_all(
                &mut std::io::stderr(),
                format!("the thread that writes the log cannot be started: {error}\n").as_bytes(),
            );
            return ExitCode::FAILURE;
        }
    };
    let code = match start(arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // The log gets one sentence: a backtrace does not help with a wrong setting.
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    };
    log.flush();
    code
}

/// Carries out `--examine`. The exit status says whether the database is whole, is damaged, or
/// could not be read.
fn examine() -> ExitCode {
    let file = std::io::stdin().as_fd().try_clone_to_owned().map(std::fs::File::from);
    let examined = file.map_err(redb::Error::from).and_then(state::standings::examine);
    let Err(error) = examined else { return ExitCode::SUCCESS };
    let _ = std::io::Write::write_all(&mut std::io::stderr(), format!("{error}\n").as_bytes());
    if state::standings::is_damage(&error) { ExitCode::from(state::standings::BROKEN_EXIT) } else { ExitCode::FAILURE }
}

fn start(arguments: Arguments) -> anyhow::Result<()> {
    enisle_hardening::process::allocator::give_back_large_blocks();
    let config = Config::load(arguments.config.clone().or_else(paths::config).as_deref())?;
    if arguments.print_config {
        let text = toml::to_string(&config)?;
        return Ok(std::io::Write::write_all(&mut std::io::stdout(), text.as_bytes())?);
    }
    // One thread serves all clients: the daemon only moves bytes while the workers compute, and
    // data that stays on one thread needs no hand-over. Other threads parse large bodies and wait
    // for the disk.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    if arguments.check_config {
        return runtime.block_on(check_start(StartPaths::new(&arguments, &config)?, &config));
    }
    runtime.block_on(run(arguments, config))
}

/// The paths that a start needs.
struct StartPaths {
    program: PathBuf,
    state_dir: PathBuf,
    socket: PathBuf,
}

impl StartPaths {
    fn new(arguments: &Arguments, config: &Config) -> std::io::Result<Self> {
        Ok(Self {
            program: config.workers.program.clone().map_or_else(paths::worker_program, Ok)?,
            state_dir: arguments.state_dir.clone().unwrap_or_else(paths::state_dir),
            socket: arguments.socket.clone().unwrap_or_else(paths::socket),
        })
    }

    /// Checks that the socket does not lie among the files that the daemon keeps.
    fn check_apart(&self) -> anyhow::Result<()> {
        let (state, folder) = (resolved(&self.state_dir)?, resolved(&files::parent(&self.socket))?);
        let own = [state::recorder::LOCK, state::standings::DATABASE, state::recorder::FOLDER, tenants::policy::FOLDER];
        let is_own = folder == state && own.iter().any(|own| self.socket.ends_with(own));
        let among =
            [state::recorder::FOLDER, tenants::policy::FOLDER].iter().any(|own| folder.starts_with(state.join(own)));
        anyhow::ensure!(
            !is_own && !among,
            "the socket {} would collide with the daemon's own files in {}; choose another --socket",
            self.socket.display(),
            self.state_dir.display()
        );
        Ok(())
    }
}

/// The path, with all links resolved in the part of it that exists.
fn resolved(path: &Path) -> std::io::Result<PathBuf> {
    let path = std::path::absolute(path)?;
    let exists = path.ancestors().find_map(|above| Some((above.canonicalize().ok()?, path.strip_prefix(above).ok()?)));
    Ok(exists.map_or_else(|| path.clone(), |(above, rest)| above.join(rest)))
}

fn check_program(path: &Path) -> anyhow::Result<()> {
    let found =
        std::fs::metadata(path).with_context(|| format!("the worker program {} cannot be used", path.display()))?;
    let executable = found.is_file() && found.permissions().mode() & 0o111 != 0;
    anyhow::ensure!(executable, "the worker program {} is not an executable file", path.display());
    Ok(())
}

/// Finds what would make the daemon refuse to start. Makes, changes and locks no file, so another
/// daemon may be running: neither disturbs the other.
async fn check_start(paths: StartPaths, config: &Config) -> anyhow::Result<()> {
    check_program(&paths.program)?;
    paths.check_apart()?;
    api::server::check_place(&paths.socket)?;
    let context = |path: &Path| format!("{} cannot be used for the daemon's state", path.display());
    let look = |path: &Path| Folder::look(path).with_context(|| context(path));
    if let Some(state) = look(&paths.state_dir)? {
        for name in [state::recorder::LOCK, state::standings::DATABASE] {
            state.check(name, How::Change).with_context(|| context(&state.path_of(name)))?;
        }
    }
    look(&paths.state_dir.join(tenants::policy::FOLDER))?;
    let audit = paths.state_dir.join(state::recorder::FOLDER);
    if let Some(folder) = look(&audit)? {
        state::audit_log::check(&folder).with_context(|| context(&audit))?;
    }
    Ok(workers::machine::check(config, paths.program).await?)
}

async fn run(arguments: Arguments, config: Config) -> anyhow::Result<()> {
    let paths = StartPaths::new(&arguments, &config)?;
    paths.check_apart()?;
    let StartPaths { program, state_dir, socket } = paths;
    check_program(&program)?;
    let (api, parts) = (config.api.clone(), Parts::new(&config.peers));
    // The socket is bound first, so that a second daemon on the same socket fails before it touches
    // the state.
    let bound = api::server::bind(&socket)?;
    let daemon = Arc::new(Daemon::set_up(config, program, &state_dir).await.context("enisled cannot start")?);
    tracing::info!(socket = %socket.display(), state = %state_dir.display(), "enisled is listening");
    daemon.events.emit(EventKind::Started { version: env!("CARGO_PKG_VERSION") });

    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let housekeeping = [(); 5].map(|()| Arc::clone(&daemon));
    let [keeper, watcher, mover, giver, maker] = housekeeping;
    let events = Arc::clone(&daemon.events);
    tokio::spawn(async move { events.count().await });
    let housekeeping = [
        tokio::spawn(async move { keeper.keep_house().await }),
        tokio::spawn(async move { watcher.watch().await }),
        tokio::spawn(async move { mover.move_tenants().await }),
        tokio::spawn(async move { giver.give_back_memory().await }),
        tokio::spawn(async move { maker.homes.keep_standby().await }),
    ];
    let connections = api::server::serve(bound, api::router(Arc::clone(&daemon)), &api, parts, async {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
    .await;

    housekeeping.iter().for_each(tokio::task::JoinHandle::abort);
    let ending = async {
        daemon.drain(Duration::from_secs(api.drain_secs)).await;
        // The last answers are on their way; the daemon does not wait long for clients that do not
        // read them.
        let _ = tokio::time::timeout(Duration::from_secs(1), connections.shutdown()).await;
    };
    tokio::select! {
        () = ending => {}
        // A second signal ends the daemon at once.
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    daemon.homes.pool.end().await;
    daemon.events.emit_counted();
    daemon.write_down();
    tracing::info!("enisled has ended");
    Ok(())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_help_names_everything_that_is_kept() {
        let help = Arguments::command().render_help().to_string();
        let kept = help.lines().find(|line| line.contains("--state-dir")).unwrap();
        for what in ["policies", "standings", "audit log"] {
            assert!(kept.contains(what), "{kept}");
        }
    }
}
