// Parameters: aliases, defaults, rests, spreads, and calls with too few and too many.
f0 = function (p, q) {
  arguments[0] = q;
  p = p + arguments.length;
  return [p, arguments[0], arguments[2]];
};
for (let k = 0; k < 200; k++) {
  x0 = k % 5 ? f0(k, 1) : f0(k, 2, 3);
}
out(x0);
f1 = function (p = n0++, { a: q = p, ...i } = o1, ...j) {
  return [p, q, i, j.length];
};
for (let k = 0; k < 100; k++) {
  x1 = f1(...[k, undefined, 1, 2].slice(0, k & 3));
}
out(x1);
f2 = function () {
  return Math.max(...arguments) + Math.min.apply(null, arguments);
};
for (let k = 0; k < 100; k++) {
  n1 = f2(k, -k, k === 90 ? NaN : 1);
}
out(n1);
f3 = f0.bind(o0, 5);
out(f3(6, 7));
o2 = { m(p) { return this === o2 ? p : typeof this; } };
x2 = o2.m;
out([o2.m(1), x2(2), (0, o2.m)(3), o2?.m?.(4)]);
out(f0.length + f1.length + f3.name.length);
