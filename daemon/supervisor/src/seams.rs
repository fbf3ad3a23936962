//! What the fuzzer (`fuzz/`) calls: a function or type for each part of the daemon that reads what
//! others write. No release contains this module.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use enisle_hardening::fault::Fault;
use enisle_hardening::islands::{Zone, keys};
use enisle_hardening::{LayerSet, Posture};
use enisle_wire::tenant::{Done, LogLine, Run, RunId};
use hyper_util::server::graceful::GracefulShutdown;
use serde_json::value::RawValue;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::time::timeout;

use crate::api::answer::Pieces;
use crate::api::peer::Peer;
use crate::api::{load, router, server};
use crate::config::Config;
use crate::daemon::Daemon;
use crate::files::Folder;
use crate::homes::exchange::Finished;
use crate::json_text::{self, Text};
use crate::rights::Rights;
use crate::runs::run::Report;
use crate::share::{Held, Parts, Supply};
use crate::state::recorder::Recorder;
use crate::state::standings::{DATABASE, Damage, STANDINGS, examine, is_damage};
use crate::tenants::policy::{Policy, Store, TenantName, TenantPattern};
use crate::workers::birth::{Blueprint, Memory};
use crate::workers::machine::{Machine, Workers};
use crate::workers::threads;
use crate::workers::violation;

/// A configuration that was accepted.
#[derive(Debug, PartialEq)]
pub struct Accepted(Config);

impl Accepted {
    /// As `enisled --print-config` prints it.
    ///
    /// # Errors
    /// It cannot be printed.
    pub fn print(&self) -> Result<String, String> {
        toml::to_string(&self.0).map_err(|error| error.to_string())
    }

    /// Whether the version of V8 that a worker reports is older than the configuration demands.
    #[must_use]
    pub fn is_outdated(&self, v8: &str) -> bool {
        self.0.cordon.is_outdated(v8)
    }
}

/// Reads a configuration file.
///
/// # Errors
/// What `enisled --check-config` would report.
pub fn config_file(path: &Path) -> Result<Accepted, String> {
    Config::load(Some(path)).map(Accepted).map_err(|error| error.to_string())
}

/// Reads a configuration file's text.
///
/// # Errors
/// What `enisled --check-config` would report.
pub fn config(text: &str) -> Result<Accepted, String> {
    Config::parse(text, Path::new("enisled.toml")).map(Accepted).map_err(|error| error.to_string())
}

/// Reads the body of `POST …/load` for a tenant with the default policy: the run, and the frames of
/// its input, `env` and code.
///
/// # Errors
/// The problem, as JSON.
pub fn load_body(body: &[u8]) -> Result<(Run, [Vec<u8>; 3]), String> {
    let read = load::read(body, RunId(1), &Policy::default());
    let (run, frames, places) = read.map_err(|problem| serde_json::to_string(&problem).unwrap_or_default())?;
    Ok((run, places.map(|place| frames.get(place).unwrap_or_default().to_vec())))
}

/// The text of a JSON string, and the length that was computed for it beforehand.
///
/// # Errors
/// It is not a string, or it has half of a surrogate pair.
pub fn json_text(value: &RawValue) -> Result<(String, usize), String> {
    Text::of(value).map(|text| (text.to_string(), text.len())).map_err(|error| error.to_string())
}

/// The values of these fields of a JSON object, as they were written.
///
/// # Errors
/// It is not a JSON object, or it has another field or one field twice.
pub fn json_fields<'a>(text: &'a [u8], expected: [&'static str; 3]) -> Result<[Option<&'a str>; 3], String> {
    let found = json_text::fields(text, expected).map_err(|error| error.to_string())?;
    Ok(found.map(|value| value.map(RawValue::get)))
}

/// The answer to a run that ended like this, in pieces; `None` if the result is not JSON.
#[must_use]
pub fn answer(done: Done, logs: Vec<LogLine>, queued_us: u64, operates: bool) -> Option<Vec<Vec<u8>>> {
    let Done { id, outcome, result, error, truncated, usage, advice } = done;
    let result = result.map(RawValue::from_string).transpose().ok()?;
    let queued = Duration::from_micros(queued_us);
    let finished = Finished { outcome, result, error, logs, truncated, usage, queued, advice, held: None };
    let report = Report { id, finished, level: enisle_cordon::Level::Solo };
    Some(Pieces::new(report, operates).map(|piece| piece.to_vec()).collect())
}

