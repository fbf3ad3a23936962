//! `cargo xtask demo`: shows a newcomer untrusted scripts that run, hostile ones that are ended,
//! and the layers around them.

use std::fs;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::http::{Connection, Private};
use crate::{build_release, root, v8};

/// A script of `examples/`: its request, what to watch for, and how it must end.
struct Act {
    file: &'static str,
    request: fn() -> Value,
    what: &'static str,
    outcome: &'static str,
}

const ACTS: &[Act] = &[
    Act {
        file: "hello.js",
        request: || json!({ "args": ["newcomer"], "env": { "word": "welcome" } }),
        what: "an entry point with arguments and env",
        outcome: "ok",
    },
    Act {
        file: "code-mode.js",
        request: || json!({}),
        what: "what a language model writes: one function",
        outcome: "ok",
    },
    Act {
        file: "spin.js",
        request: || json!({ "limits": { "cpuMs": 50 } }),
        what: "hostile: spins forever",
        outcome: "exceededCpu",
    },
    Act {
        file: "bomb.js",
        request: || json!({ "limits": { "memoryMb": 32 } }),
        what: "hostile: takes all memory",
        outcome: "exceededMemory",
    },
    Act { file: "escape.js", request: || json!({}), what: "hostile: looks for a way out", outcome: "ok" },
];

pub(crate) fn run() -> Result<()> {
    let programs = build_release(&v8::find()?)?;
    let daemon = Private::start(&programs, "")?;
    let mut connection = daemon.connect()?;
    println!("\na private enisled listens on {}\n", daemon.socket().display());
    for act in ACTS {
        perform(act, &mut connection)?;
    }
    layers(&mut connection)?;
    println!(
        "\nTo keep it:  target/release/enisled        and then:  target/release/enisle run examples/hello.js --arg '\"you\"' --env word=hi"
    );
    Ok(())
}

fn perform(act: &Act, connection: &mut Connection) -> Result<()> {
    let file = root().join("examples").join(act.file);
    let mut request = (act.request)();
    request["code"] = json!(fs::read_to_string(&file).with_context(|| format!("reading {}", file.display()))?);
    let run = connection.load("demo", request.to_string().as_bytes())?;
    println!("{:<13} {}", act.file, act.what);
    for line in run["logs"].as_array().into_iter().flatten() {
        println!("    console   {}", line["text"].as_str().unwrap_or_default());
    }
    match (run.get("result"), run.get("error")) {
        (Some(result), _) => println!("    result    {result}"),
        (_, Some(error)) => println!(
            "    ended     {}: {}",
            run["outcome"].as_str().unwrap_or("?"),
            error["message"].as_str().unwrap_or("?")
        ),
        _ => {}
    }
    println!("    used      {} ms of CPU, {} ms in all\n", run["usage"]["cpuMs"], run["usage"]["wallMs"]);
    // `escape.js` reports the ways out that it found. There must be none, in a release build too.
    let found = run["result"]["found"].as_array().is_some_and(|found| !found.is_empty());
    ensure!(!found, "{} found a way out: {}", act.file, run["result"]);
    ensure!(run["outcome"] == act.outcome, "{} ended as {}, not as {}", act.file, run["outcome"], act.outcome);
    Ok(())
}

/// Prints the layers as the daemon reports them, and the worker's state as the kernel reports it.
fn layers(connection: &mut Connection) -> Result<()> {
    let info = connection.get("/v1/info")?;
    println!("the layers around every script on this machine:");
    for layer in info["posture"]["layers"].as_array().into_iter().flatten() {
        let state = if layer["on"] == true { "on " } else { "OFF" };
        println!(
            "    {state} {:<18} against {}",
            layer["layer"].as_str().unwrap_or("?"),
            layer["protects"].as_str().unwrap_or("?")
        );
    }
    println!("    {}", info["posture"]["consequence"].as_str().unwrap_or("?"));
    let workers = connection.get("/v1/workers")?;
    let mut workers = workers["workers"].as_array().into_iter().flatten();
    let with_tenants = workers.find(|worker| worker["tenants"].as_array().is_some_and(|tenants| !tenants.is_empty()));
    let Some(pid) = with_tenants.and_then(|worker| worker["pid"].as_u64()) else { return Ok(()) };
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    println!("\nwhat the kernel reports of the worker (/proc/{pid}/status):");
    for name in ["Uid", "CapEff", "CapBnd", "NoNewPrivs", "Seccomp", "Seccomp_filters", "NSpid"] {
        if let Some(line) = status.lines().find(|line| line.starts_with(&format!("{name}:"))) {
            println!("    {}", line.replace('\t', " "));
        }
    }
    Ok(())
}
