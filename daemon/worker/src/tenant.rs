//! One tenant: one thread, one cage, one key, one channel.
//!
//! ```text
//! admit ─▶ enter the cage ─▶ warm ─▶ lock down ─▶ Ready ─▶ wait for Run ─▶ execute ─▶ Done ─▶ warm the next ─▶ dispose of the last ─▶ Ready …
//!                                      └─ channel closed ─▶ dispose, give the cage back, end
//! ```
//!
//! The isolate of a script that is kept goes to the shelf instead, and the script's next run is executed there.
//!
//! ```text
//! Run(keep) ─▶ on the shelf? ─▶ execute there ─▶ Done ─▶ back on the shelf ─▶ Ready
//!                   └─ no: Needs ─▶ Code ─▶ execute in the warm one
//! ```

use std::error::Error;
use std::ffi::CString;
use std::io::BufReader;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use enisle_hardening::allocator;
use enisle_hardening::islands::Island;
use enisle_hardening::thread::{CpuClock, Thread};
use enisle_wire::control::Admit;
use enisle_wire::tenant::{Code, FromTenant, ToTenant};
use enisle_wire::{FrameError, MAX_FROM_TENANT_BYTES, MAX_TO_TENANT_BYTES, read_frame, write_frame};

use crate::engine::cage::{Cage, sweep};
use crate::engine::clock::Clock;
use crate::engine::isolate::{Resting, Snapshot};
use crate::engine::kept::{Kept, Shelf};
use crate::engine::run::{Order, Source, execute};
use crate::engine::{heap, memory};
use crate::watchdog::{Alarm, Watched};

/// What every tenant's thread of a process needs to know.
#[derive(Debug)]
pub(crate) struct Surroundings {
    pub(crate) snapshot: Snapshot,
    /// The layer is on.
    pub(crate) thread_filter: bool,
    pub(crate) alarm: Arc<Alarm>,
}

/// One thread of a process makes an isolate at a time; without this, eight clients get 4 to 7 %
/// fewer runs (`cargo xtask bench load`, two processors). Making one takes the same time whatever a
/// script has done. Disposing of one does not, so that is each thread's own: no tenant waits for
/// what another one left.
static MAKING: Mutex<()> = Mutex::new(());

/// From this size on the memory of a run is worth the millisecond that giving it back takes. A
/// trivial run has a tenth.
const HEAVY_BYTES: u64 = 8 << 20;

/// The parts of a small run come with one call.
const READ_AHEAD_BYTES: usize = 16 << 10;

/// A tenant's thread, as the worker's own threads hold it.
#[derive(Debug)]
pub(crate) struct Tenant {
    pub(crate) watched: Arc<Watched>,
    finished: Arc<AtomicBool>,
    thread: Thread,
    /// Held until the thread has ended, which may not close it: whoever could would wait for the number to be another's.
    _channel: Arc<UnixStream>,
    island: Island,
}

impl Tenant {
    /// Starts the thread. It says `Ready` on its own channel.
    pub(crate) fn admit(
        admit: &Admit,
        channel: UnixStream,
        cage: Cage,
        surroundings: &Arc<Surroundings>,
    ) -> Result<Self, Box<dyn Error>> {
        let (slot, memory_mb) = (admit.slot, admit.memory_mb);
        let finished = Arc::new(AtomicBool::new(false));
        let (send, receive) = std::sync::mpsc::sync_channel(1);
        let (thread_finished, surroundings) = (Arc::clone(&finished), Arc::clone(surroundings));
        let channel = Arc::new(channel);
        let threads_channel = Arc::clone(&channel);
        let (name, island) = (CString::new(format!("tenant-{}", slot.0))?, cage.island());
        let thread = cage.start_thread(name, move |cage| {
            if let Ok(clock) = CpuClock::of_this_thread() {
                let watched = Arc::new(Watched::new(slot, clock, Arc::clone(&surroundings.alarm)));
                if send.send(Arc::clone(&watched)).is_ok() {
                    // An error here is a channel that was closed: the tenant has moved out.
                    let _ = live(&watched, &threads_channel, cage, &surroundings, memory_mb);
                }
            }
            thread_finished.store(true, Ordering::SeqCst);
            surroundings.alarm.ring();
        })?;
        let watched = receive.recv().map_err(|_| "the tenant's thread has no clock")?;
        Ok(Self { watched, finished, thread, _channel: channel, island })
    }

    pub(crate) fn is_finished(&self) -> bool {
        self.finished.load(Ordering::SeqCst)
    }

    /// Collects a finished thread, and gives its island back.
    pub(crate) fn join(self) {
        self.thread.join();
        sweep(self.island);
    }
}

