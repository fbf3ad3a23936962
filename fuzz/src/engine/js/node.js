// A second engine: runs programs for the fuzzer in Node.js, each in a context of its own. Each line
// of the input is a program, as a string in JSON. Each line of the output is its outcome in JSON.
"use strict";
const vm = require("node:vm");
const read = require("node:readline").createInterface({ input: process.stdin });
read.on("line", async (line) => {
  let answer;
  try {
    const context = vm.createContext({}, { codeGeneration: { strings: true, wasm: false } });
    const main = vm.runInContext(`(${JSON.parse(line)}\n)`, context, { timeout: 2000 });
    let expired;
    const late = new Promise((done) => { expired = setTimeout(done, 3000, "late"); });
    // Only the first turn of a program can be interrupted. If a later turn does not end, the fuzzer
    // ends this process.
    context.main = main;
    const value = await Promise.race([vm.runInContext("main()", context, { timeout: 2000 }), late]);
    clearTimeout(expired);
    answer = value === "late" ? { late: true } : { result: JSON.stringify(value) };
  } catch (e) {
    answer = e && e.code === "ERR_SCRIPT_EXECUTION_TIMEOUT" ? { late: true } : { threw: String(e && e.name) };
  }
  process.stdout.write(JSON.stringify(answer) + "\n");
});
