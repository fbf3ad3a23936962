//! A worker that misbehaves in one way, for the tests of the supervisor's reaction.
//!
//! The name of the executable says how:
//!
//! | name | what it does |
//! |---|---|
//! | `rogue-without-LAYER` | leaves out one layer, and reports that it is ready |
//! | `rogue-with-descriptor` | keeps a descriptor |
//! | `rogue-lies-of-keys`, `rogue-shares-keys` | reports keys that its pages do not carry |
//! | `rogue-says-…` | breaks the protocol on the control channel |
//! | `rogue-fails-at-admission` | reports that it has no memory for a tenant's thread |
//! | `rogue-tenant-…` | misbehaves as a tenant's thread, under the filter of such a thread |
//!
//! A rogue that is asked to make the startup snapshot sends an empty one. The supervisor does not
//! inspect snapshots, and no rogue uses one.
#![forbid(unsafe_code)]

use std::error::Error;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::process::ExitCode;

use enisle_hardening::islands::Zone;
use enisle_hardening::jail::{self, Plan};
use enisle_hardening::process::fds;
use enisle_hardening::{Layer, LayerSet, filter};
use enisle_wire::control::{FromWorker, Keys, OverrunCause, Ready, Role, Slot, Start, ToWorker};
use enisle_wire::tenant::{Advice, Done, FromTenant, Level, LogLine, RunId, ScriptError, ToTenant, Usage};
use enisle_wire::{
    MAX_ERROR_BYTES, MAX_FROM_TENANT_BYTES, MAX_FROM_WORKER_BYTES, MAX_LOG_LINES, MAX_TO_TENANT_BYTES,
    MAX_TO_WORKER_BYTES, Outcome, read_frame, write_frame,
};

fn main() -> ExitCode {
    // The name is read before this process enters the jail, because the jail has no /proc.
    let name = std::fs::read_link("/proc/self/exe").unwrap_or_default();
    let name = name.file_name().unwrap_or_default().to_string_lossy().into_owned();
    match misbehave(&name) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "{name}: {error}");
            ExitCode::FAILURE
        }
    }
}

fn misbehave(name: &str) -> Result<(), Box<dyn Error>> {
    let mut channel = fds::control_channel().ok_or("no channel")?;
    let ToWorker::Start(start) = read_frame(&mut channel, MAX_TO_WORKER_BYTES)? else { return Err("no start".into()) };
    let mut say = |frame: &FromWorker| write_frame(&mut channel, frame, MAX_FROM_WORKER_BYTES);
    if start.role == Role::Maker {
        return Ok(say(&FromWorker::Snapshot(Vec::new()))?);
    }
    let kept = if name == "rogue-with-descriptor" { Some(File::open("/etc/passwd")?) } else { None };
    let mut layers = LayerSet::from_bits(start.layers);
    if let Some(layer) = name.strip_prefix("rogue-without-") {
        layers = layers.without(layer.parse::<Layer>()?);
    }
    if kept.is_none() {
        jail::enter(&Plan::for_tenants(layers, start.data_bytes, start.max_tenants))?;
    } else {
        // The jail closes every descriptor that it finds, so this rogue does not enter it.
        layers = LayerSet::NONE;
    }
    if layers.has(Layer::SealedFilter) {
        filter::seal()?;
    }
    if layers.has(Layer::Seccomp) {
        filter::install()?;
    }
    let slots = u8::try_from(start.max_tenants)?;
    let keys = match name {
        "rogue-lies-of-keys" => Some(Keys { jit: 1, tenants: (2..2 + slots).collect() }),
        "rogue-shares-keys" => Some(Keys { jit: 1, tenants: vec![2; slots.into()] }),
        _ => None,
    };
    let ready = FromWorker::Ready(Ready { v8: "rogue".to_owned(), keys });
    if let Some(how) = name.strip_prefix("rogue-tenant-") {
        say(&ready)?;
        return speak_for_tenant(how, &start, layers, &channel);
    }
    match name {
        "rogue-says-nothing" => {}
        "rogue-says-noise" => channel.write_all(&[0xff; 64])?,
        "rogue-says-ready-twice" => {
            say(&ready)?;
            say(&ready)?;
        }
        "rogue-says-another-tenant" => {
            say(&ready)?;
            say(&FromWorker::Overrun { slot: Slot(7), run: RunId(1), cause: OverrunCause::Cpu })?;
        }
        "rogue-fails-at-admission" => {
            say(&ready)?;
            fds::receive(channel.as_fd(), &mut [0; 4096])?;
            write_frame(&mut channel, &FromWorker::Failed("no memory for a thread".to_owned()), MAX_FROM_WORKER_BYTES)?;
        }
        "rogue-says-too-much" => {
            say(&ready)?;
            channel.write_all(&u32::MAX.to_le_bytes())?;
        }
        _ => say(&ready)?,
    }
    wait_for_the_end(&mut channel);
    drop(kept);
    Ok(())
}

