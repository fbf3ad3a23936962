//! Makes programs, and remembers the results of their operations.
//!
//! The generator does not know which calls a filter refuses; it learns from what happened. A *kind*
//! of operation is a call's number with the class of its first argument. A kind that has ended its
//! process is drawn more rarely, and only at the end of a program that is meant to risk its
//! process. All other operations of programs are of kinds that have almost always returned.
//! Programs that showed something new are kept and changed.

use std::collections::{BTreeMap, BTreeSet};

use fastrand::Rng;
use serde::{Deserialize, Serialize};

use super::program::{Arg, Fact, Op, PATHS, Program, Way};
use super::{language, reach};

/// System calls are drawn with numbers below this. The numbers of the 64-bit table are lower.
const NUMBERS: u64 = 480;
/// How many programs of a hundred risk their process.
const RISKY_PERCENT: u32 = 10;
/// An operation is taken for harmless if the chance that it ends its process is below this.
const HARMLESS: f64 = 0.04;
/// The most programs that are kept to be changed.
const MOST_KEPT: usize = 2000;

/// Calls that a tenant may make and by which the kernel reads or writes memory for the caller.
/// Without keys, nothing stops such a call at another tenant's pages, as nothing stops a load.
const KERNEL_ACCESSES: [u64; 17] = [0, 1, 14, 35, 44, 45, 96, 98, 127, 143, 202, 204, 228, 229, 230, 318, 334];

/// How often a kind of operation returned, and how often it ended its process.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Fate {
    returned: u32,
    ended: u32,
}

impl Fate {
    fn risk(self) -> f64 {
        (f64::from(self.ended) + 0.1) / (f64::from(self.ended + self.returned) + 0.2)
    }
}

/// The generator's memory. A run is resumed with this state.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Memory {
    fates: BTreeMap<String, Fate>,
    seen: BTreeSet<String>,
    kept: Vec<Program>,
    /// System calls that succeeded, one for each class and result.
    done: Vec<Op>,
}

impl Memory {
    /// Remembers that an operation returned this result. Returns whether the result is new.
    pub fn returned(&mut self, op: &Op, result: &str) -> bool {
        [op.kind(), op.wide_kind()].into_iter().for_each(|kind| self.fates.entry(kind).or_default().returned += 1);
        let is_new = self.seen.insert(format!("{} -> {result}", op.class()));
        if is_new && matches!(op, Op::Call { .. }) && ["0", "+"].contains(&result) {
            self.done.push(op.clone());
        }
        is_new
    }

    /// Remembers that a process ended with this operation.
    pub fn ended(&mut self, op: &Op) {
        [op.kind(), op.wide_kind()].into_iter().for_each(|kind| self.fates.entry(kind).or_default().ended += 1);
    }

    /// Remembers something else that counts as coverage, such as an outcome or an event. Returns
    /// whether it is new.
    pub fn saw(&mut self, what: String) -> bool {
        self.seen.insert(what)
    }

    /// Keeps a program that showed something new.
    pub fn keep(&mut self, program: Program, rng: &mut Rng) {
        if self.kept.len() < MOST_KEPT {
            self.kept.push(program);
        } else if let Some(slot) = self.kept.get_mut(rng.usize(..MOST_KEPT)) {
            *slot = program;
        }
    }

    #[must_use]
    pub fn coverage(&self) -> usize {
        self.seen.len()
    }

    #[must_use]
    pub fn programs_kept(&self) -> usize {
        self.kept.len()
    }

    /// How many kinds of operations were tried, and how many of them always ended their process.
    #[must_use]
    pub fn kinds(&self) -> (usize, usize) {
        (self.fates.len(), self.fates.values().filter(|fate| fate.returned == 0).count())
    }

    /// The chance that a process ends with this operation; `None` if its kind was never tried.
    fn risk(&self, op: &Op) -> Option<f64> {
        match op {
            Op::Language { .. } | Op::Native { .. } => Some(0.0),
            op => [op.kind(), op.wide_kind()].iter().find_map(|kind| self.fates.get(kind)).map(|fate| fate.risk()),
        }
    }
}

/// Makes programs for a machine with or without protection keys.
#[derive(Debug, Clone, Copy)]
pub struct Grammar {
    pub keys: bool,
}

