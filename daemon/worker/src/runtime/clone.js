// structuredClone.

class DataCloneError extends Error {
  constructor(message) {
    super(message);
    define(this, "name", "DataCloneError");
  }
}

// Copies value by value. V8's serializer would first write everything to a buffer outside V8's
// heap.
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
