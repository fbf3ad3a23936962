// Objects that at first never leave their function, and later do.
f0 = function (p, q) {
  const h = { a: p, b: { c: q } };
  if (p === 170) x0 = h;
  return h.a + h.b.c;
};
for (let k = 0; k < 200; k++) {
  n0 = f0(k, k / 2);
}
out([n0, x0]);
f1 = (p, q) => {
  const h = [p, q, p + q];
  const [i, , j] = h;
  try {
    if (q > 180) throw h;
  } catch (e) {
    return e.length;
  } finally {
    n1 = i;
  }
  return { ...{ i, j } }.j;
};
for (let k = 0; k < 200; k++) {
  x1 = f1(k, k);
}
out([x1, n1]);
f2 = function (p) {
  const h = () => p++;
  return h() + h() + p;
};
for (let k = 0; k < 150; k++) {
  n2 = f2(k > 140 ? "7" : k);
}
out(n2);
x2 = [...(function* () {
  const h = { n: 0 };
  while (h.n < 5) yield h.n++;
})()];
out(x2);
out(await Promise.all([1, 2].map(async (p) => ({ p, q: await p * 2 }))));