impl Grammar {
    /// The next program.
    pub fn program(self, memory: &Memory, rng: &mut Rng) -> Program {
        let mut program = match memory.kept.get(rng.usize(..memory.kept.len().max(1))) {
            Some(kept) if rng.u8(..10) < 6 => self.changed(kept, memory, rng),
            _ => Program { ops: (0..rng.usize(2..9)).map(|_| self.op(rng)).collect(), kept_runs: 0 },
        };
        let is_risky = rng.u32(..100) < RISKY_PERCENT;
        program.ops.retain(|op| memory.risk(op).is_some_and(|risk| risk < HARMLESS));
        if is_risky && rng.u8(..4) == 0 {
            program.ops.truncate(1);
            program.ops.push(language::over_a_limit(rng));
            program.kept_runs = [0, 2, 2, 3][rng.usize(..4)];
            return program;
        }
        if is_risky {
            program.ops.extend(self.risks(memory, rng));
        } else if program.ops.is_empty() {
            program.ops.push(language::statement(rng));
        }
        if rng.u8(..8) == 0 {
            program.kept_runs = rng.u8(1..4);
        }
        program
    }

    /// Three operations that may end their process, ordered so that the safest comes first.
    fn risks(self, memory: &Memory, rng: &mut Rng) -> Vec<Op> {
        let chance = |op: &Op| memory.risk(op).unwrap_or(0.5);
        let mut drawn: Vec<_> = (0..3).map(|_| self.risk(memory, rng)).collect();
        drawn.sort_by(|a, b| chance(a).total_cmp(&chance(b)));
        drawn
    }

    /// Either a call that was let through, with one argument changed: only a rule about that
    /// argument can still stop it. Or an attack: of a few that are drawn, the one that is most
    /// likely to return, but a harmless one only if all are harmless.
    fn risk(self, memory: &Memory, rng: &mut Rng) -> Op {
        match memory.done.get(rng.usize(..memory.done.len().max(1))) {
            Some(Op::Call { number, args }) if !args.is_empty() && rng.bool() => {
                let (number, mut args, at) = (*number, args.clone(), rng.usize(..args.len()));
                args[at] = if at == 0 && rng.bool() { self.pages(number, rng) } else { self.arg(number, rng) };
                Op::Call { number, args }
            }
            _ => {
                let chance = |op: &Op| memory.risk(op).map_or(0.5, |risk| if risk < HARMLESS { 1.0 } else { risk });
                let drawn: Vec<_> = (0..rng.u8(1..6)).map(|_| self.attack(rng)).collect();
                let least = drawn.into_iter().min_by(|a, b| chance(a).total_cmp(&chance(b)));
                least.unwrap_or_else(|| self.attack(rng))
            }
        }
    }

    /// A page of a victim. If there are no keys and the call makes the kernel read or write the
    /// page, a page of the attacker's own.
    fn pages(self, number: u64, rng: &mut Rng) -> Arg {
        let kernel_accesses = !self.keys && KERNEL_ACCESSES.contains(&(number & 0xffff_ffff));
        let fact = Fact::SECRETS[rng.usize(..Fact::SECRETS.len())];
        if kernel_accesses { Arg::OwnPage } else { Arg::VictimPage(rng.u8(..), fact) }
    }

    fn changed(self, kept: &Program, memory: &Memory, rng: &mut Rng) -> Program {
        let mut program = kept.clone();
        for _ in 0..rng.u8(1..4) {
            let at = rng.usize(..program.ops.len().max(1));
            match rng.u8(..6) {
                0 if program.ops.len() > 1 => drop(program.ops.remove(at)),
                1 => program.ops.insert(at.min(program.ops.len()), self.op(rng)),
                2 if program.ops.len() < 12 => {
                    let Some(other) = memory.kept.get(rng.usize(..memory.kept.len().max(1))) else { continue };
                    program.ops.extend(other.ops.iter().take(rng.usize(1..5)).cloned());
                }
                3 => program.ops.rotate_left(at),
                _ => {
                    if let Some(op) = program.ops.get_mut(at) {
                        self.change(op, rng);
                    }
                }
            }
        }
        program
    }

    fn change(self, op: &mut Op, rng: &mut Rng) {
        match op {
            Op::Call { number, args } | Op::Call32 { number, args } if !args.is_empty() => {
                let number = *number;
                let at = rng.usize(..args.len());
                args[at] = self.arg(number, rng);
            }
            Op::Native { args, this, .. } => {
                *this = language::value(rng);
                args.iter_mut().for_each(|arg| *arg = language::value(rng));
            }
            other => *other = self.op(rng),
        }
    }

    fn op(self, rng: &mut Rng) -> Op {
        match rng.u8(..10) {
            0..=3 => language::statement(rng),
            4 => native(rng),
            _ => self.attack(rng),
        }
    }

