//! The attack harness: a catalogue of attacks, each with its expected verdict.
//!
//! With the layers that stop an attack, it must end as the catalogue says. Without these layers it
//! must succeed; otherwise the first result would prove nothing. Each try gets a worker of its own,
//! started as the supervisor would start it, with natives for attackers (the feature
//! `attack-natives`, which no release can have). Three tenants live in the worker: an attacker, a
//! victim that has planted secrets, and a bystander.
//!
//! `--rounds N` sets how often memory is allocated, freed and attacked (300), `--soak SECONDS` how
//! long a whole daemon is attacked (5). `--only ID` picks the rows whose ids begin with `ID`.
//! `--json FILE` writes the table.
#![forbid(unsafe_code)]
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a test runner of its own")]

mod cases;
mod checks;
mod cordons;
mod found;
mod rounds;
mod soak;
mod tables;
mod usage;

use std::collections::BTreeMap;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

use enisle_hardening::fault::Kind as FaultKind;
use enisle_hardening::{Layer, LayerSet, Posture};
use nix::sys::signal::Signal;
use nix::sys::wait::WaitStatus;
use serde_json::{Value, json};

use cases::{Attack, CASES, Case, Control, Expected, Kind};
use checks::Check;
use enisle_tests::rig::{End, Ran, Rig, Workshop};

/// The workers that the cases use.
pub(crate) struct Bench {
    workshop: Workshop,
    /// All layers that the machine has, except those of sealed workers.
    pub(crate) layers: LayerSet,
    pub(crate) production_worker: PathBuf,
    /// The worker with natives, which [`Bench::workshop`] starts.
    pub(crate) attacker: PathBuf,
}

/// The planted secret. Attackers search for its beginning.
const CANARY: &str = "canary: 32 bytes that no one else has";

const VICTIM: &str = "(s) => {
    const bytes = (n) => new Uint8Array(n).map((_, i) => s.canary.charCodeAt(i % s.canary.length));
    const buffer = bytes(4096).buffer, resizable = new ArrayBuffer(4096, { maxByteLength: 1 << 20 });
    new Uint8Array(resizable).set(bytes(4096)); resizable.resize(1 << 16); resizable.resize(8192);
    const string = JSON.parse(JSON.stringify(s.canary)), object = { secret: string, n: 1.5 }, array = [1.1, 2.2, 3.3];
    const planted = attack.plant(s.canary);
    globalThis.kept = [buffer, resizable, string, object, array];
    const [channel, stack, isolate, thread] = attack.self();
    const text = (o) => Object.fromEntries(Object.entries(o).map(([k, v]) => [k, String(v)]));
    console.log(JSON.stringify(text({ channel, stack, isolate, thread, planted, buffer: attack.address(buffer), resizable: attack.address(resizable),
        string: attack.address(string), object: attack.address(object), array: attack.address(array) })));
    return new Promise((resolve) => setTimeout(resolve, 3600000));
}";

impl Bench {
    /// Starts a worker with `slots` slots and no tenant.
    pub(crate) fn start(&self, layers: LayerSet, slots: u32) -> io::Result<Rig> {
        self.workshop.start(layers, slots)
    }

    /// Starts a worker with an attacker in slot 0, a victim in slot 1 whose run does not end, and a
    /// bystander in slot 2. Returns the worker and the facts that the attacker's script gets.
    pub(crate) fn scene(&self, layers: LayerSet) -> io::Result<(Rig, Value)> {
        let mut rig = self.start(layers, 3)?;
        for _ in 0..3 {
            rig.admit()?;
        }
        rig.send(1, VICTIM, &json!({ "canary": CANARY }))?;
        let mut victim = rig.next_line(1).ok_or_else(|| io::Error::other("the victim has not planted its secrets"))?;
        let island = |slot| rig.zone.island(slot).expect("three slots");
        let window = island(1).window();
        let table = rig.targets(1)?.into_iter().find(|page| window.contains(page));
        let table = table.ok_or_else(|| io::Error::other("the victim's window holds no page"))?;
        let key = |slot: usize| rig.tags.as_ref().map_or(0, |tags| tags.keys[slot]);
        victim["table"] = json!(table.to_string());
        let pages: Vec<_> = rig.targets(1)?.iter().map(ToString::to_string).collect();
        victim["pages"] = json!(pages);
        victim["key"] = json!(key(1));
        let canary: String = CANARY.bytes().take(8).map(|byte| format!("{byte:02x}")).collect();
        let pkru =
            rig.tags.as_ref().map_or(0, |tags| 0xffff_fffc_u32 & !(0b11 << (2 * key(0))) & !(0b01 << (2 * tags.jit)));
        let own = island(0);
        let scene = json!({
            "victim": victim, "canary": canary, "key": key(0), "keys": rig.tags.is_some(), "pkru": pkru,
            "supervisor": std::process::id(),
            "own": { "sandbox": own.sandbox().start.to_string(), "end": own.sandbox().end.to_string() },
        });
        Ok((rig, scene))
    }

