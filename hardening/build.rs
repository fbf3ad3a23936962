//! Compiles the policies to BPF. A policy that is empty or does not compile fails the build.

use std::error::Error;
use std::fmt::Write;
use std::path::Path;
use std::{env, fs};

/// Each policy file, with the names of the programs that it must contain, and of no others.
const POLICIES: [(&str, &[&str]); 3] = [
    ("policy/worker.json", &["allow", "refuse"]),
    ("policy/tenant.json", &["tenant"]),
    ("policy/sealed.json", &["sealed"]),
];

fn main() -> Result<(), Box<dyn Error>> {
    let mut code = String::new();
    for (policy, names) in POLICIES {
        println!("cargo::rerun-if-changed={policy}");
        let programs = seccompiler::compile_from_json(
            fs::File::open(policy)?,
            env::var("CARGO_CFG_TARGET_ARCH")?.as_str().try_into()?,
        )?;
        if programs.len() != names.len() {
            return Err(format!("{policy} must hold exactly the programs {names:?}").into());
        }
        for name in names {
            let program = programs.get(*name).ok_or_else(|| format!("{policy} has no program {name:?}"))?;
            if program.is_empty() {
                return Err(format!("{policy}: the program {name:?} is empty").into());
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
    }
    fs::write(Path::new(&env::var("OUT_DIR")?).join("policy.rs"), code)?;
    Ok(())
}
