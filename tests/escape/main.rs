//! The attack harness: the catalogue of attacks, each with its expected verdict, each with its layer on and off.
//!
//! A worker built with natives for attackers (`attack-natives`, which no release can have) is started for every case as the
//! supervisor would start it: an attacker, a victim that has planted secrets, and a bystander. With every layer on the attack
//! has to end as the catalogue says; with the layers that stop it switched off it has to succeed, or the first result meant
//! nothing. `--rounds N` sets how often memory is allocated, freed and attacked (300), `--soak SECONDS` how long a whole daemon
//! is attacked (5), `--only ID` picks rows, `--json FILE` writes the table.
#![forbid(unsafe_code)]
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a test runner of its own")]

mod cases;
mod checks;
mod cordons;
mod rounds;
mod soak;
mod usage;

use std::io;
use std::path::PathBuf;
use std::process::{Command, ExitCode};

use enisle_hardening::fault::Kind as FaultKind;
use enisle_hardening::{Layer, LayerSet, Posture};
use nix::sys::signal::Signal;
use nix::sys::wait::WaitStatus;
use serde_json::{Value, json};

use cases::{Attack, CASES, Case, Control, Expected, Kind};
use checks::Check;
use enisle_tests::rig::{End, Ran, Rig, Workshop};

/// What the cases work with.
pub(crate) struct Bench {
    workshop: Workshop,
    /// Everything that the machine has.
    pub(crate) layers: LayerSet,
    pub(crate) production_worker: PathBuf,
}

/// What is planted: its beginning is what attackers look for.
const CANARY: &str = "canary: 32 bytes that nobody else has";

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
    /// A worker of that many places, with nobody in it.
    pub(crate) fn start(&self, layers: LayerSet, places: u32) -> io::Result<Rig> {
        self.workshop.start(layers, places)
    }

    /// An attacker in place 0, a victim in place 1 that is in the middle of a run, a bystander in place 2; and what an
    /// attacker is told.
    pub(crate) fn scene(&self, layers: LayerSet) -> io::Result<(Rig, Value)> {
        let mut rig = self.start(layers, 3)?;
        for _ in 0..3 {
            rig.admit()?;
        }
        rig.send(1, VICTIM, &json!({ "canary": CANARY }))?;
        let mut victim = rig.next_line(1).ok_or_else(|| io::Error::other("the victim has not planted its secrets"))?;
        let island = |place| rig.zone.island(place).expect("three places");
        let window = island(1).window();
        let table = rig.targets(1)?.into_iter().find(|page| window.contains(page));
        let table = table.ok_or_else(|| io::Error::other("nothing of the victim's is in its window"))?;
        let key = |place: usize| rig.tags.as_ref().map_or(0, |tags| tags.keys[place]);
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

    /// Runs an attack once; what it came to, and how the worker ended if it did.
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
    /// With every layer, and without those that stop it.
    with: String,
    without: String,
    as_expected: bool,
    residual: bool,
}

