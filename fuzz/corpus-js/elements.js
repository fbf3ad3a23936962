// Arrays that change the kind of their elements: integers, doubles, holes, objects, accessors.
a0 = [];
for (let k = 0; k < 200; k++) {
  a0[k] = k < 100 ? k : k < 150 ? k + 0.5 : { k };
}
f0 = function (p, q) {
  return p[q] + p.length;
};
for (let k = 0; k < 200; k++) {
  x0 = f0(k % 3 ? a1 : a2, k & 7);
}
out(x0);
a2[20] = 1.5;
delete a2[0];
out(a2);
Array.prototype[4] = "inherited";
out(a2.map((p) => p));
out([1, , 3, , 5, ,].concat(a1).lastIndexOf("inherited"));
a1.length = 1;
a1[7] = -0;
for (let k = 0; k < 100; k++) {
  x1 = a1.indexOf(0) + a1.includes(NaN) + a1.at(-1);
}
out(x1);
Object.freeze(a1);
try {
  a1.push(4);
} catch (e) {
  note(e);
}
Object.defineProperty(a3, 1, { get() { a3.length = 0; return 9; }, configurable: true });
out(a3.map((p) => [p, a3.length]));
x2 = Array.from({ length: 6, 0: "a", 5: "b" }, (p, q) => p ?? q);
out(x2.copyWithin(1, 4).reverse());
