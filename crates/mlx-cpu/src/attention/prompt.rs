//! Attention of many queries, in tiles of queries, with vectors that run over queries.
//!
//! A tile is one task: the queries at some places of all heads that share keys. They lie in panels, of as many queries
//! as two vectors have lanes: number by number, and for each number, query by query. Scores are computed by
//! broadcasting the numbers of keys, and results by broadcasting the numbers of values. So no sum runs across the lanes
//! of a vector, and softmax treats each lane alone.
//!
//! With instructions that multiply pairs of bfloat16, queries, values and weights lie in words of two numbers, and
//! `pairs.rs` has the products and the softmax. Keys are then read where they lie.

use std::ops::Range;

use half::bf16;

use super::heads::Heads;
use super::pairs;
use super::problem::{Mask, Problem, Query, with_scratch};
use crate::rows::load;
use crate::{Arithmetic, Cpu, Element, Isa, Kernel, MAX_LANES, Matrix, Simd, formula};

/// The number of keys that are widened to float32 at a time; with pairs it is [`pairs::BLOCK`].
/// Small for Miri, whose cases are small and must still have several blocks and tiles.
const BLOCK: usize = if cfg!(miri) { 8 } else { 64 };
/// Keys, and numbers of a result, are computed in blocks of this size or half of it.
const STEP: usize = 8;
/// The smallest and the largest number of queries in a tile.
const ROWS: [usize; 2] = if cfg!(miri) { [20, 40] } else { [64, 128] };
/// The largest size of the scores of a tile in bytes: with the rest they fit into the cache of a core.
const SCORES: usize = 1 << 20;

pub(super) fn run<T: Element, H: Heads<T>>(cpu: &Cpu, problem: &Problem<'_, T, H>) {
    let [batch, heads, length, _] = problem.queries.shape();
    let count = problem.keys.shape()[2];
    let groups = batch * heads / problem.group;
    // Large tiles widen keys less often; small ones give all threads work. The size does not depend on the threads.
    let rows = (groups * problem.group * length / 16).clamp(ROWS[0], ROWS[1]);
    let rows = rows.min((SCORES / size_of::<f32>() / count.max(1)).max(32));
    let places = (rows / problem.group).clamp(1, length);
    let tiles = length.div_ceil(places);
    cpu.parallel(groups * tiles, |index| {
        // The last places see the most keys, so they come first.
        let (tile, group) = (tiles - 1 - index / groups, index % groups);
        let places = tile * places..length.min((tile + 1) * places);
        let shape = Shape::new(problem, cpu.isa(), places.len(), MOST_LANES);
        with_scratch(shape.all(), |scratch| {
            cpu.run(Tile { problem, isa: cpu.isa(), group, places, scratch })
        });
    });
}

/// The largest number of queries in a panel.
const MOST_LANES: usize = 2 * MAX_LANES;

/// One task: the queries at some places of the heads of a group.
struct Tile<'a, T, H> {
    problem: &'a Problem<'a, T, H>,
    isa: Isa,
    group: usize,
    places: Range<usize>,
    /// Room for a [`Shape`].
    scratch: &'a mut [f32],
}

/// How many keys of a block are seen: none, some by some queries, or all by all queries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Seen {
    None,
    Some,
    All,
}

impl<T: Element, H: Heads<T>> Kernel for Tile<'_, T, H> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { problem, isa, group, places, scratch } = self;
        let block = block_of(problem, isa);
        let mut tile = Places { problem, isa, group, places, block, skips: true };
        let shape = Shape::new(problem, isa, tile.places.len(), 2 * S::LANES);
        let mut parts = shape.split(scratch);
        tile.queries(s, &shape, parts.queries);
        let blocks = tile.problem.keys.shape()[2].div_ceil(tile.block);
        let mut seen: Vec<Seen> = (0..blocks).map(|block| tile.seen(block)).collect();
        while !tile.try_with(s, &shape, &mut parts, &seen) {
            // A query sees no key, so all keys have the same weight for it.
            tile.skips = false;
            seen.iter_mut().filter(|seen| **seen == Seen::None).for_each(|seen| *seen = Seen::Some);
        }
        tile.results(s, &shape, parts.sums);
    }
}

/// The queries of a tile.
struct Places<'a, T, H> {
    problem: &'a Problem<'a, T, H>,
    isa: Isa,
    group: usize,
    places: Range<usize>,
    /// The number of keys in a block.
    block: usize,
    /// Whether keys that no query sees are left out.
    skips: bool,
}

