// The beginning of every attacker's program. The argument `s` of `begin` is the scene: the
// addresses and numbers that the victims reported about themselves.
let s0, own, O = 0n, C = 0n, K = 0n, T = 0n, said = '', turns = 0;
// In two parts, so that the text of this script does not contain the mark.
const MARK = 'can' + 'ary-', ISLAND = 1n << 41n, GIB = 1n << 30n;
const at = (text) => BigInt(text ?? 0), page = (at) => at & ~4095n;
const v = (which, fact) => at(s0.victims[which % (s0.victims.length || 1)]?.[fact]);
// The stack is 64 GiB after the start of its island, at a multiple of 4 GiB.
const island = () => (K & ~0xffffffffn) - 64n * GIB;
const near = (islands, gib) => island() + islands * ISLAND + gib * GIB, gap = (islands) => near(islands, 1n);
const junk = (word) => BigInt.asUintN(64, word) & 0xffffffffn | 0x1234567800000000n;
const PATHS = ['/', '/etc/passwd', '/proc/self/mem', '/proc/1/environ', '/dev/null', '../../../../etc/shadow'];
const put = (bytes, offset) => { new Uint8Array(own).set(bytes, offset); return O + BigInt(offset); };
const path = (which) => put([...PATHS[which % PATHS.length]].map((c) => c.charCodeAt(0)).concat(0), 3072);
const vector = (to) => { new BigUint64Array(own, 2048, 2).set([BigInt.asUintN(64, to), 64n]); return O + 2048n; };
const decoder = new TextDecoder(), characters = (bytes) => decoder.decode(bytes);
const tell = (text) => { const found = text.indexOf(MARK); if (found >= 0) said += ' read:' + text.slice(found, found + 48); };
const digits = (hex) => { let text = ''; for (let i = 0; i < hex.length; i += 2) text += String.fromCharCode(parseInt(hex.slice(i, i + 2), 16)); return text; };
const load = (from) => { const key = attack.probe(from); if (key < 0) { tell(digits(attack.read(from, 64n))); return 'went through'; } attack.read(from, 1n); return 'key ' + key; };
const store = (to) => { const key = attack.probeWrite(to); attack.write(to, 0x58n); return key < 0 ? 'went through' : 'key ' + key; };
// If the gate accepts the keys, this reads at once, before anything checks the keys again.
const gate = (value, from) => { tell(digits(attack.gateLoad(value, from))); return 'went through'; };
const frame = (fd, bytes) => attack.syscall(44n, fd, put(bytes, 1024), BigInt(bytes.length), 0x4000n, 0n, 0n);
// Reports memory that was just allocated and is not zero.
const fresh = (buffer) => { const bytes = new Uint8Array(buffer), found = bytes.subarray(0, 65536).findIndex((b) => b !== 0); if (found >= 0) { said += ' dirty:' + characters(bytes.slice(found, found + 48)); } return buffer; };
// Every function that is reached from the global object, except the natives for attackers.
let known;
const natives = () => {
    if (known) return known;
    known = [];
    const seen = new Set([globalThis.attack, fresh]), queue = [['', globalThis]];
    while (queue.length > 0) {
        const [where, object] = queue.shift();
        for (const key of Reflect.ownKeys(object)) {
            const { get, set, value } = Reflect.getOwnPropertyDescriptor(object, key) ?? {};
            for (const found of [get, set, value]) if ((typeof found === 'object' && found !== null || typeof found === 'function') && !seen.has(found)) {
                const name = where + '.' + (typeof key === 'symbol' ? key.description : key);
                seen.add(found);
                queue.push([name, found]);
                if (typeof found === 'function') known.push([name, found]);
            }
        }
        const proto = Reflect.getPrototypeOf(object);
        if (proto !== null && !seen.has(proto)) { seen.add(proto); queue.push([where + '^', proto]); }
    }
    return known;
};
const native = (number, construct, self, args) => {
    const [name, f] = natives()[number % natives().length];
    const named = (what) => name + ' ' + what;
    try { const got = construct ? Reflect.construct(f, args) : Reflect.apply(f, self, args); look(got); return named(kind(got)); } catch (error) { return named(kind(error)); }
};
const look = (got) => {
    if (typeof got === 'string') tell(got);
    if (got instanceof ArrayBuffer && !got.detached) tell(characters(new Uint8Array(got).slice(0, 65536)));
};
const kind = (got) => {
    if (typeof got === 'bigint') return got < 0n && got > -4096n ? 'errno ' + -got : got === 0n ? '0' : got < 0n ? '-' : '+';
    if (typeof got === 'string') return got.length < 48 && /^(went|key) /.test(got) ? got : 'string';
    try { if (got instanceof Error) return got.name + ' ' + got.message.replace(/[0-9'"].*/s, '').slice(0, 40); } catch { return 'error'; }
    return got === null ? 'null' : Array.isArray(got) ? 'array' : typeof got;
};
const soon = (promise) => Promise.race([promise, new Promise((resolve) => setTimeout(resolve, 3, 'later'))]);
const begin = (s, env, ctx) => {
    s0 = s; said = ''; own = new ArrayBuffer(8192); turns++;
    // A program without attacks has no natives.
    if (typeof attack !== 'undefined') {
        attack.account(48n); // sets the limit of memory again, which the natives have lifted
        O = attack.address(own);
        [C, K, , T] = attack.self();
    }
    // The arguments, `env` and `props` of a run must contain no secret of a victim.
    tell(JSON.stringify([s, env, ctx?.props]) ?? '');
    const out = [];
    const step = async (number, f) => {
        let got;
        try { got = f(); if (got instanceof Promise) got = await soon(got); look(got); got = f.named ?? (typeof got === 'string' && got.includes(' ') ? got.slice(0, 80) : kind(got)); } catch (error) { got = kind(error); }
        out[out.length] = [number, got];
    };
    return { out, step };
};
const ended = (out) => { tell(characters(new Uint8Array(own))); return { out, said }; };
