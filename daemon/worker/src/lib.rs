//! `enisle-worker`: the jailed process in which tenants live. `enisled` starts it.
//!
//! 1. The first frame on descriptor 3 says which role the process takes
//!    ([`enisle_wire::control::Start`]).
//! 2. The process enters the jail (`enisle_hardening::jail`) while it has one thread.
//! 3. V8 starts on the main thread, which never enters an isolate. What later could not be looked
//!    up is looked up now. In a maker, and if several tenants may come, a script first uses what V8
//!    makes once for all threads.
//! 4. A *host* takes the protection keys, and makes a cage for every tenant that may come, each
//!    with a key of its own.
//! 5. The process installs the filter (`enisle_hardening::filter`): from here on it can open,
//!    execute and connect to nothing.
//! 6. A *maker* makes the startup snapshot, sends it and ends. A *host* starts a thread for each
//!    tenant ([`tenant`]), which installs a filter of its own. The main thread serves the control
//!    channel ([`host`]), and one more thread watches the tenants' clocks ([`watchdog`]).

#[cfg(all(feature = "attack-natives", not(debug_assertions)))]
compile_error!("attack-natives gives every tenant control of the process: a release must not have it");

mod control;
mod engine;
mod host;
pub mod raw;
mod tenant;
mod watchdog;

use std::process::ExitCode;
use std::sync::Arc;

use enisle_hardening::islands::Zone;
use enisle_hardening::islands::keys::pkru::Pkru;
use enisle_hardening::islands::keys::{Key, KeyRing};
use enisle_hardening::islands::{frozen, keys};
use enisle_hardening::jail::{self, Plan};
use enisle_hardening::process::fds;
use enisle_hardening::{Layer, LayerSet, fault, filter};
use enisle_wire::VERSION;
use enisle_wire::control::{FromWorker, Keys, Ready, Role};

use crate::control::Control;
use crate::engine::isolate::resting::Snapshot;
use crate::engine::isolate::snapshot;
use crate::engine::memory::cage::Cage;
use crate::engine::memory::heap::Heap;
use crate::engine::start::{self, Purpose};
use crate::tenant::Surroundings;
use crate::watchdog::Alarm;

#[global_allocator]
static HEAP: Heap = Heap;

/// The whole program.
#[must_use]
pub fn main() -> ExitCode {
    enisle_hardening::process::thread::share_one_arena();
    let Some(channel) = fds::control_channel() else { return ExitCode::FAILURE };
    let mut control = Control::new(channel);
    match run(&mut control) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // The sentence goes to the supervisor, which shows it to the operator.
            let _ = control.speaker().say(&FromWorker::Failed(error.to_string()));
            // The supervisor ends this process. If the process ended itself, the supervisor might
            // see that before it has read the sentence, and take it for a crash.
            while control.receive().is_ok_and(|more| more) {}
            ExitCode::FAILURE
        }
    }
}

fn run(control: &mut Control) -> Result<(), Box<dyn std::error::Error>> {
    let start = control.start()?;
    if start.version != VERSION {
        return Err(format!("the daemon speaks version {} of the wire, this worker {VERSION}", start.version).into());
    }
    // The fault page and the snapshot are mapped here, while descriptors can still be mapped.
    // Afterwards the mappings need no descriptor.
    fault::share(control.take_descriptor().ok_or("Start came without a fault page")?)?;
    let snapshot = control.take_descriptor().map(snapshot::map).transpose()?;
    let layers = LayerSet::from_bits(start.layers);
    let zone = Zone::from_parts(&start.zone).ok_or("the zone does not fit this machine's address space")?;
    jail::enter(&Plan::for_tenants(layers, start.data_bytes, start.max_tenants))?;
    let measured = start::measure_processors();
    let purpose = match (start.role, start.jitless) {
        (Role::Maker, _) => Purpose::Snapshot,
        (Role::Host, false) => Purpose::Tenants,
        (Role::Host, true) => Purpose::SealedTenants,
    };
    let (v8, reserved) = start::v8(&zone, purpose)?;
    start::set_signal_handlers()?;
    // What follows requires that no other thread maps memory meanwhile.
    measured.join().map_err(|_| "measuring the processors panicked")?;
    let speaker = control.speaker();
    if start.role == Role::Maker {
        start::warm_up()?;
        seccomp_if(layers)?;
        // A thread of its own makes the snapshot: V8 asks libc for the bounds of the stack, and for
        // the main thread libc reads them from a file.
        let made = std::thread::spawn(snapshot::make_for_hosts).join().map_err(|_| "making the snapshot panicked")?;
        return Ok(speaker.say(&FromWorker::Snapshot(made?))?);
    }
    if start.max_tenants > 1 {
        start::warm_up()?;
    }
    let reported = if layers.has(Layer::Keys) {
        let (jit, record, tenants) = KeyRing::take(zone.islands().count())?.split();
        let reported = Keys { jit, tenants: tenants.iter().map(Key::number).collect() };
        fault::guard(&record)?;
        frozen::assign(&zone, Some(jit), tenants);
        Some(reported)
    } else {
        frozen::assign(&zone, keys::jit_key(), Vec::new());
        None
    };
    let cages = Cage::build_all(reserved)?;
    // From here on a tenant's key is open on no thread but the tenant's own.
    if let Some(reported) = &reported {
        Pkru::of_worker_thread(reported.jit).install();
    }
    frozen::freeze()?;
    seccomp_if(layers)?;
    let surroundings = Surroundings {
        snapshot: Snapshot(snapshot.ok_or("Start came without a snapshot")?),
        thread_filter: layers.has(Layer::ThreadFilter),
        alarm: Arc::new(Alarm::new()),
    };
    speaker.say(&FromWorker::Ready(Ready { v8: v8.to_owned(), keys: reported }))?;
    host::serve(control, speaker, surroundings, cages)
}

fn seccomp_if(layers: LayerSet) -> Result<(), filter::FilterError> {
    if layers.has(Layer::SealedFilter) {
        filter::seal()?;
    }
    if layers.has(Layer::Seccomp) { filter::install() } else { Ok(()) }
}
