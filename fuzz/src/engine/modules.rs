//! Maps of modules that import each other by generated names. Some names are only nearly right,
//! some imports form cycles, some kinds and attributes are wrong, and some bodies do not compile or
//! throw.
//!
//! The maps are judged from outside ([`super::host`]). A module may fail to compile, to link or to
//! run. Then the run ends as `exception`, or the request is refused with a reason.

use fastrand::Rng;
use serde_json::{Map, Value, json};

use super::grammar::Grammar;
use super::host::Host;
use super::report::Report;

/// Tries one map.
pub fn try_one(host: &mut Host, iteration: u64, rng: &mut Rng, report: &mut Report) {
    let request = request(rng);
    let tried = host.run(&request);
    *report.tried.outcomes.entry(tried.outcome()).or_default() += 1;
    report.tried.module_maps += 1;
    if !tried.wrong.is_empty() {
        let again = host.run(&request);
        let seen = format!("modules: {}\nonce more: {:?}\n{}", tried.wrong.join("; "), again.wrong, tried.answer);
        report.found("modules", iteration, &seen, &format!("{request}"));
    }
}

/// Parts of names, as they occur in paths, in schemes and in mistakes.
const PARTS: [&str; 20] = [
    "a",
    "b",
    "main",
    "./",
    "/",
    "../",
    ".js",
    ".mjs",
    ".json",
    ".txt",
    ".wasm",
    "?x",
    "#y",
    "%00",
    "\u{e9}",
    "\u{1f600}",
    "cloudflare:workers",
    "enisle:runtime",
    "node:fs",
    "__proto__",
];

fn name(rng: &mut Rng) -> String {
    match rng.u8(..60) {
        0 => "n".repeat(rng.usize(..5000)),
        1 => String::new(),
        2..6 => char::from_u32(rng.u32(..0x11_0000)).map(String::from).unwrap_or_default(),
        _ => (0..rng.usize(1..4)).map(|_| PARTS[rng.usize(..PARTS.len())]).collect(),
    }
}

fn request(rng: &mut Rng) -> Value {
    let names: Vec<_> = (0..rng.usize(1..7)).map(|_| name(rng)).collect();
    let mut modules = Map::new();
    for name in &names {
        modules.insert(name.clone(), module(name, &names, rng));
    }
    let main = if rng.u8(..10) == 0 { name(rng) } else { names[0].clone() };
    // Most main modules can run. Otherwise too few imports would be tried.
    if rng.u8(..10) > 0 {
        let source =
            format!("{}\nexport default async () => {{\n{}\nreturn 1;\n}}", source(&names, rng), dynamic(&names, rng));
        modules.insert(main.clone(), json!({ "js": source }));
    }
    let mut request = json!({ "mainModule": main, "modules": modules });
    if rng.u8(..8) == 0 {
        request["entrypoint"] = json!(specifier(&names, rng));
    }
    request
}

/// A module of any kind, whose body may not fit the kind.
fn module(its_name: &str, names: &[String], rng: &mut Rng) -> Value {
    match rng.u8(..10) {
        0 => json!({ "json": (["{\"a\":[1]}", "[", "", "null", "\"\\ud800\"", "1e999"][rng.usize(..6)]) }),
        1 => json!({ "text": name(rng) }),
        2 => json!({ "data": (["", "AAEC", "/w==", "////", "AAEC/w==", "!"][rng.usize(..6)]) }),
        // The name must have an ending that says the kind, or the request would be refused.
        3 if its_name.ends_with("js") => json!(source(names, rng)),
        _ => json!({ "js": source(names, rng) }),
    }
}

/// Most often one of the names, sometimes a near miss or another name.
fn specifier(names: &[String], rng: &mut Rng) -> String {
    let known = names[rng.usize(..names.len())].clone();
    match rng.u8(..20) {
        0 => format!("./{known}"),
        1 => name(rng),
        2 => "cloudflare:workers".to_owned(),
        _ => known,
    }
}

fn quoted(text: &str) -> String {
    Value::String(text.to_owned()).to_string()
}

fn attributes(rng: &mut Rng) -> &'static str {
    let choices = [
        "",
        "",
        "",
        "",
        "",
        "",
        "",
        "",
        "",
        "",
        "",
        "",
        " with { type: \"json\" }",
        " with { type: \"text\" }",
        " with { type: \"json\", a: \"b\" }",
        " with {}",
    ];
    choices[rng.usize(..choices.len())]
}

fn source(names: &[String], rng: &mut Rng) -> String {
    let mut lines = Vec::new();
    for number in 0..rng.usize(..4) {
        let (from, with) = (quoted(&specifier(names, rng)), attributes(rng));
        // Most imports name no export, so they link with modules of every kind.
        lines.push(match rng.u8(..20) {
            0 => format!("import i{number}, {{ a as j{number} }} from {from}{with};"),
            1..6 => format!("import {from}{with};"),
            9..13 => format!("import * as i{number} from {from}{with};"),
            13..16 => format!("export * from {from}{with};"),
            16..19 => format!("export * as k{number} from {from}{with};"),
            6 => format!("import defer * as i{number} from {from};"),
            7 => format!("import source i{number} from {from};"),
            8 => format!("export {{ a as l{number} }} from {from}{with};"),
            _ => format!("import {{ WorkerEntrypoint as i{number} }} from {from}{with};"),
        });
    }
    lines.push(
        match rng.u8(..20) {
            0 => "export let a = 1; await 0; a = 2;",
            1 => "export class a extends a {}",
            2 => "throw { toString() { throw 1 } };",
            3 => "export { a as default, a }; var a = import.meta.url + typeof import.meta;",
            4 => "syntax error here",
            5 => "await new Promise(() => {});",
            6 => "export const a = () => a; Object.freeze(globalThis);",
            7 => "await Promise.reject(null);",
            _ => "export const a = 1;",
        }
        .to_owned(),
    );
    lines.join("\n")
}

/// Statements that import modules while the script runs.
fn dynamic(names: &[String], rng: &mut Rng) -> String {
    let mut lines = Vec::new();
    for _ in 0..rng.usize(..4) {
        let of = match rng.u8(..5) {
            0 => format!("({})", Grammar::get().make("lit", rng)),
            1 => format!("{{ toString() {{ return {} }} }}", quoted(&specifier(names, rng))),
            _ => quoted(&specifier(names, rng)),
        };
        let with =
            ["", "", ", { with: { type: \"json\" } }", ", 1", ", { with: { get type() { throw 1 } } }"][rng.usize(..5)];
        lines.push(match rng.u8(..3) {
            0 => format!("import({of}{with});"),
            1 => format!("const it = await import({of}{with}).catch((e) => e); Object.keys(it ?? 0); it?.a;"),
            _ => format!("await Promise.allSettled([import({of}{with}), import({of})]);"),
        });
    }
    lines.iter().map(|line| format!("{{ {line} }}")).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn most_maps_have_their_main_module_and_all_are_made_from_the_seed_alone() {
        let of = |seed| request(&mut Rng::with_seed(seed));
        let complete = (0..200).filter(|seed| {
            let request = of(*seed);
            assert_eq!(request, of(*seed));
            request["mainModule"].as_str().is_some_and(|main| request["modules"].get(main).is_some())
        });
        assert!(complete.count() > 150);
    }
}
