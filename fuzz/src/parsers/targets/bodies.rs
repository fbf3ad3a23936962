//! Bodies of requests, which the daemon takes apart without a copy, and the answers to runs.
//!
//! Attacked: `json_text`, `api::code` and `api::load`, by JSON of every spelling, whole and
//! damaged; and `api::answer`, by everything that a worker may report. Oracle: a second reader,
//! which uses `serde_json` with owned values and follows README and the API description. Both
//! readers must accept the same bodies and get the same values from them.

use std::collections::BTreeMap;
use std::fmt;

use arbitrary::Unstructured;
use base64::Engine;
use enisle_supervisor::seams;
use enisle_wire::limits::Limit;
use enisle_wire::tenant::{CodeOf, ModuleKind, ToTenant};
use enisle_wire::{MAX_NAME_BYTES, MAX_TO_TENANT_BYTES};
use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;
use serde_json::{Value, json};

use super::wire;
use crate::parsers::draw::{Draw, damaged, ensure, same};

/// A JSON object, with its entries in order. Repeated names are kept.
#[derive(Debug)]
struct Pairs(Vec<(String, Box<RawValue>)>);

impl<'de> Deserialize<'de> for Pairs {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reads;

        impl<'de> Visitor<'de> for Reads {
            type Value = Pairs;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Pairs, A::Error> {
                let mut pairs = Vec::new();
                while let Some(pair) = map.next_entry()? {
                    pairs.push(pair);
                }
                Ok(Pairs(pairs))
            }
        }

        deserializer.deserialize_map(Reads)
    }
}

/// The entries of an object that has only these names, each at most once. Entries that are `null`
/// count as absent.
fn only<'t>(text: &str, names: &[&'t str]) -> Option<BTreeMap<&'t str, Box<RawValue>>> {
    let Pairs(pairs) = serde_json::from_str(text).ok()?;
    let mut found = BTreeMap::new();
    for (name, value) in pairs {
        let name = names.iter().find(|known| **known == name)?;
        if found.insert(*name, value).is_some() {
            return None;
        }
    }
    found.retain(|_, value| value.get() != "null");
    Some(found)
}

fn string(value: &RawValue) -> Option<String> {
    serde_json::from_str(value.get()).ok()
}

fn checked_name(value: &RawValue) -> Option<String> {
    let fits = |name: &String| (1..=MAX_NAME_BYTES).contains(&name.len()) && !name.chars().any(char::is_control);
    string(value).filter(fits)
}

/// The value's text if it begins with `first`, `otherwise` if there is no value, and `None` for a
/// value of another kind.
fn passed(value: Option<&RawValue>, otherwise: &str, first: char) -> Option<String> {
    let text = value.map_or(otherwise, RawValue::get);
    text.starts_with(first).then(|| text.to_owned())
}

/// The most bytes of code that these limits allow; `None` if the limits must be refused.
fn code_cap(limits: Option<&RawValue>) -> Option<usize> {
    let mut cap = Limit::CodeBytes.default();
    let Some(limits) = limits else { return Some(cap as usize) };
    let Pairs(pairs) = serde_json::from_str(limits.get()).ok()?;
    let mut seen = Vec::new();
    for (name, value) in pairs {
        let limit = Limit::ALL.into_iter().find(|limit| limit.name() == name)?;
        if seen.contains(&limit) || limits.get().len() > 4096 {
            return None;
        }
        seen.push(limit);
        let value: Option<u32> = serde_json::from_str(value.get()).ok()?;
        if let Some(value) = value {
            if value < limit.range().0 {
                return None;
            }
            if limit == Limit::CodeBytes {
                cap = cap.min(value);
            }
        }
    }
    Some(cap as usize)
}

type Modules = Vec<(String, ModuleKind, Vec<u8>)>;

fn module(name: &str, value: &RawValue) -> Option<(ModuleKind, Vec<u8>)> {
    if value.get().starts_with('"') {
        let kind = match name.rsplit_once('.')?.1 {
            "js" | "mjs" => ModuleKind::Js,
            "json" => ModuleKind::Json,
            "txt" => ModuleKind::Text,
            _ => return None,
        };
        return Some((kind, string(value)?.into_bytes()));
    }
    let typed = only(value.get(), &["js", "json", "text", "data"])?;
    let (key, value) = typed.first_key_value().filter(|_| typed.len() == 1)?;
    Some(match *key {
        "js" => (ModuleKind::Js, string(value)?.into_bytes()),
        "json" => (ModuleKind::Json, value.get().as_bytes().to_vec()),
        "text" => (ModuleKind::Text, string(value)?.into_bytes()),
        _ => (ModuleKind::Data, base64::engine::general_purpose::STANDARD.decode(string(value)?).ok()?),
    })
}