/// The number of keys in a block.
fn block_of<T: Element, H: Heads<T>>(problem: &Problem<'_, T, H>, isa: Isa) -> usize {
    if pairs::multiplies(isa, problem) { pairs::BLOCK } else { BLOCK }
}

/// The sizes of the memory of a tile.
#[derive(Debug, Clone, Copy)]
struct Shape {
    /// The number of queries.
    rows: usize,
    /// The number of panels.
    panels: usize,
    /// The number of queries in a panel.
    lanes: usize,
    /// The numbers of a query.
    size: usize,
    /// The numbers of a result, padded.
    out_size: usize,
    /// The number of keys, padded.
    count: usize,
    /// Whether queries, values and weights lie in words of two bfloat16.
    in_pairs: bool,
    /// The numbers or words of a query.
    words: usize,
    /// The number of keys of a block.
    keys: usize,
    /// The numbers or words of the keys or values of a block.
    block: usize,
    /// The distance of two widened keys or values, or of the words of two values.
    block_stride: usize,
}

/// The memory of a tile. Comments list the axes, the slowest first.
struct Parts<'a> {
    /// Panel, number, lane.
    queries: &'a mut [f32],
    /// Panel, key, lane.
    scores: &'a mut [f32],
    /// Panel, number, lane.
    sums: &'a mut [f32],
    /// Keys or values of a block.
    block: &'a mut [f32],
    /// Panel, lane.
    largest: &'a mut [f32],
    /// A block of an additive mask: key, lane.
    added: &'a mut [f32],
}

impl Shape {
    fn new<T: Element, H: Heads<T>>(
        problem: &Problem<'_, T, H>,
        isa: Isa,
        places: usize,
        lanes: usize,
    ) -> Self {
        let [_, _, count, size] = problem.keys.shape();
        let out_size = problem.values.shape()[3];
        let rows = problem.group * places;
        let (in_pairs, keys) = (pairs::multiplies(isa, problem), block_of(problem, isa));
        // An odd number of cache lines, so that the numbers of a column do not fall into the same cache set.
        let block_stride = if in_pairs {
            out_size.next_multiple_of(pairs::STRIP) + 16
        } else {
            size.max(out_size).next_multiple_of(STEP) + 16
        };
        Self {
            rows,
            panels: rows.div_ceil(lanes),
            lanes,
            size,
            out_size: out_size.next_multiple_of(STEP),
            count: count.next_multiple_of(keys),
            in_pairs,
            words: if in_pairs { size / 2 } else { size },
            keys,
            block: if in_pairs { keys / 2 * block_stride } else { keys * block_stride },
            block_stride,
        }
    }

    const fn padded_rows(&self) -> usize {
        self.panels * self.lanes
    }

    const fn sizes(&self) -> [usize; 6] {
        let rows = self.padded_rows();
        [rows * self.words, rows * self.count, rows * self.out_size, self.block, rows, self.keys * self.lanes]
    }

    fn all(&self) -> usize {
        self.sizes().iter().sum()
    }

    fn split<'a>(&self, scratch: &'a mut [f32]) -> Parts<'a> {
        let [queries, scores, sums, block, largest, added] = self.sizes();
        let (queries, rest) = scratch.split_at_mut(queries);
        let (scores, rest) = rest.split_at_mut(scores);
        let (sums, rest) = rest.split_at_mut(sums);
        let (block, rest) = rest.split_at_mut(block);
        let (largest, rest) = rest.split_at_mut(largest);
        Parts { queries, scores, sums, block, largest, added: &mut rest[..added] }
    }
}

