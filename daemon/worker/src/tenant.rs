//! One tenant: one thread, one cage, one key, one channel.
//!
//! ```text
//! admit ─▶ enter the cage ─▶ warm ─▶ lock down ─▶ Ready ─▶ wait for Run
//!
//! wait for Run ─┬─ short ─▶ execute ─▶ Done ─▶ warm the next ─▶ dispose of the last ─▶ Ready …
//!               ├─ long ──▶ execute ─▶ warm the next ─▶ dispose of the last ─▶ Done ─▶ Ready …
//!               └─ channel closed ─▶ dispose of all, give the cage back ─▶ Left
//! ```
//!
//! The thread reports all its CPU time with `Done`, `Ready` and `Left`. Everything that it does,
//! except waiting, has a limit of time ([`Watched`]).
//!
//! An isolate that is kept is not disposed of. It goes to the shelf, and the script's next run is
//! executed in it.
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

use enisle_hardening::process::thread::CpuClock;
use enisle_wire::control::Admit;
use enisle_wire::tenant::{Code, Done, FromTenant, ToTenant};
use enisle_wire::{FrameError, MAX_FROM_TENANT_BYTES, MAX_TO_TENANT_BYTES, read_frame, write_frame};

use crate::engine::isolate::resting::{Resting, Snapshot};
use crate::engine::isolate::shelf::{Evaluated, Kept, Shelf};
use crate::engine::memory::cage::{Cage, Entered, Entering, IslandThread};
use crate::engine::memory::{date_patterns, heap, oversized, quota};
use crate::engine::run::clock::Clock;
use crate::engine::run::execute::{Order, execute};
use crate::engine::run::state::Source;
use crate::watchdog::{Alarm, Watched};

/// What all tenants' threads of a process share.
#[derive(Debug)]
pub(crate) struct Surroundings {
    pub(crate) snapshot: Snapshot,
    /// Whether a tenant's thread installs a filter of its own.
    pub(crate) thread_filter: bool,
    pub(crate) alarm: Arc<Alarm>,
}

/// A thread holds this lock while it makes the isolate for its next run, so one thread at a time
/// does so. Without the lock, eight clients get 4 to 7 % fewer runs (`cargo xtask bench load`, two
/// processors). How long it takes to make an isolate does not depend on scripts. How long it takes
/// to dispose of one does, so a thread disposes without the lock: no tenant waits for what another
/// tenant left.
static MAKING: Mutex<()> = Mutex::new(());

/// After a run that took this much memory or more, giving free pages back is worth the time. A
/// trivial run takes a tenth of it.
const HEAVY_BYTES: u64 = 8 << 20;

/// After a run of this much CPU time or more in a warm isolate, the thread first disposes of what
/// the run left, and then reports its end. The disposal may take as long as the run, and is part of
/// its usage. After a shorter run the client does not wait for the disposal.
const LONG_US: u64 = 5_000;

/// Large enough for all parts of a small run, which are then read with one system call.
const READ_AHEAD_BYTES: usize = 16 << 10;

/// A tenant's thread, as the worker's own threads see it.
#[derive(Debug)]
pub(crate) struct Tenant {
    pub(crate) watched: Arc<Watched>,
    finished: Arc<AtomicBool>,
    thread: IslandThread,
    /// Open until the thread has ended. The thread itself may not close it: an attacker would close
    /// it, and wait until its number names another tenant's channel.
    _channel: Arc<UnixStream>,
}

impl Tenant {
    /// Starts the thread, which sends `Ready` on its own channel.
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
        let name = CString::new(format!("tenant-{}", slot.0))?;
        let thread = cage.start_thread(name, move |cage| {
            if let Ok(clock) = CpuClock::of_this_thread() {
                let watched = Arc::new(Watched::new(slot, clock, Arc::clone(&surroundings.alarm)));
                if send.send(Arc::clone(&watched)).is_ok() {
                    // Whatever the error is, the thread ends. Mostly the supervisor has closed the
                    // channel, because the tenant moves out.
                    let _ = live(&watched, &threads_channel, cage, &surroundings, memory_mb);
                }
            }
            thread_finished.store(true, Ordering::SeqCst);
            surroundings.alarm.ring();
        })?;
        let Ok(watched) = receive.recv() else {
            thread.join();
            return Err("the tenant's thread has no clock".into());
        };
        Ok(Self { watched, finished, thread, _channel: channel })
    }

    pub(crate) fn is_finished(&self) -> bool {
        self.finished.load(Ordering::SeqCst)
    }

    /// Joins the finished thread, and unmaps its island.
    pub(crate) fn join(self) {
        self.thread.join();
    }
}

