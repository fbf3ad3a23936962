// The API from Node.js, without packages: node node.mjs SOCKET. Runs a script once, registers a
// script and runs it twice, reads the tenant's usage, and shows how an error is answered.
import { request } from "node:http";

const [, , socketPath] = process.argv;
const tenant = "/v1/tenants/example-node";

/** Sends a request. Resolves to the answer's JSON; an error carries the problem (RFC 9457). */
function ask(method, path, body) {
  return new Promise((resolve, reject) => {
    const outgoing = request({ socketPath, method, path }, (incoming) => {
      let text = "";
      incoming.setEncoding("utf8");
      incoming.on("data", (chunk) => (text += chunk));
      incoming.on("error", reject);
      incoming.on("end", () => {
        const answer = JSON.parse(text);
        if (incoming.statusCode < 400) return resolve(answer);
        reject(Object.assign(new Error(answer.detail), { problem: answer }));
      });
    });
    outgoing.on("error", reject);
    outgoing.end(body === undefined ? undefined : JSON.stringify(body));
  });
}

// One run in a fresh isolate. The outcome is in the answer; HTTP 200 means that the request was
// valid.
const run = await ask("POST", `${tenant}/load`, {
  code: "(n, env) => n * env.factor",
  args: [21],
  env: { factor: 2 },
});
console.log(run.outcome, run.result);

// The isolate of a registered script is kept between its runs, with the state of its module.
await ask("PUT", `${tenant}/scripts/counter`, {
  code: "let calls = 0; export default { run(name) { return `${name}: ${++calls}` } }",
});
for (const name of ["first", "second"]) {
  console.log((await ask("POST", `${tenant}/scripts/counter/run`, { args: [name] })).result);
}

// What the tenant has used so far.
const { usage } = await ask("GET", tenant);
console.log("runs", usage.runs);

// The answer to a wrong request is a problem: its `type` is for programs, its `detail` for people.
try {
  await ask("POST", `${tenant}/load`, { cod: "() => 1" });
  throw new Error("a request with an unknown field was accepted");
} catch (error) {
  if (error.problem === undefined) throw error;
  console.log(error.problem.status, error.problem.type, error.message);
}