    fn attack(self, rng: &mut Rng) -> Op {
        match rng.u8(..40) {
            0 => Op::Call32 { number: rng.u64(..NUMBERS), args: (0..3).map(|_| self.arg(u64::MAX, rng)).collect() },
            1 | 2 => {
                let to = if rng.bool() { Arg::Channel } else { Arg::Victim(rng.u8(..), Fact::Channel) };
                Op::Frame { to, bytes: frame(rng) }
            }
            // The frozen page is read-only with keys and without.
            3 => Op::Store { at: Arg::Frozen },
            4..=8 if self.keys => {
                let at = self.address(rng);
                if rng.bool() { Op::Load { at } } else { Op::Store { at } }
            }
            9 if self.keys => {
                let way = [Way::Instruction, Way::Gate, Way::Frame][rng.usize(..3)];
                Op::Keys { way, value: if rng.bool() { 0 } else { rng.u32(..) }, at: self.address(rng) }
            }
            10..=24 => self.range_call(rng),
            _ => {
                // Half of these calls have a number that a tenant's thread needs, because such a
                // call can do more than one that always traps. The other half have any number.
                let needed = reach::NEEDED[rng.usize(..reach::NEEDED.len())];
                let mut number = if rng.bool() { rng.u64(..NUMBERS) } else { needed.cast_unsigned() };
                let args = (0..rng.u8(0..7)).map(|_| self.arg(number, rng)).collect();
                match rng.u8(..16) {
                    0 => number |= 0x4000_0000,
                    1 => number |= rng.u64(..) << 32,
                    _ => {}
                }
                Op::Call { number, args }
            }
        }
    }

    /// A call with a range of addresses, which may cover pages of other tenants. For most of these
    /// calls the range is the first two arguments.
    fn range_call(self, rng: &mut Rng) -> Op {
        let often = [9, 10, 11, 25, 28, 329];
        let number = match rng.u8(..3) {
            0 => [26, 27, 149, 150, 157, 216, 237, 256, 325, 440, 462][rng.usize(..11)],
            _ => often[rng.usize(..often.len())],
        };
        let length = match rng.u8(..8) {
            0 => 1 << rng.u32(12..42),
            1 => rng.u64(..),
            _ => 4096 << rng.u32(..3),
        };
        let protection = |rng: &mut Rng| if rng.bool() { 3 } else { rng.u64(..8) };
        // Values that the call understands as its third and fourth argument.
        let meant = match number {
            9 => [protection(rng), [0x22, 0x32, 0x4032, 0x10_0022, 0x21][rng.usize(..5)]],
            10 | 329 => [protection(rng), if rng.bool() { u64::MAX } else { rng.u64(..16) }],
            25 => [4096 << rng.u32(..4), rng.u64(..8)],
            28 => [rng.u64(..26), 0],
            _ => [rng.u64(..64), rng.u64(..64)],
        };
        let odd = |rng: &mut Rng, word| if rng.u8(..10) == 0 { word | 1 << rng.u32(..64) } else { word };
        let [third, fourth] = meant.map(|word| Arg::Word(odd(rng, word)));
        let last = if rng.u8(..4) > 0 { Arg::Word(u64::MAX) } else { self.arg(number, rng) };
        let mut args = vec![self.address(rng), Arg::Word(length), third, fourth, last, Arg::Word(0)];
        if number == 157 {
            // For prctl(PR_SET_VMA), the range is the third and the fourth argument.
            args = vec![Arg::Word(0x5356_4d41), Arg::Word(0), self.address(rng), Arg::Word(length), Arg::Path(0)];
        }
        Op::Call { number, args }
    }

    /// An address of another tenant or of the attacker. The commons and the stacks of others are
    /// left out, because an attack on them is a residual risk (SECURITY.md).
    fn address(self, rng: &mut Rng) -> Arg {
        let which = rng.u8(..);
        let secret = Fact::SECRETS[rng.usize(..Fact::SECRETS.len())];
        match rng.u8(..12) {
            0 => Arg::Own(rng.u16(..)),
            1 => Arg::OwnPage,
            2 => Arg::Near(rng.i8(-12..13), rng.u16(66..2048)),
            3 => Arg::Gap(rng.i8(-12..13)),
            4 | 5 => Arg::Victim(which, secret),
            6 => Arg::Junk(Box::new(Arg::Own(0))),
            _ => Arg::VictimPage(which, secret),
        }
    }