/// What the supervisor says to a tenant's thread.
struct Incoming<'a>(BufReader<&'a UnixStream>);

impl<'a> Incoming<'a> {
    fn new(channel: &'a UnixStream) -> Self {
        // What is read ahead is the tenant's as well.
        Self(heap::private(|| BufReader::with_capacity(READ_AHEAD_BYTES, channel)))
    }

    fn next(&mut self) -> Result<ToTenant, FrameError> {
        heap::private(|| read_frame(&mut self.0, MAX_TO_TENANT_BYTES))
    }

    /// The next run. What is to be forgotten meanwhile goes from the shelf.
    fn order(&mut self, shelf: &mut Shelf) -> Result<Order, Box<dyn Error>> {
        loop {
            match self.next()? {
                ToTenant::Run(run) => match (self.next()?, self.next()?) {
                    (ToTenant::Input(input), ToTenant::Env(env)) => return Ok(Order { run, input, env }),
                    _ => return Err("a run came without its input".into()),
                },
                ToTenant::Forget(key) => shelf.forget(key),
                _ => return Err("part of a run came without the run".into()),
            }
        }
    }

    fn code(&mut self) -> Result<Code, Box<dyn Error>> {
        match self.next()? {
            ToTenant::Code(code) => Ok(code),
            _ => Err("a run came without its code".into()),
        }
    }
}

/// The life of a tenant's thread.
fn live(
    watched: &Arc<Watched>,
    channel: &Arc<UnixStream>,
    cage: Cage,
    surroundings: &Surroundings,
    memory_mb: u32,
) -> Result<(), Box<dyn Error>> {
    let snapshot = surroundings.snapshot;
    let cage = cage.enter()?;
    #[cfg(feature = "attack-natives")]
    crate::engine::attack_channel_is(std::os::fd::AsRawFd::as_raw_fd(&**channel));
    let mut warm = Resting::warm(snapshot, memory_mb)?;
    // The cage's code range is there now; nothing that comes makes memory executable.
    if surroundings.thread_filter {
        cage.lock_down(channel.as_fd())?;
    }
    let say = |frame: &FromTenant| write_frame(&mut &**channel, frame, MAX_FROM_TENANT_BYTES);
    let mut shelf = Shelf::default();
    let mut incoming = Incoming::new(channel);
    let mut clock = Clock::new();
    loop {
        say(&FromTenant::Ready)?;
        let order = incoming.order(&mut shelf)?;
        let (memory_mb, key) = (order.run.limits.memory_mb, order.run.keep);
        let kept = key.and_then(|key| Some((key, shelf.take(key, memory_mb)?)));
        shelf.make_room_for_buffers(memory_mb);
        if let Some((key, Kept { mut resting, evaluated, .. })) = kept {
            let arrived = Instant::now();
            let evaluated = heap::private(|| {
                let source = Source::Evaluated(evaluated);
                let (done, evaluated) = execute(&mut resting, source, order, watched, channel, &mut clock, arrived);
                say(&FromTenant::Done(Box::new(done))).map(|()| evaluated)
            })?;
            match evaluated {
                Some(evaluated) => shelf.put(key, resting, evaluated),
                None => drop(resting),
            }
            memory::forget_oversized();
            continue;
        }
        if key.is_some() {
            say(&FromTenant::Needs(order.run.id))?;
        }
        let source = Source::Code(incoming.code()?);
        let arrived = Instant::now();
        // A heap limit is fixed when an isolate is made. The one that is warm has the limit of the run before.
        if warm.memory_mb != memory_mb {
            warm = Resting::warm(snapshot, memory_mb)?;
        }
        let (evaluated, peak_heap_bytes) = heap::private(|| {
            let (done, evaluated) = execute(&mut warm, source, order, watched, channel, &mut clock, arrived);
            let peak_heap_bytes = done.usage.peak_heap_bytes;
            say(&FromTenant::Done(Box::new(done))).map(|()| (evaluated, peak_heap_bytes))
        })?;
        // The next one first: a cage whose last isolate goes would build its shared parts anew.
        let next = {
            let _turn = MAKING.lock().unwrap_or_else(PoisonError::into_inner);
            Resting::warm(snapshot, memory_mb)?
        };
        let last = std::mem::replace(&mut warm, next);
        match (key, evaluated) {
            (Some(key), Some(evaluated)) => shelf.put(key, last, evaluated),
            _ => drop(last),
        }
        memory::forget_oversized();
        if peak_heap_bytes >= HEAVY_BYTES {
            // libc keeps the most that V8 and ICU ever had otherwise, some 2 MiB after a run that
            // filled its heap.
            allocator::give_back_freed_pages();
            heap::trim();
        }
    }
}
