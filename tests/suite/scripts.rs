//! What a script can be and do, and what it returns.

use enisle_tests::{Daemon, SHARING};
use serde_json::{Value, json};

#[test]
fn a_load_as_documented_returns_its_result() {
    let daemon = Daemon::start(SHARING);
    let answer = daemon.load(
        "acme",
        &json!({
            "mainModule": "main.js",
            "modules": { "main.js": "export default { async run(input, env) { return input.n * env.factor } }" },
            "env": { "factor": 2 }, "method": "run", "args": [{ "n": 21 }],
            "limits": { "cpuMs": 50, "wallMs": 10000, "memoryMb": 64, "subRequests": 50 }
        }),
    );
    let run = answer.ok();
    assert_eq!((&run["outcome"], &run["result"], &run["cordon"]), (&json!("ok"), &json!(42), &json!("shared")));
    assert!(
        run["usage"]["cpuMs"].as_f64().is_some_and(|ms| ms > 0.0)
            && run["id"].as_str().is_some_and(|id| id.starts_with("run_"))
    );
}

#[test]
fn short_code_is_a_module_or_a_function() {
    let daemon = Daemon::start(SHARING);
    for (code, result) in [
        ("export default { run() { return 1 } }", json!(1)),
        ("export default () => 2", json!(2)),
        ("export default async function () { return 3 }", json!(3)),
        ("async () => 4", json!(4)),
        ("async () => { return 5 };\n", json!(5)),
        ("// what a model writes\nasync () => {\n  return 6\n}", json!(6)),
        ("function named() { return 7 }\nexport { named as default }", json!(7)),
        ("() => undefined", Value::Null),
        ("async function () { return 8 }", json!(8)),
        ("function () { return 9 }", json!(9)),
        ("{ run() { return 10 } }", json!(10)),
    ] {
        assert_eq!(daemon.run("t", code)["result"], result, "{code}");
    }
}

#[test]
fn modules_of_every_kind_are_imported_by_exact_name() {
    let daemon = Daemon::start(SHARING);
    let run = daemon.load(
        "t",
        &json!({
            "mainModule": "main.js",
            "modules": {
                "main.js": "import data from 'data.bin'; import j from 'j.json' with { type: 'json' }; import t from 't.txt';\
                            import { twice } from './lib/twice.mjs';\
                            export default { async run() { const late = await import('late'); \
                              return [Array.from(new Uint8Array(data)), j, t, twice(4), late.default] } }",
                "data.bin": { "data": "AAEC" }, "j.json": { "json": { "a": [1] } }, "t.txt": "text",
                "./lib/twice.mjs": "export const twice = (n) => 2 * n", "late": { "js": "export default await Promise.resolve('late')" }
            }
        }),
    );
    assert_eq!(run.ok()["result"], json!([[0, 1, 2], { "a": [1] }, "text", 8, "late"]));
}

#[test]
fn a_cycle_of_modules_runs() {
    let daemon = Daemon::start(SHARING);
    let modules = json!({ "a.js": "import { b } from 'b.js'; export const a = 1; export default () => b()",
                          "b.js": "import { a } from 'a.js'; export const b = () => a + 1" });
    assert_eq!(daemon.load("t", &json!({ "mainModule": "a.js", "modules": modules })).ok()["result"], 2);
}

#[test]
fn a_module_may_import_itself_and_its_importer_while_it_is_evaluated() {
    let daemon = Daemon::start(SHARING);
    let load = |modules: Value| daemon.load("t", &json!({ "mainModule": "m.js", "modules": modules })).ok();
    let itself = load(json!({ "m.js": "let own; import('m.js').then((m) => own = m); export const a = 1; \
                                       export default async () => { await null; return own.a }" }));
    assert_eq!(itself["result"], 1, "{itself}");
    let back = load(
        json!({ "m.js": "import 'b.js'; export const a = 2; export default () => globalThis.seen.then((m) => m.a)",
                            "b.js": "globalThis.seen = import('m.js')" }),
    );
    assert_eq!(back["result"], 2, "{back}");
    // A module that awaits itself is never evaluated completely. The error says so, and the worker
    // survives.
    let waits = load(json!({ "m.js": "await import('m.js'); export default () => 1" }));
    assert!(
        waits["outcome"] == "exception"
            && waits["error"]["message"].as_str().is_some_and(|m| m.contains("never settled")),
        "{waits}"
    );
    assert!(!daemon.events().iter().any(|event| event["event"] == "workerDied"));
}

