// The smallest entry point: an object with a method, called with its arguments, then env, then ctx.
export default {
  async run(name, env) {
    console.log("hello from an isolate of its own,", name);
    return { greeting: `${env.word}, ${name}!` };
  },
};