/// Whether text is a tenant's name.
#[must_use]
pub fn is_tenant_name(text: &str) -> bool {
    text.parse::<TenantName>().is_ok_and(|name| name.as_str() == text)
}

/// Whether a pattern of `[[peers]]` covers a name; `None` if it is not a pattern.
#[must_use]
pub fn pattern_covers(pattern: &str, name: &str) -> Option<bool> {
    Some(pattern.parse::<TenantPattern>().ok()?.covers(name))
}

/// The page faults in the text of `/proc/PID/stat`.
#[must_use]
pub fn page_faults(stat: &str) -> Option<u64> {
    threads::faults(stat)
}

/// If a fault is an attack: the layer that stopped it, the address, and the slot whose island has
/// that address. Everything else that the daemon derives from a fault is computed too, and dropped.
#[must_use]
pub fn attack(fault: &Fault, zone: &Zone) -> Option<(&'static str, Option<u64>, Option<u32>)> {
    let _ = (violation::describe(fault), violation::ending(fault, zone, true), violation::ending(fault, zone, false));
    let attack = violation::attack(fault, zone)?;
    Some((attack.layer, attack.address, attack.victim.map(|slot| slot.0)))
}

/// A supply that clients share by the rules of a configuration, and all that they hold of it.
#[derive(Debug)]
pub struct Shares {
    supply: Supply,
    held: Vec<Held>,
}

impl Shares {
    #[must_use]
    pub fn new(config: &Accepted, whole: u64) -> Self {
        Self { supply: Supply::new("units", whole, Parts::new(&config.0.peers)), held: Vec::new() }
    }

    /// Takes units for a uid: as a new holding, or by growing the holding `more_of` if that is the
    /// uid's own. Returns false if they are refused.
    pub fn take(&mut self, uid: u32, units: u64, more_of: Option<usize>) -> bool {
        match more_of.and_then(|at| self.held.get_mut(at)).filter(|held| held.uid() == uid) {
            Some(held) => held.grow(units).is_ok(),
            None => self.supply.take(uid, units).map(|held| self.held.push(held)).is_ok(),
        }
    }

    /// Gives back all but `units` of a holding. If `units` is zero, the holding is dropped.
    pub fn give_back(&mut self, at: usize, units: u64) {
        if units == 0 {
            self.held.swap_remove(at);
        } else if let Some(held) = self.held.get_mut(at) {
            held.shrink_to(units);
        }
    }

    /// Each holding's uid and units.
    #[must_use]
    pub fn holdings(&self) -> Vec<(u32, u64)> {
        self.held.iter().map(|held| (held.uid(), held.units())).collect()
    }

    /// The units that no uid holds, and the most that this uid may hold now.
    #[must_use]
    pub fn free(&self, uid: u32) -> (u64, u64) {
        (self.supply.free(), self.supply.most(uid))
    }
}

/// What a daemon reads from its state folder when it starts.
#[derive(Debug)]
pub struct Kept {
    /// The standing of each tenant, as JSON.
    pub standings: BTreeMap<String, serde_json::Value>,
    /// What could not be read.
    pub broken: Vec<String>,
    /// The number of the audit log's last line, including the lines that the start itself wrote.
    pub last_line: u64,
}

/// Starts to keep records in a state folder, as a daemon does, and stops again. Meanwhile the
/// standings in `recorded` are written.
///
/// # Errors
/// The daemon would not start.
pub fn keep_records(state: &Path, recorded: &[(&str, enisle_cordon::Standing)]) -> Result<Kept, String> {
    let folder = Folder::make(state).map_err(|error| error.to_string())?;
    let (recorder, kept) =
        Recorder::open_keeping(&folder, 1 << 30, Parts::halves(), examine_here).map_err(|error| error.to_string())?;
    for (name, standing) in recorded {
        if let Ok(name) = name.parse::<TenantName>() {
            recorder.stands(&name, standing, true);
        }
    }
    recorder.close();
    let standings = kept
        .standings
        .into_iter()
        .map(|(name, standing)| (name.to_string(), serde_json::to_value(standing).unwrap_or_default()));
    Ok(Kept { standings: standings.collect(), broken: kept.broken, last_line: recorder.head().seq })
}

/// Puts a row into the database of standings of a daemon that is not running, whatever it holds.
///
/// # Errors
/// The database cannot be written.
pub fn put_row(state: &Path, name: &str, value: &[u8]) -> Result<(), String> {
    let put = || {
        let database = redb::Database::open(state.join(DATABASE))?;
        let writing = database.begin_write()?;
        writing.open_table(STANDINGS)?.insert(name, value)?;
        Ok::<_, redb::Error>(writing.commit()?)
    };
    put().map_err(|error| error.to_string())
}

