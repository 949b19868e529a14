// GrAInS in plain JavaScript, for Node.js: selection, aggregation and steering over the kit's JSON lines (version 1).
//
//     grains-ref conform run --cmd "node tests/ports/port.mjs"
//
// Written from docs/method.md and docs/porting.md. JavaScript computes in float64; under dtype float32 inputs and every
// step whose rounding can be seen go through Math.fround. Components are in float64 in either case.

import { createInterface } from "node:readline";

class Refusal extends Error {}

function demand(condition, message) {
  if (!condition) throw new Refusal(message);
}

const ROUND = { float64: (z) => z, float32: Math.fround };

// ---------------------------------------------------------------------------------------------- values
function number(z) {
  return { NaN: NaN, Infinity: Infinity, "-Infinity": -Infinity }[z] ?? z;
}

// Nested lists -> the same, with every number rounded.
function array(z, round) {
  return Array.isArray(z) ? z.map((item) => array(item, round)) : round(number(z));
}

function shape(z) {
  return Array.isArray(z) ? [z.length, ...(z.length ? shape(z[0]) : [])] : [];
}

function rectangular(z, sizes = shape(z)) {
  if (!sizes.length) return !Array.isArray(z);
  return Array.isArray(z) && z.length === sizes[0] && z.every((item) => rectangular(item, sizes.slice(1)));
}

function finite(z) {
  return Array.isArray(z) ? z.every(finite) : Number.isFinite(z);
}

// NaN and infinities are no JSON.
function sent(z) {
  if (Array.isArray(z)) return z.map(sent);
  if (typeof z === "number") return Number.isFinite(z) ? z : String(z);
  return z;
}

const dot = (x, y) => x.reduce((sum, value, i) => sum + value * y[i], 0);

// ------------------------------------------------------------------------------------------- selection
// Eq. (3): the k strongest scores of either sign; of equal scores the lower index.
function selection({ a, eligible, k }, round) {
  const scores = array(a, round);
  demand(k >= 1, `k is ${k}; expected at least 1`);
  demand(shape(scores).length === 1 && shape(eligible).length === 1, "a and eligible must be (T,)");
  demand(scores.length === eligible.length, `${scores.length} scores, but ${eligible.length} entries of eligible`);
  demand(finite(scores), "a score is not finite");
  const strongest = (sign) =>
    scores
      .map((_, j) => j)
      .filter((j) => eligible[j] && sign * scores[j] > 0)
      .sort((i, j) => (scores[i] === scores[j] ? i - j : sign * scores[j] > sign * scores[i] ? 1 : -1))
      .slice(0, k);
  return { pos: strongest(1), neg: strongest(-1) };
}

// ----------------------------------------------------------------------------------------- aggregation
// Eigenvalues and eigenvectors of a symmetric matrix by Jacobi's rotations; vectors[i] belongs to values[i].
function eigen(matrix) {
  const A = matrix.map((row) => [...row]);
  const n = A.length;
  const vectors = A.map((_, i) => A.map((_, j) => (i === j ? 1 : 0)));
  const total = Math.sqrt(A.reduce((sum, row) => sum + dot(row, row), 0));
  for (let sweep = 0; sweep < 60; sweep++) {
    let off = 0;
    for (let p = 0; p < n; p++) for (let q = p + 1; q < n; q++) off += A[p][q] ** 2;
    if (Math.sqrt(off) <= 1e-18 * total) break;
    for (let p = 0; p < n; p++) {
      for (let q = p + 1; q < n; q++) {
        if (A[p][q] === 0) continue;
        const theta = (A[q][q] - A[p][p]) / (2 * A[p][q]);
        const t = (theta >= 0 ? 1 : -1) / (Math.abs(theta) + Math.sqrt(theta * theta + 1)); // tangent of the angle
        const c = 1 / Math.sqrt(t * t + 1);
        const s = t * c;
        for (let i = 0; i < n; i++) [A[i][p], A[i][q]] = [c * A[i][p] - s * A[i][q], s * A[i][p] + c * A[i][q]];
        for (let i = 0; i < n; i++) [A[p][i], A[q][i]] = [c * A[p][i] - s * A[q][i], s * A[p][i] + c * A[q][i]];
        for (let i = 0; i < n; i++) {
          const [x, y] = [vectors[p][i], vectors[q][i]];
          [vectors[p][i], vectors[q][i]] = [c * x - s * y, s * x + c * y];
        }
      }
    }
  }
  return { values: A.map((row, i) => row[i]), vectors };
}

