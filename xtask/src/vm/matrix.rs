//! The matrix of postures: machines that lack one layer or another, and what the daemon must do on
//! each.
//!
//! Kernel arguments and settings take layers from a machine; the table says which. On each machine
//! the program `posture` compares the remaining layers with what `enisle doctor` and the daemon
//! report, and tries what the daemon promises. Then every layer of the jail that the machine has is
//! attacked with the layer on and off (`hardening/tests/layers`), and a worker is checked in
//! `/proc` (`tests/suite/confinement.rs`).

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use enisle_vm::{Cgroups, Guest, Kernel, Machine};

use super::{Programs, newer_kernel, shell};

/// Which kernel a machine boots.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Boots {
    /// The kernel that this machine has installed.
    Installed,
    /// The kernel of Debian's newest release.
    Newer,
}

/// A machine, and which layers it must have.
struct Posture {
    name: &'static str,
    boots: Boots,
    machine: fn(Machine) -> Machine,
    guest: fn() -> Guest,
    /// The layers that the machine lacks, besides those that [`Posture::off`] adds.
    lacks: &'static [&'static str],
    /// The layers that the daemon leaves off although the machine has them.
    without: &'static [&'static str],
    /// Whether the test command tries this machine even without `--slow`.
    short: bool,
}

const ORDINARY_USER: u32 = 1000;

const PLAIN: Posture = Posture {
    name: "",
    boots: Boots::Installed,
    machine: |machine| machine,
    guest: Guest::default,
    lacks: &[],
    without: &[],
    short: false,
};

const POSTURES: &[Posture] = &[
    Posture { name: "everything that the installed kernel has", ..PLAIN },
    Posture { name: "everything that a newer kernel has", boots: Boots::Newer, short: true, ..PLAIN },
    Posture {
        name: "no protection keys (nopku)",
        machine: |machine| machine.kernel_argument("nopku"),
        lacks: &["keys"],
        ..PLAIN
    },
    Posture {
        name: "no user namespaces, as root",
        guest: || Guest { sysctls: vec![("user.max_user_namespaces", "0")], ..Guest::default() },
        lacks: &["namespaces", "empty-root"],
        short: true,
        ..PLAIN
    },
    Posture {
        name: "no user namespaces, as an ordinary user",
        guest: || Guest { sysctls: vec![("user.max_user_namespaces", "0")], uid: ORDINARY_USER, ..Guest::default() },
        lacks: &["namespaces", "empty-root"],
        // The daemon's own user must be able to look into a worker to verify it.
        without: &["not-dumpable"],
        ..PLAIN
    },
    Posture {
        name: "no Landlock (lsm=capability)",
        machine: |machine| machine.kernel_argument("lsm=capability"),
        lacks: &["landlock"],
        ..PLAIN
    },
    Posture {
        name: "one processor, 1 GiB of memory",
        machine: |machine| machine.processors(1).memory_mib(1024),
        ..PLAIN
    },
    Posture { name: "control groups version 1", guest: || Guest { cgroups: Cgroups::V1, ..Guest::default() }, ..PLAIN },
    Posture {
        name: "control groups, both versions",
        guest: || Guest { cgroups: Cgroups::Hybrid, ..Guest::default() },
        ..PLAIN
    },
    Posture {
        name: "a root that cannot be exchanged (an initramfs)",
        guest: || Guest { pivotable_root: false, ..Guest::default() },
        lacks: &["empty-root"],
        short: true,
        ..PLAIN
    },
    Posture { name: "hidepid=2, as root", guest: || Guest { hidepid: true, ..Guest::default() }, ..PLAIN },
    Posture {
        name: "hidepid=2, as an ordinary user",
        guest: || Guest { hidepid: true, uid: ORDINARY_USER, ..Guest::default() },
        short: true,
        ..PLAIN
    },
    Posture {
        name: "vm.overcommit_memory=2, 8 GiB of memory",
        // Workers may commit half of the memory, and the harness has two workers at a time.
        machine: |machine| machine.memory_mib(8192),
        guest: || Guest { sysctls: vec![("vm.overcommit_memory", "2")], ..Guest::default() },
        ..PLAIN
    },
    Posture {
        name: "kernel.yama.ptrace_scope=3",
        guest: || Guest { sysctls: vec![("kernel.yama.ptrace_scope", "3")], ..Guest::default() },
        ..PLAIN
    },
];

