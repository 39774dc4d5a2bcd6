// QR codes (ISO/IEC 18004) for addresses: bytes, correction level M, versions 1 to 10, which is 213 bytes.

import { svg } from "./ui.js";

// Of each version: correction bytes a block, blocks, data bytes in all, the places of alignment marks.
const VERSIONS = [
  [10, 1, 16, []], [16, 1, 28, [6, 18]], [26, 1, 44, [6, 22]], [18, 2, 64, [6, 26]], [24, 2, 86, [6, 30]],
  [16, 4, 108, [6, 34]], [18, 4, 124, [6, 22, 38]], [22, 4, 154, [6, 24, 42]], [22, 5, 182, [6, 26, 46]], [26, 5, 216, [6, 28, 50]],
];

// The field of 256 elements in which the correction is reckoned.
const EXP = new Uint8Array(512);
const LOG = new Uint8Array(256);
for (let i = 0, x = 1; i < 255; i += 1, x = (x << 1) ^ (x & 0x80 ? 0x11d : 0)) {
  EXP[i] = EXP[i + 255] = x;
  LOG[x] = i;
}
const times = (a, b) => (a && b ? EXP[LOG[a] + LOG[b]] : 0);

function correction(data, length) {
  let generator = [1];
  for (let i = 0; i < length; i += 1) {
    const next = [...generator, 0];
    generator.forEach((it, at) => { next[at + 1] ^= times(it, EXP[i]); });
    generator = next;
  }
  const rest = [...data, ...new Array(length).fill(0)];
  for (let i = 0; i < data.length; i += 1) {
    const factor = rest[i];
    generator.forEach((it, at) => { rest[i + at] ^= times(it, factor); });
  }
  return rest.slice(data.length);
}

function bitsOf(bytes, version, room) {
  const bits = [];
  const put = (value, length) => {
    for (let i = length - 1; i >= 0; i -= 1) bits.push((value >> i) & 1);
  };
  put(4, 4);
  put(bytes.length, version < 10 ? 8 : 16);
  for (const it of bytes) put(it, 8);
  put(0, Math.min(4, room * 8 - bits.length));
  while (bits.length % 8) bits.push(0);
  for (let pad = 0xec; bits.length < room * 8; pad ^= 0xec ^ 0x11) put(pad, 8);
  return bits;
}

/** The modules of the code, as rows of true (dark) and false; null where the text is too long. */
export function qr(text) {
  const bytes = new TextEncoder().encode(text);
  const at = VERSIONS.findIndex(([, , room], index) => bytes.length + (index < 9 ? 2 : 3) <= room);
  if (at < 0) return null;
  const version = at + 1;
  const [perBlock, blocks, room, marks] = VERSIONS[at];

  const bits = bitsOf(bytes, version, room);
  const data = Array.from({ length: room }, (_, i) => parseInt(bits.slice(i * 8, i * 8 + 8).join(""), 2));
  const short = Math.floor(room / blocks);
  const parts = [];
  for (let i = 0, from = 0; i < blocks; i += 1) {
    const length = short + (i >= blocks - (room % blocks) ? 1 : 0);
    parts.push(data.slice(from, from + length));
    from += length;
  }
  const checks = parts.map((it) => correction(it, perBlock));
  const words = [];
  for (let i = 0; i <= short; i += 1) for (const it of parts) if (i < it.length) words.push(it[i]);
  for (let i = 0; i < perBlock; i += 1) for (const it of checks) words.push(it[i]);

  const size = version * 4 + 17;
  const grid = Array.from({ length: size }, () => new Array(size).fill(null));
  const box = (y, x, isDark) => {
    for (let i = -4; i <= 4; i += 1) {
      for (let j = -4; j <= 4; j += 1) {
        const value = isDark(Math.max(Math.abs(i), Math.abs(j)));
        if (value !== null && grid[y + i]?.[x + j] !== undefined) grid[y + i][x + j] = value;
      }
    }
  };
  for (const [y, x] of [[3, 3], [3, size - 4], [size - 4, 3]]) box(y, x, (ring) => ring !== 2 && ring !== 4);
  for (const y of marks) {
    for (const x of marks) {
      const isCorner = (y === 6 && x === 6) || (y === 6 && x === size - 7) || (y === size - 7 && x === 6);
      if (!isCorner) box(y, x, (ring) => (ring > 2 ? null : ring !== 1));
    }
  }
  for (let i = 8; i < size - 8; i += 1) grid[6][i] = grid[i][6] = i % 2 === 0;
  grid[size - 8][8] = true;
  if (version >= 7) {
    let rest = version;
    for (let i = 0; i < 12; i += 1) rest = (rest << 1) ^ ((rest >> 11) * 0x1f25);
    const info = (version << 12) | rest;
    for (let i = 0; i < 18; i += 1) {
      const [a, b] = [Math.floor(i / 3), size - 11 + (i % 3)];
      grid[a][b] = grid[b][a] = Boolean((info >> i) & 1);
    }
  }
  format(grid, size, 0);
  const isFixed = grid.map((row) => row.map((it) => it !== null));

  // The bytes, in pairs of columns from the right, upwards and downwards by turns.
  let bit = 0;
  for (let right = size - 1; right >= 1; right -= 2) {
    if (right === 6) right = 5;
    for (let step = 0; step < size; step += 1) {
      const y = (right + 1) & 2 ? step : size - 1 - step;
      for (const x of [right, right - 1]) {
        if (isFixed[y][x]) continue;
        grid[y][x] = Boolean((words[bit >> 3] >> (7 - (bit & 7))) & 1 && bit < words.length * 8);
        bit += 1;
      }
    }
  }

  let best = null;
  for (let mask = 0; mask < 8; mask += 1) {
    const masked = grid.map((row, y) => row.map((it, x) => it !== (!isFixed[y][x] && MASKS[mask](y, x))));
    format(masked, size, mask);
    const cost = penalty(masked, size);
    if (!best || cost < best.cost) best = { cost, masked };
  }
  return best.masked;
}

