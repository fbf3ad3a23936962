// The smallest entry point: an object with a method. The daemon calls the method with the arguments
// of the request, then `env`, then `ctx`.
export default {
  async run(name, env) {
    console.log("hello from an isolate of its own,", name);
    return { greeting: `${env.word}, ${name}!` };
  },
};