/// Examines a database as `examine_apart` does, but in this process: a panic counts as damage.
fn examine_here(file: File) -> Result<(), Damage> {
    let examined = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| examine(file)));
    match examined {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) if is_damage(&error) => Err(Damage::Broken(error.to_string())),
        Ok(Err(error)) => Err(Damage::Unknown(error.to_string())),
        Err(_) => Err(Damage::Broken("a panic".to_owned())),
    }
}

/// The tenants whose policies are readable in a state folder, each with its policy as JSON.
///
/// # Errors
/// The daemon would not start.
pub fn policies(state: &Path, max_memory_mb: u32) -> Result<BTreeMap<String, serde_json::Value>, String> {
    let folder = Folder::make(state).map_err(|error| error.to_string())?;
    let (_, policies) = Store::open(&folder, max_memory_mb).map_err(|error| error.to_string())?;
    let shown = policies
        .into_iter()
        .map(|(name, kept)| (name.to_string(), serde_json::to_value(kept.policy).unwrap_or_default()));
    Ok(shown.collect())
}

/// The uid of the peer that may act for tenants whose names begin with `acme-`.
pub const CLIENT: u32 = 4_000_000;
/// The uid of the peer that may operate the daemon.
pub const OPERATOR: u32 = 4_000_001;

/// A daemon with its API that starts no worker. It reads a request for a run completely, and then
/// refuses the run for want of a process.
#[derive(Debug)]
pub struct Api {
    runtime: tokio::runtime::Runtime,
    daemon: Arc<Daemon>,
    router: Router,
    rights: Rights,
    socket: PathBuf,
}