const MASKS = [
  (y, x) => (y + x) % 2 === 0,
  (y) => y % 2 === 0,
  (y, x) => x % 3 === 0,
  (y, x) => (y + x) % 3 === 0,
  (y, x) => (Math.floor(y / 2) + Math.floor(x / 3)) % 2 === 0,
  (y, x) => ((y * x) % 2) + ((y * x) % 3) === 0,
  (y, x) => (((y * x) % 2) + ((y * x) % 3)) % 2 === 0,
  (y, x) => (((y + x) % 2) + ((y * x) % 3)) % 2 === 0,
];

function format(grid, size, mask) {
  // Level M is 0, so that the five bits are the mask's.
  let rest = mask;
  for (let i = 0; i < 10; i += 1) rest = (rest << 1) ^ ((rest >> 9) * 0x537);
  const bits = ((mask << 10) | rest) ^ 0x5412;
  for (let i = 0; i < 15; i += 1) {
    const isDark = Boolean((bits >> i) & 1);
    if (i < 6) grid[i][8] = isDark;
    else if (i < 8) grid[i + 1][8] = isDark;
    else if (i === 8) grid[8][7] = isDark;
    else grid[8][14 - i] = isDark;
    if (i < 8) grid[8][size - 1 - i] = isDark;
    else grid[size - 15 + i][8] = isDark;
  }
}

/** How hard a code is to read, by the standard's four rules. */
function penalty(grid, size) {
  let cost = 0;
  let dark = 0;
  const lines = [...grid, ...grid.map((_, x) => grid.map((row) => row[x]))];
  for (const line of lines) {
    for (let i = 0, run = 1; i < size; i += 1, run += 1) {
      if (i + 1 < size && line[i] === line[i + 1]) continue;
      if (run >= 5) cost += run - 2;
      run = 0;
    }
    const text = line.map(Number).join("");
    for (const it of ["10111010000", "00001011101"]) {
      for (let from = text.indexOf(it); from >= 0; from = text.indexOf(it, from + 1)) cost += 40;
    }
  }
  for (let y = 0; y < size; y += 1) {
    for (let x = 0; x < size; x += 1) {
      dark += grid[y][x];
      if (y && x && grid[y][x] === grid[y - 1][x] && grid[y][x] === grid[y][x - 1] && grid[y][x] === grid[y - 1][x - 1]) cost += 3;
    }
  }
  return cost + Math.floor(Math.abs((dark * 20) / (size * size) - 10)) * 10;
}

/** The code as a drawing, with the quiet zone that readers need; null where the text is too long. */
export function drawing(text, label) {
  const grid = qr(text);
  if (!grid) return null;
  const size = grid.length + 8;
  const path = grid.flatMap((row, y) => row.map((it, x) => (it ? `M${x + 4} ${y + 4}h1v1h-1z` : ""))).join("");
  return svg("svg", { class: "qr", viewBox: `0 0 ${size} ${size}`, role: "img", "aria-label": label, "shape-rendering": "crispEdges" },
    svg("rect", { width: size, height: size, fill: "#fff" }), svg("path", { d: path, fill: "#000" }));
}
