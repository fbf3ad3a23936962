//! Storms: a victim allocates, resizes and frees memory without pause. Meanwhile an attacker
//! attacks that memory, and the oracle inspects its keys.

use serde_json::{Value, json};

use crate::Bench;
use enisle_tests::rig::Ran;

/// Allocates and frees memory of every kind once, and prints the addresses of some objects that it
/// keeps. Then it allocates and frees more, for `s.stay` milliseconds.
const STORM: &str = "async (s) => {
    const storm = () => {
        const kept = [];
        for (let i = 0; i < 6; i++) {
            const r = new ArrayBuffer(4096, { maxByteLength: 4 << 20 });
            r.resize(4 << 20); r.resize(0); r.resize(1 << 16);
            kept.push(r.transfer(1 << 17), new ArrayBuffer(i << 16), new ArrayBuffer(300000).transferToFixedLength(100));
            structuredClone(new ArrayBuffer(4096));
            kept.push('x'.repeat(50000 + i) + s.round, Array.from({ length: 3000 }, (_, k) => ({ k })));
            if (i % 2) kept.splice(0, 3);
        }
        for (let i = 0; i < 20; i++) new Array(20000).fill({ i });
        return kept;
    };
    const kept = storm(), secret = new Uint8Array(4096).fill(0x43), string = 'secret' + s.round;
    globalThis.kept = [kept, secret, string];
    const first = kept.find((k) => k instanceof ArrayBuffer && k.byteLength > 0);
    console.log(JSON.stringify([attack.address(secret.buffer), attack.address(string), attack.address(first), attack.address(kept)].map(String)));
    for (const begun = Date.now(); ;) {
        await new Promise((resolve) => setTimeout(resolve, 0));
        if (Date.now() - begun >= s.stay) return;
        storm();
    }
}";

/// Tries a load and a store at every address. Returns how many accesses the victim's key stopped,
/// how many found no mapping, and a list of those that succeeded or that another key stopped.
const ATTACK: &str = "(s) => {
    let trapped = 0, gone = 0; const through = [];
    for (const text of s.at) {
        const at = BigInt(text);
        for (const [what, key] of [['load', attack.probe(at)], ['store', attack.probeWrite(at)]]) {
            if (key === s.key) trapped++; else if (key === 0) gone++; else through.push(what + ' ' + text + ' ' + key);
        }
    }
    return [trapped, gone, through];
}";

/// In each round the victim runs [`STORM`] in a new isolate, and the attacker tries the addresses
/// that the victim printed. In every tenth round the attacker also tries some pages of each mapping
/// in use on the victim's island, and the oracle inspects all mappings.
pub(crate) fn trapped(bench: &Bench, rounds: usize) -> Result<String, String> {
    let text = |error: std::io::Error| error.to_string();
    let mut rig = bench.scene(bench.layers).map_err(text)?.0;
    let tags = rig.tags.clone().ok_or("no keys")?;
    let (mut trapped, mut gone, mut looks, mut mappings) = (0, 0, 0, 0);
    let mut pages = Vec::new();
    for round in 0..rounds {
        rig.send(2, STORM, &json!({ "round": round, "stay": 4 })).map_err(text)?;
        let named = rig.next_line(2).ok_or_else(|| format!("round {round}: the victim said nothing"))?;
        if round % 10 == 0 {
            pages = rig.targets(2).map_err(text)?;
            let seen = enisle_hardening::islands::tags::inspect_running(nix::unistd::Pid::from_raw(rig.pid()), &tags)
                .map_err(text)?;
            if let Some(wrong) = seen.mistagged.first() {
                return Err(format!("round {round}: {wrong}"));
            }
            (looks, mappings) = (looks + 1, mappings.max(seen.mappings));
        }
        let mut at: Vec<Value> = named.as_array().cloned().unwrap_or_default();
        // The victim may free these pages before the attack. Then an access finds no page, and so
        // no key either.
        if round % 10 == 0 {
            at.extend(pages.iter().map(|page| json!(page.to_string())));
        }
        match rig.run(0, ATTACK, &json!({ "at": at, "key": tags.keys[2] })) {
            Ran::Returned(answer) if answer[2] == json!([]) => {
                trapped += answer[0].as_u64().unwrap_or(0);
                gone += answer[1].as_u64().unwrap_or(0);
            }
            other => return Err(format!("round {round}: {other:?}")),
        }
        match rig.end_of_run(2) {
            Ran::Returned(_) => {}
            other => return Err(format!("round {round}: the victim came to {other:?}")),
        }
    }
    // A round has eight accesses or more. If fewer than four of them reached a page, the rounds
    // would prove nothing.
    if trapped < 4 * rounds as u64 {
        return Err(format!("only {trapped} loads and stores met a page of the victim, {gone} met none"));
    }
    Ok(format!(
        "{rounds} rounds: {trapped} loads and stores trapped, {gone} found no mapping any more, none went through; \
         the oracle inspected up to {mappings} mappings {looks} times"
    ))
}

