// Loops that are compiled while they run, and then leave the compiled code because of an overflow.
n0 = 0;
for (let k = 0; k < 2000; k++) {
  n0 = (n0 + k * 3) | 0;
  if (k === 1500) n0 = 2147483647;
}
out(n0);
f0 = function (p, q) {
  let l = 0;
  for (let i = 0; i < 20; i++) {
    l = l + p - (q >>> i);
  }
  return l;
};
for (let k = 0; k < 300; k++) {
  n1 = f0(k, k === 250 ? -0 : k);
}
out(n1);
l: for (let i = 0; i < 40; i++) {
  for (let j = 40; j > i; j--) {
    if ((i ^ j) === 7) continue l;
    n2 = n2 * 1.5 - j;
  }
}
out(n2);
do {
  n3 = n3 / 3;
} while (n3 > 1e-3);
out(n3);
for (let k = 0n; k < 200n; k++) {
  g0 = BigInt.asUintN(64, g0 * 31n + k);
}