    /// Runs an attack once. Returns the script's result, how the worker ended if it ended, and
    /// whether the bystander still answers.
    fn attempt(&self, attack: &Attack, layers: LayerSet) -> io::Result<(Ran, Option<End>, bool)> {
        let (mut rig, scene) = self.scene(layers)?;
        let script = format!("{}{} }}", cases::prelude(), attack.script);
        let ran = rig.run(0, &script, &scene);
        if ran == Ran::Gone {
            return Ok((ran, Some(rig.end()), false));
        }
        let bystander = rig.answers(2);
        Ok((ran, None, bystander))
    }
}

/// One line of the table.
struct Row {
    id: &'static str,
    title: &'static str,
    /// The verdict with the layers that stop the attack, and the verdict without them.
    with: String,
    without: String,
    as_expected: bool,
    residual: bool,
}

impl Row {
    fn print(&self) {
        let mark = if self.as_expected { ' ' } else { '!' };
        let Self { id, title, with, without, .. } = self;
        println!("{mark} {id:<16} {title:<72} {with}{}{without}", if without.is_empty() { "" } else { "; " });
    }
}

fn try_attack(bench: &Bench, case: &Case, attack: &Attack) -> Row {
    let base = attack.off_in_both.iter().fold(bench.layers, |set, layer| set.without(*layer));
    let (with, held) = match bench.attempt(attack, base) {
        Err(error) => (format!("could not be tried: {error}"), false),
        Ok((ran, end, bystander)) => judge(attack.expected, &ran, end.as_ref(), bystander),
    };
    let (without, shown) = match attack.control {
        Control::NotHere(why) => (format!("not shown: {why}"), true),
        Control::Succeeds => {
            let layers = attack.without.iter().fold(base, |set, layer| set.without(*layer));
            match bench.attempt(attack, layers) {
                Ok((Ran::Returned(Value::Bool(true)), ..)) => {
                    (format!("succeeds without {}", names(attack.without)), true)
                }
                // The machine lacks the attack's target; the script says what is missing.
                Ok((Ran::Returned(Value::String(why)), ..)) if why.starts_with("this kernel") => {
                    (format!("not shown: {why}"), true)
                }
                Ok((ran, end, _)) => (
                    format!(
                        "DOES NOT SUCCEED without {}: {ran:?} {:?}",
                        names(attack.without),
                        end.map(|end| (end.status, end.fault))
                    ),
                    false,
                ),
                Err(error) => (format!("could not be tried: {error}"), false),
            }
        }
    };
    let residual = matches!(attack.expected, Expected::Residual(_));
    Row { id: case.id, title: case.title, with, without, as_expected: held && shown, residual }
}

fn names(layers: &[Layer]) -> String {
    layers.iter().map(|layer| layer.name()).collect::<Vec<_>>().join(", ")
}

/// The verdict in words, and whether it is the expected one.
fn judge(expected: Expected, ran: &Ran, end: Option<&End>, bystander: bool) -> (String, bool) {
    let succeeded = *ran == Ran::Returned(json!(true));
    if let Expected::Residual(why) = expected {
        return (format!("residual: {why}"), succeeded && bystander);
    }
    if succeeded {
        return ("SUCCEEDS".to_owned(), false);
    }
    let slot = |end: &End| end.fault.and_then(|fault| fault.slot);
    match (ran, end) {
        (Ran::Returned(Value::String(word)), _) => {
            (format!("refused: {word}"), expected == Expected::Refused && bystander)
        }
        (Ran::Gone, Some(end)) => match (end.fault.map(|fault| fault.kind), end.status) {
            (Some(FaultKind::Refused { call }), _) => {
                (format!("trapped: call {call}"), expected == Expected::Trapped && slot(end) == Some(0))
            }
            (Some(FaultKind::ClosedKey { key, .. }), _) => {
                (format!("closed key {key}"), expected == Expected::ClosedKey && slot(end) == Some(0))
            }
            (Some(FaultKind::WrongKeys), _) => {
                ("ended by itself: wrong keys".to_owned(), expected == Expected::Aborted && slot(end) == Some(0))
            }
            (Some(FaultKind::Access { .. }), _) => {
                ("not writable".to_owned(), expected == Expected::NotWritable && slot(end) == Some(0))
            }
            (None, Some(WaitStatus::Signaled(_, Signal::SIGSYS, _))) => {
                ("killed: SIGSYS".to_owned(), expected == Expected::Killed)
            }
            other => (format!("ENDED AS {other:?}"), false),
        },
        other => (format!("CAME TO {other:?}"), false),
    }
}

