// Big integers at the widths where compilers keep them in registers.
f0 = function (p, q) {
  return BigInt.asIntN(64, p * q + 1n);
};
for (let k = 0n; k < 200n; k++) {
  g0 = f0(g0 + k, k - 100n);
}
out(g0);
f1 = function (p, q) {
  return BigInt.asUintN(64, BigInt.asUintN(64, p) - BigInt.asUintN(64, q));
};
for (let k = 0; k < 100; k++) {
  g1 = f1(BigInt(k), BigInt(k * 2 ** 60));
}
out(g1);
out([g0 << 65n, g0 >> 3n, -g1 >> 70n, g1 ** 3n, g0 / 7n, g0 % -7n]);
out([1n < 1.5, 2n == 2, 9007199254740993n > 9007199254740992, BigInt(2 ** 80)]);
for (let k = 0; k < 80; k++) {
  q0[k & 3] = BigInt(k) << 61n;
  x0 = q0[k & 3] ^ -1n;
}
out([x0, q0]);
try {
  out(g0 + 1);
} catch (e) {
  note(e);
}
out([(123n).toString(36), BigInt("0b101"), Number(2n ** 70n), parseInt("12n")]);
