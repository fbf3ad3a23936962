//! The loop. A case depends only on the seed, on its own number and on the corpus. So a run can be
//! resumed where it ended, and a finding can be repeated.

use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use arbitrary::Unstructured;

use super::corpus::{self, Corpus};
use super::targets::Target;
use crate::Finding;
use crate::budget::choices;

/// How long a finding is minimised at most.
const MINIMISE_FOR: Duration = Duration::from_secs(20);

/// A run of one target.
#[derive(Debug)]
pub struct Runner {
    target: &'static Target,
    corpus: Corpus,
    seed: u64,
    /// The number of the first case.
    from: u64,
    /// The number of the next case.
    pub at: u64,
}

/// Runs one case. A panic is a finding like any other.
///
/// # Errors
/// What was expected, and what was seen.
pub fn case(target: &Target, input: &[u8]) -> Result<(), String> {
    let ran = catch_unwind(AssertUnwindSafe(|| (target.run)(&mut Unstructured::new(input))));
    ran.unwrap_or_else(|panic| {
        let said = panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied());
        let place = PLACE.with_borrow_mut(std::mem::take);
        Err(format!("panicked{place}: {}", said.unwrap_or("without a word")))
    })
}

thread_local! {
    /// The place of this thread's last panic.
    static PLACE: RefCell<String> = const { RefCell::new(String::new()) };
}

/// Runs `work` without printing a line for each panic that is caught. [`case`] reports the place of
/// the panic.
pub fn quietly<T>(work: impl FnOnce() -> T) -> T {
    let before = std::panic::take_hook();
    std::panic::set_hook(Box::new(|panic| {
        let place = panic.location().map(|place| format!(" at {place}"));
        PLACE.with_borrow_mut(|known| *known = place.unwrap_or_default());
    }));
    let done = catch_unwind(AssertUnwindSafe(work));
    std::panic::set_hook(before);
    done.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

impl Runner {
    /// # Errors
    /// The corpus cannot be read.
    pub fn new(target: &'static Target, seed: u64, from: u64) -> anyhow::Result<Self> {
        Ok(Self { target, corpus: Corpus::read(target.name)?, seed, from, at: from })
    }

    /// Runs every case of the corpus. Returns how many there are.
    ///
    /// # Errors
    /// The first case that fails.
    pub fn repeat(&self) -> Result<usize, Finding> {
        let mut repeated = 0;
        for (name, input) in self.corpus.cases() {
            let finding = |said| Finding {
                what: self.target.name.to_owned(),
                seed: self.seed,
                said: format!("{said}\nshown by: {}", command(self.target.name, name)),
            };
            case(self.target, input).map_err(finding)?;
            repeated += 1;
        }
        Ok(repeated)
    }

    /// Runs the next case.
    ///
    /// # Errors
    /// The case fails. It has been minimised and written to the corpus.
    #[expect(clippy::should_implement_trait, reason = "a case is not an item")]
    pub fn next(&mut self) -> Result<(), Finding> {
        let mut rng = choices(self.seed, self.at);
        self.at += 1;
        let input = self.corpus.make(&mut rng);
        case(self.target, &input).map_err(|said| self.found(input, said))
    }

    /// How many cases there were, and how to go on.
    #[must_use]
    pub fn done(&self) -> String {
        let Self { target, seed, from, at, .. } = self;
        format!("{}: {} cases; go on with --seed {seed} --from {at}", target.name, at - from)
    }

    fn found(&self, input: Vec<u8>, mut said: String) -> Finding {
        let until = Instant::now() + MINIMISE_FOR;
        let least = minimise(input, |input| {
            if Instant::now() > until {
                return false;
            }
            case(self.target, input).map_err(|again| said = again).is_err()
        });
        let name = format!("found-{:016x}-{}", self.seed, self.at - 1);
        let path = corpus::path(self.target.name, &name);
        let folder = path.parent().unwrap_or(&path);
        let kept = std::fs::create_dir_all(folder).and_then(|()| std::fs::write(&path, &least));
        let shown = match kept {
            Ok(()) => command(self.target.name, &name),
            Err(error) => format!("an input that cannot be written to {} ({error}): {least:?}", path.display()),
        };
        let from = self.at - 1;
        Finding {
            what: self.target.name.to_owned(),
            seed: self.seed,
            said: format!("{said}\nshown by: {shown}\nfound with: --seed {} --from {from}", self.seed),
        }
    }
}

/// The command that runs a case of the corpus.
fn command(target: &str, name: &str) -> String {
    format!("cargo xtask fuzz parsers --target {target} --input fuzz/corpus/{target}/{name}")
}

/// Cuts pieces out of an input and sets bytes to zero, as long as the rest still fails. Returns the
/// smallest input found.
pub fn minimise(mut input: Vec<u8>, mut fails: impl FnMut(&[u8]) -> bool) -> Vec<u8> {
    let mut piece = input.len().div_ceil(2);
    while piece > 0 {
        let mut at = 0;
        while at < input.len() {
            let mut shorter = input.clone();
            shorter.drain(at..(at + piece).min(input.len()));
            if fails(&shorter) {
                input = shorter;
            } else {
                at += piece;
            }
        }
        piece /= 2;
    }
    for at in 0..input.len() {
        let mut simpler = input.clone();
        simpler[at] = 0;
        if input[at] != 0 && fails(&simpler) {
            input = simpler;
        }
    }
    input
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_finding_is_cut_to_what_it_needs() {
        let fails = |input: &[u8]| input.contains(&7) && input.iter().filter(|byte| **byte == 9).count() >= 2;
        let input = (0..200).chain([7, 9, 3, 9]).collect();
        assert_eq!(minimise(input, fails), [7, 9, 9]);
    }

    #[test]
    fn a_panic_is_a_finding_and_a_case_is_decided_by_seed_and_number() {
        const PANICS: Target = Target { name: "none", run: |u| panic!("{:?}", u.len()), smoke: 0 };
        let said = quietly(|| case(&PANICS, &[1, 2])).unwrap_err();
        assert!(said.starts_with("panicked at ") && said.ends_with(": 2"), "{said}");
        const SHOWS: Target = Target { name: "none", run: |u| Err(format!("{:?}", u.peek_bytes(u.len()))), smoke: 0 };
        let shown = |from| {
            let runner = Runner::new(&SHOWS, 5, from).unwrap();
            let mut rng = choices(runner.seed, runner.at);
            runner.corpus.make(&mut rng)
        };
        assert!(shown(1) == shown(1) && shown(1) != shown(2));
    }
}