/// The meaning of a load's body.
#[derive(Debug, PartialEq)]
struct Load {
    entrypoint: String,
    method: Option<String>,
    args: String,
    props: String,
    env: String,
    code: Result<String, (String, Modules)>,
}

fn naive(body: &[u8]) -> Option<Load> {
    let fields =
        ["code", "mainModule", "modules", "env", "entrypoint", "method", "args", "props", "limits", "globalOutbound"];
    let found = only(str::from_utf8(body).ok()?, &fields)?;
    let get = |name: &str| found.get(name).map(|value| &**value);
    let cap = code_cap(get("limits"))?;
    if get("globalOutbound").is_some() {
        return None;
    }
    let optional = |name: &str| get(name).map_or(Some(None), |value| checked_name(value).map(Some));
    let code = match (get("code"), get("mainModule"), get("modules")) {
        (Some(code), None, None) => Ok(string(code).filter(|code| code.len() <= cap)?),
        (None, Some(main), Some(modules)) => {
            let main = checked_name(main)?;
            let Pairs(pairs) = serde_json::from_str(modules.get()).ok()?;
            let mut read: Modules = Vec::new();
            for (name, value) in pairs {
                let raw = serde_json::value::to_raw_value(&name).ok()?;
                let name = checked_name(&raw)?;
                if read.iter().any(|(other, ..)| *other == name) {
                    return None;
                }
                let (kind, body) = module(&name, &value)?;
                read.push((name, kind, body));
            }
            let is_main = |(name, kind, _): &(String, ModuleKind, Vec<u8>)| *name == main && *kind == ModuleKind::Js;
            let bytes: usize = read.iter().map(|(.., body)| body.len()).sum();
            if !read.iter().any(is_main) || bytes > cap {
                return None;
            }
            Err((main, read))
        }
        _ => return None,
    };
    Some(Load {
        entrypoint: optional("entrypoint")?.unwrap_or_else(|| "default".to_owned()),
        method: optional("method")?,
        args: passed(get("args"), "[]", '[')?,
        props: passed(get("props"), "{}", '{')?,
        env: passed(get("env"), "{}", '{')?,
        code,
    })
}

/// The meaning that the daemon gives a body: the values in its frames, read as a worker reads them.
fn read(body: &[u8]) -> Result<Load, String> {
    let (run, frames) = seams::load_body(body)?;
    let (mut args, mut props, mut env, mut code) = (String::new(), String::new(), String::new(), None);
    for frame in frames {
        match enisle_wire::read_frame(&mut frame.as_slice(), MAX_TO_TENANT_BYTES) {
            Ok(ToTenant::Input(input)) => (args, props) = (input.args, input.props),
            Ok(ToTenant::Env(given)) => env = given.json,
            Ok(ToTenant::Code(CodeOf::Short(source))) => code = Some(Ok(source)),
            Ok(ToTenant::Code(CodeOf::Modules { main, modules })) => {
                let modules = modules.into_iter().map(|module| (module.name, module.kind, module.body)).collect();
                code = Some(Err((main, modules)));
            }
            other => return Err(format!("the daemon made a frame that a worker reads as {other:?}")),
        }
    }
    let code = code.ok_or("the daemon made no frame for the code")?;
    Ok(Load { entrypoint: run.entrypoint, method: run.method, args, props, env, code })
}

pub(in crate::parsers) fn load_body(u: &mut Unstructured<'_>) -> Result<(), String> {
    let body = match u.below(3) {
        0 => u.rest().to_vec(),
        1 => load(u).into_bytes(),
        _ => damaged(load(u).into_bytes(), u),
    };
    let (found, expected) = (read(&body), naive(&body));
    let shown = String::from_utf8_lossy(&body).into_owned();
    match (found, expected) {
        (Ok(found), Some(expected)) => same(&shown, &found, &expected),
        (Ok(found), None) => Err(format!("{shown}\nmust be refused, and was read as {found:?}")),
        (Err(problem), None) => {
            let problem: Value = serde_json::from_str(&problem).map_err(|_| problem.clone())?;
            let said =
                (problem["status"].as_u64(), problem["detail"].as_str().is_some_and(|detail| !detail.is_empty()));
            ensure(matches!(said, (Some(400 | 413), true)), || format!("{shown}\nis refused as {problem}"))
        }
        (Err(problem), Some(expected)) => Err(format!("{shown}\nmeans {expected:?}, and was refused: {problem}")),
    }
}