fn try_attack(bench: &Bench, case: &Case, attack: &Attack) -> Row {
    let aside = attack.aside.iter().fold(bench.layers, |set, layer| set.without(*layer));
    let (with, held) = match bench.attempt(attack, aside) {
        Err(error) => (format!("could not be tried: {error}"), false),
        Ok((ran, end, bystander)) => judge(attack.expected, &ran, end.as_ref(), bystander),
    };
    let (without, shown) = match attack.control {
        Control::NotHere(why) => (format!("not shown: {why}"), true),
        Control::Succeeds => {
            let layers = attack.without.iter().fold(aside, |set, layer| set.without(*layer));
            match bench.attempt(attack, layers) {
                Ok((Ran::Returned(Value::Bool(true)), ..)) => {
                    (format!("succeeds without {}", names(attack.without)), true)
                }
                // The machine lacks what the attack is about; the script says what.
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
    let place = |end: &End| end.fault.and_then(|fault| fault.place);
    match (ran, end) {
        (Ran::Returned(Value::String(word)), _) => {
            (format!("refused: {word}"), expected == Expected::Refused && bystander)
        }
        (Ran::Gone, Some(end)) => match (end.fault.map(|fault| fault.kind), end.status) {
            (Some(FaultKind::Refused { call }), _) => {
                (format!("trapped: call {call}"), expected == Expected::Trapped && place(end) == Some(0))
            }
            (Some(FaultKind::ClosedKey { key, .. }), _) => {
                (format!("closed key {key}"), expected == Expected::ClosedKey && place(end) == Some(0))
            }
            (Some(FaultKind::WrongKeys), _) => {
                ("ended by itself: wrong keys".to_owned(), expected == Expected::Aborted && place(end) == Some(0))
            }
            (Some(FaultKind::Access { .. }), _) => {
                ("not writable".to_owned(), expected == Expected::NotWritable && place(end) == Some(0))
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
        Check::Look(look) => match look(bench) {
            Ok(found) => (format!("holds: {found}"), true, false),
            Err(found) => (format!("DOES NOT HOLD: {found}"), false, false),
        },
        Check::NotHere(why) => (format!("not exercised: {why}"), true, false),
        Check::NamesAnother(which) => (format!("held by {which}"), true, false),
        Check::Residual(why, look) => match look(bench) {
            Ok(found) => (format!("residual: {why} ({found})"), true, true),
            Err(found) => (format!("DOES NOT HOLD: {found}"), false, true),
        },
    };
    Row { id: case.id, title: case.title, with, without: String::new(), as_expected, residual }
}

/// Builds the worker with natives beside the programs under test.
fn build() -> (PathBuf, PathBuf) {
    let dir = enisle_tests::programs();
    let target = dir.parent().expect("a profile is a folder in the target folder");
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args([
        "build",
        "--quiet",
        "-p",
        "enisle-worker",
        "--features",
        "attack-natives",
        "--bin",
        "enisle-worker-attack",
    ]);
    let status = cargo.arg("--target-dir").arg(target).status().expect("cargo runs");
    assert!(status.success(), "the worker with natives does not build");
    (target.join("debug/enisle-worker-attack"), dir.join("enisle-worker"))
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
        println!("0 passed, 0 failed, {} skipped", CASES.len());
        return ExitCode::SUCCESS;
    }
    let (program, production_worker) = build();
    let layers = posture.layers().unsealed();
    let workshop = Workshop::open(&program, layers).expect("the worker starts");
    let bench = Bench { workshop, layers, production_worker };

    let wanted = |case: &&Case| only.as_ref().is_none_or(|only| case.id.starts_with(only.as_str()));
    let mut rows = Vec::new();
    for case in CASES.iter().filter(wanted) {
        let row = match &case.kind {
            Kind::Attack(attack) => try_attack(&bench, case, attack),
            Kind::Check(check) => look(&bench, case, check),
        };
        let mark = if row.as_expected { ' ' } else { '!' };
        println!("{mark} {:<16} {:<72} {}; {}", row.id, row.title, row.with, row.without);
        rows.push(row);
    }
    if only.as_deref().is_none_or(|only| only == "rounds") {
        for (id, title, result) in rounds::run(&bench, rounds) {
            let (as_expected, with) = match result {
                Ok(found) => (true, format!("holds: {found}")),
                Err(found) => (false, format!("DOES NOT HOLD: {found}")),
            };
            println!("{} {id:<16} {title:<72} {with}", if as_expected { ' ' } else { '!' });
            rows.push(Row { id, title, with, without: String::new(), as_expected, residual: false });
        }
    }
    if only.as_deref().is_none_or(|only| only == "soak") {
        let title = "twelve tenants in a process, one of them attacking without pause";
        let (as_expected, with) = match soak::run(&program, seconds) {
            Ok(found) => (true, format!("holds: {found}")),
            Err(found) => (false, format!("DOES NOT HOLD: {found}")),
        };
        println!("{} {:<16} {title:<72} {with}", if as_expected { ' ' } else { '!' }, "soak");
        rows.push(Row { id: "soak", title, with, without: String::new(), as_expected, residual: false });
    }
    if only.as_deref().is_none_or(|only| only == "cordons") {
        for (title, result) in [
            ("who probes system calls or cages is moved out, sealed, expelled", cordons::probes(&program)),
            ("who is made to stumble by a neighbour is not pushed out", cordons::pushes(&program)),
        ] {
            let (as_expected, with) = match result {
                Ok(found) => (true, format!("holds: {found}")),
                Err(found) => (false, format!("DOES NOT HOLD: {found}")),
            };
            println!("{} {:<16} {title:<72} {with}", if as_expected { ' ' } else { '!' }, "cordons");
            rows.push(Row { id: "cordons", title, with, without: String::new(), as_expected, residual: false });
        }
    }
    if let Some(file) = after("--json") {
        std::fs::write(file, as_json(&rows)).expect("the table is written");
    }
    conclude(&rows)
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

/// At most one row of ten may be residual.
fn conclude(rows: &[Row]) -> ExitCode {
    let number = |row: &Row| row.id.split(' ').next().unwrap_or_default();
    let catalogue: std::collections::BTreeSet<_> =
        rows.iter().map(number).filter(|id| !matches!(*id, "soak" | "cordons")).collect();
    let residual: std::collections::BTreeSet<_> = rows.iter().filter(|row| row.residual).map(number).collect();
    let not_shown = rows.iter().filter(|row| row.without.starts_with("not shown") && !row.residual).count();
    let failed = rows.iter().filter(|row| !row.as_expected).count();
    println!(
        "{} rows of the catalogue, {} of them residual; {not_shown} without a control on this machine",
        catalogue.len(),
        residual.len()
    );
    println!("{} passed, {failed} failed", rows.len() - failed);
    let too_many = residual.len() * 10 > catalogue.len() && catalogue.len() > 10;
    if failed == 0 && !too_many { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
