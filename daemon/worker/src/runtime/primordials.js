// The language's own functions, taken before a tenant's code can replace them. The runtime calls
// these and none that a tenant could replace: a tenant that poisons a prototype affects itself,
// never the runtime. Spreading and for-of are avoided throughout, because they use Symbol.iterator,
// which a tenant can replace.
const { apply, construct, ownKeys, getPrototypeOf, defineProperty } = Reflect;
const uncurry = (fn) => (self, a, b, c) => apply(fn, self, [a, b, c]);

const ObjectPrototype = Object.prototype;
const ErrorPrototype = Error.prototype;
const SyntaxErrorPrototype = SyntaxError.prototype;
const PromisePrototype = Promise.prototype;
const isArray = Array.isArray;
const isInteger = Number.isInteger;
const isFinite = Number.isFinite;
const isView = ArrayBuffer.isView;
const fromBase64 = Uint8Array.fromBase64;
const toBase64 = uncurry(Uint8Array.prototype.toBase64);
const parseJson = JSON.parse;
const stringifyJson = JSON.stringify;
const descriptorOf = Object.getOwnPropertyDescriptor;
const createObject = Object.create;
const freeze = Object.freeze;
const dateNow = Date.now;
const fromCharCode = String.fromCharCode;
const toStr = String;
const toNum = Number;

const hasOwn = uncurry(ObjectPrototype.hasOwnProperty);
const tagOf = uncurry(ObjectPrototype.toString);
const symbolText = uncurry(Symbol.prototype.toString);
const bigintText = uncurry(BigInt.prototype.toString);
const slice = uncurry(String.prototype.slice);
const startsWith = uncurry(String.prototype.startsWith);
const indexOf = uncurry(String.prototype.indexOf);
const charCodeAt = uncurry(String.prototype.charCodeAt);
const replaceAll = uncurry(String.prototype.replaceAll);
const repeat = uncurry(String.prototype.repeat);
const lowerCase = uncurry(String.prototype.toLowerCase);
const dateText = uncurry(Date.prototype.toISOString);
const dateValue = uncurry(Date.prototype.getTime);
const regexpText = uncurry(RegExp.prototype.toString);
const regexpSource = uncurry(descriptorOf(RegExp.prototype, "source").get);
const regexpFlags = uncurry(descriptorOf(RegExp.prototype, "flags").get);
const mapForEach = uncurry(Map.prototype.forEach);
const mapGet = uncurry(Map.prototype.get);
const mapSet = uncurry(Map.prototype.set);
const mapHas = uncurry(Map.prototype.has);
const mapDelete = uncurry(Map.prototype.delete);
const mapClear = uncurry(Map.prototype.clear);
const mapSize = uncurry(descriptorOf(Map.prototype, "size").get);
const setForEach = uncurry(Set.prototype.forEach);
const setAdd = uncurry(Set.prototype.add);
const setHas = uncurry(Set.prototype.has);
const setDelete = uncurry(Set.prototype.delete);
const setSize = uncurry(descriptorOf(Set.prototype, "size").get);
const bufferSlice = uncurry(ArrayBuffer.prototype.slice);
const bufferLength = uncurry(descriptorOf(ArrayBuffer.prototype, "byteLength").get);
const isDetached = uncurry(descriptorOf(ArrayBuffer.prototype, "detached").get);
const TypedArrayPrototype = getPrototypeOf(Uint8Array.prototype);
const viewName = uncurry(descriptorOf(TypedArrayPrototype, Symbol.toStringTag).get);
const viewBuffer = uncurry(descriptorOf(TypedArrayPrototype, "buffer").get);
const viewOffset = uncurry(descriptorOf(TypedArrayPrototype, "byteOffset").get);
const viewBytes = uncurry(descriptorOf(TypedArrayPrototype, "byteLength").get);
const viewLength = uncurry(descriptorOf(TypedArrayPrototype, "length").get);
const dataViewBuffer = uncurry(descriptorOf(DataView.prototype, "buffer").get);
const dataViewOffset = uncurry(descriptorOf(DataView.prototype, "byteOffset").get);
const dataViewBytes = uncurry(descriptorOf(DataView.prototype, "byteLength").get);
const numberValue = uncurry(Number.prototype.valueOf);
const stringValue = uncurry(String.prototype.valueOf);
const booleanValue = uncurry(Boolean.prototype.valueOf);
const bigintValue = uncurry(BigInt.prototype.valueOf);
const viewConstructors = {
  __proto__: null, Int8Array, Uint8Array, Uint8ClampedArray, Int16Array, Uint16Array, Int32Array, Uint32Array,
  BigInt64Array, BigUint64Array, Float16Array: globalThis.Float16Array, Float32Array, Float64Array,
};
const errorConstructors = { __proto__: null, Error, EvalError, RangeError, ReferenceError, SyntaxError, TypeError, URIError };

// True if `read(value)` does not throw: the brand check of a built-in, which a tenant cannot fake.
const brand = (read) => (value) => {
  try {
    read(value);
    return true;
  } catch {
    return false;
  }
};
const isMap = brand(mapSize);
const isSet = brand(setSize);
const isDate = brand(dateValue);
const isRegExp = brand(regexpSource);
const isBuffer = brand(bufferLength);
const isNumberObject = brand(numberValue);
const isStringObject = brand(stringValue);
const isBooleanObject = brand(booleanValue);
const isBigintObject = brand(bigintValue);
// The primitive value in an object that boxes one; any other value as it is.
function unboxed(value) {
  if (typeof value !== "object" || value === null || isArray(value) || isPlain(value)) return value;
  if (isNumberObject(value)) return numberValue(value);
  if (isStringObject(value)) return stringValue(value);
  if (isBooleanObject(value)) return booleanValue(value);
  return isBigintObject(value) ? bigintValue(value) : value;
}
const isError = (value) => isPrototypeInChain(ErrorPrototype, value);
function isPrototypeInChain(prototype, value) {
  for (let p = getPrototypeOf(value); p !== null; p = getPrototypeOf(p)) if (p === prototype) return true;
  return false;
}

// The `prototype` property of a class cannot be written, that of an ordinary function can.
function isClass(fn) {
  const prototype = descriptorOf(fn, "prototype");
  return prototype !== undefined && !prototype.writable;
}

// Appends without calling setters that a tenant may have put on Array.prototype.
function push(array, value) {
  defineProperty(array, array.length, { __proto__: null, value, writable: true, enumerable: true, configurable: true });
}
function isPlain(value) {
  const prototype = getPrototypeOf(value);
  return prototype === null || prototype === ObjectPrototype;
}
function define(target, name, value) {
  defineProperty(target, name, { __proto__: null, value, writable: true, enumerable: false, configurable: true });
}
