// Randomness.

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
define(globalThis, "crypto", crypto);
