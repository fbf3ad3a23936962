// Every program begins with this prelude. It has the pool of variables, which is the same in all
// programs, so that a statement of one program is valid in another. It also has the functions that
// write the trace of what the program computed. The program may replace every built-in later, so
// the trace's functions save those that they need now. In modes that compile early, the optimising
// compilers skip functions whose names begin with zz.
const { ownKeys, getOwnPropertyDescriptor, getPrototypeOf } = Reflect, { is } = Object, ErrorPrototype = Error.prototype;
const uncurried = Function.prototype.bind.bind(Function.prototype.call);
const part = uncurried(String.prototype.slice), within = uncurried(String.prototype.indexOf), classOf = uncurried(Object.prototype.toString);
const bigText = uncurried(BigInt.prototype.toString), numberText = uncurried(Number.prototype.toString);
const overMap = uncurried(Map.prototype.forEach), overSet = uncurried(Set.prototype.forEach), timeOf = uncurried(Date.prototype.getTime);
const sizeOf = uncurried(getOwnPropertyDescriptor(ArrayBuffer.prototype, "byteLength").get);
const lengthOf = uncurried(getOwnPropertyDescriptor(getPrototypeOf(Uint8Array.prototype), "length").get);
let trace = "", repeated = "", times = 0, doubt = "", inner = "", innerDepth = 0;
const zzput = (text) => {
  if (text === repeated) times++;
  else if (trace.length < 30000) trace += `${text}${times > 0 ? ` (the last one ${times} times more)` : ""}\n`, repeated = text, times = 0;
};
const zztry = (read, value, argument) => {
  try { return read(value, argument); } catch (e) { zzsuspect(e); return undefined; }
};
const zzisError = (value) => {
  for (let p = value, i = 0; p !== null && i < 20; p = getPrototypeOf(p), i++) if (p === ErrorPrototype) return true;
  return false;
};
const zznameOf = (value) => zzshow(value.name, 9);
// Engines may differ in errors that depend on the depth of the stack or on the memory that is left.
const zzsuspect = (e) => {
  try {
    if (typeof e !== "object" || e === null || !zzisError(e)) return;
    const message = getOwnPropertyDescriptor(e, "message");
    if (message === undefined || typeof message.value !== "string") return;
    if (within(message.value, "call stack") >= 0 || within(message.value, "llocation failed") >= 0 || within(message.value, "does not fit") >= 0) doubt = message.value;
  } catch (e) { doubt = "an error that cannot be looked at"; }
};
const zzentry = (value, key) => { if (inner.length < 1000) inner += `${zzshow(key, innerDepth)}=>${zzshow(value, innerDepth)};`; };
const zzentries = (walk, value, depth) => {
  const before = [inner, innerDepth];
  inner = "", innerDepth = depth + 1;
  zztry(walk, value, zzentry);
  const text = inner;
  inner = before[0], innerDepth = before[1];
  return text;
};
const zzshow = (value, depth) => {
  switch (typeof value) {
    case "undefined": return "u";
    case "boolean": return value ? "true" : "false";
    case "number": return is(value, -0) ? "-0" : numberText(value);
    case "bigint": return bigText(value, 16) + "n";
    case "string": return `'${value.length}:${value.length > 120 ? part(value, 0, 120) : value}'`;
    case "symbol": return "symbol";
    case "function": return "function";
  }
  if (value === null) return "null";
  if (depth > 3) return "...";
  if (zztry(zzisError, value)) return `!${zztry(zznameOf, value)}`;
  const name = zztry(classOf, value);
  let text = `${name}{`;
  const keys = (zztry(lengthOf, value) ?? 0) < 500 ? zztry(ownKeys, value) : undefined;
  if (keys === undefined) return `${text}?}`;
  const time = zztry(timeOf, value), bytes = zztry(sizeOf, value);
  if (time !== undefined) text += `${numberText(time)};`;
  if (bytes !== undefined) text += `${bytes} bytes;`;
  text += zzentries(overMap, value, depth) + zzentries(overSet, value, depth) + `#${keys.length} `;
  for (let i = 0; i < keys.length && i < 16 && text.length < 1500; i++) {
    if (keys[i] === "stack" || keys[i] === "message") continue;
    const own = zztry(getOwnPropertyDescriptor, value, keys[i]);
    text += `${typeof keys[i] === "string" ? keys[i] : "symbol"}${own === undefined ? "?" : "value" in own ? `=${zzshow(own.value, depth + 1)}` : " accessor"};`;
  }
  return text + "}";
};
const zzout = (value) => zzput(zzshow(value, 0)), out = zzout;
const zznote = (e) => { zzsuspect(e); zzput(`caught ${zzshow(e, 2)}`); }, note = zznote;
// An engine may choose the bits of a NaN, so no integer view shares a buffer with floats.
let n0 = 0, n1 = -0, n2 = 1.5, n3 = 2147483648, s0 = "", s1 = "abc", s2 = "\u00e9\ud800z", g0 = 0n, g1 = -1n;
let a0 = [], a1 = [1, 2, 3], a2 = [1.5, , 3.5], a3 = ["x", {}, null];
let t0 = new Int32Array(8), t1 = new Float64Array(6), t2 = new Uint8ClampedArray(t0.buffer, 4, 9), q0 = new BigInt64Array(t0.buffer);
let v0 = new DataView(t0.buffer, 3), o0 = {}, o1 = { a: 1, b: 2.5 }, o2 = { get c() { return 7; }, d: "e" }, o3 = Object.create(o1);
let f0 = (p, q) => p, f1 = (p, q) => q, f2 = (p, q) => f0(q, p), f3 = (p, q) => f1(q, p);
let r0 = /a(b)?/g, r1 = /[^x]+?/iu, m0 = new Map([[1, 2]]), w0 = new Set([NaN, -0]), c0 = class { z = 1; m() { return this.z; } };
let p0 = new Proxy({}, {}), y0 = Symbol("y"), z0 = new Date(86400000), x0, x1, x2 = null, x3 = true;
