// Timers: the callbacks are here; the deadlines are in the worker, which counts pending timers
// against the run's limit.
const timers = new Map();

function startTimer(callback, delay, args, again) {
  if (typeof callback !== "function") throw new TypeError("a timer needs a function to call");
  // The delay is a `long` in milliseconds, as the HTML standard specifies; here it is at least 1.
  const number = toNum(delay) | 0;
  const ms = number >= 1 ? number : 1;
  const id = native.timerStart(ms);
  mapSet(timers, id, { __proto__: null, callback, args, ms, again });
  return id;
}

function stopTimer(id) {
  if (typeof id === "number" && mapDelete(timers, id)) native.timerStop(id);
}

// Called by the worker when a deadline has passed.
function fireTimer(id) {
  const timer = mapGet(timers, id);
  if (timer === undefined) return;
  if (timer.again) native.timerAgain(id, timer.ms);
  else mapDelete(timers, id);
  apply(timer.callback, undefined, timer.args);
}

// Called before a later run of the same script. Timers of earlier runs never fire again, so nothing
// needs what their callbacks hold.
function forgetTimers() {
  mapClear(timers);
}

define(globalThis, "setTimeout", function setTimeout(callback, delay, ...args) {
  return startTimer(callback, delay, args, false);
});
define(globalThis, "setInterval", function setInterval(callback, delay, ...args) {
  return startTimer(callback, delay, args, true);
});
define(globalThis, "clearTimeout", function clearTimeout(id) {
  stopTimer(id);
});
define(globalThis, "clearInterval", function clearInterval(id) {
  stopTimer(id);
});
define(globalThis, "queueMicrotask", function queueMicrotask(callback) {
  if (typeof callback !== "function") throw new TypeError("queueMicrotask needs a function to call");
  native.microtask(callback);
});
