//! A test rig for one worker. The rig starts the worker as the supervisor does, with the layers
//! that a case asks for, and speaks to the worker directly.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use enisle_hardening::fault::{Fault, FaultPage};
use enisle_hardening::islands::Zone;
use enisle_hardening::islands::tags::{self, Mapping, Tags};
use enisle_hardening::process::fds;
use enisle_hardening::process::spawn::{Spawn, SpawnError, Started, spawn};
use enisle_hardening::{Layer, LayerSet};
use enisle_wire::control::{Admit, FromWorker, Role, Slot, Start, ToWorker};
use enisle_wire::limits::Limits;
use enisle_wire::tenant::{Code, Done, Env, FromTenant, Input, Run, RunId, ToTenant};
use enisle_wire::{
    FrameError, MAX_FROM_TENANT_BYTES, MAX_FROM_WORKER_BYTES, MAX_TO_TENANT_BYTES, MAX_TO_WORKER_BYTES, encode,
    read_frame, write_frame,
};
use nix::sys::wait::WaitStatus;
use serde_json::{Value, json};

use crate::wait;

/// Longer than any answer of a worker takes.
const PATIENCE: Duration = Duration::from_secs(20);
/// The bound of a worker's committed memory. No test comes near it.
const DATA_BYTES: u64 = 8 << 30;

/// What is shared by all workers that a test program starts.
#[derive(Debug)]
pub struct Workshop {
    program: File,
    snapshot: OwnedFd,
}

/// A worker with its tenants.
#[derive(Debug)]
pub struct Rig {
    started: Option<Started>,
    control: UnixStream,
    pub zone: Zone,
    pub tags: Option<Tags>,
    /// V8's version, as the worker reports it.
    pub v8: String,
    faults: FaultPage,
    tenants: Vec<Tenant>,
    admitted: usize,
}

/// The supervisor's end of a tenant's channel.
#[derive(Debug)]
pub struct Tenant {
    channel: UnixStream,
    runs: u64,
}

/// How a run ended.
#[derive(Debug, Clone, PartialEq)]
pub enum Ran {
    Returned(Value),
    /// The run ended without a result: the outcome, and the message of the error.
    Threw(String),
    /// The worker ended during the run, or did not answer in time.
    Gone,
}

/// How a worker ended.
#[derive(Debug)]
pub struct End {
    pub status: Option<WaitStatus>,
    pub fault: Option<Fault>,
}

/// Whether a worker did not start because its program is open for writing.
fn is_busy(error: &io::Error) -> bool {
    let spawn = error.get_ref().and_then(|error| error.downcast_ref());
    matches!(spawn, Some(SpawnError::Exec(error)) if error.kind() == io::ErrorKind::ExecutableFileBusy)
}

impl Workshop {
    /// Opens the worker program and has it make the startup snapshot.
    pub fn open(program: &std::path::Path, layers: LayerSet) -> io::Result<Self> {
        let null = || File::open("/dev/null").map(OwnedFd::from);
        let mut workshop = Self { program: File::open(program)?, snapshot: null()? };
        // While the program was written, another thread may have started a process. That process
        // has inherited the open file, and holds it open for writing until it executes a program.
        let started = wait::found(PATIENCE, || {
            let started = workshop.start_as(Role::Maker, layers, 1, None);
            (!started.as_ref().is_err_and(is_busy)).then_some(started)
        });
        let mut rig = started.unwrap_or_else(|| Err(io::Error::other("the program is open for writing")))?;
        let word: FromWorker = read_frame(&mut rig.control, MAX_FROM_WORKER_BYTES).map_err(io::Error::other)?;
        let FromWorker::Snapshot(bytes) = word else { return Err(io::Error::other(format!("{word:?}"))) };
        let memory = nix::sys::memfd::memfd_create(c"snapshot", nix::sys::memfd::MFdFlags::MFD_CLOEXEC)?;
        File::from(memory.try_clone()?).write_all(&bytes)?;
        workshop.snapshot = memory;
        Ok(workshop)
    }

    /// Starts a worker with `slots` slots, and waits until it is ready.
    pub fn start(&self, layers: LayerSet, slots: u32) -> io::Result<Rig> {
        let mut rig = self.start_as(Role::Host, layers, slots, Some(&self.snapshot))?;
        match read_frame(&mut rig.control, MAX_FROM_WORKER_BYTES).map_err(io::Error::other)? {
            FromWorker::Ready(ready) => {
                rig.v8 = ready.v8;
                let zone = rig.zone.clone();
                rig.tags = ready.keys.map(|keys| Tags { zone, keys: keys.tenants, jit: keys.jit });
                Ok(rig)
            }
            other => Err(io::Error::other(format!("{other:?}"))),
        }
    }