const FIELDS: [&str; 14] = [
    "code",
    "mainModule",
    "modules",
    "env",
    "entrypoint",
    "method",
    "args",
    "props",
    "limits",
    "globalOutbound",
    "c\\u006fde",
    "\\ud800",
    "codes",
    "",
];
const MODULES: [&str; 8] = ["main.js", "a.mjs", "d.json", "t.txt", "b", "x.wasm", "m\\u0061in.js", "n\\u0000.js"];
const TYPED: [&str; 6] = ["js", "json", "text", "data", "j\\u0073", "wasm"];

/// The body of a load, most often nearly valid.
pub(super) fn load(u: &mut Unstructured<'_>) -> String {
    let mut entries = Vec::new();
    if u.flag() {
        entries.push(format!("\"code\":{}", written(u)));
    } else {
        entries.push(format!("\"mainModule\":\"main.js\",\"modules\":{}", modules(u)));
    }
    for _ in 0..u.below(4) {
        let name = *u.pick(&FIELDS);
        let value = match name {
            "modules" => modules(u),
            "args" if !u.rarely(4) => format!("[{}]", json_value(u, 3)),
            "env" | "props" if !u.rarely(4) => object(u, 2),
            "limits" => limits(u),
            "entrypoint" | "method" => written(u),
            _ => json_value(u, 2),
        };
        entries.push(format!("{}\"{name}\"{}:{value}", blank(u), blank(u)));
    }
    if u.rarely(4) {
        let at = u.below(entries.len());
        entries.rotate_left(at);
    }
    format!("{{{}}}", entries.join(","))
}

fn modules(u: &mut Unstructured<'_>) -> String {
    let mut entries = vec![format!("\"main.js\":{}", written(u))];
    for _ in 0..u.below(3) {
        let name = *u.pick(&MODULES);
        let value = match u.below(4) {
            0 => written(u),
            1 => format!("{{\"data\":\"{}\"}}", base64::engine::general_purpose::STANDARD.encode(u.take(9))),
            2 => json_value(u, 1),
            _ => format!("{{\"{}\":{}}}", u.pick(&TYPED), if u.flag() { written(u) } else { json_value(u, 1) }),
        };
        entries.push(format!("\"{name}\":{value}"));
    }
    format!("{{{}}}", entries.join(","))
}

fn limits(u: &mut Unstructured<'_>) -> String {
    let entries: Vec<_> = (0..u.below(4))
        .map(|_| {
            let name = if u.rarely(8) { "cpu" } else { u.pick(&Limit::ALL).name() };
            let value = if u.rarely(4) { json_value(u, 0) } else { u.number().to_string() };
            format!("\"{name}\":{value}")
        })
        .collect();
    format!("{{{}}}", entries.join(","))
}

