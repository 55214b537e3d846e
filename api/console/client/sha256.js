/**
 * SHA-256 (FIPS 180-4) that can be fed in pieces and copied. WebCrypto's digest takes a whole message only, and
 * a reader must neither keep the whole text nor hash it again after each rewind.
 */
const K = constants(64, 1 / 3);
const H0 = constants(8, 1 / 2);
/** The first 32 bits of the fractional parts of a root of the first primes. */
function constants(count, root) {
    const out = new Uint32Array(count);
    let filled = 0;
    for (let n = 2; filled < count; n++) {
        let isPrime = true;
        for (let d = 2; d * d <= n; d++) {
            isPrime &&= n % d !== 0;
        }
        if (isPrime) {
            const value = n ** root;
            out[filled++] = (value - Math.floor(value)) * 2 ** 32;
        }
    }
    return out;
}
export class Sha256 {
    #state = H0.slice();
    #block = new Uint8Array(64);
    #length = 0;
    update(bytes) {
        let at = 0;
        let filled = this.#length % 64;
        this.#length += bytes.length;
        while (at < bytes.length) {
            const taken = Math.min(64 - filled, bytes.length - at);
            this.#block.set(bytes.subarray(at, at + taken), filled);
            at += taken;
            filled += taken;
            if (filled === 64) {
                this.#compress();
                filled = 0;
            }
        }
        return this;
    }
    copy() {
        const copy = new Sha256();
        copy.#state = this.#state.slice();
        copy.#block = this.#block.slice();
        copy.#length = this.#length;
        return copy;
    }
    /** The digest of what came so far, in lower-case hexadecimal; more may follow. */
    hex() {
        const last = this.copy();
        // One bit, zeros, and the length in bits: up to a whole block, at least nine bytes.
        const padding = new Uint8Array(72 - ((this.#length + 8) % 64));
        padding[0] = 0x80;
        const view = new DataView(padding.buffer);
        view.setUint32(padding.length - 8, Math.floor(this.#length / 2 ** 29));
        view.setUint32(padding.length - 4, (this.#length << 3) >>> 0);
        last.update(padding);
        return Array.from(last.#state, (word) => word.toString(16).padStart(8, "0")).join("");
    }
    #compress() {
        const w = new Uint32Array(64);
        const view = new DataView(this.#block.buffer);
        for (let i = 0; i < 16; i++) {
            w[i] = view.getUint32(i * 4);
        }
        for (let i = 16; i < 64; i++) {
            const a = w[i - 15];
            const b = w[i - 2];
            const s0 = rotate(a, 7) ^ rotate(a, 18) ^ (a >>> 3);
            const s1 = rotate(b, 17) ^ rotate(b, 19) ^ (b >>> 10);
            w[i] = w[i - 16] + s0 + w[i - 7] + s1;
        }
        let [a, b, c, d, e, f, g, h] = this.#state;
        for (let i = 0; i < 64; i++) {
            const s1 = rotate(e, 6) ^ rotate(e, 11) ^ rotate(e, 25);
            const t1 = (h + s1 + ((e & f) ^ (~e & g)) + K[i] + w[i]) | 0;
            const s0 = rotate(a, 2) ^ rotate(a, 13) ^ rotate(a, 22);
            const t2 = (s0 + ((a & b) ^ (a & c) ^ (b & c))) | 0;
            [h, g, f, e, d, c, b, a] = [g, f, e, (d + t1) | 0, c, b, a, (t1 + t2) | 0];
        }
        [a, b, c, d, e, f, g, h].forEach((word, i) => {
            this.#state[i] = this.#state[i] + word;
        });
    }
}
function rotate(word, by) {
    return (word >>> by) | (word << (32 - by));
}
