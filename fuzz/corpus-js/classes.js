// Classes with private parts, accessors, inheritance from built-ins, and constructors that return.
c0 = class {
  #h = 1;
  z = this.#h + 1;
  static s = 7;
  m(p) {
    return (this.#h += p);
  }
  get a() {
    return this.#h;
  }
  set a(v) {
    this.#h = v;
  }
};
o0 = new c0();
for (let k = 0; k < 200; k++) {
  n0 = o0.m(k) + o0.a;
  if (k === 150) o0.a = "text";
}
out([n0, o0.a]);
x0 = class extends c0 {
  constructor(p) {
    super();
    if (p > 90) return { m() { return -1; } };
  }
  m(p) {
    return super.m(p) * 2;
  }
};
for (let k = 0; k < 100; k++) {
  x1 = new x0(k).m(k);
}
out(x1);
x2 = new (class extends Array { m() { return this.length; } })(1, 2, 3);
out([x2.m(), x2.map((p) => p + 1).m(), x2.slice(1) instanceof Array]);
o1 = { __proto__: { get b() { return this.a; } }, a: 5 };
for (let k = 0; k < 100; k++) {
  n1 = o1.b;
  if (k === 70) Object.setPrototypeOf(o1, { b: 6 });
}
out(n1);
try {
  c0.prototype.m.call({}, 1);
} catch (e) {
  note(e);
}
