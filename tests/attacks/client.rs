//! The command line: no result or text of a script may make it fail or drive a terminal.

use std::io::Write;
use std::process::{Command, Output, Stdio};

use enisle_tests::programs;
use serde_json::json;

use crate::ground::Ground;
use crate::{Case, Options};

pub(crate) const CASES: &[Case] = &[
    Case { id: "S17 results", title: "results that the client cannot read", run: results },
    Case { id: "S17 terminal", title: "text that reorders a terminal's lines", run: terminal },
    Case { id: "S17 forged", title: "a log that reads like the client's own lines", run: forged },
];

fn enisle(ground: &Ground, arguments: &[&str], code: &str) -> Output {
    let mut command = Command::new(programs().join("enisle"));
    command.args(["load", "-"]).args(arguments).env("ENISLE_SOCKET", ground.daemon.socket());
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the client runs");
    let body = json!({ "code": code }).to_string();
    child.stdin.take().expect("a pipe").write_all(body.as_bytes()).expect("it reads");
    child.wait_with_output().expect("it ends")
}

/// The bytes of the result, exactly as an answer contains them.
fn result_in(answer: &[u8]) -> Option<&[u8]> {
    const NAME: &[u8] = b"\"result\":";
    let from = answer.windows(NAME.len()).position(|window| window == NAME)? + NAME.len();
    let logs = answer.windows(8).rposition(|window| window == b",\"logs\":")?;
    answer.get(from..logs)
}

/// Each script returns a valid result or throws. So the client's exit code must be 0 or 1, never 70
/// (an answer that cannot be read).
const RESULTS: &[(&str, &str)] = &[
    ("a lone surrogate", "()=>'\\ud800'"),
    ("a lone surrogate as a name", "()=>({['\\udfff']:1})"),
    ("ninety levels", "()=>{let a=1;for(let i=0;i<90;i++)a=[a];return a}"),
    ("two hundred levels", "()=>{let a=1;for(let i=0;i<200;i++)a=[a];return a}"),
    ("five hundred levels", "()=>{let a=1;for(let i=0;i<499;i++)a={a};return a}"),
    ("five thousand levels", "()=>{let a=1;for(let i=0;i<5000;i++)a=[a];return a}"),
    ("a number too large", "()=>JSON.rawJSON('1e999999')"),
    ("a long number", "()=>JSON.rawJSON('1'.repeat(100000))"),
    ("a name twice", "()=>JSON.rawJSON('\"\\\\u0000\"')"),
    ("a surrogate that is thrown", "()=>{throw new Error('\\ud800')}"),
    ("a surrogate that is printed", "()=>{console.log('\\ud800')}"),
    ("a name that is not text", "()=>{const e=new Error('x');e.name='\\udfff';throw e}"),
];

fn results(_: Options) -> Result<String, String> {
    let ground = Ground::start("");
    let mut failures = Vec::new();
    for (what, code) in RESULTS {
        for arguments in [&[][..], &["--json"]] {
            let out = enisle(&ground, arguments, code);
            let answer = ground.root.ask("POST", "/v1/tenants/t/load", json!({ "code": code }).to_string().as_bytes());
            let answer = answer.map_err(|error| format!("{what}: {error}"))?.body;
            let untouched = arguments.is_empty() || result_in(&answer) == result_in(&out.stdout);
            if !untouched {
                failures.push(format!("{what}: the result is not what the daemon answers"));
            } else if !matches!(out.status.code(), Some(0 | 1)) {
                let said = String::from_utf8_lossy(&out.stderr);
                failures.push(format!("{what} {arguments:?}: {:?} {:?}", out.status.code(), said.trim()));
            } else if std::str::from_utf8(&out.stdout).is_err() {
                failures.push(format!("{what} {arguments:?}: not UTF-8"));
            }
        }
    }
    if failures.is_empty() {
        Ok(format!("{} results, as text and as JSON", RESULTS.len()))
    } else {
        Err(failures.join("; "))
    }
}

/// Controls that reorder or hide text (Unicode's `Bidi_Control`), and others that draw nothing.
const CONTROLS: &[u32] = &[
    0x7, 0x1b, 0x7f, 0x9b, 0x61c, 0x200e, 0x200f, 0x202a, 0x202b, 0x202c, 0x202d, 0x202e, 0x2066, 0x2067, 0x2068,
    0x2069,
];

fn terminal(_: Options) -> Result<String, String> {
    let ground = Ground::start("");
    let text = CONTROLS.iter().map(|control| format!("\\u{{{control:x}}}")).collect::<String>();
    let mut raw: Vec<u32> = Vec::new();
    for (ends, code) in [
        (0, format!("()=>{{console.log('{text}');console.error('{text}')}}")),
        (1, format!("()=>{{throw new Error('{text}')}}")),
        (1, format!("()=>{{const e=new Error('x');e.name='{text}';e.stack='{text}';throw e}}")),
        (0, format!("()=>'{text}'")),
        (0, format!("()=>({{'{text}':1}})")),
    ] {
        let out = enisle(&ground, &[], &code);
        let printed = String::from_utf8_lossy(&[out.stdout, out.stderr].concat()).into_owned();
        let missing = CONTROLS.iter().find(|control| !printed.contains(&format!("\\u{control:04x}")));
        if out.status.code() != Some(ends) || missing.is_some() {
            return Err(format!("{code}: {:?}, and {missing:x?} is not there: {printed}", out.status.code()));
        }
        raw.extend(CONTROLS.iter().filter(|control| {
            let control = char::from_u32(**control);
            control.is_some_and(|control| printed.contains(control))
        }));
    }
    raw.sort_unstable();
    raw.dedup();
    if raw.is_empty() {
        return Ok(format!("{} controls, all escaped", CONTROLS.len()));
    }
    Err(format!("printed as they were: {}", raw.iter().map(|c| format!("U+{c:04X}")).collect::<Vec<_>>().join(" ")))
}

/// The client's own lines begin at the margin. No line that a script prints does.
fn forged(_: Options) -> Result<String, String> {
    let ground = Ground::start("");
    let said = "violation: a layer stopped it";
    let code = format!(
        "()=>{{console.log('{said}');console.log('x\\n{said}');console.warn('x\\n\\n{said}');throw new Error('x\\n{said}')}}"
    );
    let out = enisle(&ground, &[], &code);
    let printed = String::from_utf8_lossy(&out.stderr).into_owned();
    let there = printed.matches(said).count();
    let forged = printed.lines().filter(|line| line.starts_with(said)).count();
    let found = format!("{there} lines, {forged} of them at the margin");
    if there == 4 && forged == 0 { Ok(found) } else { Err(format!("{found}: {printed}")) }
}
