// Calls functions that the global object leads to, with arguments made from a seed. Makes the calls
// with the numbers `first` to `last - 1`. Reports each exception that is neither an error nor a
// value that was passed in. This script saves the built-ins that it needs before the first call,
// because a call may replace them.
async (seed, first, last) => {
  const { apply, construct, ownKeys, getOwnPropertyDescriptor, getPrototypeOf } = Reflect, { is } = Object, { imul, floor } = Math;
  const { isError } = Error, sleep = setTimeout, BufferOf = ArrayBuffer, text = String;

  // Every function that can be reached from the global object, or from an object that only a call
  // makes (`made`). `holder` is the object that has the function.
  const functions = [], things = [], known = new Set();
  const find = (path, thing, holder) => {
    if ((typeof thing !== "object" && typeof thing !== "function") || thing === null || known.has(thing)) return;
    known.add(thing);
    things.push({ path, thing });
    if (typeof thing === "function") functions.push({ path, thing, holder });
  };
  find("globalThis", globalThis);
  const made = {
    generator: (function* () {})(), asyncGenerator: (async function* () {})(), asyncFunction: async () => {},
    array: [].values(), string: ""[Symbol.iterator](), map: new Map().keys(), set: new Set().keys(), matches: "".matchAll(/x/g),
    helper: [].values().map((p) => p), wrapped: Iterator.from({ next() {} }), segments: new Intl.Segmenter().segment("a b"),
    words: new Intl.Segmenter().segment("a b")[Symbol.iterator](), numbering: (function () { return arguments; })(),
  };
  for (const name of ownKeys(made)) find(name, made[name]);
  for (let at = 0; at < things.length; at++) {
    const { path, thing } = things[at];
    for (const key of ownKeys(thing)) {
      const { get, set, value } = getOwnPropertyDescriptor(thing, key), name = `${path}.${text(key)}`;
      find(name, value, thing), find(`get ${name}`, get, thing), find(`set ${name}`, set, thing);
    }
    find(`${path}.__proto__`, getPrototypeOf(thing));
  }

  // Random choices that depend only on the seed and the number of the call.
  let state = 0;
  const below = (most) => {
    state = (state + 0x6d2b79f5) | 0;
    let t = imul(state ^ (state >>> 15), 1 | state);
    t = (t + imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) % most;
  };
  const among = (list) => list[below(list.length)];

  // The values that were passed in, and may come back as an exception.
  let given = [undefined], calls = 0;
  const keep = (value) => (given[given.length] = value);
  const numbers = [0, -0, 1, -1, 2, 3, 7, 16, 100, 255, 65536, 0.5, -1.5, 1e21, NaN, Infinity, -Infinity, 2 ** 31, 2 ** 32, -(2 ** 31), 2 ** 31 - 1, 2 ** 53 - 1, 2 ** 53, 5e-324, 8640000000000001];
  const texts = ["", "a", "abc", "length", "0", "-1", "constructor", "__proto__", "then", "en", "de-u-co-phonebk", "en-US-u-nu-thai", "utf-8", "UTC", "Europe/Berlin", "year", "currency", "EUR", "default", "\ud800", "\u{1f600}x\u0301", "a".repeat(2000), "[1,{\"a\":2}]", "(a)|b*", "gimsuyd", "%s %d %j", "2020-01-01T00:00:00Z", "AAECAw==", "P1Y", "+01:00", "latn", "{}", "9".repeat(50)];
  const options = ["style", "currency", "unit", "type", "granularity", "numeric", "calendar", "dateStyle", "timeZone", "maximumFractionDigits", "minimumFractionDigits", "roundingIncrement", "fatal", "maxByteLength", "cause", "length", "value", "get", "next", "done", "return", "then", "alphabet", "lastChunkHandling", "signDisplay", "localeMatcher", "message", "writable", "transfer", "ignoreBOM"];
  // A callback may change another value of the same call. Then it returns or throws.
  const callback = (depth) => {
    const kind = below(8), value = any(depth + 1), other = among(given);
    return keep(function (a, b, c) {
      if (++calls > 200) throw value;
      switch (kind) {
        case 0: throw value;
        case 1: return a;
        case 2: return typeof a === "number" && typeof b === "number" ? a - b : value;
        case 3: if (other instanceof BufferOf) { try { other.resizable ? other.resize(0) : other.transfer(1); } catch {} } return value;
        case 4: if (other && typeof other === "object") { try { other.length = 0; } catch {} } return b;
        case 5: return this;
        case 6: return { value, done: calls % 5 === 0 };
        default: return value;
      }
    });
  };
  const object = (depth) => {
    const value = {};
    for (let i = below(4); i > 0; i--) {
      const key = among([among(options), among(texts), among(symbols), below(9)]);
      if (below(4) === 0) Object.defineProperty(value, key, { get: callback(depth), configurable: true, enumerable: true });
      else if (key !== "__proto__") value[key] = any(depth + 1);
    }
    return value;
  };
  const symbols = [Symbol.iterator, Symbol.asyncIterator, Symbol.toPrimitive, Symbol.species, Symbol.toStringTag, Symbol.match, Symbol.replace, Symbol.split, Symbol.hasInstance, Symbol.isConcatSpreadable, Symbol.dispose, Symbol("own")];
  const views = [Int8Array, Uint8Array, Uint8ClampedArray, Int16Array, Uint16Array, Int32Array, Uint32Array, Float16Array, Float32Array, Float64Array, BigInt64Array, BigUint64Array, DataView];
  const makers = [
    () => among(numbers), () => among(numbers), () => below(20), () => among(texts), () => among(texts), () => undefined, () => null, () => below(2) === 0,
    () => among([0n, -1n, 2n ** 64n, 2n ** 200n]), () => among(symbols), callback, callback, object, object,
    (depth) => [any(depth + 1), any(depth + 1)], () => [1, 2.5, , 3], () => ["b", "a"], (depth) => [[any(depth + 1), any(depth + 1)]],
    () => new ArrayBuffer(below(64)), () => new ArrayBuffer(8, { maxByteLength: 64 }), () => { const buffer = new ArrayBuffer(8); buffer.transfer(); return buffer; },
    () => new (among(views))(new ArrayBuffer(24, { maxByteLength: 4096 })), () => new (among(views))(new ArrayBuffer(24)), () => { const view = new Uint8Array(8); view.buffer.transfer(); return view; },
    (depth) => new Map([[any(depth + 1), any(depth + 1)]]), (depth) => new Set([any(depth + 1)]), () => new WeakMap(), () => new WeakSet(), (depth) => new WeakRef(object(depth + 1)),
    () => new Date(among(numbers)), () => /(?<a>a)|b+?/dg, () => new RegExp(among(["x*", "(?:)", "\\p{L}", "[^]"]), among(["g", "y", "u", "v", "is"])),
    (depth) => Promise.resolve(below(2)), (depth) => new Proxy(object(depth + 1), among([{}, Reflect, object(depth + 1)])), (depth) => new Proxy(callback(depth), object(depth + 1)),
    () => new Error("e", { cause: 1 }), () => (function* () { yield 1; yield* [2, 3]; })(), () => (async function* () { yield 1; })(), () => [1, 2, 3].values().map((p) => p), () => "abc"[Symbol.iterator](),
    () => new Intl.NumberFormat("en"), () => new Intl.DateTimeFormat("de", { timeZone: "UTC" }), () => new Intl.Collator(), () => new Intl.PluralRules(), () => new Intl.Segmenter("en", { granularity: "word" }), () => new Intl.Locale("en-US"),
    () => new Intl.DurationFormat("en"), () => new Intl.ListFormat("en"), () => new Intl.RelativeTimeFormat("en"), () => new Intl.DisplayNames("en", { type: "region" }),
    () => class { static x = 1; }, (depth) => class extends callback(depth) {}, () => among(functions).thing, () => among(things).thing, () => new TextDecoder(), () => new TextEncoder(), () => globalThis,
    () => new FinalizationRegistry(() => {}), () => new DisposableStack(), () => new AsyncDisposableStack(), () => Object(among([1, "s", 1n, true, symbols[0]])), () => (function () { return arguments; })(1, 2), () => "x".repeat(1 << below(18)),
    () => { const array = new Array(1 << below(12)).fill(1); array.length += 3; return array; }, () => JSON.rawJSON?.("1"), () => ({ length: below(40) ? below(99) : among(numbers), 0: 1 }), () => new ArrayBuffer(1 << below(22)), () => new Proxy([], { get: (a, b) => (b === "length" ? 3e4 : 1) }), () => Array.from({ length: 300 }, (p, q) => q % 7),
  ];
  function any(depth) {
    try { return keep((depth > 2 ? makers[below(10)] : among(makers))(depth)); } catch { return undefined; }
  }
  // For each prototype, the makers of values that inherit from it. A function that is found on a
  // prototype expects such a value as `this`.
  const makersOf = new Map(), makersFrom = makersOf.get.bind(makersOf);
  for (const maker of makers) {
    state = 1;
    let value;
    try { value = maker(3); } catch { continue; }
    for (let p = value, i = 0; p !== undefined && p !== null && i < 9; i++) {
      const others = makersOf.get(p) ?? [];
      makersOf.set(p, others), others[others.length] = maker;
      try { p = getPrototypeOf(Object(p) === p ? p : Object(p)); } catch { break; }
    }
  }
  const receiver = (holder) => {
    const fitting = makersFrom(holder);
    if (fitting === undefined || below(6) === 0) return below(2) ? holder : any(0);
    try { return keep(among(fitting)(1)); } catch { return holder; }
  };

  const wrong = [];
  const judge = (path, thrown) => {
    if (isError(thrown)) return;
    for (let i = 0; i < given.length; i++) if (is(given[i], thrown)) return;
    if (wrong.length < 5) wrong[wrong.length] = `${path} threw ${typeof thrown}`;
  };
  let threw = 0;
  const told = [];
  for (let number = first; number < last; number++) {
    state = (seed ^ imul(number + 1, 0x9e3779b1)) | 0;
    given = [undefined], calls = 0;
    const { path, thing, holder } = functions[below(functions.length)];
    const values = [];
    const self = receiver(holder);
    for (let i = below(5); i > 0; i--) values[values.length] = any(0);
    if (last - first === 1) told[0] = `${path} of ${typeof self}, ${values.map((value) => { try { return typeof value === "object" || typeof value === "function" ? Object.prototype.toString.call(value) : JSON.stringify(typeof value === "bigint" ? `${value}n` : value)?.slice(0, 60); } catch { return "?"; } })}`;
    try {
      const value = below(5) === 0 ? construct(thing, values) : apply(thing, self, values);
      // Half of the promises and iterators that are returned are followed, to run deferred work.
      if (typeof value === "object" && value !== null && below(2)) {
        if (typeof value.next === "function") value.next();
        else if (typeof value.then === "function") value.then(() => {}, () => {});
      }
    } catch (thrown) {
      threw++;
      judge(path, thrown);
    }
    if (number % 16 === 0) await null;
  }
  return { functions: functions.length, threw, wrong, told };
}