    fn start_as(&self, role: Role, layers: LayerSet, slots: u32, snapshot: Option<&OwnedFd>) -> io::Result<Rig> {
        let (mut control, theirs) = UnixStream::pair()?;
        control.set_read_timeout(Some(PATIENCE))?;
        let root = nix::unistd::geteuid().is_root();
        // Root gives the worker an unprivileged uid, as the supervisor does.
        let (uid, gid) = if root {
            (1_900_100_000, 1_900_100_000)
        } else {
            (nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw())
        };
        let started = spawn(Spawn {
            program: self.program.as_fd(),
            arguments: &[c"enisle-worker".to_owned()],
            control: theirs.into(),
            stderr: File::options().write(true).open("/dev/null")?.into(),
            namespaces: layers.has(enisle_hardening::Layer::Namespaces),
            uid,
            gid,
        })
        .map_err(io::Error::other)?;
        let faults = FaultPage::new()?;
        let mut random = File::open("/dev/urandom")?;
        let zone = Zone::place(slots as usize, || {
            let mut bytes = [0; 8];
            random.read_exact(&mut bytes).expect("the kernel has random numbers");
            u64::from_ne_bytes(bytes)
        });
        let zone_parts = zone.parts();
        let start = Start {
            version: enisle_wire::VERSION,
            role,
            layers: layers.bits(),
            data_bytes: DATA_BYTES,
            max_tenants: slots,
            jitless: layers.has(Layer::DenyWriteExecute),
            zone: zone_parts,
        };
        let bytes = encode(&ToWorker::Start(start), MAX_TO_WORKER_BYTES).map_err(io::Error::other)?;
        let descriptors: Vec<_> = std::iter::once(faults.descriptor()).chain(snapshot.map(AsFd::as_fd)).collect();
        let sent = fds::send_with(control.as_fd(), &bytes, &descriptors)?;
        control.write_all(&bytes[sent..])?;
        Ok(Rig {
            started: Some(started),
            control,
            zone,
            tags: None,
            v8: String::new(),
            faults,
            tenants: Vec::new(),
            admitted: 0,
        })
    }
}

impl Rig {
    /// The worker's process.
    ///
    /// # Panics
    /// The process has ended.
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.started.as_ref().expect("it has not ended").pid.as_raw()
    }

    /// Admits one more tenant, into the next slot, and waits until its thread is ready.
    pub fn admit(&mut self) -> io::Result<usize> {
        let number = self.tenants.len();
        let (mut ours, theirs) = UnixStream::pair()?;
        ours.set_read_timeout(Some(PATIENCE))?;
        let slot = Slot(u32::try_from(number).map_err(io::Error::other)?);
        let bytes =
            encode(&ToWorker::Admit(Admit { slot, memory_mb: 128 }), MAX_TO_WORKER_BYTES).map_err(io::Error::other)?;
        let sent = fds::send_with(self.control.as_fd(), &bytes, &[theirs.as_fd()])?;
        self.control.write_all(&bytes[sent..])?;
        drop(theirs);
        match read_frame(&mut ours, MAX_FROM_TENANT_BYTES).map_err(io::Error::other)? {
            FromTenant::Ready { .. } => {}
            other => return Err(io::Error::other(format!("{other:?}"))),
        }
        self.tenants.push(Tenant { channel: ours, runs: 0 });
        self.admitted += 1;
        Ok(number)
    }

    /// Makes every tenant move out, and waits until the worker reports that their threads have
    /// ended.
    pub fn move_out(&mut self) {
        self.tenants.clear();
        let mut left = std::mem::take(&mut self.admitted);
        while left > 0 && read_frame::<FromWorker>(&mut self.control, MAX_FROM_WORKER_BYTES).is_ok() {
            left -= 1;
        }
    }

    /// See [`Tenant::send`].
    pub fn send(&mut self, slot: usize, code: &str, argument: &Value) -> io::Result<()> {
        self.tenants[slot].send(code, argument)
    }

    /// See [`Tenant::end_of_run`].
    pub fn end_of_run(&mut self, slot: usize) -> Ran {
        self.tenants[slot].end_of_run()
    }

    /// See [`Tenant::next_line`].
    pub fn next_line(&mut self, slot: usize) -> Option<Value> {
        self.tenants[slot].next_line()
    }

    /// See [`Tenant::run`].
    pub fn run(&mut self, slot: usize, code: &str, argument: &Value) -> Ran {
        self.tenants[slot].run(code, argument)
    }

    /// All admitted tenants, for runs of several tenants at a time.
    pub fn tenants(&mut self) -> &mut [Tenant] {
        &mut self.tenants
    }

    /// Whether the tenant in `slot` still answers a run.
    pub fn answers(&mut self, slot: usize) -> bool {
        self.run(slot, "() => 'alive'", &Value::Null) == Ran::Returned(json!("alive"))
    }

    /// Kills the worker. Does nothing if the worker has ended.
    pub fn kill(&self) {
        self.started.as_ref().expect("the worker's end has not been awaited").kill();
    }

    /// Waits for the end of the worker.
    pub fn end(mut self) -> End {
        let mut started = self.started.take().expect("it has not ended");
        let status = started.collect();
        End { status, fault: self.faults.read() }
    }

    pub fn mappings(&self) -> io::Result<Vec<Mapping>> {
        tags::mappings(io::BufReader::new(File::open(format!("/proc/{}/smaps", self.pid()))?)).collect()
    }

    /// Every address in the process where `needle` is, with the key of the page. Of each mapping,
    /// 256 MiB are searched. Only root may do this, through `/proc/PID/mem`.
    pub fn find(&self, needle: &[u8]) -> io::Result<Vec<(usize, u8)>> {
        let memory = File::open(format!("/proc/{}/mem", self.pid()))?;
        let mut found = Vec::new();
        for Mapping { pages, key, .. } in self.resident()? {
            let mut bytes = vec![0; pages.len().min(256 << 20)];
            // A mapping that even root cannot read is skipped.
            let Ok(read) = memory.read_at(&mut bytes, pages.start as u64) else { continue };
            let hits = memchr::memmem::find_iter(&bytes[..read], needle);
            found.extend(hits.map(|offset| (pages.start + offset, key)));
        }
        Ok(found)
    }

    /// The mappings with resident pages.
    fn resident(&self) -> io::Result<Vec<Mapping>> {
        Ok(self.mappings()?.into_iter().filter(|mapping| mapping.resident > 0).collect())
    }

    /// Pages of a tenant's island for an attack to aim at: the first page, one in the middle and
    /// the last page of each mapping in use, whatever its key. The stack and the code are left out.
    pub fn targets(&self, slot: usize) -> io::Result<Vec<usize>> {
        let island = self.zone.island(slot).expect("a slot of this worker");
        let (range, stack) = (island.range(), island.stack());
        let on_island = |pages: &std::ops::Range<usize>| range.contains(&pages.start) && !stack.contains(&pages.start);
        let code = self.tags.as_ref().map(|tags| tags.jit);
        let resident = self.resident()?.into_iter().filter(|known| Some(known.key) != code && on_island(&known.pages));
        Ok(resident
            .map(|known| known.pages)
            .flat_map(|pages| [pages.start, pages.start + pages.len() / 2 / 4096 * 4096, pages.end - 4096])
            .collect())
    }
}

