//! Checks that this machine has the layers that it should have, and that the daemon keeps its
//! promises here. Each machine of the matrix of postures (`cargo xtask vm matrix`) runs this.
//!
//! `posture [--off LAYER,LAYER…] [--without LAYER,LAYER…]`: `doctor` must report the layers of
//! `--off` as off, and every other layer as on. The daemon must start. It must report the layers of
//! `--off` and of `--without` as off, and give good and hostile scripts the outcomes in the README.
#![forbid(unsafe_code)]
#![allow(clippy::print_stdout, reason = "a check talks to its terminal")]

use std::collections::BTreeSet;
use std::process::{Command, ExitCode};

use enisle_tests::{Daemon, programs};
use serde_json::{Value, json};

type Checked = Result<(), String>;

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    let layers = |name: &str| -> BTreeSet<String> {
        let list = arguments.iter().skip_while(|word| *word != name).nth(1);
        list.into_iter().flat_map(|list| list.split(',')).filter(|name| !name.is_empty()).map(str::to_owned).collect()
    };
    let off = layers("--off");
    let all_off = &off | &layers("--without");
    let daemon = Daemon::start("");
    let (passed, failed) = check(&[
        ("doctor", &|| doctor(&off)),
        ("the daemon's posture", &|| same_layers(&all_off, &daemon.get("/v1/info")["posture"]["layers"])),
        ("runs", &|| runs(&daemon)),
        ("company", &|| company(&daemon, !off.contains("keys"))),
        ("hostile scripts", &|| hostile(&daemon)),
        ("a sealed tenant", &|| sealed(&daemon)),
    ]);
    println!("{passed} passed, {failed} failed");
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn check(checks: &[(&str, &dyn Fn() -> Checked)]) -> (usize, usize) {
    let mut failed = 0;
    for (name, check) in checks {
        if let Err(found) = check() {
            println!("{name}: {found}");
            failed += 1;
        }
    }
    (checks.len() - failed, failed)
}

/// Checks that exactly the layers of `off` are off in the list `layers`.
fn same_layers(off: &BTreeSet<String>, layers: &Value) -> Checked {
    let layers = layers.as_array().ok_or("the list of layers is missing")?;
    let found = layers.iter().filter(|layer| layer["on"] == false).filter_map(|layer| layer["layer"].as_str());
    let found: BTreeSet<_> = found.map(str::to_owned).collect();
    if found == *off { Ok(()) } else { Err(format!("off are {found:?}, and should be {off:?}")) }
}

fn doctor(off: &BTreeSet<String>) -> Checked {
    let out = Command::new(programs().join("enisle")).args(["--json", "doctor"]).output();
    let out = out.map_err(|error| error.to_string())?;
    let posture: Value = serde_json::from_slice(&out.stdout)
        .map_err(|error| format!("{error}: {}", String::from_utf8_lossy(&out.stderr)))?;
    same_layers(off, &posture["layers"])?;
    let setting = std::fs::read_to_string("/proc/sys/vm/overcommit_memory").map_err(|error| error.to_string())?;
    let noted = posture["notes"].to_string().contains("vm.overcommit_memory");
    if noted == (setting.trim() == "2") {
        Ok(())
    } else {
        Err(format!("overcommit is {setting}: {}", posture["notes"]))
    }
}

fn runs(daemon: &Daemon) -> Checked {
    let run = daemon.run("good", "(n, env) => [6 * 7, new Date(0).toISOString(), new Uint8Array(1 << 20).length]");
    expect(&run, "result", &json!([42, "1970-01-01T00:00:00.000Z", 1 << 20]))
}

/// Checks that tenants share a process if there are keys, and only then.
fn company(daemon: &Daemon, keys: bool) -> Checked {
    for tenant in ["one", "other"] {
        expect(&daemon.run(tenant, "() => 1"), "result", &json!(1))?;
    }
    let together = daemon.worker_of("one") == daemon.worker_of("other");
    let shares = if together { "share a process" } else { "have a process each" };
    if together == keys { Ok(()) } else { Err(format!("two tenants {shares}")) }
}

fn hostile(daemon: &Daemon) -> Checked {
    for (code, outcome) in [
        ("() => { for (;;); }", "exceededCpu"),
        ("() => { const kept = []; for (;;) kept.push(new Array(100000).fill(1.5)); }", "exceededMemory"),
        ("() => new Promise(() => {})", "exception"),
        ("() => new Function('1')", "exception"),
    ] {
        let request = json!({ "code": code, "limits": { "cpuMs": 5000, "memoryMb": 16, "wallMs": 60_000 } });
        let request =
            if outcome == "exceededCpu" { json!({ "code": code, "limits": { "cpuMs": 50 } }) } else { request };
        expect(&daemon.load("hostile", &request).ok(), "outcome", &json!(outcome))?;
        expect(&daemon.run("good", "() => 'still here'"), "result", &json!("still here"))?;
    }
    Ok(())
}

fn sealed(daemon: &Daemon) -> Checked {
    let order = json!({ "level": "sealed", "reason": "a check" }).to_string();
    daemon.request("PUT", "/v1/tenants/sealed/cordon", order.as_bytes()).ok();
    let run = daemon.run("sealed", "() => [1, 2, 3].map((n) => n * n)");
    expect(&run, "result", &json!([1, 4, 9]))?;
    expect(&run, "cordon", &json!("sealed"))
}

fn expect(run: &Value, field: &str, value: &Value) -> Checked {
    if run[field] == *value { Ok(()) } else { Err(format!("{field} should be {value}: {run}")) }
}
