// From a module's exports to a result: finds the entry point, calls it, and writes its value as
// JSON.

class WorkerEntrypoint {
  constructor(ctx, env) {
    define(this, "ctx", ctx);
    define(this, "env", env);
  }
}

// `exports` is the main module's namespace. Returns the result as JSON; or, if the result is longer
// than `outputBytes`, how many bytes it has at least.
async function invoke(exports, entrypoint, method, argsJson, envJson, propsJson, outputBytes = Infinity) {
  timeOrigin = dateNow();
  const args = argsJson === "[]" ? [] : parseJson(argsJson);
  const env = envJson === "{}" ? {} : parseJson(envJson);
  const ctx = { props: propsJson === "{}" ? {} : parseJson(propsJson) };
  const entry = find(exports, entrypoint);
  let value;
  if (typeof entry === "function" && !isClass(entry)) {
    if (method !== undefined) throw new TypeError(`the entry point ${entrypoint} is a function, so it has no method ${method}; leave method out`);
    value = apply(entry, undefined, withContext(args, env, ctx));
  } else if (typeof entry === "function") {
    const instance = construct(entry, [ctx, env]);
    value = apply(findMethod(instance, entrypoint, method), instance, args);
  } else {
    value = apply(findMethod(entry, entrypoint, method), entry, withContext(args, env, ctx));
  }
  value = await value;
  room = outputBytes;
  try {
    value = plain(value, "", 0);
  } catch (error) {
    if (error === TOO_LONG) return outputBytes - room;
    throw error;
  }
  const json = stringifyJson(value);
  return json === undefined ? "null" : json;
}

// How many bytes the result may still have. A result that is too long is not written as JSON: that
// would take many times its size before its bytes could be counted.
let room = 0;
const TOO_LONG = createObject(null);

function take(bytes) {
  room -= bytes;
  if (room < 0) throw TOO_LONG;
}

function withContext(args, env, ctx) {
  push(args, env);
  push(args, ctx);
  return args;
}

function find(exports, entrypoint) {
  if (!hasOwn(exports, entrypoint)) {
    const names = ownKeys(exports);
    let list = "";
    for (let i = 0; i < names.length; i++) if (typeof names[i] === "string") list += (list === "" ? "" : ", ") + names[i];
    throw new TypeError(`the main module has no export ${entrypoint}; ${list === "" ? "it exports nothing" : `it exports ${list}`}`);
  }
  const entry = exports[entrypoint];
  if ((typeof entry !== "object" && typeof entry !== "function") || entry === null) {
    throw new TypeError(`the export ${entrypoint} is not an entry point: it is ${entry === null ? "null" : typeof entry}, not an object, a class or a function`);
  }
  return entry;
}

// Looks for the method in the object and in its classes, never among the properties that every
// object has.
function findMethod(target, entrypoint, method) {
  const name = method === undefined ? "run" : method;
  for (let owner = target; owner !== null && owner !== ObjectPrototype; owner = getPrototypeOf(owner)) {
    if (hasOwn(owner, name) && name !== "constructor") {
      const found = target[name];
      if (typeof found === "function") return found;
      throw new TypeError(`${name} of the entry point ${entrypoint} is not a function`);
    }
  }
  throw new TypeError(`the entry point ${entrypoint} has no method ${name}`);
}

// Deeper than an honest result, and far from the end of the stack.
const MAX_DEPTH = 500;

class ResultError extends TypeError {
  #what;
  #path = "";
  constructor(what) {
    super();
    this.#what = what;
    this.refresh();
  }
  under(step) {
    this.#path = step + this.#path;
    this.refresh();
  }
  refresh() {
    define(this, "message", `JSON cannot carry the result: result${this.#path} is ${this.#what}`);
    define(this, "name", "ResultError");
    define(this, "stack", `ResultError: ${this.message}`);
  }
  static is(value) {
    return typeof value === "object" && value !== null && #path in value;
  }
}

const open = new Set();

// Returns a copy of `value` that JSON can carry completely, and reads each getter once. If JSON
// cannot carry it, throws an error that says which part is at fault.
function plain(value, key, depth) {
  if (typeof value === "object" && value !== null) {
    // toJSON is called once, as JSON.stringify does: the value that it returns is not asked for a
    // toJSON.
    const toJson = value.toJSON;
    if (typeof toJson === "function") value = apply(toJson, value, [key]);
  }
  value = unboxed(value);
  // Each character, and each value, takes at least one byte.
  take(typeof value === "string" ? value.length : 1);
  switch (typeof value) {
    case "string":
    case "boolean":
      return value;
    case "undefined":
      return undefined;
    case "number":
      if (!isFinite(value)) throw new ResultError(toStr(value));
      return value;
    case "bigint":
      throw new ResultError("a BigInt (convert it to a string)");
    case "function":
      throw new ResultError("a function");
    case "symbol":
      throw new ResultError("a symbol");
  }
  if (value === null) return null;
  if (depth > MAX_DEPTH) throw new ResultError(`nested deeper than ${MAX_DEPTH} levels`);
  if (setHas(open, value)) throw new ResultError("an object that contains itself");
  setAdd(open, value);
  try {
    return plainObject(value, depth);
  } finally {
    setDelete(open, value);
  }
}

function plainObject(value, depth) {
  if (isArray(value)) {
    const copy = [];
    for (let i = 0; i < value.length; i++) {
      const item = step(value, i, `[${i}]`, depth);
      push(copy, item === undefined ? null : item);
    }
    return copy;
  }
  if (isMap(value)) throw new ResultError("a Map (use Object.fromEntries)");
  if (isSet(value)) throw new ResultError("a Set (use Array.from)");
  if (isBuffer(value) || isView(value)) throw new ResultError("binary data (encode it, for example with btoa)");
  if (isError(value)) {
    const described = describe(value);
    return { __proto__: null, name: described[0], message: described[1] };
  }
  if (isPrototypeInChain(PromisePrototype, value)) throw new ResultError("a promise (await it)");
  const copy = createObject(null);
  const keys = ownKeys(value);
  for (let i = 0; i < keys.length; i++) {
    const own = typeof keys[i] === "string" ? descriptorOf(value, keys[i]) : undefined;
    if (own === undefined || !own.enumerable) continue;
    // toJSON has been called already, and is not part of the result.
    if (keys[i] === "toJSON" && typeof own.value === "function") continue;
    take(keys[i].length);
    const item = step(value, keys[i], isIdentifier(keys[i]) ? `.${keys[i]}` : `[${stringifyJson(keys[i])}]`, depth);
    defineProperty(copy, keys[i], { __proto__: null, value: item, writable: true, enumerable: true, configurable: true });
  }
  return copy;
}

function step(holder, key, path, depth) {
  try {
    return plain(holder[key], toStr(key), depth + 1);
  } catch (error) {
    if (ResultError.is(error)) error.under(path);
    throw error;
  }
}

return { invoke, fireTimer, forgetTimers, describe, WorkerEntrypoint };
