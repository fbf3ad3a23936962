//! Runs the target that has this program's name under libFuzzer.
#![no_main]

use enisle_fuzz::parsers::targets::TARGETS;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let target = TARGETS.iter().find(|target| target.name == env!("CARGO_BIN_NAME"));
    let run = target.expect("a target of this name").run;
    if let Err(said) = run(&mut arbitrary::Unstructured::new(input)) {
        panic!("{said}");
    }
});