#[test]
fn an_exception_in_a_microtask_or_a_timer_ends_the_run() {
    let daemon = Daemon::start(SHARING);
    for code in [
        "async () => { queueMicrotask(() => { throw new Error('here') }); await 0; return 1 }",
        "async () => { queueMicrotask(() => { null.x }); await 0; return 1 }",
        "async () => { queueMicrotask(() => { (function f() { f() })() }); await 0; return 1 }",
        "() => new Promise((done) => { setTimeout(() => { throw new Error('here') }, 1); setTimeout(done, 50) })",
    ] {
        let run = daemon.run("t", code);
        assert!(run["outcome"] == "exception" && run["cordon"] == "shared", "{code}: {run}");
    }
    assert!(!daemon.events().iter().any(|event| event["event"] == "workerDied"));
}

#[test]
fn an_import_of_an_unknown_name_is_an_error_that_names_it() {
    let daemon = Daemon::start(SHARING);
    for import in [
        "import 'fs'",
        "import './main.js'",
        "import 'https://x/y.js'",
        "import 'data:text/javascript,1'",
        "import '__proto__'",
    ] {
        let run = daemon.run("t", &format!("{import}; export default () => 1"));
        assert_eq!(run["outcome"], "exception", "{import}");
        assert!(run["error"]["message"].as_str().is_some_and(|message| message.contains("main.js imports")), "{run}");
    }
    let caught = daemon.run("t", "async () => { try { await import('x') } catch (e) { return e.message } }");
    assert!(caught["result"].as_str().is_some_and(|message| message.contains("no module has that name")), "{caught}");
}

#[test]
fn entry_points_are_objects_classes_and_named_exports() {
    let daemon = Daemon::start(SHARING);
    let code = "import { WorkerEntrypoint } from 'cloudflare:workers';
        export class Api extends WorkerEntrypoint { async add(a, b) { return [a + b, this.env.k, this.ctx.props.who] } }
        export const plain = { hi(name, env, ctx) { return [name, env.k, ctx.props.who] } };
        export default class { run() { return 'class' } }";
    let call = |extra: Value| {
        let mut request = json!({ "code": code, "env": { "k": 1 }, "props": { "who": "p" } });
        request.as_object_mut().expect("an object").extend(extra.as_object().expect("an object").clone());
        daemon.load("t", &request).ok()
    };
    assert_eq!(call(json!({ "entrypoint": "Api", "method": "add", "args": [2, 3] }))["result"], json!([5, 1, "p"]));
    assert_eq!(call(json!({ "entrypoint": "plain", "method": "hi", "args": ["n"] }))["result"], json!(["n", 1, "p"]));
    assert_eq!(call(json!({}))["result"], "class");
    for (extra, word) in [
        (json!({ "entrypoint": "Nope" }), "no export Nope; it exports Api, default, plain"),
        (json!({ "entrypoint": "plain", "method": "toString" }), "no method toString"),
        (json!({ "entrypoint": "plain", "method": "constructor" }), "no method constructor"),
        (json!({ "entrypoint": "Api", "method": "nope" }), "no method nope"),
    ] {
        let run = call(extra);
        assert!(run["error"]["message"].as_str().is_some_and(|message| message.contains(word)), "{word}: {run}");
    }
}

#[test]
fn the_console_is_kept_in_order_with_levels() {
    let daemon = Daemon::start(SHARING);
    let run = daemon.run(
        "t",
        "async () => { console.log('a', 1, { b: [2] }); console.warn('w'); await null; console.error('%s is %d', 'x', 4.7); console.debug(new Map([[1, 2]])); }",
    );
    let lines: Vec<_> = run["logs"]
        .as_array()
        .expect("logs")
        .iter()
        .map(|line| (line["level"].clone(), line["text"].clone()))
        .collect();
    let expected = [("log", "a 1 { b: [2] }"), ("warn", "w"), ("error", "x is 4"), ("debug", "Map(1) { 1 => 2 }")];
    assert_eq!(lines, expected.map(|(level, text)| (json!(level), json!(text))));
    assert_eq!(run["truncated"], false);
}