fn look(bench: &Bench, case: &Case, check: &Check) -> Row {
    let (with, as_expected, residual) = match check {
        Check::Look(look) => return found(case.id, case.title, look(bench)),
        Check::NotHere(why) => (format!("not exercised: {why}"), true, false),
        Check::NamesAnother(which) => (format!("held by {which}"), true, false),
        Check::Residual(why, look) => match look(bench) {
            Ok(found) => (format!("residual: {why} ({found})"), true, true),
            Err(found) => (format!("DOES NOT HOLD: {found}"), false, true),
        },
    };
    Row { id: case.id, title: case.title, with, without: String::new(), as_expected, residual }
}

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    let after = |name: &str| arguments.iter().skip_while(|word| *word != name).nth(1).cloned();
    let rounds = after("--rounds").and_then(|number| number.parse().ok()).unwrap_or(300);
    let seconds = after("--soak").and_then(|number| number.parse().ok()).unwrap_or(5);
    let only = after("--only");
    let posture = Posture::probe();
    if !enisle_tests::has("pku", posture.layers().has(Layer::Keys))
        || !enisle_tests::has("userns", posture.layers().has(Layer::Namespaces))
    {
        return ExitCode::SUCCESS;
    }
    // The harness attacks the worker with natives. Row M09 examines the worker without natives.
    let (program, production_worker) = (enisle_tests::attack_worker(), enisle_tests::programs().join("enisle-worker"));
    let layers = posture.layers().unsealed();
    let workshop = Workshop::open(&program, layers).expect("the worker starts");
    let bench = Bench { workshop, layers, production_worker, attacker: program.clone() };

    let wanted = |id: &str| only.as_ref().is_none_or(|only| id.starts_with(only.as_str()));
    let mut jobs: Vec<Job<'_>> = CASES
        .iter()
        .filter(|case| wanted(case.id))
        .map(|case| {
            Job::new(case.id, || match &case.kind {
                Kind::Attack(attack) => try_attack(&bench, case, attack),
                Kind::Check(check) => look(&bench, case, check),
            })
        })
        .collect();
    // The rounds are chosen together as `rounds`, or each by its id.
    let chosen = |id: &str| wanted("rounds") || wanted(id);
    if chosen("M03 rounds") {
        let title = "allocate, free, attack: every load and store into a neighbour is trapped";
        // The longest job begins first, so that all others can run beside it.
        jobs.insert(0, Job::new("M03 rounds", || found("M03 rounds", title, rounds::trapped(&bench, rounds))));
    }
    if chosen("M03 control") {
        let title = "the same without keys: nothing is trapped";
        jobs.push(Job::new("M03 control", || found("M03 control", title, rounds::control(&bench))));
    }
    if chosen("M03 wasm") {
        let title = "grown WebAssembly memories and compiled modules carry their tenant's key";
        jobs.push(Job::new("M03 wasm", || found("M03 wasm", title, rounds::webassembly(&bench))));
    }
    let mut rows = side_by_side(&jobs);
    // Each of these rows runs a whole daemon with clients, and uses the whole machine.
    let mut by_itself = |id, title, run: &dyn Fn() -> Result<String, String>| {
        if wanted(id) {
            let row = found(id, title, run());
            row.print();
            rows.push(row);
        }
    };
    let title = "twelve tenants in a process, one of them attacking without pause";
    by_itself("soak", title, &|| soak::run(&program, seconds));
    for (name, case) in found::FOUND {
        by_itself(name, "a case that the escape fuzzer found", &|| found::holds(case));
    }
    let title = "a tenant that probes system calls or cages is moved out, sealed, expelled";
    by_itself("cordons", title, &|| cordons::probes(&program));
    by_itself("cordons", "a tenant whose neighbour makes it crash is not pushed out", &|| cordons::pushes(&program));
    if let Some(file) = after("--json") {
        std::fs::write(file, as_json(&rows)).expect("the table is written");
    }
    conclude(&rows)
}

