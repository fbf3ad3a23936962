//! One tenant: one thread, one cage, one key, one channel.
//!
//! ```text
//! admit ─▶ cage ─▶ warm ─▶ Ready ─▶ wait for Run ─▶ execute ─▶ Done ─▶ warm the next ─▶ dispose of the last ─▶ Ready …
//!                                      └─ channel closed ─▶ dispose, give the cage back, end
//! ```

use std::io;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Instant;

use enisle_hardening::mpk::Key;
use enisle_hardening::thread::{CpuClock, SignalStack};
use enisle_wire::control::Admit;
use enisle_wire::tenant::{FromTenant, ToTenant};
use enisle_wire::{MAX_FROM_TENANT_BYTES, MAX_TO_TENANT_BYTES, read_frame, write_frame};

use crate::engine::cage::Cage;
use crate::engine::isolate::{Resting, Snapshot};
use crate::engine::run::execute;
use crate::watchdog::{Alarm, Watched};

/// One thread of a process makes and disposes of isolates at a time. Both are mostly system calls that change the address
/// space, which the kernel lets one thread do anyway; threads that queue here do not get in each other's way there. No
/// script runs meanwhile in the thread that has its turn, so no tenant can hold it up.
static BUILDING: Mutex<()> = Mutex::new(());

/// V8 takes 984 KiB of it (`--stack-size`) and throws a `RangeError` then; the rest is for native code on top of that.
const STACK_BYTES: usize = 4 << 20;

/// A tenant's thread, as the main thread holds it.
#[derive(Debug)]
pub(crate) struct Tenant {
    pub(crate) watched: Arc<Watched>,
    finished: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl Tenant {
    /// Starts the thread. It says `Ready` on its own channel.
    pub(crate) fn admit(
        admit: &Admit,
        channel: UnixStream,
        key: Option<Key>,
        snapshot: Snapshot,
        alarm: &Arc<Alarm>,
    ) -> io::Result<Self> {
        let (slot, memory_mb) = (admit.slot, admit.memory_mb);
        let finished = Arc::new(AtomicBool::new(false));
        let (send, receive) = std::sync::mpsc::sync_channel(1);
        let (thread_finished, thread_alarm) = (Arc::clone(&finished), Arc::clone(alarm));
        let thread =
            thread::Builder::new().name(format!("tenant-{}", slot.0)).stack_size(STACK_BYTES).spawn(move || {
                let alarm = Arc::clone(&thread_alarm);
                if let Ok(clock) = CpuClock::of_this_thread() {
                    let watched = Arc::new(Watched::new(slot, clock, thread_alarm));
                    if send.send(Arc::clone(&watched)).is_ok() {
                        // An error here is a channel that was closed: the tenant has moved out.
                        let _ = live(&watched, &Arc::new(channel), key, snapshot, memory_mb);
                    }
                }
                thread_finished.store(true, Ordering::SeqCst);
                alarm.ring();
            })?;
        let watched = receive.recv().map_err(|_| io::Error::other("the tenant's thread has no clock"))?;
        Ok(Self { watched, finished, thread })
    }

    pub(crate) fn is_finished(&self) -> bool {
        self.finished.load(Ordering::SeqCst)
    }

    /// Collects a finished thread.
    pub(crate) fn join(self) {
        let _ = self.thread.join();
    }
}

/// The life of a tenant's thread.
fn live(
    watched: &Arc<Watched>,
    channel: &Arc<UnixStream>,
    key: Option<Key>,
    snapshot: Snapshot,
    memory_mb: u32,
) -> Result<(), Box<dyn std::error::Error>> {
    let _signal_stack = SignalStack::install()?;
    let _cage = Cage::new(key);
    let mut warm = Resting::warm(snapshot, memory_mb)?;
    let say = |frame: &FromTenant| write_frame(&mut &**channel, frame, MAX_FROM_TENANT_BYTES);
    loop {
        say(&FromTenant::Ready)?;
        let ToTenant::Run(run) = read_frame(&mut &**channel, MAX_TO_TENANT_BYTES)?;
        let arrived = Instant::now();
        let memory_mb = run.limits.memory_mb;
        // A heap limit is fixed when an isolate is made. The one that is warm has the limit of the run before.
        if warm.memory_mb != memory_mb {
            warm = Resting::warm(snapshot, memory_mb)?;
        }
        let done = execute(&mut warm, *run, watched, channel, arrived);
        say(&FromTenant::Done(Box::new(done)))?;
        let _turn = BUILDING.lock().unwrap_or_else(PoisonError::into_inner);
        // The next one first: a cage whose last isolate goes would build its shared parts anew.
        let next = Resting::warm(snapshot, memory_mb)?;
        drop(std::mem::replace(&mut warm, next));
    }
}
