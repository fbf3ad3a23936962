//! The attacks that a program can have made, by its text. From these the ledger judges whether the
//! tenant that an event names can have caused the event.

use std::collections::BTreeSet;

use super::program::{Op, Program};

/// The attacks that a program can have made.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Deeds {
    /// Its system calls, by the lower half of their numbers, because the kernel reports only that.
    calls: BTreeSet<u32>,
    /// The program loads, stores, or opens other keys.
    touches: bool,
}

/// The calls that `attack.sigreturn` makes: it sets a handler, sends itself a signal and returns.
const SIGRETURN: [u32; 6] = [13, 14, 15, 39, 186, 234];
const SENDTO: u32 = 44;

impl Deeds {
    #[must_use]
    pub fn of(program: &Program) -> Self {
        let mut deeds = Self::default();
        program.ops.iter().for_each(|op| deeds.add(Self::of_op(op)));
        deeds
    }

    #[must_use]
    pub fn of_op(op: &Op) -> Self {
        let (mut deeds, text) = (Self::default(), op.script());
        for native in ["attack.syscall(", "attack.syscall32("] {
            deeds.calls.extend(text.split(native).skip(1).filter_map(number));
        }
        if text.contains("frame(") {
            deeds.calls.insert(SENDTO);
        }
        if text.contains("attack.sigreturn(") {
            deeds.calls.extend(SIGRETURN);
        }
        let touches = ["load(", "store(", "attack.wrpkru(", "gate(", "attack.sigreturn("];
        deeds.touches = touches.iter().any(|native| text.contains(native));
        deeds
    }

    pub fn add(&mut self, others: Self) {
        self.calls.extend(others.calls);
        self.touches |= others.touches;
    }

    #[must_use]
    pub fn has_call(&self, call: u32) -> bool {
        self.calls.contains(&call)
    }

    #[must_use]
    pub fn touches(&self) -> bool {
        self.touches
    }

    /// Whether the program uses any native for attackers.
    #[must_use]
    pub fn attacks(&self) -> bool {
        self.touches || !self.calls.is_empty()
    }
}

/// The lower half of the number that a text begins with.
fn number(text: &str) -> Option<u32> {
    let digits = text.find(|digit: char| !digit.is_ascii_digit()).and_then(|end| text.get(..end))?;
    u32::try_from(digits.parse::<u64>().ok()? & 0xffff_ffff).ok()
}

#[cfg(test)]
mod tests {
    use super::super::program::Arg;
    use super::*;

    #[test]
    fn a_call_counts_by_the_half_of_its_number_that_the_kernel_reports() {
        let op = Op::Call { number: 0x1234_5678_0000_006e, args: vec![Arg::Word(0)] };
        let deeds = Deeds::of(&Program { ops: vec![op], kept_runs: 0 });
        assert!(deeds.has_call(0x6e) && !deeds.has_call(0x6f) && deeds.attacks() && !deeds.touches());
    }

    #[test]
    fn a_script_of_the_language_alone_attacks_nothing() {
        let op = Op::Language { class: "x".into(), text: "structuredClone(1)".to_owned() };
        assert_eq!(Deeds::of(&Program { ops: vec![op], kept_runs: 0 }), Deeds::default());
    }
}