fn blank(u: &mut Unstructured<'_>) -> &'static str {
    ["", "", "", " ", "\n", "\t", "\r\n  "][u.below(7)]
}

/// A JSON string in one of its spellings, sometimes with unpaired surrogates or not valid at all.
pub(super) fn written(u: &mut Unstructured<'_>) -> String {
    let text = u.text(4);
    let plain = serde_json::to_string(&text).unwrap_or_default();
    match u.below(4) {
        0 => {
            let escaped =
                |c: char| c.encode_utf16(&mut [0; 2]).iter().map(|unit| format!("\\u{unit:04X}")).collect::<String>();
            format!("\"{}\"", text.chars().map(escaped).collect::<String>())
        }
        // Without escaping, so text that looks like a JSON escape becomes one.
        1 => format!("\"{text}\""),
        _ => plain,
    }
}

pub(super) fn json_value(u: &mut Unstructured<'_>, depth: usize) -> String {
    match u.below(if depth == 0 { 5 } else { 7 }) {
        0 => ["null", "true", "false", "nul", "NaN"][u.below(5)].to_owned(),
        1 => u.number().to_string(),
        2 => ["-0", "1.5e3", "1e999", "-1", "01", "1.", ".5", "1e", "0.1"][u.below(9)].to_owned(),
        3 => written(u),
        4 => "[".repeat(u.below(200)),
        5 => {
            let items: Vec<_> = (0..u.below(4)).map(|_| json_value(u, depth - 1)).collect();
            format!("[{}]", items.join(","))
        }
        _ => object(u, depth),
    }
}

fn object(u: &mut Unstructured<'_>, depth: usize) -> String {
    let entries: Vec<_> =
        (0..u.below(3)).map(|_| format!("{}:{}", written(u), json_value(u, depth.saturating_sub(1)))).collect();
    format!("{{{}}}", entries.join(","))
}

/// The target `json-text`: one string, and then one object.
pub(in crate::parsers) fn json_text(u: &mut Unstructured<'_>) -> Result<(), String> {
    let text = if u.flag() { written(u) } else { String::from_utf8_lossy(u.take(200)).into_owned() };
    if let Ok(raw) = serde_json::from_str::<&RawValue>(&text) {
        let expected = serde_json::from_str::<String>(raw.get()).ok().map(|text| (text.len(), text));
        let found = seams::json_text(raw).ok().map(|(text, len)| (len, text));
        same(&text, &found, &expected)?;
    }
    let text = match u.below(3) {
        0 => u.rest().to_vec(),
        1 => object(u, 2).into_bytes(),
        _ => {
            let fields = ["\"a\"", "\"b\"", "\"code\"", "\"\\u0061\"", "\"A\"", "\"\\ud800\"", "1"];
            let entries: Vec<_> =
                (0..u.below(4)).map(|_| format!("{}{}:{}", blank(u), u.pick(&fields), json_value(u, 2))).collect();
            damaged(format!("{{{}}}{}", entries.join(","), blank(u)).into_bytes(), u)
        }
    };
    let names = ["a", "b", "code"];
    let found = seams::json_fields(&text, names).ok().map(|values| values.map(|value| value.map(str::to_owned)));
    let expected = str::from_utf8(&text).ok().and_then(|text| only(text, &names));
    let expected = expected.map(|found| names.map(|name| found.get(name).map(|value| value.get().to_owned())));
    same(&String::from_utf8_lossy(&text), &found, &expected)
}

/// The target `answer`: the answer to a run, made from its worker's report.
pub(in crate::parsers) fn answer(u: &mut Unstructured<'_>) -> Result<(), String> {
    let mut done = wire::done(u);
    if u.flag() {
        done.result = Some(if u.rarely(4) { format!("[{}]", "1,".repeat(20_000) + "2") } else { json_value(u, 3) });
    }
    let lines = (0..u.below(4)).map(|_| enisle_wire::tenant::LogLine {
        t_ms: u.small(),
        level: enisle_wire::tenant::Level::Warn,
        text: if u.rarely(16) { u.text(3).repeat(9000) } else { u.text(3) },
    });
    let (lines, operates, queued_us): (Vec<_>, _, _) = (lines.collect(), u.flag(), u.number());
    let is_json = done.result.as_ref().is_none_or(|text| serde_json::from_str::<&RawValue>(text).is_ok());
    let pieces = seams::answer(done.clone(), lines.clone(), queued_us, operates);
    same("a result that is JSON", &pieces.is_some(), &is_json)?;
    let Some(pieces) = pieces else { return Ok(()) };
    ensure(pieces.iter().all(|piece| piece.len() < 256 << 10), || "a piece is too long".to_owned())?;
    let bytes = pieces.concat();
    let Pairs(found) =
        serde_json::from_slice(&bytes).map_err(|error| format!("{error}: {}", String::from_utf8_lossy(&bytes)))?;
    let get = |name: &str| found.iter().find(|(known, _)| known == name).map(|(_, value)| value.get().to_owned());
    // The result is passed on as it is written, however deeply it is nested.
    same("the result", &get("result").as_deref(), &done.result.as_deref().map(str::trim_ascii))?;
    let parsed = |name: &str| get(name).map(|text| serde_json::from_str::<Value>(&text).unwrap_or_default());
    same("the outcome", &parsed("outcome"), &Some(json!(done.outcome.as_str())))?;
    let error = done.error.as_ref().map(|error| {
        let mut shown = json!({ "name": error.name, "message": error.message });
        if let Some(stack) = &error.stack {
            shown["stack"] = json!(stack);
        }
        shown
    });
    same("the error", &parsed("error"), &error)?;
    let logs: Vec<_> =
        lines.iter().map(|line| json!({ "tMs": line.t_ms, "level": "warn", "text": line.text })).collect();
    same("the log", &parsed("logs"), &Some(Value::Array(logs)))?;
    let usage = parsed("usage").unwrap_or_default();
    let cpu_us = done.usage.cpu_us;
    #[expect(clippy::cast_precision_loss, reason = "the figure is shown as a number of JSON")]
    let expected = if operates { json!(cpu_us as f64 / 1000.0) } else { json!(cpu_us / 1000) };
    same("the time", &usage["cpuMs"], &expected)?;
    same("truncated", &parsed("truncated"), &Some(json!(done.truncated)))
}
