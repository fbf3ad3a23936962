// Values as text, for console. Depth, width and the length of nested strings are bounded, and no
// getter or proxy's trap is called if that can be avoided.
const DEPTH = 4;
const WIDTH = 100;

function inspect(value, depth, seen) {
  switch (typeof value) {
    case "string":
      return depth === 0 ? value : stringifyJson(value.length > 10000 ? slice(value, 0, 10000) + "\u2026" : value);
    case "symbol":
      return symbolText(value);
    case "bigint":
      return bigintText(value) + "n";
    case "function":
      return isClass(value) ? `[class ${ownName(value)}]` : `[function ${ownName(value)}]`;
    case "object":
      break;
    default:
      return isNegativeZero(value) ? "-0" : toStr(value);
  }
  if (value === null) return "null";
  if (setHas(seen, value)) return "[circular]";
  if (depth > DEPTH) return isArray(value) ? "[array]" : "[object]";
  setAdd(seen, value);
  try {
    return inspectObject(value, depth, seen);
  } catch {
    return "[object that throws when looked at]";
  } finally {
    setDelete(seen, value);
  }
}

const isNegativeZero = (value) => value === 0 && 1 / value < 0;

function ownName(fn) {
  const name = descriptorOf(fn, "name");
  return name !== undefined && typeof name.value === "string" && name.value !== "" ? name.value : "(anonymous)";
}

function inspectObject(value, depth, seen) {
  if (isError(value)) return depth === 0 ? describe(value)[2] : `[${describe(value)[0]}: ${describe(value)[1]}]`;
  if (isDate(value)) return isFinite(dateValue(value)) ? dateText(value) : "Invalid Date";
  if (isRegExp(value)) return regexpText(value);
  if (isArray(value)) return list("[", "]", arrayParts(value, depth, seen));
  if (isMap(value)) {
    const parts = [];
    mapForEach(value, (v, k) => {
      if (parts.length < WIDTH) push(parts, `${inspect(k, depth + 1, seen)} => ${inspect(v, depth + 1, seen)}`);
    });
    return `Map(${mapSize(value)}) ${list("{", "}", parts)}`;
  }
  if (isSet(value)) {
    const parts = [];
    setForEach(value, (v) => {
      if (parts.length < WIDTH) push(parts, inspect(v, depth + 1, seen));
    });
    return `Set(${setSize(value)}) ${list("{", "}", parts)}`;
  }
  if (isBuffer(value)) return `ArrayBuffer(${bufferLength(value)})`;
  if (isView(value)) {
    const name = viewName(value);
    return name === undefined ? "DataView" : `${name}(${viewLength(value)}) ${list("[", "]", arrayParts(value, depth, seen))}`;
  }
  return prefix(value) + list("{", "}", objectParts(value, depth, seen));
}

function prefix(value) {
  if (isPlain(value)) return "";
  const constructor = descriptorOf(getPrototypeOf(value), "constructor");
  return constructor !== undefined && typeof constructor.value === "function" ? ownName(constructor.value) + " " : "";
}

function arrayParts(value, depth, seen) {
  const parts = [];
  const length = isArray(value) ? value.length : viewLength(value);
  for (let i = 0; i < length && i < WIDTH; i++) {
    const own = descriptorOf(value, i);
    push(parts, own === undefined ? "" : inspectProperty(own, depth, seen));
  }
  if (length > WIDTH) push(parts, `\u2026 ${length - WIDTH} more`);
  return parts;
}

function objectParts(value, depth, seen) {
  const parts = [];
  const keys = ownKeys(value);
  for (let i = 0; i < keys.length; i++) {
    if (parts.length === WIDTH) {
      push(parts, `\u2026 ${keys.length - i} more`);
      break;
    }
    const own = descriptorOf(value, keys[i]);
    if (own === undefined || !own.enumerable) continue;
    const name = typeof keys[i] === "symbol" ? `[${symbolText(keys[i])}]` : isIdentifier(keys[i]) ? keys[i] : stringifyJson(keys[i]);
    push(parts, `${name}: ${inspectProperty(own, depth, seen)}`);
  }
  return parts;
}

function inspectProperty(own, depth, seen) {
  if (hasOwn(own, "value")) return inspect(own.value, depth + 1, seen);
  return own.get === undefined ? "[setter]" : "[getter]";
}

function isIdentifier(key) {
  for (let i = 0; i < key.length; i++) {
    const c = charCodeAt(key, i) | 32;
    const digit = c >= 48 && c <= 57;
    if (!((c >= 97 && c <= 122) || charCodeAt(key, i) === 95 || charCodeAt(key, i) === 36 || (digit && i > 0))) return false;
  }
  return key.length > 0;
}

function list(open, close, parts) {
  if (parts.length === 0) return open + close;
  let text = open === "[" ? "[" : "{ ";
  for (let i = 0; i < parts.length; i++) text += (i > 0 ? ", " : "") + parts[i];
  return text + (close === "]" ? "]" : " }");
}

// Whatever was thrown, as an error's [name, message, stack].
function describe(error) {
  if (typeof error !== "object" || error === null) {
    const text = typeof error === "string" ? error : inspect(error, 1, new Set());
    return ["Error", text, text];
  }
  const read = (name, otherwise) => {
    try {
      const value = error[name];
      return typeof value === "string" ? value : otherwise;
    } catch {
      return otherwise;
    }
  };
  if (!isError(error)) {
    const text = inspect(error, 1, new Set());
    return ["Error", text, text];
  }
  const name = read("name", "Error");
  const message = read("message", "");
  const head = message === "" ? name : `${name}: ${message}`;
  let stack = withoutRuntime(read("stack", head));
  let cause;
  try {
    cause = hasOwn(error, "cause") ? error.cause : undefined;
  } catch {
    cause = undefined;
  }
  if (typeof cause === "object" && cause !== null && cause !== error && isError(cause)) {
    stack += `\nCaused by: ${causeText(cause)}`;
  }
  return [name, message, stack];
}

// A stack without the lines that mention the runtime's file.
function withoutRuntime(stack) {
  let text = "";
  for (let start = 0; start <= stack.length; ) {
    const end = indexOf(stack, "\n", start);
    const line = slice(stack, start, end < 0 ? stack.length : end);
    if (indexOf(line, "enisle:runtime") < 0) text += (start === 0 ? "" : "\n") + line;
    if (end < 0) break;
    start = end + 1;
  }
  return text;
}

function causeText(cause) {
  try {
    return typeof cause.stack === "string" ? withoutRuntime(cause.stack) : toStr(cause.message);
  } catch {
    return "an error that throws when looked at";
  }
}
