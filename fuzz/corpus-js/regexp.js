// Regular expressions, interpreted and compiled, and the state that they leave.
for (let k = 0; k < 60; k++) {
  x0 = /(a+)(b*)(?<h>c)?/d.exec("xaab" + "c".repeat(k & 1));
}
out([x0.index, x0.groups.h, x0.indices]);
r0 = /(?:(x)|(y))+?z/g;
out(["xyz", "yxz xz", "z"].map((p) => p.replace(r0, (h, i, j) => `[${i}|${j}]`)));
r1 = /\b(?<!a)\p{Lu}\w*(?=!)/gu;
out([..."Ab! aB! \u0401x!".matchAll(r1)].map((p) => p.index));
r1.lastIndex = 3;
out([r1.test("Ab! Cd!"), r1.lastIndex]);
out("a,b;c".split(/([,;])/));
out("\ud83d\ude00\ud83d".match(/./gu));
out("aBc".replace(/b/i, "$`$&$'$$"));
s0 = "";
for (let k = 0; k < 100; k++) {
  s0 = part(s0 + String.fromCharCode(97 + (k * 7) % 26), 0, 60);
  x1 = s0.search(/([aeiou])[^aeiou]{2}\1?/);
}
out([s0, x1]);
x2 = new (class extends RegExp { exec(p) { return super.exec(p.toUpperCase()); } })("B+", "g")[Symbol.replace]("abbc", "-");
out(x2);
try {
  new RegExp("(?<h>a)(?<h>b)", "v");
} catch (e) {
  note(e);
}