/// Speaks for the first admitted tenant, and misbehaves once that tenant has a run.
fn speak_for_tenant(how: &str, start: &Start, layers: LayerSet, control: &UnixStream) -> Result<(), Box<dyn Error>> {
    let descriptor = fds::receive(control.as_fd(), &mut [0; 4096])?.1.pop().ok_or("no tenant was admitted")?;
    let mut channel = UnixStream::from(descriptor);
    if layers.has(Layer::ThreadFilter) {
        let zone = Zone::from_parts(&start.zone).ok_or("no zone")?;
        let island = zone.island(0).ok_or("no island")?;
        filter::confine(&filter::Own { zone: &zone, island, keys: &[], channel: channel.as_fd() })?;
    }
    let say = |channel: &mut UnixStream, frame: &FromTenant| write_frame(channel, frame, MAX_FROM_TENANT_BYTES);
    say(&mut channel, &FromTenant::Ready { cpu_us: 0 })?;
    let ToTenant::Run(run) = read_frame(&mut channel, MAX_TO_TENANT_BYTES)? else { return Err("no run".into()) };
    let line = || LogLine { t_ms: 0, level: Level::Log, text: String::new() };
    match how {
        "says-ready-again" => loop {
            say(&mut channel, &FromTenant::Ready { cpu_us: 0 })?;
        },
        "logs-nothing" => loop {
            say(&mut channel, &FromTenant::Log(Vec::new()))?;
        },
        "logs-in-small-frames" => loop {
            say(&mut channel, &FromTenant::Log(vec![line()]))?;
        },
        // Fills the channel with lines for which the supervisor has no memory.
        "logs-without-room" => loop {
            let text = "x".repeat(70_000);
            say(&mut channel, &FromTenant::Log(vec![LogLine { t_ms: 0, level: Level::Log, text }]))?;
        },
        // Sends a large frame of a kind that should be small.
        "is-ready-at-length" => {
            use std::io::Write;
            let length = u32::try_from(4 << 20)?.to_le_bytes();
            channel.write_all(&length)?;
            channel.write_all(&vec![0; 4 << 20])?;
        }
        "logs-too-many-lines" => say(&mut channel, &FromTenant::Log(vec![line(); MAX_LOG_LINES + 1]))?,
        // The filter ends the process. No handler of this program records whose thread it was.
        "opens-a-file" => drop(File::open("/etc/passwd")),
        "has-a-long-error" => {
            let error = ScriptError { name: "E".to_owned(), message: "x".repeat(MAX_ERROR_BYTES + 1), stack: None };
            say(
                &mut channel,
                &FromTenant::Done(Box::new(Done {
                    id: run.id,
                    outcome: Outcome::Exception,
                    result: None,
                    error: Some(error),
                    truncated: false,
                    usage: Usage::default(),
                    advice: Advice::default(),
                })),
            )?;
        }
        _ => return Err("no such rogue".into()),
    }
    wait_for_the_end(&mut channel);
    Ok(())
}

/// Reads and ignores everything, until the supervisor hangs up or kills this process.
fn wait_for_the_end(channel: &mut UnixStream) {
    while channel.read(&mut [0; 4096]).is_ok_and(|got| got > 0) {}
}