impl Posture {
    /// Every layer that the machine lacks. The emulated processor lets no process choose about
    /// speculation, and PR_SET_MDWE came with Linux 6.3.
    fn off(&self, kernel: &Kernel) -> Vec<&'static str> {
        let mut off = vec!["speculation"];
        let old = kernel.release.starts_with("6.1.");
        off.extend(old.then_some("deny-write-execute"));
        off.extend(self.lacks);
        off
    }

    fn command(&self, kernel: &Kernel) -> String {
        let off = self.off(kernel);
        let lacks_any = |layers: &[&str]| layers.iter().any(|layer| off.contains(layer));
        // The tests that follow must not skip what this machine has.
        let has = super::FEATURES.iter().copied().filter(|feature| match *feature {
            "pku" => !lacks_any(&["keys"]),
            "userns" => !lacks_any(&["namespaces", "empty-root"]),
            "root" => (self.guest)().uid == 0,
            layer => !lacks_any(&[layer]),
        });
        // On a machine with keys, one row of the catalogue shows that they hold.
        let keys = if lacks_any(&["keys", "namespaces", "empty-root"]) { "" } else { "&& escape --only 'M02 write'" };
        format!(
            "export ENISLE_REQUIRE={}\nposture --off {} --without {} && layers && suite --nocapture --exact \
             confinement::the_kernel_confirms_that_a_worker_is_confined {keys}",
            has.collect::<Vec<_>>().join(","),
            off.join(","),
            self.without.join(",")
        )
    }
}

/// Enough for a slow host.
const LIMIT: Duration = Duration::from_secs(300);

/// Which postures are tried.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Choice<'a> {
    All,
    Short,
    /// The postures whose names contain this.
    Named(&'a str),
}

pub(crate) fn run(programs: &Programs, choice: Choice<'_>) -> Result<()> {
    let files = programs.files()?;
    let installed = Kernel::installed()?;
    let (mut held, mut broken) = (0, 0);
    println!("| machine | kernel | layers that are off | the daemon | s |\n|---|---|---|---|---|");
    let chosen = |posture: &&Posture| match choice {
        Choice::All => true,
        Choice::Short => posture.short,
        Choice::Named(part) => posture.name.contains(part),
    };
    for posture in POSTURES.iter().filter(chosen) {
        let kernel = if posture.boots == Boots::Newer { newer_kernel()? } else { installed.clone() };
        let machine = Machine::with_files(&kernel, &files, (posture.guest)(), &shell(&posture.command(&kernel)));
        let begun = Instant::now();
        let report = (posture.machine)(machine).time_limit(LIMIT).run(|_| {});
        let (verdict, said) = match &report {
            Ok(report) if report.status == 0 && !report.output.contains("running 0 tests") => ("holds", None),
            Ok(report) => ("**DOES NOT HOLD**", Some(report.output.clone())),
            Err(error) => ("**DOES NOT HOLD**", Some(error.to_string())),
        };
        let off = posture.off(&kernel).join(", ");
        let seconds = begun.elapsed().as_secs();
        println!("| {} | {} | {off} | {verdict} | {seconds} |", posture.name, kernel.release);
        match said {
            None => held += 1,
            Some(said) => {
                broken += 1;
                println!("{said}");
            }
        }
    }
    println!("\n{held} passed, {broken} failed");
    ensure!(held + broken > 0, "no posture has that name");
    ensure!(broken == 0, "{broken} postures do not hold");
    Ok(())
}
