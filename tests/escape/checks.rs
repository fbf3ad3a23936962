//! Rows of the catalogue that are checks: they examine a worker from outside, through the kernel,
//! or read its program or its policies.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::FileExt;

use enisle_hardening::filter;
use enisle_hardening::islands::keys::pkru::Pkru;
use serde_json::json;

use crate::Bench;
use enisle_tests::rig::{Ran, Rig};

/// How a row is checked. An error holds the text of the finding.
#[derive(Debug)]
pub(crate) enum Check {
    Look(fn(&Bench) -> Result<String, String>),
    /// The row cannot be exercised here, for this reason.
    NotHere(&'static str),
    /// The named part of the tests covers the row.
    NamesAnother(&'static str),
    /// The risk remains, for this reason; the function measures it.
    Residual(&'static str, fn(&Bench) -> Result<String, String>),
}

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}

/// A worker with an attacker, a victim that has planted its secrets, and a bystander.
fn scene(bench: &Bench) -> Result<(Rig, serde_json::Value), String> {
    bench.scene(bench.layers).map_err(text)
}

/// M04: finds every copy of the victim's secret in the process. A neighbour may be able to read
/// only the copies on the victim's stack.
pub(crate) fn readable_is_documented(bench: &Bench) -> Result<String, String> {
    if !nix::unistd::geteuid().is_root() {
        return Ok("only root can read a worker's memory: not examined".to_owned());
    }
    let (rig, scene) = scene(bench)?;
    let canary = hex(scene["canary"].as_str().unwrap_or_default());
    let tags = rig.tags.clone().ok_or("no keys")?;
    let mut places: BTreeMap<&str, usize> = BTreeMap::new();
    for (address, key) in rig.find(&canary).map_err(text)? {
        let island = rig.zone.islands().position(|island| island.range().contains(&address));
        // SECURITY.md lists the memory that a neighbour can read and that may hold a secret for a
        // while: the stack, and V8's own allocations. By now V8's allocations must hold none.
        let place = match (island, key) {
            (Some(1), key) if key == tags.keys[1] => "closed to neighbours",
            (Some(1), 0) if rig.zone.island(1).is_some_and(|island| island.stack().contains(&address)) => "the stack",
            _ => {
                return Err(format!(
                    "a secret of the victim is at {address:#x} with key {key}, which no document lists"
                ));
            }
        };
        *places.entry(place).or_default() += 1;
    }
    if places.contains_key("closed to neighbours") {
        Ok(format!("copies of one secret: {places:?}"))
    } else {
        Err(format!("the secret was not found at all, so nothing was examined: {places:?}"))
    }
}

/// M07: the PKRU of every thread, read by `ptrace` from its extended state.
pub(crate) fn keys_of_every_thread(bench: &Bench) -> Result<String, String> {
    let (rig, _) = scene(bench)?;
    let tags = rig.tags.clone().ok_or("no keys")?;
    let mut seen = Vec::new();
    for thread in fs::read_dir(format!("/proc/{}/task", rig.pid())).map_err(text)? {
        let path = thread.map_err(text)?.path();
        let name = fs::read_to_string(path.join("comm")).map_err(text)?.trim().to_owned();
        let id = path.file_name().and_then(|id| id.to_str()?.parse().ok()).ok_or("no thread id")?;
        let pkru = Pkru::of_thread(id).map_err(text)?.bits();
        let readable: Vec<_> = (1..16).filter(|key| pkru >> (2 * key) & 1 == 0).collect();
        let mut allowed = vec![tags.jit];
        if let Some(slot) = name.strip_prefix("tenant-").and_then(|slot| slot.parse::<usize>().ok()) {
            allowed.push(tags.keys[slot]);
        }
        allowed.sort_unstable();
        if readable != allowed {
            return Err(format!("thread {name} can read keys {readable:?}, expected {allowed:?}"));
        }
        seen.push(name);
    }
    if seen.len() < 4 { Err(format!("only threads {seen:?} were seen")) } else { Ok(format!("{} threads", seen.len())) }
}

/// M09: counts the instructions in the program that can write PKRU, WRPKRU and XRSTOR, at every
/// byte offset. Only the number of WRPKRU is bounded; the number of XRSTOR is reported.
pub(crate) fn instructions_that_write_pkru(bench: &Bench) -> Result<String, String> {
    /// One copy is in the gate. The others are in V8, which opens its JIT key. Counted in a debug
    /// build with the pinned archive.
    const WRPKRU_KNOWN: usize = 12;
    let mut program = Vec::new();
    File::open(&bench.production_worker).and_then(|mut file| file.read_to_end(&mut program)).map_err(text)?;
    let executable = executable_parts(&program).ok_or("the worker is not a readable ELF file")?;
    let count = |needle: &dyn Fn(&[u8]) -> bool| {
        executable.iter().map(|part| part.windows(4).filter(|window| needle(window)).count()).sum::<usize>()
    };
    let wrpkru = count(&|window| window[..3] == [0x0f, 0x01, 0xef]);
    // XRSTOR is opcode 0F AE /5 with a memory operand, with or without REX.W in front.
    let xrstor = count(&|window| window[..2] == [0x0f, 0xae] && window[2] >> 3 & 7 == 5 && window[2] < 0xc0);
    let found = format!("WRPKRU {wrpkru} times, XRSTOR {xrstor} times");
    if (1..=WRPKRU_KNOWN).contains(&wrpkru) { Ok(found) } else { Err(format!("{found}; {WRPKRU_KNOWN} are known")) }
}

/// The parts of an ELF file that the kernel maps executable.
fn executable_parts(program: &[u8]) -> Option<Vec<&[u8]>> {
    let word = |at: usize| usize::try_from(u64::from_le_bytes(program.get(at..at + 8)?.try_into().ok()?)).ok();
    let half = |at: usize| Some(usize::from(u16::from_le_bytes(program.get(at..at + 2)?.try_into().ok()?)));
    let (headers, size, count) = (word(32)?, half(54)?, half(56)?);
    let mut parts = Vec::new();
    for header in (0..count).map(|index| headers + index * size) {
        let (kind, flags) = (program.get(header)?, program.get(header + 4)?);
        if *kind == 1 && flags & 1 != 0 {
            let (offset, bytes) = (word(header + 8)?, word(header + 32)?);
            parts.push(program.get(offset..offset + bytes)?);
        }
    }
    Some(parts)
}

/// M10: a script makes V8 compile constants that contain WRPKRU. Counts the copies in compiled
/// code, through `/proc/PID/mem`.
pub(crate) fn sprayed_constants(bench: &Bench) -> Result<String, String> {
    let (mut rig, _) = scene(bench)?;
    let spray = "() => { const spray = (x) => { let y = x; for (let i = 0; i < 100; i++) y = (y ^ 0x10ef010f) + 0x3cef010f | 0; return y };
        let sum = 0; for (let i = 0; i < 200000; i++) sum = sum + spray(i) | 0; console.log('1'); return new Promise((r) => setTimeout(r, 60000)) }";
    rig.send(0, spray, &json!(null)).map_err(text)?;
    rig.next_line(0).ok_or("the script printed nothing")?;
    let memory = File::open(format!("/proc/{}/mem", rig.pid())).map_err(text)?;
    let (mut found, tags) = (0, rig.tags.clone().ok_or("no keys")?);
    let island = rig.zone.island(0).ok_or("no island")?;
    for mapping in rig.mappings().map_err(text)? {
        if mapping.key == tags.jit && island.window().contains(&mapping.pages.start) {
            let mut bytes = vec![0; mapping.pages.len().min(64 << 20)];
            let read = memory.read_at(&mut bytes, mapping.pages.start as u64).unwrap_or(0);
            found += bytes[..read].windows(3).filter(|window| *window == [0x0f, 0x01, 0xef]).count();
        }
    }
    Ok(format!("{found} copies of WRPKRU in compiled code"))
}

/// M33: no call of a script changes its thread's PKRU.
pub(crate) fn keys_hold_whatever_is_called(bench: &Bench) -> Result<String, String> {
    let (mut rig, _) = scene(bench)?;
    let script = "async () => {
        const before = attack.pkru(), wrong = [], calls = [
            () => console.log('x'), () => structuredClone({ a: [new Date(), new Map([[1, 2]])] }), () => btoa('x'),
            () => { throw new Error('x') }, () => console.log({ get a() { throw 1 } }), () => setTimeout(() => {}, 0),
            () => queueMicrotask(() => {}), () => new TextEncoder().encode('x'), () => new TextDecoder().decode(new Uint8Array(3)),
            () => structuredClone(() => {}), () => setTimeout('x'), () => console.log(Symbol('x')), () => import('nowhere'),
            () => crypto.getRandomValues(new Uint8Array(8)), () => crypto.randomUUID(), () => new ArrayBuffer(1e12), () => 'x'.repeat(2 ** 30),
            () => JSON.parse('{'), () => new Function('1'), () => [].reduce(), () => (function f() { f() })(),
            () => new ArrayBuffer(8, { maxByteLength: 1 << 20 }).resize(1 << 19),
        ];
        for (let round = 0; round < 50; round++) for (const call of calls) {
            try { const got = call(); if (got instanceof Promise) await got.catch(() => {}); } catch {}
            if (attack.pkru() !== before) wrong.push(String(call));
            if (round % 10 === 0) { await new Promise((r) => setTimeout(r, 0)); if (attack.pkru() !== before) wrong.push('a timer'); }
        }
        return wrong }";
    match rig.run(0, script, &json!(null)) {
        Ran::Returned(wrong) if wrong == json!([]) => Ok("1,100 calls".to_owned()),
        other => Err(format!("{other:?}")),
    }
}

