// Lists every property that a script reaches from its global object, each with its path and kind.
() => {
  const lines = [], seen = new Set(), queue = [["globalThis", globalThis]];
  const name = (key) => (typeof key === "symbol" ? `[${key.description}]` : key);
  while (queue.length > 0) {
    const [path, object] = queue.shift();
    for (const key of Reflect.ownKeys(object)) {
      const { get, set, value } = Reflect.getOwnPropertyDescriptor(object, key);
      const kind = get || set ? `${get ? "get" : ""}${set ? "set" : ""}` : typeof value;
      lines.push(`${path}.${name(key)} ${kind}`);
      for (const [part, found] of [["get", get], ["set", set], ["", value]]) {
        if ((typeof found === "object" && found !== null) || typeof found === "function") {
          if (!seen.has(found)) { seen.add(found); queue.push([`${path}.${name(key)}${part && `:${part}`}`, found]); }
        }
      }
    }
    const proto = Reflect.getPrototypeOf(object);
    if (proto !== null && !seen.has(proto)) { seen.add(proto); queue.push([`${path}.__proto__`, proto]); }
  }
  return lines.sort();
}