/// Reads what the supervisor sends to a tenant's thread.
struct Incoming<'a> {
    frames: BufReader<&'a UnixStream>,
    watched: &'a Watched,
}

impl<'a> Incoming<'a> {
    fn new(channel: &'a UnixStream, watched: &'a Watched) -> Self {
        // The read-ahead buffer is on the tenant's island too.
        Self { frames: heap::private(|| BufReader::with_capacity(READ_AHEAD_BYTES, channel)), watched }
    }

    fn next(&mut self) -> Result<ToTenant, FrameError> {
        heap::private(|| read_frame(&mut self.frames, MAX_TO_TENANT_BYTES))
    }

    /// Waits for the next run. Until it comes, disposes of each isolate that the supervisor says to
    /// forget.
    fn order(&mut self, shelf: &mut Shelf<'_>) -> Result<Order, Box<dyn Error>> {
        loop {
            self.watched.wait();
            let frame = self.next()?;
            self.watched.tidy();
            match frame {
                ToTenant::Run(run) => match (self.next()?, self.next()?) {
                    (ToTenant::Input(input), ToTenant::Env(env)) => return Ok(Order { run, input, env }),
                    _ => return Err("a run came without its input or env".into()),
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

/// The whole life of a tenant's thread in its cage.
fn live(
    watched: &Arc<Watched>,
    channel: &Arc<UnixStream>,
    cage: Entering,
    surroundings: &Surroundings,
    memory_mb: u32,
) -> Result<(), Box<dyn Error>> {
    let cage = cage.enter()?;
    #[cfg(feature = "attack-natives")]
    crate::engine::attack::channel_is(std::os::fd::AsRawFd::as_raw_fd(&**channel));
    let warm = Resting::warm(&cage, surroundings.snapshot, memory_mb)?;
    let mut isolates = Isolates { cage: &cage, warm, shelf: Shelf::default() };
    // The cage's code range exists now; nothing later makes memory executable.
    if surroundings.thread_filter {
        cage.lock_down(channel.as_fd())?;
    }
    let incoming = Incoming::new(channel, watched);
    let mut serving = Serving { watched, channel, incoming, clock: Clock::new(), snapshot: surroundings.snapshot };
    let ended = serving.serve(&mut isolates);
    drop(serving);
    watched.tidy();
    drop(isolates);
    date_patterns::forget();
    quota::trim();
    drop(cage);
    send(channel, &FromTenant::Left { cpu_us: watched.take_us() })?;
    ended
}

/// The isolates of one tenant, and their cage.
struct Isolates<'cage> {
    cage: &'cage Entered,
    warm: Resting<'cage>,
    shelf: Shelf<'cage>,
}

fn send(channel: &UnixStream, frame: &FromTenant) -> Result<(), FrameError> {
    write_frame(&mut &*channel, frame, MAX_FROM_TENANT_BYTES)
}

/// A tenant's thread at work.
struct Serving<'a> {
    watched: &'a Arc<Watched>,
    channel: &'a Arc<UnixStream>,
    incoming: Incoming<'a>,
    clock: Clock,
    snapshot: Snapshot,
}

impl Serving<'_> {
    /// Executes the runs that the supervisor sends, until the channel is closed.
    fn serve(&mut self, isolates: &mut Isolates<'_>) -> Result<(), Box<dyn Error>> {
        loop {
            if isolates.shelf.is_empty() {
                quota::settle();
            }
            send(self.channel, &FromTenant::Ready { cpu_us: self.watched.take_us() })?;
            let order = self.incoming.order(&mut isolates.shelf)?;
            let (key, memory_mb) = (order.run.keep, order.run.limits.memory_mb);
            let kept = key.and_then(|key| Some((key, isolates.shelf.take(key, memory_mb)?)));
            isolates.shelf.make_room(memory_mb);
            match kept {
                Some((key, kept)) => self.run_kept(order, key, kept, &mut isolates.shelf)?,
                None => self.run_warm(order, isolates)?,
            }
        }
    }

    /// A run in the isolate that its script was evaluated in.
    fn run_kept<'cage>(
        &mut self,
        order: Order,
        key: u64,
        Kept { mut resting, evaluated, .. }: Kept<'cage>,
        shelf: &mut Shelf<'cage>,
    ) -> Result<(), Box<dyn Error>> {
        let arrived = Instant::now();
        let (done, evaluated) = self.execute(&mut resting, Source::Evaluated(evaluated), order, arrived);
        let is_heavy = done.usage.peak_heap_bytes >= HEAVY_BYTES;
        let mut done = Some(done);
        if evaluated.is_some() {
            done.take().map_or(Ok(()), |done| self.say_done(arrived, done))?;
        }
        match evaluated {
            Some(evaluated) => shelf.put(key, resting, evaluated),
            None => drop(resting),
        }
        give_back(is_heavy);
        Ok(done.map_or(Ok(()), |done| self.say_done(arrived, done))?)
    }

    /// A run in the warm isolate. After it, makes the isolate for the next run.
    fn run_warm(&mut self, order: Order, isolates: &mut Isolates<'_>) -> Result<(), Box<dyn Error>> {
        let Isolates { cage, warm, shelf } = isolates;
        let (id, key, memory_mb) = (order.run.id, order.run.keep, order.run.limits.memory_mb);
        if key.is_some() {
            send(self.channel, &FromTenant::Needs(id))?;
        }
        let source = Source::Code(self.incoming.code()?);
        let arrived = Instant::now();
        // An isolate's heap limit is fixed when the isolate is made. The warm isolate has the limit
        // of the run before this one.
        if warm.memory_mb != memory_mb {
            *warm = Resting::warm(cage, self.snapshot, memory_mb)?;
        }
        let (done, evaluated) = self.execute(warm, source, order, arrived);
        let is_heavy = done.usage.peak_heap_bytes >= HEAVY_BYTES;
        let mut done = Some(done);
        if let Some(short) = done.take_if(|done| done.usage.cpu_us < LONG_US) {
            self.say_done(arrived, short)?;
        }
        // The next isolate is made before the last one is disposed of: a cage that loses its only
        // isolate must build its shared parts anew.
        let next = {
            let _turn = MAKING.lock().unwrap_or_else(PoisonError::into_inner);
            Resting::warm(cage, self.snapshot, memory_mb)?
        };
        let last = std::mem::replace(warm, next);
        match (key, evaluated) {
            (Some(key), Some(evaluated)) => shelf.put(key, last, evaluated),
            _ => drop(last),
        }
        give_back(is_heavy);
        Ok(done.map_or(Ok(()), |long| self.say_done(arrived, long))?)
    }

    fn execute(
        &mut self,
        resting: &mut Resting<'_>,
        source: Source,
        order: Order,
        arrived: Instant,
    ) -> (Done, Option<Evaluated>) {
        let Self { watched, channel, clock, .. } = self;
        heap::private(|| execute(resting, source, order, watched, channel, clock, arrived))
    }

    fn say_done(&self, arrived: Instant, mut done: Done) -> Result<(), FrameError> {
        done.usage.cpu_us = self.watched.take_us();
        done.usage.wall_us = u64::try_from(arrived.elapsed().as_micros()).unwrap_or(u64::MAX);
        heap::private(|| send(self.channel, &FromTenant::Done(Box::new(done))))
    }
}

/// After a run: gives free pages back if that is worth the time, and forgets the oversized object.
fn give_back(is_heavy: bool) {
    if is_heavy {
        quota::trim();
    }
    oversized::forget();
}
