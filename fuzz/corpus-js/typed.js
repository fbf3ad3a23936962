// Typed arrays at their edges: conversions, shared buffers, resizing and detaching.
f0 = function (p, q) {
  t0[p & 7] = q;
  return t0[p & 7] + t2[p & 7];
};
for (let k = 0; k < 300; k++) {
  n0 = f0(k, k * 1000000.7);
}
out(n0);
for (let k = 0; k < 100; k++) {
  t1[k % 9] = k === 60 ? NaN : -k / 3;
  n1 = t1[k % 7] ?? -1;
}
out(t1);
t2.fill(300, 1, 5);
t2.set([1.5, -1, 256, "7"], 2);
out(t2);
q0[1] = 18446744073709551615n;
out(v0.getBigInt64(1, true));
t0 = new Int32Array(new ArrayBuffer(16, { maxByteLength: 64 }));
f1 = function (p) {
  let l = 0;
  for (let i = 0; i < p.length; i++) {
    l += p[i];
  }
  return l;
};
for (let k = 0; k < 120; k++) {
  n2 = f1(t0);
  if (k === 80) t0.buffer.resize(64);
  if (k === 100) t0.buffer.resize(4);
}
out([n2, t0.length]);
x0 = new Uint8Array([1, 2, 3, 4]).map((p) => p * 100);
out(x0.toReversed().with(0, 511).subarray(1, 3));