impl<T: Element, H: Heads<T>> Places<'_, T, H> {
    fn query(&self, row: usize) -> Query {
        let heads = self.problem.queries.shape()[1];
        let head = self.group * self.problem.group + row / self.places.len();
        let place = self.places.start + row % self.places.len();
        Query { batch: head / heads, head: head % heads, place }
    }

    /// The row of the batch and the head of the keys that the group shares.
    fn shared_head(&self) -> [usize; 2] {
        let heads = self.problem.keys.shape()[1];
        [self.group / heads, self.group % heads]
    }

    /// The keys of a block, without those behind the last one that is seen.
    fn keys(&self, block: usize) -> Range<usize> {
        let end = match self.problem.mask {
            Mask::Causal if self.skips => self.problem.causal_end(self.places.end - 1),
            _ => self.problem.keys.shape()[2],
        };
        block * self.block..((block + 1) * self.block).min(end).max(block * self.block)
    }

    /// Which keys of a block are seen.
    fn seen(&self, block: usize) -> Seen {
        let keys = self.keys(block);
        match &self.problem.mask {
            Mask::None => Seen::All,
            Mask::Additive(_) => Seen::Some,
            Mask::Causal => {
                if keys.start >= self.problem.causal_end(self.places.end - 1) {
                    Seen::None
                } else if keys.end <= self.problem.causal_end(self.places.start) {
                    Seen::All
                } else {
                    Seen::Some
                }
            }
            Mask::Bool(mask) => {
                let [_, of_head, _, of_key] = mask.strides();
                // If all heads share the mask, it is read once.
                let rows =
                    if of_head == 0 { self.places.len() } else { self.places.len() * self.problem.group };
                let (mut any, mut all) = (false, true);
                for row in 0..rows {
                    let Query { batch, head, place } = self.query(row);
                    let from = &mask.data()[mask.at([batch, head, place, keys.start])..];
                    if of_key == 1 {
                        // A sum has no early end, so the compiler uses vectors.
                        let seen: usize = from[..keys.len()].iter().map(|&seen| usize::from(seen)).sum();
                        any |= seen > 0;
                        all &= seen == keys.len();
                    } else {
                        for seen in from.iter().step_by(of_key.max(1)).take(keys.len()) {
                            any |= *seen;
                            all &= *seen;
                        }
                        if of_key == 0 {
                            (any, all) = (any | from[0], all & from[0]);
                        }
                    }
                    if any && !all {
                        return Seen::Some;
                    }
                }
                if all {
                    Seen::All
                } else if any {
                    Seen::Some
                } else {
                    Seen::None
                }
            }
        }
    }

    /// The rows of keys or values where they lie, for products of pairs.
    #[inline(always)]
    fn pairs<'b, S: Arithmetic>(
        &self,
        s: S,
        shape: &Shape,
        from: &'b H,
        keys: Range<usize>,
    ) -> Option<Matrix<'b, bf16>> {
        let rows = || from.rows(s, self.isa, self.shared_head(), keys, &mut []);
        shape.in_pairs.then(rows).and_then(H::Number::as_bf16)
    }

    /// Fills the panels of queries.
    #[inline(always)]
    fn queries<S: Arithmetic>(&self, s: S, shape: &Shape, panels: &mut [f32]) {
        let scale = s.splat(self.problem.scale);
        for (number, panel) in panels.chunks_exact_mut((shape.words * shape.lanes).max(1)).enumerate() {
            let rows = number * shape.lanes..shape.rows.min((number + 1) * shape.lanes);
            if shape.in_pairs {
                let mut queries = [&[][..]; pairs::LANES];
                for (to, row) in queries.iter_mut().zip(rows.clone()) {
                    let query = self.problem.query(self.query(row));
                    *to = T::as_bf16(Matrix::contiguous(query, 1, shape.size))
                        .map_or(&[][..], |query| query.data());
                }
                pairs::pack_queries(&queries[..rows.len()], self.problem.scale, panel);
                continue;
            }
            for (half, first) in [0, S::LANES].into_iter().enumerate() {
                for at in (0..shape.size).step_by(S::LANES) {
                    let mut block = [s.zero(); MAX_LANES];
                    for (to, row) in block[..S::LANES].iter_mut().zip(rows.clone().skip(first)) {
                        let x = load(s, &self.problem.query(self.query(row))[at..], 0.0);
                        *to = T::rounded(s, s.mul(x, scale));
                    }
                    s.transpose(&mut block);
                    let to = panel[at * shape.lanes..].chunks_exact_mut(S::LANES).skip(half).step_by(2);
                    for (to, block) in to.zip(&block[..S::LANES]) {
                        s.store(to, *block);
                    }
                }
            }
        }
    }

    /// Writes some keys or values as float32, padded with zeros to a multiple of [`STEP`] in both directions.
    #[inline(always)]
    fn widen<S: Arithmetic>(&self, s: S, shape: &Shape, from: &H, keys: Range<usize>, block: &mut [f32]) {
        let (count, size) = (keys.len(), from.shape()[3]);
        from.widen(s, self.isa, self.shared_head(), keys, block, shape.block_stride);
        let mut rows = block.chunks_exact_mut(shape.block_stride);
        for row in rows.by_ref().take(count) {
            row[size..].fill(0.0);
        }
        for row in rows.take(count.next_multiple_of(STEP) - count) {
            row.fill(0.0);
        }
    }

    /// Computes the sums. Returns false if a key that was skipped has a weight; the sums are then wrong.
    #[inline(always)]
    fn try_with<S: Arithmetic>(&self, s: S, shape: &Shape, parts: &mut Parts<'_>, seen: &[Seen]) -> bool {
        for (row, largest) in parts.largest.iter_mut().enumerate() {
            let sink = self.problem.sinks.filter(|_| row < shape.rows);
            *largest = sink.map_or(f32::NEG_INFINITY, |sinks| sinks[self.query(row).head].widen());
        }
        let count = self.scores(s, shape, parts, seen);
        // A key with the lowest score has a weight only if the largest score is about as low.
        if self.skips && parts.largest[..shape.rows].iter().any(|&largest| largest <= T::LOWEST + 128.0) {
            return false;
        }
        for panel in 0..shape.panels {
            let scores = &mut parts.scores[panel * shape.count * shape.lanes..][..count * shape.lanes];
            let largest = &mut parts.largest[panel * shape.lanes..][..shape.lanes];
            let sink = |lane: usize| {
                let row = panel * shape.lanes + lane;
                let sinks = self.problem.sinks.filter(|_| row < shape.rows)?;
                Some(sinks[self.query(row).head].widen())
            };
            if shape.in_pairs {
                let sinks = self
                    .problem
                    .sinks
                    .map(|_| std::array::from_fn(|lane| sink(lane).unwrap_or(f32::NEG_INFINITY)));
                pairs::powers(scores, largest, sinks);
            } else {
                powers(s, shape.lanes, scores, largest, sink);
            }
        }
        self.sums(s, shape, parts, seen);
        true
    }

    /// Computes the scores of the blocks that are seen, one block behind the other, and the largest score of each
    /// query. Returns the number of keys in these blocks.
    #[inline(always)]
    fn scores<S: Arithmetic>(&self, s: S, shape: &Shape, parts: &mut Parts<'_>, seen: &[Seen]) -> usize {
        let mut place = 0;
        for (block, &seen) in seen.iter().enumerate().filter(|(_, seen)| **seen != Seen::None) {
            let keys = self.keys(block);
            let rows = self.pairs(s, shape, &self.problem.keys, keys.clone());
            if rows.is_none() {
                self.widen(s, shape, &self.problem.keys, keys.clone(), parts.block);
            }
            for panel in 0..shape.panels {
                let queries =
                    &parts.queries[panel * shape.words * shape.lanes..][..shape.words * shape.lanes];
                let scores = &mut parts.scores[(panel * shape.count + place) * shape.lanes..]
                    [..keys.len().next_multiple_of(STEP) * shape.lanes];
                match rows {
                    Some(rows) => pairs::scores(rows, queries, scores),
                    None => {
                        let from = Strides { data: parts.block, of_row: shape.block_stride, of_step: 1 };
                        panel_products::<S, T, true>(s, from, queries, scores);
                    }
                }
                let scores = &mut scores[..keys.len() * shape.lanes];
                self.problem.softcap(s, scores);
                if seen == Seen::Some {
                    self.apply_mask(s, shape, panel, keys.start, scores, parts.added);
                }
                let largest = &mut parts.largest[panel * shape.lanes..][..shape.lanes];
                let mut two = [s.load(largest), s.load(&largest[S::LANES..])];
                for scores in scores.chunks_exact(shape.lanes) {
                    two[0] = s.max(s.load(scores), two[0]);
                    two[1] = s.max(s.load(&scores[S::LANES..]), two[1]);
                }
                s.store(largest, two[0]);
                s.store(&mut largest[S::LANES..], two[1]);
            }
            place += keys.len();
        }
        place
    }

    /// Computes the sums of values times weights. The weights are the exponentials that [`powers`] has left in the
    /// place of scores, times one over their sum.
    #[inline(always)]
    fn sums<S: Arithmetic>(&self, s: S, shape: &Shape, parts: &mut Parts<'_>, seen: &[Seen]) {
        parts.sums.fill(0.0);
        let mut place = 0;
        for (block, _) in seen.iter().enumerate().filter(|(_, seen)| **seen != Seen::None) {
            let keys = self.keys(block);
            match self.pairs(s, shape, &self.problem.values, keys.clone()) {
                Some(rows) => pairs::interleave(rows, parts.block, shape.block_stride),
                None => self.widen(s, shape, &self.problem.values, keys.clone(), parts.block),
            }
            for panel in 0..shape.panels {
                let weights = &mut parts.scores[(panel * shape.count + place) * shape.lanes..]
                    [..keys.len() * shape.lanes];
                let factors = &parts.largest[panel * shape.lanes..][..shape.lanes];
                let sums =
                    &mut parts.sums[panel * shape.out_size * shape.lanes..][..shape.out_size * shape.lanes];
                if shape.in_pairs {
                    pairs::sums(parts.block, shape.block_stride, pairs::weights(weights, factors), sums);
                    continue;
                }
                let factors = [s.load(factors), s.load(&factors[S::LANES..])];
                for weights in weights.chunks_exact_mut(shape.lanes) {
                    let two = [s.load(weights), s.load(&weights[S::LANES..])];
                    s.store(weights, T::rounded(s, s.mul(two[0], factors[0])));
                    s.store(&mut weights[S::LANES..], T::rounded(s, s.mul(two[1], factors[1])));
                }
                let from = Strides { data: parts.block, of_row: 1, of_step: shape.block_stride };
                panel_products::<S, T, false>(s, from, weights, sums);
            }
            place += keys.len();
        }
    }

    /// Applies the mask to the scores of a panel and a block.
    #[inline(always)]
    fn apply_mask<S: Arithmetic>(
        &self,
        s: S,
        shape: &Shape,
        panel: usize,
        first: usize,
        scores: &mut [f32],
        added: &mut [f32],
    ) {
        let rows = panel * shape.lanes..shape.rows.min((panel + 1) * shape.lanes);
        match &self.problem.mask {
            Mask::None => {}
            Mask::Causal => {
                for (lane, row) in rows.enumerate() {
                    let end = self.problem.causal_end(self.query(row).place).saturating_sub(first);
                    for score in scores.iter_mut().skip(end * shape.lanes + lane).step_by(shape.lanes) {
                        *score = T::LOWEST;
                    }
                }
            }
            Mask::Bool(mask) => {
                for (lane, row) in rows.enumerate() {
                    let Query { batch, head, place } = self.query(row);
                    for (i, scores) in scores.chunks_exact_mut(shape.lanes).enumerate() {
                        if !mask.data()[mask.at([batch, head, place, first + i])] {
                            scores[lane] = T::LOWEST;
                        }
                    }
                }
            }
            Mask::Additive(mask) => {
                let added = &mut added[..scores.len()];
                added.fill(0.0);
                for (lane, row) in rows.enumerate() {
                    let Query { batch, head, place } = self.query(row);
                    for (i, added) in added.chunks_exact_mut(shape.lanes).enumerate() {
                        added[lane] = mask.data()[mask.at([batch, head, place, first + i])].widen();
                    }
                }
                for (scores, added) in scores.chunks_exact_mut(S::LANES).zip(added.chunks_exact(S::LANES)) {
                    let sum = s.add(s.load(scores), s.load(added));
                    s.store(scores, T::rounded(s, sum));
                }
            }
        }
    }

    /// Writes the results.
    #[inline(always)]
    fn results<S: Arithmetic>(&self, s: S, shape: &Shape, sums: &[f32]) {
        for first in (0..shape.rows).step_by(S::LANES) {
            let (panel, lane) = (first / shape.lanes, first % shape.lanes);
            let from = &sums[panel * shape.out_size * shape.lanes..][..shape.out_size * shape.lanes];
            for at in (0..shape.out_size).step_by(S::LANES) {
                let mut block = [s.zero(); MAX_LANES];
                let from = from[at * shape.lanes..].chunks_exact(shape.lanes);
                for (to, from) in block[..S::LANES].iter_mut().zip(from) {
                    *to = s.load(&from[lane..]);
                }
                s.transpose(&mut block);
                for (row, block) in (first..shape.rows).zip(&block[..S::LANES]) {
                    // SAFETY: the output is borrowed by the caller; each query belongs to one tile.
                    let out = unsafe { self.problem.out(self.query(row)) };
                    if at < out.len() {
                        crate::rows::store(s, &mut out[at..], *block);
                    }
                }
            }
        }
    }
}

