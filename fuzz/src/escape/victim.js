// The script of a victim. It plants secrets in every kind of memory that a tenant has, and reports
// where they are. Its isolate is kept between runs, and each run examines the secrets.
let kept;
const bytes = (text, n) => Uint8Array.from({ length: n }, (_, i) => text.charCodeAt(i % text.length));
const same = (buffer, text) => { const found = new Uint8Array(buffer); for (let i = 0; i < 4096; i++) if (found[i] !== text.charCodeAt(i % text.length)) return false; return true; };
class Holder { #secret; constructor(secret) { this.#secret = secret; } get secret() { return this.#secret; } }
const hot = (x) => { let y = x; for (let i = 0; i < 3000; i++) y = (y * 31 + i) | 0; return y; };
const plant = (canary) => {
    const buffer = bytes(canary, 4096).buffer, resizable = new ArrayBuffer(4096, { maxByteLength: 1 << 20 });
    new Uint8Array(resizable).set(bytes(canary, 4096)); resizable.resize(1 << 16); resizable.resize(8192);
    const text = JSON.parse(JSON.stringify(canary)), object = { secret: text, n: 1.5 }, array = [1.1, 2.2, 3.3];
    const map = new Map([[text, new Holder(text)]]), set = new Set(Array.from({ length: 50 }, (_, i) => text + i));
    return { canary, buffer, resizable, text, object, array, map, set, planted: attack.plant(canary), hot: hot(7) };
};
const wrong = (k) => [
    ['buffer', same(k.buffer, k.canary)], ['resizable', same(k.resizable, k.canary)], ['text', k.text === k.canary],
    ['object', k.object.secret === k.canary && k.object.n === 1.5], ['array', k.array.join() === '1.1,2.2,3.3'],
    ['map', k.map.get(k.canary).secret === k.canary], ['set', k.set.size === 50 && k.set.has(k.canary + 49)], ['code', hot(7) === k.hot],
    // This secret is outside V8's heap, so the victim reads it with an attacker's native.
    ['planted', attack.read(k.planted, 16n) === [...k.canary].slice(0, 16).map((c) => c.charCodeAt(0).toString(16).padStart(2, '0')).join('')],
].filter(([, holds]) => !holds).map(([what]) => what);
const storm = () => {
    const held = [];
    for (let i = 0; i < 3; i++) {
        const r = new ArrayBuffer(4096, { maxByteLength: 4 << 20 });
        r.resize(1 << 20); r.resize(0); r.resize(1 << 16);
        held.push(r.transfer(1 << 17), new ArrayBuffer(300000).transferToFixedLength(100), 'x'.repeat(50000 + i), Array.from({ length: 1000 }, (_, k) => ({ k })));
    }
    return held.length;
};
export default (s, env) => {
    // The natives lift the limit of memory. This sets it again.
    attack.account(64n);
    const bad = kept ? wrong(kept) : [];
    if (env.secret !== s.secret) bad.push('env');
    if (s.storm) storm();
    if (!kept || s.plant) kept = plant(s.canary);
    const [channel, stack, isolate, thread] = attack.self();
    const where = { channel, stack, isolate, thread, planted: kept.planted, buffer: attack.address(kept.buffer), resizable: attack.address(kept.resizable),
        text: attack.address(kept.text), object: attack.address(kept.object), array: attack.address(kept.array) };
    return { nonce: s.nonce, holds: kept.canary, bad, where: Object.fromEntries(Object.entries(where).map(([k, x]) => [k, String(x)])) };
};