pub(crate) fn control(bench: &Bench) -> Result<String, String> {
    let text = |error: std::io::Error| error.to_string();
    let mut rig = bench.scene(bench.layers.without(enisle_hardening::Layer::Keys)).map_err(text)?.0;
    rig.send(2, STORM, &json!({ "round": 0, "stay": 2000 })).map_err(text)?;
    let named = rig.next_line(2).ok_or("the victim said nothing")?;
    match rig.run(0, ATTACK, &json!({ "at": named, "key": 99 })) {
        Ran::Returned(answer) if answer[2].as_array().is_some_and(|through| through.len() == 8) => {
            Ok("8 of 8 loads and stores went through".to_owned())
        }
        other => Err(format!("{other:?}")),
    }
}

/// WebAssembly: `(memory (export "m") 1 4096)`,
/// `(func (export "f") (result i32) i32.const 0 i32.load)`.
const WEBASSEMBLY: &str = "(s) => {
    const code = new Uint8Array([0, 0x61, 0x73, 0x6d, 1, 0, 0, 0, 1, 5, 1, 0x60, 0, 1, 0x7f, 3, 2, 1, 0, 5, 5, 1, 1, 1, 0x80, 0x20,
        7, 9, 2, 1, 0x6d, 2, 0, 1, 0x66, 0, 0, 10, 9, 1, 7, 0, 0x41, 0, 0x28, 2, 0, 0x0b]);
    const grown = [];
    for (let i = 0; i < 5; i++) {
        const { m, f } = new WebAssembly.Instance(new WebAssembly.Module(code)).exports;
        m.grow(10 + i);
        new Uint8Array(m.buffer)[0] = 42;
        grown.push(m, f());
        const standing = new WebAssembly.Memory({ initial: 1, maximum: 100 });
        standing.grow(20);
        grown.push(standing);
    }
    globalThis.kept = grown;
    console.log(JSON.stringify(grown.filter((g) => g.buffer).map((g) => String(attack.address(g.buffer)))));
    return new Promise((resolve) => setTimeout(() => resolve(grown[1]), s.stay));
}";

/// Tenants have no WebAssembly, and the thread's filter refuses to make memory executable. So this
/// row uses the harness's worker without that filter. The row shows that the memories and the code
/// of WebAssembly would carry the right keys.
pub(crate) fn webassembly(bench: &Bench) -> Result<String, String> {
    let text = |error: std::io::Error| error.to_string();
    let layers = bench.layers.without(enisle_hardening::Layer::ThreadFilter);
    let mut rig = bench.scene(layers).map_err(text)?.0;
    let tags = rig.tags.clone().ok_or("no keys")?;
    rig.send(2, WEBASSEMBLY, &json!({ "stay": 500 })).map_err(text)?;
    let Some(named) = rig.next_line(2) else { return Err(format!("the run ended as {:?}", rig.end_of_run(2))) };
    let seen =
        enisle_hardening::islands::tags::inspect_running(nix::unistd::Pid::from_raw(rig.pid()), &tags).map_err(text)?;
    if let Some(wrong) = seen.mistagged.first() {
        return Err(wrong.to_string());
    }
    let memories = named.as_array().map_or(0, Vec::len);
    match rig.run(0, ATTACK, &json!({ "at": named, "key": tags.keys[2] })) {
        Ran::Returned(answer) if answer == json!([20, 0, []]) && memories == 10 => {}
        other => return Err(format!("{memories} memories: {other:?}")),
    }
    match rig.end_of_run(2) {
        Ran::Returned(value) if value == json!(42) => Ok(format!("{memories} memories, {} mappings", seen.mappings)),
        other => Err(format!("{other:?}")),
    }
}
