// Text as bytes: TextEncoder, TextDecoder, base64.

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

// On the web platform, the bytes of btoa and atob are a string of characters up to U+00FF.
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

define(globalThis, "TextEncoder", TextEncoder);
define(globalThis, "TextDecoder", TextDecoder);
define(globalThis, "atob", atob);
define(globalThis, "btoa", btoa);
