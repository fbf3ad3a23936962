//! The bare engine in a plain loop: the baseline of `cargo xtask bench load`.
//!
//! The loop has the flags, the snapshot, the kind of cage and the script of a worker, but no jail,
//! no channel and no limits of a run. So it measures what each request costs a program that embeds
//! V8 itself and makes an isolate for every request.

use std::time::{Duration, Instant};

use enisle_hardening::fault;
use enisle_hardening::fault::FaultPage;
use enisle_hardening::islands::Zone;
use enisle_hardening::islands::{frozen, keys};

use crate::engine::isolate::resting::{Resting, Snapshot};
use crate::engine::isolate::snapshot;
use crate::engine::memory::cage::{Cage, Entered, Entering};
use crate::engine::start::{self, Purpose};

/// One turn of the loop.
#[derive(Debug, Clone, Copy)]
pub struct Turn {
    /// To make an isolate with its context, compile the script and run it.
    pub run: Duration,
    /// The same, and to dispose of the isolate.
    pub whole: Duration,
}

/// Runs `script`, a module with a function as its default export, `turns` times.
///
/// # Errors
/// The engine does not start, or the script does not run.
pub fn measure(script: &str, turns: usize) -> Result<Vec<Turn>, Box<dyn std::error::Error>> {
    let zone = Zone::place(1, || 0);
    let (_, reserved) = start::v8(&zone, Purpose::Tenants)?;
    start::warm_up()?;
    let snapshot = Box::leak(snapshot::make()?.into_boxed_slice());
    let script = script.to_owned();
    // The fault page, on which the thread of the cage registers itself.
    fault::share(FaultPage::new()?.descriptor().try_clone_to_owned()?)?;
    frozen::assign(&zone, keys::jit_key(), Vec::new());
    let cage = Cage::build_all(reserved)?.pop().ok_or("no cage")?;
    let (send, receive) = std::sync::mpsc::sync_channel(1);
    let thread = cage.start_thread(c"raw".to_owned(), move |cage| {
        // `measure` waits for this value, so sending cannot fail.
        let _ = send.send(in_cage(cage, Snapshot(snapshot), &script, turns));
    })?;
    let measured = receive.recv();
    thread.join();
    Ok(measured??)
}

fn in_cage(cage: Entering, snapshot: Snapshot, script: &str, turns: usize) -> Result<Vec<Turn>, String> {
    let cage = cage.enter().map_err(|error| error.to_string())?;
    // One isolate stays alive, so that the cage's shared parts stay too and no turn has to build
    // them.
    let _stays = Resting::new(&cage, snapshot, 128).map_err(|error| error.to_string())?;
    (0..turns).map(|_| turn(&cage, snapshot, script)).collect()
}

fn turn(cage: &Entered, snapshot: Snapshot, script: &str) -> Result<Turn, String> {
    let begun = Instant::now();
    let mut isolate = Resting::new(cage, snapshot, 128).map_err(|error| error.to_string())?;
    isolate.call_default_export(script).ok_or("the script does not run")?;
    let run = begun.elapsed();
    drop(isolate);
    Ok(Turn { run, whole: begun.elapsed() })
}
