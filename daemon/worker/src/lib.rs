//! `enisle-worker`: the jailed process that holds tenants. Started by `enisled` and by nothing else.
//!
//! 1. The first frame on descriptor 3 says what to be ([`enisle_wire::control::Start`]).
//! 2. The jail (`enisle_hardening::jail`), while there is one thread.
//! 3. V8, on the main thread, which never enters an isolate afterwards.
//! 4. The filter (`enisle_hardening::seccomp`): from here on nothing can be opened, started or reached.
//! 5. As *maker*: the startup snapshot, and the end. As *host*: tenants, one thread each ([`tenant`]), while this thread
//!    answers the control channel and watches their clocks ([`watchdog`]).

mod control;
mod engine;
mod host;
pub mod raw;
mod tenant;
mod watchdog;

use std::process::ExitCode;

use enisle_hardening::jail::{self, Plan};
use enisle_hardening::{Layer, LayerSet, fds, mpk, seccomp};
use enisle_wire::VERSION;
use enisle_wire::control::{FromWorker, Ready, Role, Start};

use crate::control::Control;
use crate::engine::isolate::Snapshot;
use crate::watchdog::Alarm;

/// The whole program.
#[must_use]
pub fn main() -> ExitCode {
    enisle_hardening::thread::share_one_arena();
    enisle_hardening::thread::schedule_as_batch();
    let Some(channel) = fds::control_channel() else { return ExitCode::FAILURE };
    let mut control = Control::new(channel);
    match run(&mut control) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // The sentence goes to the supervisor, which shows it to the operator.
            let _ = control.say(&FromWorker::Failed(error.to_string()));
            ExitCode::FAILURE
        }
    }
}

fn run(control: &mut Control) -> Result<(), Box<dyn std::error::Error>> {
    let start = control.start()?;
    if start.version != VERSION {
        return Err(format!("the daemon speaks version {} of the wire, this worker {VERSION}", start.version).into());
    }
    // Mapped while descriptors can still be mapped; the mapping needs no descriptor afterwards.
    let snapshot = control.take_descriptor().map(host::map_snapshot).transpose()?;
    let layers = LayerSet::from_bits(start.layers);
    jail::enter(&plan(&start, layers))?;
    let v8 = engine::start();
    engine::set_signal_handlers()?;
    let most = start.max_tenants as usize;
    let keys = if layers.has(Layer::Keys) { mpk::take(most) } else { Vec::new() };
    let alarm = Alarm::new()?;
    engine::warm_up()?;
    if layers.has(Layer::Seccomp) {
        seccomp::install()?;
    }
    match start.role {
        Role::Maker => {
            // A thread of its own: V8 asks for the bounds of the stack, which for a main thread are in a file.
            let made = std::thread::spawn(engine::snapshot::make).join().map_err(|_| "making the snapshot panicked")?;
            control.say(&FromWorker::Snapshot(made?))
        }
        Role::Host => {
            let snapshot = snapshot.ok_or("no snapshot came with the start")?;
            let ready = Ready { v8: v8.to_owned(), keys: u32::try_from(keys.len())? };
            control.say(&FromWorker::Ready(ready))?;
            host::serve(control, Snapshot(snapshot), keys, alarm)
        }
    }
}

/// The jail of a worker with these settings; the supervisor computes the same to verify it.
fn plan(start: &Start, layers: LayerSet) -> Plan {
    Plan::for_tenants(layers, start.data_bytes, start.max_tenants)
}
