//! Compiles `policy/worker.json` to BPF, so that a policy that is wrong is a build that fails.

use std::error::Error;
use std::fmt::Write;
use std::path::Path;
use std::{env, fs};

const POLICY: &str = "policy/worker.json";
const PROGRAMS: [&str; 2] = ["allow", "refuse"];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed={POLICY}");
    let programs = seccompiler::compile_from_json(
        fs::File::open(POLICY)?,
        env::var("CARGO_CFG_TARGET_ARCH")?.as_str().try_into()?,
    )?;
    if programs.len() != PROGRAMS.len() {
        return Err(format!("{POLICY} has to hold exactly the programs {PROGRAMS:?}").into());
    }
    let mut code = String::new();
    for name in PROGRAMS {
        let program = programs.get(name).ok_or_else(|| format!("{POLICY} has no program {name:?}"))?;
        if program.is_empty() {
            return Err(format!("{POLICY}: the program {name:?} is empty").into());
        }
        writeln!(code, "const {}: &[sock_filter] = &[", name.to_uppercase())?;
        for step in program {
            writeln!(
                code,
                "    sock_filter {{ code: {}, jt: {}, jf: {}, k: {} }},",
                step.code, step.jt, step.jf, step.k
            )?;
        }
        writeln!(code, "];")?;
    }
    fs::write(Path::new(&env::var("OUT_DIR")?).join("policy.rs"), code)?;
    Ok(())
}