// Eq. (5) for one layer: D (N, d) -> the first principal component (d,), along the mean shift.
function component(D, layer) {
  const [n, d] = shape(D);
  const size = Math.sqrt(D.reduce((sum, shift) => sum + dot(shift, shift), 0));
  demand(size > 0, `layer ${layer}: all shifts are zero`);
  const mean = D[0].map((_, c) => D.reduce((sum, shift) => sum + shift[c], 0) / n);
  const centred = D.map((shift) => shift.map((value, c) => value - mean[c]));
  // The smaller of the two matrices with the same eigenvalues: scatter (d, d), or inner products (N, N).
  const columns = mean.map((_, c) => centred.map((shift) => shift[c]));
  const rows = n < d ? centred : columns;
  const { values, vectors } = eigen(rows.map((x) => rows.map((y) => dot(x, y))));
  const first = values.indexOf(Math.max(...values));
  demand(values[first] > (1e-6 * size) ** 2, `layer ${layer}: the shifts are all equal, there is no component`);
  let u = vectors[first];
  if (n < d) u = columns.map((column) => dot(column, u));
  const length = Math.sqrt(dot(u, u));
  u = u.map((value) => value / length);
  const along = dot(u, mean);
  demand(Math.abs(along) > (1e-6 * size) / Math.sqrt(n), `layer ${layer}: no mean shift to sign the component by`);
  return along < 0 ? u.map((value) => -value) : u;
}

// Eq. (5) and (6).
function aggregation({ delta_pos, delta_neg }, round) {
  demand(String(shape(delta_pos)) === String(shape(delta_neg)), "the two sides have different shapes");
  const sides = [delta_pos, delta_neg].map((deltas) => {
    const shifts = array(deltas, round);
    const sizes = shape(shifts);
    demand(sizes.length === 3 && rectangular(shifts), `shifts must be (N, L, d), N >= 1; got (${sizes})`);
    demand(finite(shifts), "a shift is not finite");
    return shifts[0].map((_, layer) => array(component(shifts.map((example) => example[layer]), layer), round));
  });
  const [v_pos, v_neg] = sides;
  const v = v_pos.map((row, layer) => row.map((value, c) => round(value - v_neg[layer][c])));
  return { v_pos, v_neg, v };
}

// -------------------------------------------------------------------------------------------- steering
// Eq. (7) and (8), token by token. A zero state stays zero; where nothing is left to scale, the state is kept.
function steering({ h, v, lam }, round) {
  const [states, vector, strength] = [array(h, round), array(v, round), number(lam)];
  const sizes = shape(states);
  demand(sizes.length === 3 && rectangular(states), `h must be (B, T, d); got (${sizes})`);
  demand(String(shape(vector)) === String([sizes[2]]), `v must be (${sizes[2]}); got (${shape(vector)})`);
  demand(Number.isFinite(strength) && finite(vector) && finite(states), "h, v and lam must be finite");
  const norm = (x) => round(Math.sqrt(dot(x, x)));
  const token = (state) => {
    const shifted = state.map((value, c) => round(value + round(strength * vector[c]))); // eq. (7)
    const length = norm(shifted);
    if (!(length > 0)) return state;
    const ratio = round(norm(state) / length); // the ratio first: the product could overflow
    return shifted.map((value) => round(value * ratio)); // eq. (8)
  };
  return { h: states.map((row) => row.map(token)) };
}

// -------------------------------------------------------------------------------------------- protocol
const stages = { selection, aggregation, steering };

function run({ seq, stage, dtype, in: inputs }) {
  if (!(stage in stages) || !(dtype in ROUND)) return { seq, skipped: `${stage} in ${dtype} is not claimed` };
  try {
    return { seq, out: sent(stages[stage](inputs, ROUND[dtype])) };
  } catch (error) {
    return error instanceof Refusal ? { seq, refused: error.message } : { seq, error: String(error.stack) };
  }
}

for await (const line of createInterface({ input: process.stdin })) {
  const message = JSON.parse(line);
  if (message.cmd === "stop") break;
  const hello = { version: 1, name: "JavaScript", stages: Object.keys(stages), dtypes: Object.keys(ROUND), arrays: "inline" };
  process.stdout.write(JSON.stringify(message.cmd === "start" ? hello : run(message)) + "\n");
}
process.exit(0); // standard input may still be open