/// Produces one row of the table, with workers of its own.
struct Job<'a> {
    id: &'static str,
    row: Box<dyn Fn() -> Row + Sync + 'a>,
}

impl<'a> Job<'a> {
    fn new(id: &'static str, row: impl Fn() -> Row + Sync + 'a) -> Self {
        Self { id, row: Box::new(row) }
    }
}

/// Longer than any row takes on a slow machine.
const ROW_LIMIT: Duration = Duration::from_secs(15 * 60);

/// Runs the jobs, as many at a time as there are processors, and prints each row when it is done.
/// If no row is done for [`ROW_LIMIT`], ends the harness and names the missing rows.
fn side_by_side(jobs: &[Job<'_>]) -> Vec<Row> {
    let next = AtomicUsize::new(0);
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let (done, rows) = mpsc::channel();
    std::thread::scope(|scope| {
        for _ in 0..threads {
            let (done, next) = (done.clone(), &next);
            scope.spawn(move || {
                loop {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    let Some(job) = jobs.get(index) else { break };
                    // A job that panics is a failed row; the panic itself was printed.
                    let row = catch_unwind(AssertUnwindSafe(&job.row)).unwrap_or_else(|_| {
                        found("panic", "a row of the table", Err("the job panicked; see above".to_owned()))
                    });
                    if done.send((index, row)).is_err() {
                        break;
                    }
                }
            });
        }
        drop(done);
        let mut table = BTreeMap::new();
        loop {
            match rows.recv_timeout(ROW_LIMIT) {
                Ok((index, row)) => {
                    Row::print(&row);
                    table.insert(index, row);
                }
                Err(RecvTimeoutError::Disconnected) => return table.into_values().collect(),
                Err(RecvTimeoutError::Timeout) => {
                    let begun = jobs.iter().enumerate().take(next.load(Ordering::Relaxed));
                    let stuck: Vec<_> =
                        begun.filter(|(index, _)| !table.contains_key(index)).map(|(_, job)| job.id).collect();
                    println!("no row in {} s; these are missing: {}", ROW_LIMIT.as_secs(), stuck.join(", "));
                    // The threads of the missing rows cannot be joined, so the process exits. Their
                    // workers end with it (parent-death signal).
                    std::process::exit(1);
                }
            }
        }
    })
}

/// The row of a check that either holds or does not.
fn found(id: &'static str, title: &'static str, result: Result<String, String>) -> Row {
    let (as_expected, with) = match result {
        Ok(found) => (true, format!("holds: {found}")),
        Err(found) => (false, format!("DOES NOT HOLD: {found}")),
    };
    Row { id, title, with, without: String::new(), as_expected, residual: false }
}

fn as_json(rows: &[Row]) -> String {
    let rows: Vec<_> = rows
        .iter()
        .map(|row| {
            json!({ "id": row.id, "title": row.title, "with": row.with, "without": row.without, "asExpected": row.as_expected,
                    "residual": row.residual })
        })
        .collect();
    serde_json::to_string_pretty(&rows).unwrap_or_default()
}

/// Prints the totals. Fails if a row failed, if no row was tried, or if more than a tenth of the
/// catalogue's rows are residual. With ten rows or fewer the last condition does not apply.
fn conclude(rows: &[Row]) -> ExitCode {
    let number = |row: &Row| row.id.split(' ').next().unwrap_or_default();
    let catalogue: std::collections::BTreeSet<_> =
        rows.iter().map(number).filter(|id| !matches!(*id, "soak" | "cordons") && !id.ends_with(".js")).collect();
    let residual: std::collections::BTreeSet<_> = rows.iter().filter(|row| row.residual).map(number).collect();
    let not_shown = rows.iter().filter(|row| row.without.starts_with("not shown") && !row.residual).count();
    let failed = rows.iter().filter(|row| !row.as_expected).count();
    // Failures are printed again, for a reader who has only the end of a long log.
    for Row { id, title, with, without, .. } in rows.iter().filter(|row| !row.as_expected) {
        println!("! {id} {title}: {with}; {without}");
    }
    println!(
        "{} rows of the catalogue, {} of them residual; {not_shown} without a control on this machine",
        catalogue.len(),
        residual.len()
    );
    println!("{} passed, {failed} failed", rows.len() - failed);
    if rows.is_empty() {
        println!("no row has that id");
        return ExitCode::FAILURE;
    }
    let too_many = residual.len() * 10 > catalogue.len() && catalogue.len() > 10;
    if failed == 0 && !too_many { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
