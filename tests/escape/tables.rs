//! What an isolate leaves in the pointer tables that the tenant's next isolate takes over
//! (`v8/patches/02-pointer-tables-kept.patch`).
//!
//! Handles of objects are indices into such a table, and lie in the cage. An attacker that can
//! corrupt the cage points a handle at a segment of the table that the isolate does not use, and V8
//! writes there. The next isolate must find no trace of that.
//!
//! ```text
//! run     1        2        3
//! table   A        B        A      the next isolate is made before the last one is disposed of
//!         dirty    -        look
//! ```
//!
//! Clearing is part of V8's archive and cannot be switched off. The control is a worker whose
//! program has a return instruction at the start of the clearing function. In that worker the next
//! isolate must find what was left.

use std::fs::{self, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use serde_json::{Value, json};
use tempfile::TempPath;

use crate::Bench;
use enisle_tests::rig::{Ran, Rig, Workshop};

/// The beginning of every script. It searches the isolate for its table of external pointers. An
/// address is the table's if the base stored there and a buffer's handle lead to an extension whose
/// first word, the owner, is that address. `pooled` are the segments that wait to be used. The
/// layouts are those of V8 15.2: `JSArrayBuffer::extension_`, `kExternalPointerIndexShift`,
/// `ManagedResource`, `SegmentedTable`.
const PRELUDE: &str = "(s) => {
    const number = (digits) => { let n = 0n; for (let i = digits.length - 2; i >= 0; i -= 2) n = n << 8n | BigInt('0x' + digits.slice(i, i + 2)); return n; };
    const word = (at) => number(attack.read(at, 8n)), half = (at) => number(attack.read(at, 4n));
    const write = (at, value, bytes) => { for (let i = 0n; i < bytes; i++) attack.write(at + i, value >> 8n * i & 0xffn); };
    const readable = (at) => at > 0xffffn && at < 1n << 47n && (at & 7n) === 0n && attack.probe(at) === -1;
    const buffer = new ArrayBuffer(64), handle = () => attack.object(buffer) + 44n, index = half(handle()) >> 6n;
    const owns = (at) => {
        const base = word(at), entry = base + 8n * index;
        if ((base & 0x3fffn) !== 0n || !readable(entry)) return false;
        const extension = word(entry) & 0xffffffffffffn;
        return readable(extension) && word(extension) === at;
    };
    const isolate = attack.self()[2], tables = [];
    for (let at = isolate; at < isolate + 16384n; at += 8n) if (owns(at)) tables.push(at);
    if (tables.length !== 1) return 'found ' + tables.length + ' tables';
    const base = word(tables[0]);
    const pooled = [24n, 28n, 32n, 36n].map((slot) => half(tables[0] + slot)).filter((offset) => offset !== 0xffffffffn);
    const used = () => pooled.filter((offset) => !/^0*$/.test(attack.read(base + BigInt(offset), 16384n))).length;
";

/// Points the buffer's handle at an entry of a waiting segment, and allocates until a garbage
/// collection has written there. Into the next entry it writes a copy of an entry in use, that is,
/// of a pointer that dies with this isolate.
const DIRTY: &str = "
    if (pooled.length === 0 || used() !== 0) return pooled.length + ' segments wait, ' + used() + ' are not empty';
    // Segments are taken from the front, so this one waits longest; any of its entries will do.
    const entry = base + pooled.at(-1) + 8n * 77n, inUse = word(base + 8n * index);
    globalThis.kept = buffer;
    write(handle(), (entry - base) / 8n << 6n, 4n);
    for (let i = 0, heap = []; word(entry) === 0n; i++) {
        if (i === 300) return 'V8 did not write there: ' + [half(handle()), entry - base];
        heap[i % 50] = Array.from({ length: 1000 }, (_, n) => ({ n }));
    }
    write(entry + 8n, inUse, 8n);
    return { base: String(base), entry: String(entry), left: [word(entry), word(entry + 8n)].map(String) };
}";

/// Reads the entries that the last isolate with this table wrote, and counts the waiting segments
/// that are not empty.
const LOOK: &str = "
    const entry = BigInt(s.entry), segment = entry - base & ~0x3fffn;
    return { base: String(base), waits: pooled.includes(segment), used: used(), left: [word(entry), word(entry + 8n)].map(String) };
}";

