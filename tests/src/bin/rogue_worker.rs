//! A worker that misbehaves, each in one way, for the tests of what the supervisor does about it.
//!
//! The name of the executable says how: `rogue-without-LAYER` leaves out one step of the jail and says that it is ready;
//! `rogue-with-descriptor` keeps a descriptor; `rogue-says-…` breaks the protocol. As a maker every one of them hands out
//! an empty snapshot, which the supervisor has no reason to look into.
#![forbid(unsafe_code)]

use std::error::Error;
use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::process::ExitCode;

use enisle_hardening::jail::{self, Plan};
use enisle_hardening::{Layer, LayerSet, fds, seccomp};
use enisle_wire::control::{FromWorker, Keys, OverrunCause, Ready, Role, Slot, ToWorker};
use enisle_wire::tenant::RunId;
use enisle_wire::{MAX_FROM_WORKER_BYTES, MAX_TO_WORKER_BYTES, read_frame, write_frame};

fn main() -> ExitCode {
    // Read before the jail: afterwards there is no /proc.
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
        // The jail closes what it finds, so this one stays out of it altogether.
        layers = LayerSet::NONE;
    }
    if layers.has(Layer::SealedFilter) {
        seccomp::seal()?;
    }
    if layers.has(Layer::Seccomp) {
        seccomp::install()?;
    }
    let places = u8::try_from(start.max_tenants)?;
    let keys = match name {
        "rogue-lies-of-keys" => Some(Keys { jit: 1, tenants: (2..2 + places).collect() }),
        "rogue-shares-keys" => Some(Keys { jit: 1, tenants: vec![2; places.into()] }),
        _ => None,
    };
    let ready = FromWorker::Ready(Ready { v8: "rogue".to_owned(), keys });
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

/// Reads and ignores, until the supervisor hangs up or kills.
fn wait_for_the_end(channel: &mut UnixStream) {
    while channel.read(&mut [0; 4096]).is_ok_and(|got| got > 0) {}
}
