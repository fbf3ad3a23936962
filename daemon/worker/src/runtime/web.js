// The small part of the web platform that needs no network: structuredClone, text, base64, randomness, performance.

class DataCloneError extends Error {
  constructor(message) {
    super(message);
    define(this, "name", "DataCloneError");
  }
}

// In the tenant's own heap, under its own limits, rather than through V8's serializer, whose buffer is neither.
function clone(value, seen) {
  if (typeof value === "function" || typeof value === "symbol") {
    throw new DataCloneError(`${inspect(value, 1, new Set())} could not be cloned`);
  }
  if (typeof value !== "object" || value === null) return value;
  if (mapHas(seen, value)) return mapGet(seen, value);
  const primitive = unboxed(value);
  if (primitive !== value) return mapSet(seen, value, Object(primitive)) && mapGet(seen, value);
  const remember = (copy) => {
    mapSet(seen, value, copy);
    return copy;
  };
  if (isArray(value)) {
    const copy = remember([]);
    copy.length = value.length;
    return cloneProperties(value, copy, seen);
  }
  if (isDate(value)) return remember(new Date(dateValue(value)));
  if (isRegExp(value)) return remember(new RegExp(regexpSource(value), regexpFlags(value)));
  if (isMap(value)) {
    const copy = remember(new Map());
    mapForEach(value, (v, k) => mapSet(copy, clone(k, seen), clone(v, seen)));
    return copy;
  }
  if (isSet(value)) {
    const copy = remember(new Set());
    setForEach(value, (v) => setAdd(copy, clone(v, seen)));
    return copy;
  }
  if (isBuffer(value)) {
    if (isDetached(value)) throw new DataCloneError("a detached ArrayBuffer could not be cloned");
    return remember(bufferSlice(value, 0));
  }
  if (isView(value)) {
    const name = viewName(value);
    if (name === undefined) {
      return remember(new DataView(clone(dataViewBuffer(value), seen), dataViewOffset(value), dataViewBytes(value)));
    }
    const buffer = clone(viewBuffer(value), seen);
    return remember(new viewConstructors[name](buffer, viewOffset(value), viewLength(value)));
  }
  if (isError(value)) {
    const name = value.name;
    const message = value.message;
    const stack = value.stack;
    const copy = remember(construct(errorConstructors[name] ?? Error, [typeof message === "string" ? message : ""]));
    if (typeof stack === "string") define(copy, "stack", stack);
    if (hasOwn(value, "cause")) define(copy, "cause", clone(value.cause, seen));
    return copy;
  }
  const tag = tagOf(value);
  if (tag === "[object Promise]" || tag === "[object WeakMap]" || tag === "[object WeakSet]" || tag === "[object WeakRef]") {
    throw new DataCloneError(`${slice(tag, 8, -1)} could not be cloned`);
  }
  return cloneProperties(value, remember({}), seen);
}

function cloneProperties(value, copy, seen) {
  const keys = ownKeys(value);
  for (let i = 0; i < keys.length; i++) {
    if (typeof keys[i] !== "string") continue;
    const own = descriptorOf(value, keys[i]);
    if (own === undefined || !own.enumerable) continue;
    const copied = { __proto__: null, value: clone(value[keys[i]], seen), writable: true, enumerable: true, configurable: true };
    defineProperty(copy, keys[i], copied);
  }
  return copy;
}

define(globalThis, "structuredClone", function structuredClone(value, options) {
  if (arguments.length === 0) throw new TypeError("structuredClone needs a value");
  if (options?.transfer?.length > 0) throw new DataCloneError("transfer is not supported: nothing here to transfer to");
  return clone(value, new Map());
});

class TextEncoder {
  get encoding() {
    return "utf-8";
  }
  encode(text = "") {
    return native.encodeUtf8(toStr(text));
  }
}

class TextDecoder {
  #fatal;
  #ignoreBom;
  constructor(label = "utf-8", options = {}) {
    const known = ["utf-8", "utf8", "unicode-1-1-utf-8"];
    let found = false;
    for (let i = 0; i < known.length; i++) found ||= known[i] === lowerCase(toStr(label));
    if (!found) throw new RangeError(`TextDecoder knows utf-8 only, not ${toStr(label)}`);
    this.#fatal = Boolean(options?.fatal);
    this.#ignoreBom = Boolean(options?.ignoreBOM);
  }
  get encoding() {
    return "utf-8";
  }
  get fatal() {
    return this.#fatal;
  }
  get ignoreBOM() {
    return this.#ignoreBom;
  }
  decode(input = new Uint8Array(0), options = {}) {
    if (options?.stream) throw new TypeError("TextDecoder does not decode in pieces here; give it all bytes at once");
    return native.decodeUtf8(bytesOf(input), this.#fatal, this.#ignoreBom);
  }
}

function bytesOf(input) {
  if (isBuffer(input)) return new Uint8Array(input);
  if (!isView(input)) throw new TypeError("expected an ArrayBuffer or a view of one");
  return viewName(input) === undefined
    ? new Uint8Array(dataViewBuffer(input), dataViewOffset(input), dataViewBytes(input))
    : new Uint8Array(viewBuffer(input), viewOffset(input), viewBytes(input));
}

function notBase64(message) {
  const error = new Error(message);
  defineProperty(error, "name", { __proto__: null, value: "InvalidCharacterError", configurable: true });
  return error;
}

// What is decoded are bytes, what the web wants is a string of characters up to U+00FF.
function btoa(text) {
  const bytes = native.latin1Bytes(toStr(text));
  if (bytes === undefined) throw notBase64("btoa takes characters up to U+00FF only");
  return toBase64(bytes);
}

function atob(text) {
  const source = toStr(text);
  let bytes;
  try {
    bytes = fromBase64(source);
  } catch (error) {
    throw getPrototypeOf(error) === SyntaxErrorPrototype ? notBase64("atob was given text that is not base64") : error;
  }
  return native.latin1Text(bytes);
}

const crypto = {};
define(crypto, "getRandomValues", function getRandomValues(view) {
  const name = isView(view) ? viewName(view) : undefined;
  if (name === undefined || startsWith(name, "Float")) throw new TypeError("getRandomValues needs a typed array of integers");
  if (viewBytes(view) > 65536) throw new RangeError("getRandomValues fills 65536 bytes at most");
  native.random(bytesOf(view));
  return view;
});
define(crypto, "randomUUID", function randomUUID() {
  const bytes = new Uint8Array(16);
  native.random(bytes);
  bytes[6] = (bytes[6] & 15) | 64;
  bytes[8] = (bytes[8] & 63) | 128;
  let text = "";
  for (let i = 0; i < 16; i++) {
    if (i === 4 || i === 6 || i === 8 || i === 10) text += "-";
    text += BASE16[bytes[i] >> 4] + BASE16[bytes[i] & 15];
  }
  return text;
});
const BASE16 = "0123456789abcdef";

// The clock stands still while code runs: it is that of the last event, as Date's is.
let timeOrigin = 0;
const performance = {};
define(performance, "now", function now() {
  return dateNow() - timeOrigin;
});
defineProperty(performance, "timeOrigin", { __proto__: null, get: () => timeOrigin, enumerable: false, configurable: true });

define(globalThis, "TextEncoder", TextEncoder);
define(globalThis, "TextDecoder", TextDecoder);
define(globalThis, "atob", atob);
define(globalThis, "btoa", btoa);
define(globalThis, "crypto", crypto);
define(globalThis, "performance", performance);
define(globalThis, "self", globalThis);