/// An entry that a tenant's isolate wrote into a waiting segment of a table is gone when the next
/// isolate gets the table. Without the clearing, the entry is still there.
pub(crate) fn cleared(bench: &Bench) -> Result<String, String> {
    let (left, found) = attack(&bench.workshop, bench)?;
    if found != json!({ "base": left["base"], "waits": true, "used": 0, "left": ["0", "0"] }) {
        return Err(format!("an isolate left {left}, the next one found {found}"));
    }
    let program = without_clearing(&bench.attacker).map_err(text)?;
    let workshop = Workshop::open(&program, bench.layers).map_err(text)?;
    let (left, found) = attack(&workshop, bench)?;
    if found != json!({ "base": left["base"], "waits": true, "used": 1, "left": left["left"] }) {
        return Err(format!("without the clearing an isolate left {left}, and the next one found {found}"));
    }
    Ok("the next isolate finds zeroes; without the clearing it finds what was left".to_owned())
}

/// What a tenant's isolate left, and what its next isolate with the same table found.
fn attack(workshop: &Workshop, bench: &Bench) -> Result<(Value, Value), String> {
    let mut rig = workshop.start(bench.layers, 1).map_err(text)?;
    rig.admit().map_err(text)?;
    let left = run(&mut rig, DIRTY, &Value::Null)?;
    if !rig.answers(0) {
        return Err("the tenant does not answer".to_owned());
    }
    let found = run(&mut rig, LOOK, &left)?;
    Ok((left, found))
}

fn run(rig: &mut Rig, script: &str, argument: &Value) -> Result<Value, String> {
    match rig.run(0, &format!("{PRELUDE}{script}"), argument) {
        Ran::Returned(found) if found.is_object() => Ok(found),
        other => Err(format!("{other:?}")),
    }
}

fn text(error: io::Error) -> String {
    error.to_string()
}

/// The symbol of `SegmentedTable<ExternalPointerTableEntry>::ForEachPooledPage` as `LeaveToPool`
/// calls it to clear each page.
const CLEAR: &str = "_ZN2v88internal14SegmentedTableINS0_25ExternalPointerTableEntryELm536870912EE17ForEachPooledPageIZNS3_11LeaveToPoolEvEUlPcE_EEvT_";

/// A copy of a worker's program in which [`CLEAR`] does nothing.
fn without_clearing(program: &Path) -> io::Result<TempPath> {
    const RETURN: u8 = 0xc3;
    let mut bytes = fs::read(program)?;
    let begins = offset_of(&bytes, CLEAR).and_then(|offset| bytes.get_mut(offset));
    *begins.ok_or_else(|| io::Error::other(format!("{} has no function {CLEAR}", program.display())))? = RETURN;
    let mut copy = tempfile::NamedTempFile::new()?;
    copy.write_all(&bytes)?;
    // The worker's uid must be able to read and execute the copy.
    copy.as_file().set_permissions(Permissions::from_mode(0o755))?;
    // The copy is closed, because a file that is open for writing cannot be executed (execve(2),
    // ETXTBSY).
    Ok(copy.into_temp_path())
}

/// The offset of a function in an ELF file, according to the file's own symbol table.
fn offset_of(program: &[u8], name: &str) -> Option<usize> {
    const SYMBOL_TABLE: usize = 2;
    let number = |at: usize, bytes: usize| {
        let mut word = [0; 8];
        word.get_mut(..bytes)?.copy_from_slice(program.get(at..at + bytes)?);
        usize::try_from(u64::from_le_bytes(word)).ok()
    };
    let (headers, header_bytes, count) = (number(40, 8)?, number(58, 2)?, number(60, 2)?);
    let section = |index: usize| headers + index * header_bytes;
    let table = (0..count).map(section).find(|header| number(header + 4, 4) == Some(SYMBOL_TABLE))?;
    let (symbols, bytes) = (number(table + 24, 8)?, number(table + 32, 8)?);
    let names = number(section(number(table + 40, 4)?) + 24, 8)?;
    let wanted = format!("{name}\0");
    let is_wanted = |symbol: &usize| {
        let begins = number(*symbol, 4).map(|offset| names + offset);
        begins.and_then(|begins| program.get(begins..begins + wanted.len())) == Some(wanted.as_bytes())
    };
    let symbol = (symbols..symbols + bytes).step_by(24).find(is_wanted)?;
    let holder = section(number(symbol + 6, 2)?);
    // Converts the address in memory to an offset in the file.
    Some(number(symbol + 8, 8)? - number(holder + 16, 8)? + number(holder + 24, 8)?)
}
