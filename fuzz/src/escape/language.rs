//! The part of the grammar that is JavaScript: statements that need no native for attackers. They
//! attack the code of V8 and of the worker that these statements reach.

use fastrand::Rng;

use super::program::Op;

/// How deep values are nested at most.
const DEPTH: u8 = 3;

fn pick<'a>(rng: &mut Rng, from: &[&'a str]) -> &'a str {
    from.get(rng.usize(..from.len())).copied().unwrap_or_default()
}

/// A number as an index, a length or an operand.
fn number(rng: &mut Rng) -> String {
    match rng.u8(..10) {
        0 => pick(rng, &["NaN", "-0", "Infinity", "-Infinity", "2 ** 53", "2 ** 31", "2 ** 32 - 2", "-1", "0.5"])
            .to_owned(),
        1 => format!("2 ** {}", rng.u8(..40)),
        2 => format!("{}n", rng.i64(..)),
        3 => rng.u32(..).to_string(),
        _ => rng.u16(..5000).to_string(),
    }
}

/// A buffer, with any of the ways in which V8 allocates one.
fn buffer(rng: &mut Rng) -> String {
    let (n, most) = (rng.u32(..70_000), rng.u32(70_000..2_000_000));
    match rng.u8(..6) {
        0 => format!("new ArrayBuffer({n})"),
        1 | 2 => format!("new ArrayBuffer({n}, {{ maxByteLength: {most} }})"),
        3 => format!("structuredClone(new ArrayBuffer({n}))"),
        4 => format!("new ArrayBuffer({n}).transfer({})", rng.u32(..200_000)),
        _ => "own.slice(0, 512)".to_owned(),
    }
}

const TYPED: &[&str] = &[
    "Uint8Array",
    "Int8Array",
    "Uint8ClampedArray",
    "Int16Array",
    "Uint32Array",
    "Float32Array",
    "Float64Array",
    "BigInt64Array",
    "Float16Array",
    "DataView",
];

/// A value of any kind. Some values run code when they are used.
pub(super) fn value(rng: &mut Rng) -> String {
    nested(rng, DEPTH)
}

fn nested(rng: &mut Rng, depth: u8) -> String {
    if depth == 0 {
        return match rng.u8(..6) {
            0 => pick(
                rng,
                &["null", "undefined", "true", "'x'", "Symbol.iterator", "''", "'__proto__'", "'constructor'"],
            )
            .to_owned(),
            1 => "own".to_owned(),
            2 => "globalThis".to_owned(),
            _ => number(rng),
        };
    }
    let inner = |rng: &mut Rng| nested(rng, depth - 1);
    match rng.u8(..14) {
        0 => format!("[{}, {}]", inner(rng), inner(rng)),
        1 => format!(
            "({{ a: {}, length: {}, [Symbol.toPrimitive]() {{ return {} }} }})",
            inner(rng),
            number(rng),
            inner(rng)
        ),
        2 => {
            format!("new Proxy({{}}, {{ get: (t, k) => {}, has: () => true, ownKeys: () => ['a', 'b'] }})", inner(rng))
        }
        3 => format!("new {}({})", pick(rng, TYPED), buffer(rng)),
        4 => buffer(rng),
        5 => format!(
            "(() => {{ const b = {}; return {{ valueOf() {{ try {{ b.resize?.({}) }} catch {{}} return {} }} }} }})()",
            buffer(rng),
            rng.u16(..),
            number(rng)
        ),
        6 => format!(
            "new (class extends Array {{ static get [Symbol.species]() {{ return {} }} }})({})",
            pick(rng, TYPED),
            rng.u16(..2000)
        ),
        7 => format!("(function* () {{ yield {}; yield* [{}] }})()", inner(rng), inner(rng)),
        8 => format!(
            "/{}/{}",
            pick(rng, &["(a+)+b", "(?<x>.)\\k<x>", "(?<=a{2,9})b", "[^\\w]{3}", "^(?:a|ab)(?:c|bcd)*$"]),
            pick(rng, &["g", "gy", "v", "gd", "s"])
        ),
        9 => format!("'{}'.repeat({})", pick(rng, &["a", "ab\\u{1F600}", "\\ud800", "\\0"]), rng.u16(..9000)),
        10 => format!("Object.freeze({{ x: {} }})", inner(rng)),
        11 => format!("((a) => {})", inner(rng)),
        12 => format!("new Map([[{}, {}]])", inner(rng), inner(rng)),
        _ => format!("new Error({}, {{ cause: {} }})", inner(rng), inner(rng)),
    }
}