/// M35: a worker that crashes leaves no core dump.
pub(crate) fn no_dump(bench: &Bench) -> Result<String, String> {
    let (mut rig, _) = scene(bench)?;
    let limits = fs::read_to_string(format!("/proc/{}/limits", rig.pid())).map_err(text)?;
    let core = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap_or_default().to_owned();
    // With a limit of 1 byte the kernel does not pipe a dump to a program either. The limit is 0 if
    // the tests were started with 0, because raising it takes a privilege.
    let bound: Vec<_> = core.split_whitespace().skip(4).take(2).collect();
    if !matches!(bound.as_slice(), ["1", "1"] | ["0", "0"]) {
        return Err(core);
    }
    let _ = rig.run(0, "() => attack.syscall32(20n)", &json!(null));
    match rig.end().status {
        Some(nix::sys::wait::WaitStatus::Signaled(_, signal, false)) => Ok(format!("ended by {signal}, not dumped")),
        other => Err(format!("{other:?}")),
    }
}

/// F05: every thread runs under as many filter programs as it should.
pub(crate) fn filters_of_every_thread(bench: &Bench) -> Result<String, String> {
    let (rig, _) = scene(bench)?;
    let confined = enisle_hardening::verify::confined_threads(nix::unistd::Pid::from_raw(rig.pid()), bench.layers)
        .map_err(text)?;
    let mut others = 0;
    for thread in fs::read_dir(format!("/proc/{}/task", rig.pid())).map_err(text)? {
        let status = fs::read_to_string(thread.map_err(text)?.path().join("status")).map_err(text)?;
        if !status.contains("Seccomp:\t2") {
            return Err(format!("a thread runs without a filter:\n{status}"));
        }
        others += usize::from(status.contains(&format!("Seccomp_filters:\t{}\n", filter::FILTERS)));
    }
    if (confined, others) == (3, 2) {
        Ok(format!(
            "3 tenants under {} programs, 2 threads of the worker's under {}",
            filter::FILTERS + filter::THREAD_FILTERS,
            filter::FILTERS
        ))
    } else {
        Err(format!("{confined} tenants' threads and {others} others"))
    }
}

