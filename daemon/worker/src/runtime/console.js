// console: each call that prints adds one line, with a level, to the run's log.
const DEBUG = 0, LOG = 1, INFO = 2, WARN = 3, ERROR = 4;
let indent = 0;
const counts = new Map();
const timings = new Map();

function format(args) {
  let text = "";
  let next = 0;
  if (args.length > 1 && typeof args[0] === "string" && indexOf(args[0], "%") >= 0) {
    const template = args[0];
    next = 1;
    for (let i = 0; i < template.length; i++) {
      const c = template[i];
      const kind = c === "%" ? template[i + 1] : undefined;
      if (kind === "%") {
        text += "%";
        i++;
      } else if (kind !== undefined && indexOf("sdifjoOc", kind) >= 0 && next < args.length) {
        text += substitute(kind, args[next++]);
        i++;
      } else {
        text += c;
      }
    }
  }
  for (let i = next; i < args.length; i++) text += (i > 0 ? " " : "") + inspect(args[i], 0, new Set());
  return text;
}

function substitute(kind, value) {
  if (kind === "c") return "";
  if (kind === "s") return inspect(value, 0, new Set());
  if (kind === "j") return tryOr(() => stringifyJson(value), "[circular]");
  if (kind === "o" || kind === "O") return inspect(value, 1, new Set());
  if (typeof value === "bigint") return bigintText(value) + "n";
  if (typeof value === "symbol" || (typeof value === "object" && value !== null)) return "NaN";
  const number = toNum(value);
  return toStr(kind === "f" || !isFinite(number) ? number : number < 0 ? -((-number) - ((-number) % 1)) : number - (number % 1));
}

function tryOr(fn, otherwise) {
  try {
    return fn();
  } catch {
    return otherwise;
  }
}

function print(level, text) {
  native.print(level, indent === 0 ? text : repeat("  ", indent) + replaceAll(text, "\n", "\n" + repeat("  ", indent)));
}
const printer = (level) => function (...args) {
  print(level, format(args));
};
const label = (name) => (name === undefined ? "default" : toStr(name));

function table(rows) {
  if (typeof rows !== "object" || rows === null) return print(LOG, inspect(rows, 0, new Set()));
  const keys = ownKeys(rows);
  let text = "";
  for (let i = 0; i < keys.length && i < WIDTH; i++) {
    if (isArray(rows) && keys[i] === "length") continue;
    text += `${text === "" ? "" : "\n"}${toStr(keys[i])} | ${inspect(rows[keys[i]], 1, new Set())}`;
  }
  print(LOG, text);
}

const consoleMethods = {
  __proto__: null,
  debug: printer(DEBUG),
  log: printer(LOG),
  info: printer(INFO),
  warn: printer(WARN),
  error: printer(ERROR),
  dir: (value) => print(LOG, inspect(value, 1, new Set())),
  dirxml: printer(LOG),
  table,
  trace: (...args) => {
    const stack = slice(describe(new Error(""))[2], 5);
    print(DEBUG, `Trace: ${format(args)}${stack}`);
  },
  assert: (condition, ...args) => {
    if (!condition) print(ERROR, args.length === 0 ? "Assertion failed" : `Assertion failed: ${format(args)}`);
  },
  clear: () => {},
  count: (name) => {
    const key = label(name);
    const count = (mapGet(counts, key) ?? 0) + 1;
    mapSet(counts, key, count);
    print(INFO, `${key}: ${count}`);
  },
  countReset: (name) => {
    mapDelete(counts, label(name));
  },
  group: (...args) => {
    if (args.length > 0) print(LOG, format(args));
    if (indent < 20) indent++;
  },
  groupCollapsed: (...args) => apply(consoleMethods.group, undefined, args),
  groupEnd: () => {
    if (indent > 0) indent--;
  },
  time: (name) => {
    mapSet(timings, label(name), dateNow());
  },
  timeLog: (name, ...args) => timing(label(name), args),
  timeEnd: (name) => {
    timing(label(name), []);
    mapDelete(timings, label(name));
  },
};

function timing(key, args) {
  if (!mapHas(timings, key)) return print(WARN, `there is no timer ${key}`);
  print(INFO, `${key}: ${dateNow() - mapGet(timings, key)} ms${args.length === 0 ? "" : " " + format(args)}`);
}

const console = {};
for (const name in consoleMethods) define(console, name, consoleMethods[name]);
define(globalThis, "console", console);