    fn arg(self, number: u64, rng: &mut Rng) -> Arg {
        let arg = match rng.u8(..16) {
            0..=2 => Arg::Word(rng.u64(..10)),
            3 => Arg::Word(u64::MAX),
            4 => Arg::Word(1 << rng.u32(..64)),
            5 => Arg::Word(rng.u64(..)),
            6 => Arg::Own(rng.u16(..2000)),
            7 => Arg::OwnPage,
            8 => [Arg::Channel, Arg::Thread, Arg::OwnStack, Arg::Path(rng.u8(..PATHS))][rng.usize(..4)].clone(),
            9 => Arg::Victim(rng.u8(..), if rng.bool() { Fact::Channel } else { Fact::Thread }),
            10 => Arg::Path(rng.u8(..PATHS)),
            11 => Arg::Vector(Box::new(self.address(rng))),
            12 => Arg::Junk(Box::new([Arg::Channel, Arg::Thread, Arg::Word(3)][rng.usize(..3)].clone())),
            13 => Arg::Word(4096 << rng.u32(..6)),
            _ => self.address(rng),
        };
        let kernel_accesses = KERNEL_ACCESSES.contains(&(number & 0xffff_ffff));
        // A victim's channel and thread are numbers and not addresses, so these arguments stay.
        let is_address = arg.class() != "channel of another" && arg.class() != "thread of another";
        if !self.keys && kernel_accesses && is_address && arg.is_anothers() { Arg::Own(8) } else { arg }
    }
}

fn native(rng: &mut Rng) -> Op {
    let args = (0..rng.u8(..4)).map(|_| language::value(rng)).collect();
    Op::Native { number: rng.u32(..), construct: rng.u8(..4) == 0, this: language::value(rng), args }
}

/// The bytes of a frame of any kind, perhaps with a wrong length, or random bytes.
fn frame(rng: &mut Rng) -> Vec<u8> {
    let body: Vec<u8> = match rng.u8(..4) {
        // The tag of a kind of frame, and random bytes.
        0 => std::iter::once(rng.u8(..8)).chain((0..rng.usize(..12)).map(|_| rng.u8(..))).collect(),
        1 => vec![rng.u8(..8)],
        2 => (0..rng.usize(..60)).map(|_| rng.u8(..)).collect(),
        _ => Vec::new(),
    };
    let length = match rng.u8(..4) {
        0 => rng.u32(..),
        1 => u32::try_from(body.len()).unwrap_or(0) + 1,
        _ => u32::try_from(body.len()).unwrap_or(0),
    };
    let length = if rng.u8(..8) == 0 { length.to_be_bytes() } else { length.to_le_bytes() };
    [length.as_slice(), &body].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(number: u64) -> Op {
        Op::Call { number, args: vec![Arg::Word(0)] }
    }

    #[test]
    fn what_ended_its_process_is_left_out_of_programs_that_risk_nothing() {
        let (grammar, mut memory, mut rng) = (Grammar { keys: false }, Memory::default(), Rng::with_seed(1));
        memory.ended(&call(57));
        memory.returned(&call(39), "+");
        assert!(memory.risk(&call(57)).unwrap() > 0.5 && memory.risk(&call(39)).unwrap() > HARMLESS);
        let other = Op::Call { number: 57, args: vec![Arg::OwnPage] };
        assert!(memory.risk(&other).unwrap() > 0.5, "its number is known");
        for _ in 0..20 {
            memory.returned(&call(39), "+");
        }
        assert!(memory.risk(&call(39)).unwrap() < HARMLESS);
        memory.keep(Program { ops: vec![call(57), call(39)], kept_runs: 0 }, &mut rng);
        let programs: Vec<_> = (0..500).map(|_| grammar.program(&memory, &mut rng)).collect();
        let with = |number| programs.iter().filter(|program| program.ops.contains(&call(number))).count();
        assert!(with(57) * 10 < with(39), "{} with, {} without", with(57), with(39));
    }

    #[test]
    fn a_result_is_new_once() {
        let mut memory = Memory::default();
        assert!(memory.returned(&call(39), "+") && !memory.returned(&call(39), "+") && memory.returned(&call(39), "0"));
    }

    #[test]
    fn without_keys_the_kernel_is_not_sent_to_memory_of_others() {
        let (grammar, mut rng) = (Grammar { keys: false }, Rng::with_seed(3));
        for _ in 0..3000 {
            let arg = grammar.arg(318, &mut rng);
            assert!(!arg.is_anothers() || arg.class().ends_with("of another"), "{arg:?}");
            let op = grammar.attack(&mut rng);
            let is_frozen = matches!(op, Op::Store { at: Arg::Frozen });
            assert!(is_frozen || !matches!(op, Op::Load { .. } | Op::Store { .. } | Op::Keys { .. }), "{op:?}");
        }
    }
}
