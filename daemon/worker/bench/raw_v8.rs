//! The bare engine in a plain loop, for `cargo xtask bench load`: `raw-v8 SCRIPT TURNS` takes the
//! text of a module, and prints two durations for each turn, in ns: to make an isolate with its
//! context, compile and run; and the same with disposal.
#![allow(clippy::print_stdout, reason = "its output is its purpose")]

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let (script, turns) =
        (arguments.next().ok_or("no script")?, arguments.next().ok_or("no number of turns")?.parse()?);
    for turn in enisle_worker::raw::measure(&script, turns)? {
        println!("{} {}", turn.run.as_nanos(), turn.whole.as_nanos());
    }
    Ok(())
}