pub(crate) const POLICIES: [&str; 3] = [
    include_str!("../../hardening/policy/worker.json"),
    include_str!("../../hardening/policy/tenant.json"),
    include_str!("../../hardening/policy/sealed.json"),
];

/// F11: the policies use no action but these: allow, trap, return an error.
pub(crate) fn no_user_notification(_: &Bench) -> Result<String, String> {
    for policy in POLICIES {
        let policy: serde_json::Value = serde_json::from_str(policy).map_err(text)?;
        for (name, program) in policy.as_object().ok_or("a policy is an object")? {
            for action in ["mismatch_action", "match_action"] {
                let known = [json!("allow"), json!("trap"), json!({ "errno": 38 })];
                if !known.contains(&program[action]) {
                    return Err(format!("{name}.{action} is {}", program[action]));
                }
            }
        }
    }
    Ok("allow, trap, errno".to_owned())
}

/// N03: the worker's table of descriptors has the expected ones and no other.
pub(crate) fn descriptors(bench: &Bench) -> Result<String, String> {
    let (rig, _) = scene(bench)?;
    let mut found = Vec::new();
    for entry in fs::read_dir(format!("/proc/{}/fd", rig.pid())).map_err(text)? {
        let path = entry.map_err(text)?.path();
        let target = fs::read_link(&path).map_err(text)?.to_string_lossy().into_owned();
        found.push(target.split(':').next().unwrap_or_default().to_owned());
    }
    found.sort();
    // The expected descriptors are 0 to 2, the control channel, and three tenants' channels. For
    // standard error the harness gives /dev/null where the supervisor gives a pipe.
    let expected = ["/dev/null", "/dev/null", "/dev/null", "socket", "socket", "socket", "socket"];
    if found == expected { Ok(format!("{} descriptors", found.len())) } else { Err(format!("{found:?}")) }
}

/// N09: the worker's environment and arguments, as `/proc` shows them.
pub(crate) fn environment(bench: &Bench) -> Result<String, String> {
    let (rig, _) = scene(bench)?;
    let read = |file: &str| fs::read(format!("/proc/{}/{file}", rig.pid())).map_err(text);
    let (environ, arguments) = (read("environ")?, read("cmdline")?);
    if environ.is_empty() && arguments == b"enisle-worker\0" {
        Ok("no environment, one argument".to_owned())
    } else {
        Err(format!("{} bytes of environment, arguments {}", environ.len(), String::from_utf8_lossy(&arguments)))
    }
}

/// N12: counts the system calls that a tenant's thread can make.
pub(crate) fn number_of_calls(_: &Bench) -> Result<String, String> {
    /// For comparison: Firecracker's threads have 27 to 50.
    const MOST: usize = 35;
    let policy: serde_json::Value = serde_json::from_str(POLICIES[1]).map_err(text)?;
    let rules = policy["tenant"]["filter"].as_array().ok_or("a policy has rules")?;
    let calls: std::collections::BTreeSet<_> = rules.iter().filter_map(|rule| rule["syscall"].as_str()).collect();
    if (1..=MOST).contains(&calls.len()) {
        Ok(format!("{} calls", calls.len()))
    } else {
        Err(format!("{} calls", calls.len()))
    }
}

fn hex(digits: &str) -> Vec<u8> {
    (0..digits.len() / 2).filter_map(|at| u8::from_str_radix(digits.get(2 * at..2 * at + 2)?, 16).ok()).collect()
}
