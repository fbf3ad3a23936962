const zzpool = [n0, n1, n2, n3, s0, s1, s2, g0, g1, a0, a1, a2, a3, t0, t1, t2, q0, o0, o1, o2, o3, m0, w0, z0, x0, x1, x2, x3];
for (let i = 0; i < zzpool.length; i++) out(zzpool[i]);
zzput("end");
return { doubt, trace };