const METHODS: &[&str] = &[
    "fill",
    "copyWithin",
    "sort",
    "slice",
    "splice",
    "concat",
    "flat",
    "indexOf",
    "with",
    "toSorted",
    "reduce",
    "map",
    "join",
    "at",
    "reverse",
];

/// One statement, and its class for coverage.
#[expect(clippy::too_many_lines, reason = "one row a production of the grammar")]
pub(super) fn statement(rng: &mut Rng) -> Op {
    let (a, b) = (value(rng), value(rng));
    let (n, m) = (number(rng), rng.u32(..100_000));
    let (class, text) = match rng.u8(..27) {
        0 => (
            "resize",
            format!(
                "{{ const b = new ArrayBuffer({}, {{ maxByteLength: {} }}), t = new {}(b); b.resize({m}); t[{n}] = 1; b.resize(0); b.resize({}); return fresh(b) }}",
                m / 2,
                m + 65_536,
                pick(rng, TYPED),
                m / 3
            ),
        ),
        // Not a copy of `own`: system calls write into that buffer, so it need not be zero.
        1 => ("transfer", format!("fresh(new ArrayBuffer({}).transfer({m}))", rng.u32(..70_000))),
        2 => ("fresh", format!("fresh(new ArrayBuffer({}))", rng.u32(..4_000_000))),
        3 => ("clone", format!("structuredClone({a}, {{ transfer: [{}] }})", buffer(rng))),
        4 => (
            "json",
            format!(
                "JSON.stringify(JSON.parse(JSON.stringify({a}) ?? 'null', (k, x) => {{ own.slice(0); return x }}))"
            ),
        ),
        5 => (
            "json text",
            format!("JSON.parse('{}' + {n} + '{}')", "[".repeat(rng.usize(..40)), "]".repeat(rng.usize(..40))),
        ),
        6 => (
            "regular expression",
            format!(
                "{{ const r = {}; r.lastIndex = {n}; return String(('aab'.repeat({})).replace(r, () => {{ r.compile?.('x'); return {b} }})).length }}",
                regular(rng),
                rng.u16(..300)
            ),
        ),
        7 => (
            "class",
            format!(
                "{{ class A extends ({{ f: class {{ constructor() {{ return {a} }} }} }}).f {{ #p = {b}; static { } q(o) {{ return #p in o }} }}; return new A().q({b}) }}",
                "{ this.z = 1 }"
            ),
        ),
        8 => (
            "proxy",
            format!(
                "Reflect.{}(new Proxy({a}, {{ {}(...x) {{ own.slice(1); return Reflect.{}(...x) }} }}), 'length', {b})",
                pick(rng, &["get", "set", "has", "defineProperty", "deleteProperty"]),
                pick(rng, &["get", "set", "has"]),
                pick(rng, &["get", "set", "has"])
            ),
        ),
        9 => ("array method", format!("Array.prototype.{}.call({a}, {b}, {n}, {})", pick(rng, METHODS), rng.u16(..50))),
        10 => (
            "typed array method",
            format!("{{ const t = new {}({m}); return t.{}?.({a}, {n}) }}", pick(rng, TYPED), pick(rng, METHODS)),
        ),
        11 => (
            "re-entrancy",
            format!(
                "{{ const b = new ArrayBuffer(4096, {{ maxByteLength: 1 << 20 }}), t = new {}(b); return t.{}({{ valueOf() {{ b.resize({}); return {} }} }}, {n}) }}",
                pick(rng, TYPED),
                pick(rng, &["fill", "at", "set", "subarray", "includes"]),
                rng.u16(..),
                rng.u16(..)
            ),
        ),
        12 => (
            "timer",
            format!(
                "new Promise((r) => {{ const t = setTimeout(() => {{ clearTimeout(t); r({a}) }}, {}); setInterval(() => {{}}, {n}) }})",
                rng.u8(..4)
            ),
        ),
        13 => (
            "microtask",
            format!(
                "(async () => {{ for (let i = 0; i < {}; i++) await {{ then(r) {{ queueMicrotask(r) }} }}; return {a} }})()",
                rng.u8(..100)
            ),
        ),
        14 => (
            "module",
            format!(
                "import({})",
                pick(
                    rng,
                    &[
                        "'main.js'",
                        "'cloudflare:workers'",
                        "'nowhere'",
                        "`data:text/javascript,1`",
                        "'../../etc/passwd'",
                        "{ toString() { return 'x' } }"
                    ]
                )
            ),
        ),
        15 => (
            "console",
            format!("console.{}({a}, {b})", pick(rng, &["log", "error", "table", "dir", "trace", "assert", "group"])),
        ),
        16 => (
            "generator",
            format!("[...(function* () {{ for (let i = 0; i < {}; i++) yield {a} }})()].length", rng.u8(..)),
        ),
        17 => (
            "compile",
            format!(
                "{{ const f = (x, y) => {{ let s = {n}; for (let i = 0; i < {}; i++) s = (s ^ x) + y | 0; return s }}; for (let i = 0; i < 30; i++) f(i, 2); return f(1.5, {a}) }}",
                rng.u16(..4000)
            ),
        ),
        18 => (
            "shapes",
            format!(
                "{{ const o = {{}}; for (let i = 0; i < {}; i++) o['k' + i] = i; delete o.k1; o.__proto__ = {a}; return Object.keys(o).length }}",
                rng.u16(..600)
            ),
        ),
        19 => (
            "deep",
            format!("{{ const f = (d) => d > 0 ? [f(d - 1)] : {a}; return structuredClone(f({})) }}", rng.u16(..3000)),
        ),
        20 => (
            "code from text",
            format!(
                "{}('return {n}')",
                pick(
                    rng,
                    &["new Function", "eval", "(async () => {}).constructor", "Reflect.construct(Function, ['1']),"]
                )
            ),
        ),
        21 => (
            "text",
            format!(
                "{{ const t = new TextEncoder().encode({}); return new TextDecoder('utf-8', {{ fatal: {} }}).decode(t.subarray({})) }}",
                quoted(&a),
                rng.bool(),
                rng.u8(..9)
            ),
        ),
        22 => (
            "numbers",
            format!("BigInt.asIntN({}, {}n ** {}n) / {}n", rng.u16(..400), rng.u32(..), rng.u16(..500), rng.u8(1..)),
        ),
        23 => (
            "intl",
            format!(
                "new Intl.{}('{}', {a}).format?.({n})",
                pick(rng, &["DateTimeFormat", "NumberFormat", "ListFormat", "Segmenter", "Collator"]),
                pick(rng, &["de", "ar-EG", "zh-u-nu-hanidec", "x", "en-GB"])
            ),
        ),
        24 => (
            "memory",
            format!(
                "{{ const h = []; for (let i = 0; i < {}; i++) h[i] = new Array(1000).fill({a}); return h.length }}",
                rng.u16(..900)
            ),
        ),
        25 => (
            "weak",
            format!(
                "{{ const w = new WeakRef({{ x: {a} }}); new FinalizationRegistry(() => {{}}).register({{}}, {n}); return typeof w.deref() }}"
            ),
        ),
        _ => (
            "property",
            format!("Object.defineProperty({a}, {}, {{ get: () => {b}, configurable: true }})", quoted(&n)),
        ),
    };
    Op::Language { class: class.into(), text: as_expression(&text) }
}