#[test]
fn an_error_has_a_stack_in_the_tenants_own_files() {
    let daemon = Daemon::start(SHARING);
    let modules = json!({ "app/main.js": "import { f } from 'lib.js';\nexport default { run() { return f() } }",
                          "lib.js": "export function f() {\n  throw new RangeError('no');\n}" });
    let error = daemon.load("t", &json!({ "mainModule": "app/main.js", "modules": modules })).ok()["error"].clone();
    assert_eq!((&error["name"], &error["message"]), (&json!("RangeError"), &json!("no")));
    let stack = error["stack"].as_str().expect("a stack");
    assert!(stack.contains("lib.js:2:9") && stack.contains("app/main.js:2:"), "{stack}");
    assert!(!stack.contains("enisle:") && !stack.contains("/home") && !stack.contains("0x"), "{stack}");
    let error = daemon.run("t", "export default {\n  run() { retur 1 }\n}")["error"].clone();
    assert!(
        error["name"] == "SyntaxError" && error["stack"].as_str().is_some_and(|stack| stack.contains("main.js:2:")),
        "{error}"
    );
    let error = daemon.run("t", "async () => {\n  throw new Error('at line two')\n}")["error"].clone();
    assert!(error["stack"].as_str().is_some_and(|stack| stack.contains("main.js:2:")), "{error}");
}

#[test]
fn an_unhandled_rejection_is_a_line_of_the_log() {
    let daemon = Daemon::start(SHARING);
    let run = daemon.run("t", "async () => { Promise.reject(new Error('lost')); const late = Promise.reject(1); late.catch(() => {}); return 'ok' }");
    assert_eq!((&run["outcome"], run["logs"].as_array().map(Vec::len)), (&json!("ok"), Some(1)), "{run}");
    assert!(
        run["logs"][0]["text"].as_str().is_some_and(|text| text.starts_with("Uncaught (in promise) Error: lost")),
        "{run}"
    );
}

#[test]
fn a_result_that_json_cannot_carry_is_an_error_that_says_where() {
    let daemon = Daemon::start(SHARING);
    for (value, at, what) in [
        ("({ a: [0, { b: 1n }] })", "result.a[1].b", "BigInt"),
        ("({ f() {} })", "result.f", "function"),
        ("[NaN]", "result[0]", "NaN"),
        ("({ 'a-b': Symbol() })", "result[\"a-b\"]", "symbol"),
        ("new Map()", "result", "Map"),
        ("(() => { const o = { x: {} }; o.x.y = o; return o })()", "result.x.y", "contains itself"),
        ("new Uint8Array(1)", "result", "binary"),
    ] {
        let run = daemon.run("t", &format!("() => {value}"));
        let message = run["error"]["message"].as_str().unwrap_or_default().to_owned();
        assert!(
            run["outcome"] == "exception" && message.contains(&format!("{at} is")) && message.contains(what),
            "{value}: {run}"
        );
    }
    let boxed = daemon.run(
        "t",
        "() => [new Number(5), new String('ab'), new Boolean(false), { a: 1, toJSON() { return this } }, \
                                        { toJSON(key) { return key } }, { [Symbol.toStringTag]: 'Error', a: 1 }]",
    );
    assert_eq!(boxed["result"], json!([5, "ab", false, { "a": 1 }, "4", { "a": 1 }]), "{boxed}");
    let run = daemon.run("t", "() => ({ date: new Date(0), gone: undefined, nested: { toJSON() { return [1] } } })");
    assert_eq!(run["result"], json!({ "date": "1970-01-01T00:00:00.000Z", "nested": [1] }));
}

#[test]
fn timers_fire_in_order_and_the_clock_stands_still_while_code_runs() {
    let daemon = Daemon::start(SHARING);
    let run = daemon.run(
        "t",
        "async () => { const seen = []; setTimeout(() => seen.push('b'), 20); setTimeout(() => seen.push('a'), 5);
           const stopped = setTimeout(() => seen.push('never'), 1); clearTimeout(stopped);
           let n = 0; await new Promise((done) => { const i = setInterval(() => { if (++n === 3) { clearInterval(i); done() } }, 1) });
           await new Promise((done) => setTimeout(done, 40));
           const before = Date.now(); for (let i = 0; i < 5e6; i++); const still = Date.now() === before && performance.now() >= 40;
           return [seen, n, still] }",
    );
    assert_eq!(run["result"], json!([["a", "b"], 3, true]), "{run}");
}

