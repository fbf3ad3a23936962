// The clock that a script sees, and the name of the global object.

// The clock stands still while code runs: like Date, it shows the time at which the turn began.
let timeOrigin = 0;
const performance = {};
define(performance, "now", function now() {
  return dateNow() - timeOrigin;
});
defineProperty(performance, "timeOrigin", { __proto__: null, get: () => timeOrigin, enumerable: false, configurable: true });
define(globalThis, "performance", performance);
define(globalThis, "self", globalThis);