impl Tenant {
    /// Sends a run: one function expression, with an argument.
    pub fn send(&mut self, code: &str, argument: &Value) -> io::Result<()> {
        let run = Run {
            id: RunId(0),
            entrypoint: "default".to_owned(),
            method: None,
            limits: Limits {
                cpu_ms: 60_000,
                wall_ms: 120_000,
                memory_mb: 128,
                output_bytes: 1 << 20,
                log_bytes: 1 << 20,
                log_lines: 10_000,
                timers: 1000,
                ..Limits::default()
            },
            allow_eval: false,
            keep: None,
        };
        let input = Input { args: json!([argument]).to_string(), props: "{\"attack\":true}".to_owned() };
        // The argument is also the `env`, because tenants keep their secrets there.
        let env = Env { json: if argument.is_object() { argument.to_string() } else { "{}".to_owned() } };
        self.send_parts(run, input, env, Code::Short(code.to_owned()))
    }

    /// Sends a run in its parts, under the tenant's next id.
    pub fn send_parts(&mut self, mut run: Run, input: Input, env: Env, code: Code) -> io::Result<()> {
        self.runs += 1;
        run.id = RunId(self.runs.into());
        for part in [ToTenant::Run(run), ToTenant::Input(input), ToTenant::Env(env), ToTenant::Code(code)] {
            write_frame(&mut self.channel, &part, MAX_TO_TENANT_BYTES).map_err(io::Error::other)?;
        }
        Ok(())
    }

    /// Sets how long [`Self::done`] waits for the next frame.
    pub fn set_patience(&self, patience: Duration) -> io::Result<()> {
        self.channel.set_read_timeout(Some(patience))
    }

    /// Reads on until the run has ended; returns the worker's report about the run.
    pub fn done(&mut self) -> Result<Box<Done>, FrameError> {
        loop {
            if let FromTenant::Done(done) = read_frame(&mut self.channel, MAX_FROM_TENANT_BYTES)? {
                return Ok(done);
            }
        }
    }

    /// Reads on until the run has ended; returns how it ended.
    pub fn end_of_run(&mut self) -> Ran {
        match self.done().map(|done| (done.result, done.error, done.outcome)) {
            Ok((Some(result), ..)) => Ran::Returned(serde_json::from_str(&result).unwrap_or(Value::Null)),
            Ok((None, error, outcome)) => Ran::Threw(format!("{outcome}: {:?}", error.map(|error| error.message))),
            Err(_) => Ran::Gone,
        }
    }

    /// Reads on until the run prints a line; returns the line if it is JSON.
    pub fn next_line(&mut self) -> Option<Value> {
        loop {
            match read_frame(&mut self.channel, MAX_FROM_TENANT_BYTES) {
                Ok(FromTenant::Log(lines)) => {
                    return lines.first().and_then(|line| serde_json::from_str(&line.text).ok());
                }
                Ok(FromTenant::Ready { .. }) => {}
                _ => return None,
            }
        }
    }

    pub fn run(&mut self, code: &str, argument: &Value) -> Ran {
        match self.send(code, argument) {
            Ok(()) => self.end_of_run(),
            Err(_) => Ran::Gone,
        }
    }
}
