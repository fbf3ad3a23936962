//! Attacks on the daemon itself, over its socket: by a peer with few rights, and by a user with
//! none.
//!
//! Each case reproduces an attack that was found, or a variant of one: it attacks a real `enisled`,
//! mostly as another uid, and measures the damage. If the defence can be switched off
//! (`share_percent = 100`, `near_percent = 0`), the attack must succeed without the defence;
//! otherwise the attack's failure would prove nothing.
//!
//! | module | what is attacked |
//! |---|---|
//! | [`blame`] | neighbours in one process, through memory that all of them share |
//! | [`bodies`] | the supervisor's memory, by the worst body for every field of every request |
//! | [`memory`] | the supervisor's memory, by what it keeps: scripts, runs, answers |
//! | [`pools`] | every pool that all clients share |
//! | [`files`] | files, locks and sockets, by other local users |
//! | [`disk`] | the state, by a full disk |
//! | [`evidence`] | events and logs |
//! | [`thread`] | the supervisor's one thread |
//! | [`rights`] | the supervisor's one thread, by descriptors that clients pass to it |
//! | [`tenant`] | a worker's memory, by a script |
//! | [`clock`] | the clock that scripts see, by a script |
//! | [`disposal`] | a tenant's neighbours and its bill, by what a run leaves behind |
//! | [`client`] | the command line, by a script |
//! | [`numbers`] | the configuration |
//!
//! `--only ID` picks cases by a prefix of their ids. `--slow` attacks at full size: the largest
//! bodies, more names, more rounds. `--bench` enforces the exact performance figures, and so
//! requires an otherwise idle machine.
#![forbid(unsafe_code)]
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a test runner of its own")]

mod blame;
mod bodies;
mod client;
mod clock;
mod disk;
mod disposal;
mod evidence;
mod files;
mod ground;
mod memory;
mod numbers;
mod pings;
mod pools;
mod rights;
mod shapes;
mod tenant;
mod thread;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// How thorough the attacks are, and how strict their bounds.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Options {
    pub(crate) slow: bool,
    pub(crate) bench: bool,
}

/// One attack. `run` returns figures if the daemon withstood the attack, and otherwise the damage.
pub(crate) struct Case {
    id: &'static str,
    title: &'static str,
    run: fn(Options) -> Result<String, String>,
}

const MODULES: [&[Case]; 14] = [
    blame::CASES,
    bodies::CASES,
    memory::CASES,
    pools::CASES,
    files::CASES,
    evidence::CASES,
    disk::CASES,
    tenant::CASES,
    thread::CASES,
    rights::CASES,
    client::CASES,
    clock::CASES,
    disposal::CASES,
    numbers::CASES,
];

/// A daemon that hangs must not hang the test command.
const LONGEST: Duration = Duration::from_secs(25 * 60);
const LONGEST_SLOW: Duration = Duration::from_secs(90 * 60);

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    let given = |name: &str| arguments.iter().any(|word| word == name);
    let only = arguments.iter().skip_while(|word| *word != "--only").nth(1);
    let options = Options { slow: given("--slow"), bench: given("--bench") };
    let elsewhere = std::env::var("ENISLE_ELSEWHERE").unwrap_or_default();
    if elsewhere.split(',').any(|name| name == "attacks") {
        println!("runs elsewhere: the test command runs the attacks as a step of their own");
        return ExitCode::SUCCESS;
    }
    if !enisle_tests::has("root", nix::unistd::geteuid().is_root()) {
        return ExitCode::SUCCESS;
    }
    let longest = if options.slow { LONGEST_SLOW } else { LONGEST };
    std::thread::spawn(move || {
        std::thread::sleep(longest);
        eprintln!("the attacks took longer than {} s: given up", longest.as_secs());
        // A daemon under `leash` ends with this process.
        std::process::exit(1);
    });
    let wanted = |case: &&Case| only.is_none_or(|only| case.id.starts_with(only.as_str()));
    let cases: Vec<_> = MODULES.iter().copied().flatten().filter(wanted).collect();
    let mut failed = Vec::new();
    for case in &cases {
        let begun = Instant::now();
        // A daemon under `leash` ends with the thread that started it. So all attacks run on this
        // thread, one after the other.
        let result = catch_unwind(AssertUnwindSafe(|| (case.run)(options)));
        let result = result.unwrap_or_else(|_| Err("the attack panicked; see above".to_owned()));
        let Case { id, title, .. } = case;
        let (mark, verdict, said) = match result {
            Ok(said) => (' ', "held", said),
            Err(said) => {
                failed.push(format!("! {id} did not hold: {said}"));
                ('!', "DID NOT HOLD", said)
            }
        };
        println!("{mark} {id:<18} {title} ({:.1} s)\n    {verdict}: {said}", begun.elapsed().as_secs_f64());
    }
    let closed = ground::nothing_left_open();
    match &closed {
        Ok(looked) => {
            println!("  none of {looked} files and folders of the attacked daemons is open to others")
        }
        Err(open) => println!("! files of the attacked daemons are open to others: {open}"),
    }
    // Failures are printed again, for a reader who sees only the end of a long log.
    failed.iter().for_each(|said| println!("{said}"));
    println!("{} passed, {} failed", cases.len() - failed.len(), failed.len());
    if cases.is_empty() {
        println!("no case has that id");
    }
    if failed.is_empty() && !cases.is_empty() && closed.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