/// A matrix of float32: row `i`, step `k` lies at `i * of_row + k * of_step`.
#[derive(Clone, Copy)]
struct Strides<'a> {
    data: &'a [f32],
    of_row: usize,
    of_step: usize,
}

/// For `SCORES`, `to[i][lane] = sum over k of from[i][k] * panel[k][lane]`, rounded to `T`. Otherwise adds that to
/// `to`, without rounding.
#[inline(always)]
fn panel_products<S: Arithmetic, T: Element, const SCORES: bool>(
    s: S,
    from: Strides<'_>,
    panel: &[f32],
    to: &mut [f32],
) {
    // As many sums as hide the latency and leave registers for the factors.
    if S::LANES == MAX_LANES {
        products_by::<S, T, SCORES, 8>(s, from, panel, to);
    } else {
        products_by::<S, T, SCORES, 4>(s, from, panel, to);
    }
}

#[inline(always)]
fn products_by<S: Arithmetic, T: Element, const SCORES: bool, const ROWS: usize>(
    s: S,
    from: Strides<'_>,
    panel: &[f32],
    to: &mut [f32],
) {
    let lanes = 2 * S::LANES;
    let steps = panel.len() / lanes;
    let rows = to.len() / lanes;
    assert!(rows.is_multiple_of(ROWS) && to.len() == rows * lanes && panel.len() == steps * lanes);
    assert!(
        rows == 0 || steps == 0 || (rows - 1) * from.of_row + (steps - 1) * from.of_step < from.data.len()
    );
    for (i, to) in to.chunks_exact_mut(ROWS * lanes).enumerate() {
        let mut sums = [[s.zero(); 2]; ROWS];
        if !SCORES {
            for (sums, to) in sums.iter_mut().zip(to.chunks_exact(lanes)) {
                *sums = [s.load(to), s.load(&to[S::LANES..])];
            }
        }
        let start = from.data.as_ptr().wrapping_add(i * ROWS * from.of_row);
        for step in 0..steps {
            // SAFETY: within the panel, which has `steps` times `lanes` numbers.
            let two = unsafe {
                let at = panel.as_ptr().add(step * lanes);
                [s.load_f32(at), s.load_f32(at.add(S::LANES))]
            };
            for (row, sums) in sums.iter_mut().enumerate() {
                // SAFETY: row `i * ROWS + row` and this step lie within `from`, as asserted above.
                let x = s.splat(unsafe { *start.add(row * from.of_row + step * from.of_step) });
                sums[0] = s.mul_add(x, two[0], sums[0]);
                sums[1] = s.mul_add(x, two[1], sums[1]);
            }
        }
        for (sums, to) in sums.into_iter().zip(to.chunks_exact_mut(lanes)) {
            let rounded = |x| if SCORES { T::rounded(s, x) } else { x };
            s.store(to, rounded(sums[0]));
            s.store(&mut to[S::LANES..], rounded(sums[1]));
        }
    }
}

/// Replaces each score by its exponential, less the largest score of its lane, and the largest scores by one over the
/// sum of the exponentials.
#[inline(always)]
fn powers<S: Arithmetic>(
    s: S,
    lanes: usize,
    scores: &mut [f32],
    largest: &mut [f32],
    sink: impl Fn(usize) -> Option<f32>,
) {
    for half in 0..2 {
        let first = half * S::LANES;
        let top = s.load(&largest[first..]);
        let mut sums = [0.0_f32; MAX_LANES];
        if sink(0).is_some() {
            let mut sinks = [f32::NEG_INFINITY; MAX_LANES];
            for (lane, to) in sinks.iter_mut().enumerate().take(S::LANES) {
                *to = sink(first + lane).unwrap_or(f32::NEG_INFINITY);
            }
            s.store(&mut sums, formula::exp(s, s.sub(s.load(&sinks), top)));
        }
        let mut sum = s.load(&sums);
        for scores in scores.chunks_exact_mut(lanes) {
            let power = formula::weight(s, s.sub(s.load(&scores[first..]), top));
            sum = s.add(sum, power);
            s.store(&mut scores[first..], power);
        }
        s.store(&mut largest[first..], s.div(s.splat(1.0), sum));
    }
}