/// A statement that never ends by itself, so that a limit must end it. Half of these statements
/// begin to do so only in the second run of a kept isolate.
pub(super) fn over_a_limit(rng: &mut Rng) -> Op {
    let (class, text) = match rng.u8(..6) {
        0 | 1 => ("spins", "(() => { for (;;); })()"),
        2 => ("waits", "new Promise(() => setInterval(() => {}, 1)).then(begin)"),
        3 => ("fills memory", "(() => { const h = []; for (;;) h.push(new Array(10000).fill(h.length)); })()"),
        4 => ("fills buffers", "(() => { const h = []; for (;;) h.push(new Uint8Array(1 << 20).fill(1)); })()"),
        _ => ("floods", "(() => { for (;;) console.log('x'.repeat(1000)); })()"),
    };
    let text = if rng.bool() { text.to_owned() } else { format!("turns > 1 && {text}") };
    Op::Language { class: class.into(), text }
}

fn as_expression(text: &str) -> String {
    if text.starts_with("{ ") { format!("(() => {text})()") } else { format!("({text})") }
}

fn quoted(text: &str) -> String {
    format!("String({text})")
}

fn regular(rng: &mut Rng) -> String {
    let pattern = pick(rng, &["(a+)+b", "(?<x>a)(?:b|\\\\k<x>)*", "(?<=a{1,9})b", "a*?b??", "(?:a|ab)(?:c|bcd)*"]);
    format!("new RegExp('{pattern}', '{}')", pick(rng, &["g", "gy", "y", "gd", "gu"]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_makes_the_same_statements() {
        let made = |seed| {
            let mut rng = Rng::with_seed(seed);
            (0..50).map(|_| statement(&mut rng)).collect::<Vec<_>>()
        };
        assert_eq!(made(7), made(7));
        assert_ne!(made(7), made(8));
    }
}