#[test]
fn the_documented_globals_work_and_forbidden_ones_are_absent() {
    let daemon = Daemon::start(SHARING);
    let run = daemon.run(
        "t",
        "() => [new TextDecoder().decode(new TextEncoder().encode('žluť 🐎')), btoa('hi'), atob('aGk='), crypto.randomUUID().length,
                structuredClone({ a: new Date(5), m: new Map([[1, new Uint8Array([7])]]) }).m.get(1)[0],
                [typeof WebAssembly, typeof SharedArrayBuffer, typeof Atomics, typeof fetch, typeof process, typeof require]]",
    );
    assert_eq!(
        run["result"],
        json!([
            "žluť 🐎",
            "aGk=",
            "hi",
            36,
            7,
            ["undefined", "undefined", "undefined", "undefined", "undefined", "undefined"]
        ]),
        "{run}"
    );
}

#[test]
fn code_from_strings_runs_only_if_the_policy_allows_it() {
    let daemon = Daemon::start(SHARING);
    for code in
        ["() => eval('1')", "() => new Function('return 1')()", "() => (async () => {}).constructor('return 1')()"]
    {
        let run = daemon.run("no", code);
        assert!(run["error"]["name"] == "EvalError", "{code}: {run}");
    }
    daemon.request("PUT", "/v1/tenants/yes", br#"{"allowEval": true}"#).ok();
    assert_eq!(daemon.run("yes", "() => eval('1 + 1')")["result"], 2);
}

#[test]
fn every_load_begins_in_a_fresh_isolate() {
    let daemon = Daemon::start(SHARING);
    let code = "() => { globalThis.count = (globalThis.count ?? 0) + 1; Array.prototype.push = null; return count }";
    assert_eq!(daemon.run("t", code)["result"], 1);
    assert_eq!(daemon.run("t", code)["result"], 1);
}

#[test]
fn a_script_that_poisons_the_language_gets_a_plain_answer() {
    let daemon = Daemon::start(SHARING);
    let poison = "for (const proto of [Object, Array, String, Function, Promise, Error, Map, Set, RegExp, Date].map((c) => c.prototype))
        for (const key of Reflect.ownKeys(proto)) { try { Object.defineProperty(proto, key, { get() { throw 'poisoned' }, set() {} }) } catch {} }
        for (const key of Reflect.ownKeys(Reflect)) try { delete Reflect[key] } catch {}";
    let run = daemon.run("t", &format!("() => {{ {poison}; return 1 }}"));
    assert!(["ok", "exception"].contains(&run["outcome"].as_str().unwrap_or_default()), "{run}");
    assert_eq!(daemon.run("t", "() => 'next'")["result"], "next");
}

#[test]
fn no_clock_moves_while_code_runs_and_all_move_with_an_event() {
    let daemon = Daemon::start(SHARING);
    let run = daemon.run(
        "t",
        "async () => {
           const format = new Intl.DateTimeFormat('en', { fractionalSecondDigits: 3, second: 'numeric', minute: 'numeric' });
           const clocks = { now: () => Date.now(), object: () => new Date().getTime(), text: () => Date(), intl: () => format.format(),
             parts: () => JSON.stringify(format.formatToParts()), locale: () => new Date().toLocaleTimeString('en', { fractionalSecondDigits: 3 }),
             performance: () => performance.now() };
           const read = () => Object.values(clocks).map((clock) => clock());
           const before = read();
           for (let i = 0; i < 2e7; i++);
           await null;
           const still = read().map((value, i) => value === before[i]);
           await new Promise((resolve) => setTimeout(resolve, 20));
           const moved = read().map((value, i) => value !== before[i]);
           // `Date()` shows whole seconds, which may well be the same.
           moved[2] = true;
           return { still, moved };
         }",
    );
    assert_eq!(run["result"]["still"], json!([true, true, true, true, true, true, true]), "{run}");
    assert_eq!(run["result"]["moved"], json!([true, true, true, true, true, true, true]), "{run}");
}

#[test]
fn no_global_provides_a_clock_of_its_own() {
    let daemon = Daemon::start(SHARING);
    let run = daemon.run(
        "t",
        "() => [typeof SharedArrayBuffer, typeof Atomics, typeof WebAssembly, typeof Worker, typeof MessageChannel, typeof Temporal,
                typeof performance.mark, typeof performance.timeOrigin, typeof ShadowRealm, typeof gc, typeof Intl.DateTimeFormat]",
    );
    let expected = json!([
        "undefined",
        "undefined",
        "undefined",
        "undefined",
        "undefined",
        "undefined",
        "undefined",
        "number",
        "undefined",
        "undefined",
        "function"
    ]);
    assert_eq!(run["result"], expected, "{run}");
}