impl Api {
    /// # Errors
    /// The daemon could not be set up.
    pub fn new(state: &Path) -> Result<Self, String> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|error| error.to_string())?;
        let inside = runtime.enter();
        let config = api_config()?;
        let program = File::open("/proc/self/exe").map_err(|error| error.to_string())?;
        let snapshot = program.try_clone().map_err(|error| error.to_string())?.into();
        let memory = Memory { base_mb: 1, tenant_mb: 1, sealed_mb: 1 };
        let blueprint = Blueprint::new(program, LayerSet::NONE, 1, memory, config.workers.uid_base);
        let blueprint = Arc::new(blueprint.map_err(|error| error.to_string())?);
        let posture = Posture::probe();
        let capacity = enisle_cordon::Capacity {
            keys: keys::tenants_of(posture.keys),
            cages: enisle_cordon::CAGES_PER_PROCESS,
            share_without_keys: false,
        };
        let machine = Machine { posture, capacity, processes: 0 };
        let workers = Workers { blueprint, snapshot, layers: LayerSet::NONE };
        let daemon = Daemon::assemble(config, machine, workers, state).map_err(|error| error.to_string())?;
        let daemon = Arc::new(daemon);
        let listener = UnixListener::bind(state.join("pairs")).map_err(|error| error.to_string())?;
        let rights = Rights::of(&listener).map_err(|error| error.to_string())?;
        let socket = state.join("run/enisled.sock");
        server::check_place(&socket).map_err(|error| error.to_string())?;
        let bound = server::bind(&socket).map_err(|error| error.to_string())?;
        server::check_place(&socket).map_err(|error| error.to_string())?;
        let (settings, parts) = (daemon.config.api.clone(), Parts::new(&daemon.config.peers));
        let served = router(Arc::clone(&daemon));
        runtime.spawn(async move {
            server::serve(bound, served, &settings, parts, std::future::pending()).await;
        });
        let (events, mover) = (Arc::clone(&daemon.events), Arc::clone(&daemon));
        runtime.spawn(async move { events.count().await });
        runtime.spawn(async move { mover.move_tenants().await });
        drop(inside);
        Ok(Self { router: router(Arc::clone(&daemon)), runtime, daemon, rights, socket })
    }

    /// Sends bytes over the socket, as this process's own uid. Returns all that is answered until
    /// the connection ends.
    ///
    /// # Errors
    /// The daemon does not accept, or does not end, the connection.
    pub fn ask(&self, bytes: &[u8], patience: Duration) -> Result<Vec<u8>, String> {
        let asking = async {
            let mut client = UnixStream::connect(&self.socket).await?;
            client.write_all(bytes).await?;
            let mut answered = Vec::new();
            client.read_to_end(&mut answered).await?;
            Ok::<_, std::io::Error>(answered)
        };
        let asked = self.runtime.block_on(async { timeout(patience, asking).await });
        asked.map_err(|_| "no answer in time".to_owned())?.map_err(|error| error.to_string())
    }

    /// Opens one connection more than there may be, and closes them; returns what each was answered
    /// without having asked.
    ///
    /// # Errors
    /// A connection could not be made.
    pub fn crowd(&self, patience: Duration) -> Result<Vec<Vec<u8>>, String> {
        let most = self.daemon.config.api.connections;
        self.runtime.block_on(async {
            let mut clients = Vec::new();
            for _ in 0..=most {
                clients.push(UnixStream::connect(&self.socket).await.map_err(|error| error.to_string())?);
            }
            let mut last = clients.pop().ok_or("no connection")?;
            let (mut refused, mut answers) = (Vec::new(), Vec::new());
            let answered = timeout(patience, last.read_to_end(&mut refused)).await;
            answered.map_err(|_| "the last one is neither answered nor closed")?.map_err(|error| error.to_string())?;
            for client in clients {
                let mut bytes = vec![0; 4096];
                let got = client.try_read(&mut bytes).unwrap_or(0);
                bytes.truncate(got);
                answers.push(bytes);
            }
            answers.push(refused);
            Ok(answers)
        })
    }

    /// Serves a peer of this uid, which sends these bytes, part by part, and then closes its
    /// sending side. Returns all that the peer is answered until the connection ends, or until
    /// nothing more comes for `patience`.
    ///
    /// # Errors
    /// The connection could not be made, or its task panicked.
    pub fn talk(&self, uid: u32, parts: &[Vec<u8>], patience: Duration) -> Result<Answered, String> {
        self.runtime.block_on(async {
            let (server, mut client) = UnixStream::pair().map_err(|error| error.to_string())?;
            let (stream, last) = self.rights.divide(server).map_err(|error| error.to_string())?;
            let connections = GracefulShutdown::new();
            let (api, watcher, router) = (self.daemon.config.api.clone(), connections.watcher(), self.router.clone());
            let serving = tokio::spawn(async move {
                server::serve_connection(stream, last, Peer { uid }, router, &api, watcher).await;
            });
            let (mut reading, mut writing) = client.split();
            let send = async {
                for part in parts {
                    // A server that has answered may have closed the connection.
                    if writing.write_all(part).await.is_err() {
                        break;
                    }
                    tokio::task::yield_now().await;
                }
                let _ = writing.shutdown().await;
                std::future::pending::<()>().await;
            };
            let mut bytes = Vec::new();
            let receive = async {
                loop {
                    match timeout(patience, reading.read_buf(&mut bytes)).await {
                        Ok(Ok(0) | Err(_)) => return true,
                        Ok(Ok(_)) => {}
                        Err(_) => return false,
                    }
                }
            };
            let ended = tokio::select! {
                ended = receive => ended,
                () = send => false,
            };
            drop(client);
            match serving.await {
                Ok(()) => Ok(Answered { bytes, ended }),
                Err(error) => Err(format!("the connection's task ended: {error}")),
            }
        })
    }

    /// How many bytes of requests and answers are charged to a uid.
    #[must_use]
    pub fn held_by(&self, uid: u32) -> u64 {
        self.daemon.supplies.bodies.held_by(uid)
    }

    /// How many runs are in flight.
    #[must_use]
    pub fn in_flight(&self) -> u64 {
        self.daemon.in_flight()
    }
}

impl Drop for Api {
    fn drop(&mut self) {
        self.daemon.warden.recorder.close();
    }
}

/// What was answered on a connection.
#[derive(Debug)]
pub struct Answered {
    pub bytes: Vec<u8>,
    /// Whether the server closed the connection.
    pub ended: bool,
}

fn api_config() -> Result<Config, String> {
    let text = format!(
        "[cordon]\nqueue_secs = 0\n[api]\nconnections = 16\nread_secs = 5\nwrite_secs = 5\nbody_mb = 64\nscript_mb = 4\n\
         [audit]\nkeep_mb = 16\n[[peers]]\nuid = {CLIENT}\ntenants = [\"acme-*\"]\n[[peers]]\nuid = {OPERATOR}\noperate = true\n"
    );
    config(&text).map(|accepted| accepted.0)
}
