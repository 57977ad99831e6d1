//! Attention of few queries: keys and values are read once, as a stream.

use std::ops::Range;

use super::heads::Heads;
use super::pairs::{self, Few};
use super::problem::{Mask, Problem, Query, with_scratch};
use crate::cpu::Shared;
use crate::products::{self, Purpose};
use crate::rows::{load, store};
use crate::simd::prefetch;
use crate::{Arithmetic, Cpu, Element, Isa, Kernel, MAX_LANES, Matrix, Simd, formula};

/// The number of keys in a block, which a thread takes at a time. Fixed, so that sums do not depend on the threads.
/// Small for Miri, whose cases are small and must still have several blocks.
const BLOCK: usize = if cfg!(miri) { 16 } else { pairs::BLOCK };

/// The largest number of queries of a head that are computed together. More are computed in several parts.
const AT_ONCE: usize = 16;

/// The number of keys whose products with a query are summed across lanes together: a multiple of the lanes of every
/// instruction set.
const TOGETHER: usize = MAX_LANES;
/// How far ahead memory is prefetched: a number of keys or values, and at least a number of bytes. Less comes too late,
/// and more drives memory out of the cache before it is used.
const AHEAD: (usize, usize) = (16, 4096);

/// Less work than this, in nanoseconds, is done by one thread.
/// Small for Miri, whose cases are small and must still be shared between threads.
const WORTHWHILE: usize = if cfg!(miri) { 1 } else { 6_000 };

pub(super) fn run<T: Element, H: Heads<T>>(cpu: &Cpu, problem: &Problem<'_, T, H>) {
    let length = problem.queries.shape()[2];
    for places in pieces(0..length, AT_ONCE) {
        some(cpu, problem, places);
    }
}

/// Computes the results of the queries at some places of each head.
fn some<T: Element, H: Heads<T>>(cpu: &Cpu, problem: &Problem<'_, T, H>, places: Range<usize>) {
    let [batch, heads, _, size] = problem.queries.shape();
    let [_, _, count, out_size] = problem.values.shape();
    let groups = batch * heads / problem.group;
    let layout = Layout::new(problem, cpu.isa(), places.len());
    let decoded = problem.keys.scratch().max(problem.values.scratch()).max(layout.words());
    with_scratch(groups * layout.all(), |scratch| {
        let scratch = Shared(scratch.as_mut_ptr());
        let places = &places;
        let phase = |phase: Phase, groups: Range<usize>, rows: Range<usize>, blocks: Range<usize>| {
            products::with_scratch(Purpose::Right, decoded, |decoded| {
                let places = places.clone();
                cpu.run(Part {
                    problem,
                    layout,
                    isa: cpu.isa(),
                    scratch,
                    phase,
                    groups,
                    places,
                    rows,
                    blocks,
                    decoded,
                });
            });
        };
        let all = |groups: Range<usize>| {
            for group in groups {
                for one in [Phase::Queries, Phase::Scores, Phase::Weights, Phase::Sums, Phase::Results] {
                    phase(one, group..group + 1, 0..layout.rows, 0..layout.blocks);
                }
            }
        };
        // The time to read rows and to multiply.
        let read = problem.keys.row_bytes() + problem.values.row_bytes();
        let work = count * (read + (size + out_size) * layout.rows) / 32;
        if cpu.threads() == 1 || groups * work < WORTHWHILE {
            return all(0..groups);
        }
        if groups.is_multiple_of(cpu.threads()) || groups >= 4 * cpu.threads() {
            return cpu.parallel(groups, |group| all(group..group + 1));
        }
        let blocks = |one: Phase| {
            cpu.parallel(groups * layout.blocks, |index| {
                let (group, block) = (index / layout.blocks, index % layout.blocks);
                phase(one, group..group + 1, 0..layout.rows, block..block + 1);
            });
        };
        let rows = |one: Phase| {
            // Less than this is not worth waking a thread.
            let at_once = if layout.count < 1024 { layout.rows } else { layout.rows.div_ceil(cpu.threads()) };
            let parts = layout.rows.div_ceil(at_once);
            cpu.parallel(groups * parts, |index| {
                let (group, first) = (index / parts, index % parts * at_once);
                phase(one, group..group + 1, first..layout.rows.min(first + at_once), 0..layout.blocks);
            });
        };
        phase(Phase::Queries, 0..groups, 0..layout.rows, 0..0);
        blocks(Phase::Scores);
        rows(Phase::Weights);
        blocks(Phase::Sums);
        rows(Phase::Results);
    });
}

/// Whether vectors are arrays (see [`formula::has_arrays`]). False under Miri, so that it checks the code of the other
/// instruction sets.
const fn has_arrays<S: Arithmetic>() -> bool {
    formula::has_arrays::<S>() && !cfg!(miri)
}

/// How many of `rows` queries are computed together.
const fn together<S: Arithmetic>(rows: usize) -> usize {
    match rows {
        _ if has_arrays::<S>() => 1,
        ..=5 => rows,
        6 => 3,
        _ => 4,
    }
}

/// The steps of attention. Each needs the whole result of the one before.
#[derive(Debug, Clone, Copy)]
enum Phase {
    /// Scales the queries.
    Queries,
    /// Products of queries and keys, soft-capped if there is a cap.
    Scores,
    /// Softmax of the scores.
    Weights,
    /// Sums of values times weights, for each block of keys.
    Sums,
    /// Adds the sums of the blocks in order, and writes the results.
    Results,
}

/// The sizes of the memory of one group of heads: the query heads that share a head of keys.
#[derive(Debug, Clone, Copy)]
struct Layout {
    /// The number of queries: all those of each head of the group.
    rows: usize,
    /// The numbers of a query, padded.
    size: usize,
    /// The numbers of a result, padded.
    out_size: usize,
    /// The number of keys.
    count: usize,
    /// The number of blocks of keys.
    blocks: usize,
    /// Whether queries and weights are words of two bfloat16 (see [`pairs`]). They lie where their float32 would.
    in_pairs: bool,
}

impl Layout {
    fn new<T: Element, H: Heads<T>>(problem: &Problem<'_, T, H>, isa: Isa, places: usize) -> Self {
        let [_, _, count, out_size] = problem.values.shape();
        Self {
            rows: problem.group * places,
            // Padded to whole vectors.
            size: problem.queries.shape()[3].next_multiple_of(MAX_LANES),
            out_size: out_size.next_multiple_of(pairs::STRIP),
            count,
            blocks: count.div_ceil(BLOCK),
            in_pairs: pairs::multiplies(isa, problem),
        }
    }

    const fn queries(&self) -> usize {
        self.rows * self.size
    }

    const fn scores(&self) -> usize {
        self.rows * self.count
    }

    const fn sums(&self) -> usize {
        self.blocks * self.rows * self.out_size
    }

    /// The memory for words of keys or values.
    fn words(&self) -> usize {
        let words = (pairs::TRANSPOSED * self.size / 2).max(pairs::INTERLEAVED / 2 * self.out_size);
        if self.in_pairs { words } else { 0 }
    }

    const fn all(&self) -> usize {
        self.queries() + self.scores() + self.sums()
    }
}

/// One task: a phase of some groups, and of some rows or blocks if the phase is divided.
struct Part<'a, T, H> {
    problem: &'a Problem<'a, T, H>,
    layout: Layout,
    isa: Isa,
    scratch: Shared<f32>,
    phase: Phase,
    groups: Range<usize>,
    /// The places of the queries of a head.
    places: Range<usize>,
    /// The rows whose weights or results are computed.
    rows: Range<usize>,
    blocks: Range<usize>,
    /// Memory for decoded rows, or for words, of keys or values.
    decoded: &'a mut [f32],
}

impl<T: Element, H: Heads<T>> Kernel for Part<'_, T, H> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        let decoded = std::mem::take(&mut self.decoded);
        for group in self.groups.clone() {
            match self.phase {
                Phase::Queries => self.queries(s, group),
                Phase::Scores => self.scores(s, group, decoded),
                Phase::Weights => self.weights(s, group),
                Phase::Sums => self.sums(s, group, decoded),
                Phase::Results => self.results(s, group),
            }
        }
    }
}

impl<T: Element, H: Heads<T>> Part<'_, T, H> {
    /// Where the queries, the scores and the sums of a group begin.
    #[inline(always)]
    fn parts(&self, group: usize) -> (*mut f32, *mut f32, *mut f32) {
        let start = self.scratch.get().wrapping_add(group * self.layout.all());
        let scores = start.wrapping_add(self.layout.queries());
        (start, scores, scores.wrapping_add(self.layout.scores()))
    }

    #[inline(always)]
    fn query(&self, group: usize, row: usize) -> Query {
        let (heads, length) = (self.problem.queries.shape()[1], self.places.len());
        let head = group * self.problem.group + row / length;
        Query { batch: head / heads, head: head % heads, place: self.places.start + row % length }
    }

    /// The row of the batch and the head of the keys.
    #[inline(always)]
    fn shared_head(&self, group: usize) -> [usize; 2] {
        let heads = self.problem.keys.shape()[1];
        [group / heads, group % heads]
    }

    #[inline(always)]
    fn queries<S: Arithmetic>(&self, s: S, group: usize) {
        // SAFETY: the queries of this group, within the scratch; no other task touches them in this phase.
        let queries = unsafe { std::slice::from_raw_parts_mut(self.parts(group).0, self.layout.queries()) };
        for (row, to) in queries.chunks_exact_mut(self.layout.size.max(1)).enumerate() {
            let from = self.problem.query(self.query(group, row));
            if self.layout.in_pairs {
                let words = narrow::<T>(to);
                for (from, to) in from.chunks(S::LANES).zip(words.chunks_mut(S::LANES)) {
                    store(s, &mut to[..from.len()], s.mul(load(s, from, 0.0), s.splat(self.problem.scale)));
                }
                continue;
            }
            let whole = from.len() / S::LANES * S::LANES;
            for at in (0..whole).step_by(S::LANES) {
                s.store(
                    &mut to[at..],
                    T::rounded(s, s.mul(s.load(&from[at..]), s.splat(self.problem.scale))),
                );
            }
            let rest = s.mul(s.load_some(&from[whole..], 0.0), s.splat(self.problem.scale));
            to[whole..].fill(0.0);
            s.store_some(&mut to[whole..from.len()], T::rounded(s, rest));
        }
    }

    #[inline(always)]
    fn scores<S: Arithmetic>(&self, s: S, group: usize, decoded: &mut [f32]) {
        for block in self.blocks.clone() {
            let keys = block * BLOCK..self.layout.count.min((block + 1) * BLOCK);
            if !self.is_seen(group, &keys) {
                for row in 0..self.layout.rows {
                    self.scores_of(group, row, &keys).fill(T::LOWEST);
                }
                continue;
            }
            if self.layout.in_pairs {
                self.scores_in_pairs(s, group, keys.clone(), decoded);
            }
            let at_once = self.problem.keys.at_once();
            for keys in pieces(keys.clone(), at_once).filter(|_| !self.layout.in_pairs) {
                let head = self.shared_head(group);
                let from = self.problem.keys.rows(s, self.isa, head, keys.clone(), decoded);
                let mut row = 0;
                while row < self.layout.rows {
                    let rows = together::<S>(self.layout.rows - row);
                    match rows {
                        _ if const { has_arrays::<S>() } => {
                            self.products::<S, 1, 1>(s, group, row, &keys, from);
                        }
                        1 => self.products::<S, 1, 8>(s, group, row, &keys, from),
                        2 => self.products::<S, 2, 4>(s, group, row, &keys, from),
                        3 => self.products::<S, 3, 2>(s, group, row, &keys, from),
                        4 if const { S::REGISTERS >= 32 } => {
                            self.products::<S, 4, 4>(s, group, row, &keys, from)
                        }
                        4 => self.products::<S, 4, 2>(s, group, row, &keys, from),
                        _ if const { S::REGISTERS >= 32 } => {
                            self.products::<S, 5, 4>(s, group, row, &keys, from)
                        }
                        _ => self.products::<S, 5, 2>(s, group, row, &keys, from),
                    }
                    row += rows;
                }
            }
            for row in 0..self.layout.rows {
                self.problem.softcap(s, self.scores_of(group, row, &keys));
            }
        }
    }

    /// Computes the scores of the keys of a block, in pairs.
    #[inline(always)]
    fn scores_in_pairs<S: Arithmetic>(&self, s: S, group: usize, block: Range<usize>, scratch: &mut [f32]) {
        let (queries, scores, _) = self.parts(group);
        let Layout { rows, size, count, .. } = self.layout;
        for keys in pieces(block, pairs::TRANSPOSED) {
            let to = scores.wrapping_add(keys.start);
            let rows = Few { words: queries, words_stride: size, to, to_stride: count, rows };
            let from = self.problem.keys.rows(s, self.isa, self.shared_head(group), keys, &mut []);
            if let Some(from) = H::Number::as_bf16(from) {
                // SAFETY: the previous phase has written the words of the queries. The scores are within the scratch;
                // tasks that run at the same time have other keys or groups.
                unsafe { pairs::few_scores(from, rows, scratch) };
            }
        }
    }

    /// Adds the values of a block times weights to its sums, in pairs.
    #[inline(always)]
    fn sums_in_pairs<S: Arithmetic>(
        &self,
        s: S,
        group: usize,
        block: Range<usize>,
        sums: &mut [f32],
        scratch: &mut [f32],
    ) {
        let Layout { rows, out_size, count, .. } = self.layout;
        for keys in pieces(block, pairs::INTERLEAVED) {
            let words = self.parts(group).1.cast_const().wrapping_add(keys.start / 2);
            let rows = Few { words, words_stride: count, to: sums.as_mut_ptr(), to_stride: out_size, rows };
            let from = self.problem.values.rows(s, self.isa, self.shared_head(group), keys, &mut []);
            if let Some(from) = H::Number::as_bf16(from) {
                // SAFETY: the previous phase has written the words of the weights. The sums are those of all rows.
                unsafe { pairs::few_sums(from, rows, scratch) };
            }
        }
    }

    /// Whether any query of the group sees any of these keys.
    #[inline(always)]
    fn is_seen(&self, group: usize, keys: &Range<usize>) -> bool {
        let Mask::Bool(mask) = &self.problem.mask else { return true };
        (0..self.layout.rows).any(|row| {
            let Query { batch, head, place } = self.query(group, row);
            keys.clone().any(|key| mask.data()[mask.at([batch, head, place, key])])
        })
    }

    /// The weights of these keys for `rows` queries. Those of a query begin `count` behind those of the one before;
    /// other weights lie between.
    #[inline(always)]
    fn weights_of(&self, group: usize, first: usize, rows: usize, keys: &Range<usize>) -> &[f32] {
        let Layout { count, .. } = self.layout;
        debug_assert!(rows > 0 && first + rows <= self.layout.rows && keys.end <= count);
        // SAFETY: within the scores of this group. The phases that write them are over: now all tasks read.
        unsafe {
            let start = self.parts(group).1.add(first * count + keys.start);
            std::slice::from_raw_parts(start.cast_const(), (rows - 1) * count + keys.len())
        }
    }

    /// The scores of a query, in a phase that writes them.
    #[inline(always)]
    #[expect(clippy::mut_from_ref, reason = "each task asks for keys of its own")]
    fn scores_of(&self, group: usize, row: usize, keys: &Range<usize>) -> &mut [f32] {
        debug_assert!(row < self.layout.rows && keys.end <= self.layout.count);
        let at = row * self.layout.count + keys.start;
        // SAFETY: the scores of this group, within the scratch; tasks that run at the same time ask for
        // other keys or groups.
        unsafe { std::slice::from_raw_parts_mut(self.parts(group).1.add(at), keys.len()) }
    }

    /// Computes the scores of `ROWS` queries, `KEYS` keys at a time.
    #[inline(always)]
    fn products<S: Arithmetic, const ROWS: usize, const KEYS: usize>(
        &self,
        s: S,
        group: usize,
        first: usize,
        keys: &Range<usize>,
        from: Matrix<'_, H::Number>,
    ) {
        let length = from.columns();
        let whole = length / S::LANES * S::LANES;
        assert!(self.layout.size >= length.next_multiple_of(S::LANES) && first + ROWS <= self.layout.rows);
        let queries = self.parts(group).0.cast_const().wrapping_add(first * self.layout.size);
        let mut scores: [&mut [f32]; ROWS] =
            std::array::from_fn(|row| self.scores_of(group, first + row, keys));

        let ahead = numbers_ahead(from);
        let mut sums = [[s.zero(); TOGETHER]; ROWS];
        for first in (0..keys.len()).step_by(TOGETHER) {
            let count = TOGETHER.min(keys.len() - first);
            for key in (0..count).step_by(KEYS) {
                // If the keys are not a multiple, the last ones are computed several times.
                let ours = from.row_starts::<KEYS>(first + key);
                let mut products = [[s.zero(); ROWS]; KEYS];
                // SAFETY: keys have `length` numbers. Queries, which the previous phase wrote, are padded with zeros to
                // a whole vector.
                unsafe {
                    for at in (0..whole).step_by(S::LANES) {
                        if const { H::IN_MEMORY } {
                            for key in ours {
                                prefetch(key.wrapping_add(at).wrapping_add(ahead));
                            }
                        }
                        let mut keys = [s.zero(); KEYS];
                        for (to, key) in keys.iter_mut().zip(ours) {
                            *to = H::Number::load(s, key.add(at));
                        }
                        add_products(s, keys, queries.add(at), self.layout.size, &mut products);
                    }
                    if whole < length {
                        let mut keys = [s.zero(); KEYS];
                        for (to, key) in keys.iter_mut().zip(ours) {
                            *to = load_rest(s, key.add(whole), length - whole);
                        }
                        add_products(s, keys, queries.add(whole), self.layout.size, &mut products);
                    }
                }
                for (i, products) in products.into_iter().enumerate() {
                    for (sums, product) in sums.iter_mut().zip(products) {
                        sums[key + i] = product;
                    }
                }
            }
            for (scores, sums) in scores.iter_mut().zip(&sums) {
                let scores = scores[first..first + count].chunks_mut(S::LANES);
                for (scores, sums) in scores.zip(sums.chunks_exact(S::LANES)) {
                    store(s, scores, T::rounded(s, s.sums(sums)));
                }
            }
        }
    }

    #[inline(always)]
    fn weights<S: Arithmetic>(&self, s: S, group: usize) {
        let all = 0..self.layout.count;
        for row in self.rows.clone() {
            let query = self.query(group, row);
            let scores = self.scores_of(group, row, &all);
            self.apply_mask(s, query, scores);
            let sink = self.problem.sinks.map(|sinks| sinks[query.head].widen());
            softmax::<S, T>(s, scores, sink);
            if self.layout.in_pairs {
                narrow_in_place::<S, T>(s, scores);
            }
        }
    }

    #[inline(always)]
    fn apply_mask<S: Arithmetic>(&self, s: S, Query { batch, head, place }: Query, scores: &mut [f32]) {
        match &self.problem.mask {
            Mask::None => {}
            Mask::Causal => {
                let end = self.problem.causal_end(place).min(scores.len());
                scores[end..].fill(T::LOWEST);
            }
            Mask::Bool(mask) => {
                for (key, score) in scores.iter_mut().enumerate() {
                    if !mask.data()[mask.at([batch, head, place, key])] {
                        *score = T::LOWEST;
                    }
                }
            }
            Mask::Additive(mask) => {
                let step = S::LANES;
                for (i, scores) in scores.chunks_mut(step).enumerate() {
                    let mut added = [0.0; MAX_LANES];
                    for (j, added) in added.iter_mut().enumerate().take(scores.len()) {
                        *added = mask.data()[mask.at([batch, head, place, i * step + j])].widen();
                    }
                    let sum = s.add(s.load_some(scores, 0.0), s.load(&added));
                    s.store_some(scores, T::rounded(s, sum));
                }
            }
        }
    }

    #[inline(always)]
    fn sums<S: Arithmetic>(&self, s: S, group: usize, decoded: &mut [f32]) {
        let width = self.layout.out_size;
        for block in self.blocks.clone() {
            let keys = block * BLOCK..self.layout.count.min((block + 1) * BLOCK);
            // SAFETY: the sums of this block, within the scratch; no other task has the block.
            let sums = unsafe {
                let start = self.parts(group).2.add(block * self.layout.rows * width);
                std::slice::from_raw_parts_mut(start, self.layout.rows * width)
            };
            sums.fill(0.0);
            let is_zero = |row| {
                let words = keys.start / 2..keys.end.div_ceil(2);
                let keys = if self.layout.in_pairs { &words } else { &keys };
                self.weights_of(group, row, 1, keys).iter().all(|&weight| weight == 0.0)
            };
            if matches!(self.problem.mask, Mask::Bool(_)) && (0..self.layout.rows).all(is_zero) {
                continue;
            }
            if self.layout.in_pairs {
                self.sums_in_pairs(s, group, keys, sums, decoded);
                continue;
            }
            for keys in pieces(keys, self.problem.values.at_once()) {
                let head = self.shared_head(group);
                let values = self.problem.values.rows(s, self.isa, head, keys.clone(), decoded);
                let (mut row, mut rest) = (0, &mut *sums);
                while !rest.is_empty() {
                    let rows = together::<S>(self.layout.rows - row);
                    let (sums, more) = rest.split_at_mut(rows * width);
                    match rows {
                        _ if const { has_arrays::<S>() } => {
                            self.weighted::<S, 1>(s, group, row, &keys, values, sums);
                        }
                        1 => self.weighted::<S, 1>(s, group, row, &keys, values, sums),
                        2 => self.weighted::<S, 2>(s, group, row, &keys, values, sums),
                        3 => self.weighted::<S, 3>(s, group, row, &keys, values, sums),
                        4 => self.weighted::<S, 4>(s, group, row, &keys, values, sums),
                        _ => self.weighted::<S, 5>(s, group, row, &keys, values, sums),
                    }
                    (row, rest) = (row + rows, more);
                }
            }
        }
    }

    /// Adds values times weights to the sums of `ROWS` queries.
    #[inline(always)]
    fn weighted<S: Arithmetic, const ROWS: usize>(
        &self,
        s: S,
        group: usize,
        first: usize,
        keys: &Range<usize>,
        values: Matrix<'_, H::Number>,
        sums: &mut [f32],
    ) {
        let Layout { count, out_size, .. } = self.layout;
        let weights = self.weights_of(group, first, ROWS, keys);
        let ahead = const { H::IN_MEMORY }.then(|| numbers_ahead(values));
        let whole = if const { has_arrays::<S>() } { 0 } else { keys.len() / 8 * 8 };
        if const { !has_arrays::<S>() } {
            for from in (0..whole).step_by(8) {
                let weights = weights_at::<ROWS, 8>(&weights[from..], count);
                add_values(s, values, from, ahead, &weights, sums, out_size);
            }
        }
        for from in whole..keys.len() {
            let weights = weights_at::<ROWS, 1>(&weights[from..], count);
            add_values(s, values, from, ahead, &weights, sums, out_size);
        }
    }

    #[inline(always)]
    fn results<S: Arithmetic>(&self, s: S, group: usize) {
        let Layout { rows, out_size, blocks, .. } = self.layout;
        // SAFETY: the sums of this group, within the scratch, which the previous phase wrote.
        let sums =
            unsafe { std::slice::from_raw_parts(self.parts(group).2.cast_const(), blocks * rows * out_size) };
        for row in self.rows.clone() {
            // SAFETY: the output is borrowed by the caller; each query belongs to one group.
            let out = unsafe { self.problem.out(self.query(group, row)) };
            for (i, out) in out.chunks_mut(pairs::STRIP).enumerate() {
                let mut all = [0.0_f32; pairs::STRIP];
                for (j, to) in all.chunks_exact_mut(S::LANES).enumerate() {
                    let mut sum = s.zero();
                    for block in 0..blocks {
                        let at = (block * rows + row) * out_size + i * pairs::STRIP + j * S::LANES;
                        sum = s.add(sum, s.load(&sums[at..]));
                    }
                    s.store(to, sum);
                }
                if self.layout.in_pairs {
                    all = pairs::places().map(|place| all[place]);
                }
                for (out, from) in out.chunks_mut(S::LANES).zip(all.chunks_exact(S::LANES)) {
                    store(s, out, s.load(from));
                }
            }
        }
    }
}

/// The memory of float32 for numbers of another format.
#[inline(always)]
fn narrow<T: Element>(numbers: &mut [f32]) -> &mut [T] {
    const { assert!(size_of::<T>() <= size_of::<f32>() && align_of::<T>() <= align_of::<f32>()) };
    // SAFETY: large enough and aligned, as was just asserted; every bit pattern is a number of both formats.
    unsafe {
        let count = size_of_val(numbers) / size_of::<T>();
        std::slice::from_raw_parts_mut(numbers.as_mut_ptr().cast(), count)
    }
}

/// Replaces numbers that are rounded to bfloat16 by words of two of them. Behind an odd number of them there is a zero.
#[inline(always)]
fn narrow_in_place<S: Arithmetic, T: Element>(s: S, numbers: &mut [f32]) {
    let count = numbers.len();
    for at in (0..count).step_by(S::LANES) {
        let some = S::LANES.min(count - at);
        // Narrow numbers lie before those that are still to be read.
        let x = load(s, &numbers[at..], 0.0);
        store(s, &mut narrow::<T>(numbers)[at..at + some], x);
    }
    if count % 2 == 1 {
        narrow::<T>(numbers)[count] = T::default();
    }
}

/// Ranges of up to `size` numbers that cover a range.
fn pieces(range: Range<usize>, size: usize) -> impl Iterator<Item = Range<usize>> {
    range.clone().step_by(size).map(move |first| first..range.end.min(first.saturating_add(size)))
}

/// How many numbers ahead memory is prefetched.
#[inline(always)]
fn numbers_ahead<T: Element>(rows: Matrix<'_, T>) -> usize {
    let (rows_ahead, bytes_ahead) = AHEAD;
    rows_ahead.saturating_mul(rows.row_stride()).max(bytes_ahead / size_of::<T>())
}

/// `VALUES` weights of each of `ROWS` queries, whose weights begin `count` apart. In an array, so that a loop over them
/// needs no checks.
#[inline(always)]
fn weights_at<const ROWS: usize, const VALUES: usize>(
    weights: &[f32],
    count: usize,
) -> [[f32; VALUES]; ROWS] {
    let mut all = [[0.0; VALUES]; ROWS];
    for (row, all) in all.iter_mut().enumerate() {
        all.copy_from_slice(&weights[row * count..][..VALUES]);
    }
    all
}

/// Adds `VALUES` values from row `first` on, times the weights of `ROWS` queries, to the sums of the queries, which lie
/// `width` apart.
#[inline(always)]
fn add_values<S: Arithmetic, T: Element, const ROWS: usize, const VALUES: usize>(
    s: S,
    values: Matrix<'_, T>,
    first: usize,
    ahead: Option<usize>,
    weights: &[[f32; VALUES]; ROWS],
    sums: &mut [f32],
    width: usize,
) {
    let length = values.columns();
    let whole = length / S::LANES * S::LANES;
    assert!(length.next_multiple_of(S::LANES) <= width && sums.len() == ROWS * width);
    let sums = sums.as_mut_ptr();
    let values = values.row_starts::<VALUES>(first);
    // SAFETY: values have `length` numbers, and there are `ROWS` sums of `width`: `length` or more, in whole vectors.
    unsafe {
        for at in (0..whole).step_by(S::LANES) {
            if let Some(ahead) = ahead {
                for value in values {
                    prefetch(value.wrapping_add(at).wrapping_add(ahead));
                }
            }
            let mut numbers = [s.zero(); VALUES];
            for (to, value) in numbers.iter_mut().zip(values) {
                *to = T::load(s, value.add(at));
            }
            add_weighted(s, numbers, weights, sums.add(at), width);
        }
        if whole < length {
            let mut numbers = [s.zero(); VALUES];
            for (to, value) in numbers.iter_mut().zip(values) {
                *to = load_rest(s, value.add(whole), length - whole);
            }
            add_weighted(s, numbers, weights, sums.add(whole), width);
        }
    }
}

/// Adds a vector of each value, times its weights, to a vector of each sum. Sums lie `width` apart.
///
/// # Safety
///
/// A vector can be read and written at each of the sums.
#[inline(always)]
unsafe fn add_weighted<S: Arithmetic, const ROWS: usize, const VALUES: usize>(
    s: S,
    values: [S::F; VALUES],
    weights: &[[f32; VALUES]; ROWS],
    sums: *mut f32,
    width: usize,
) {
    for (row, weights) in weights.iter().enumerate() {
        // SAFETY: the caller's promise.
        unsafe {
            let mut sum = s.load_f32(sums.add(row * width));
            for (value, weight) in values.into_iter().zip(weights) {
                sum = s.mul_add(s.splat(*weight), value, sum);
            }
            s.store_f32(sums.add(row * width), sum);
        }
    }
}

/// Adds to the sum of each key and query the products of one vector of both. Queries lie `size` apart.
///
/// # Safety
///
/// A vector can be read at each of the queries.
#[inline(always)]
unsafe fn add_products<S: Arithmetic, const ROWS: usize, const KEYS: usize>(
    s: S,
    keys: [S::F; KEYS],
    queries: *const f32,
    size: usize,
    products: &mut [[S::F; ROWS]; KEYS],
) {
    for row in 0..ROWS {
        // SAFETY: the caller's promise.
        let query = unsafe { s.load_f32(queries.add(row * size)) };
        for (key, products) in keys.into_iter().zip(&mut *products) {
            products[row] = s.mul_add(key, query, products[row]);
        }
    }
}

/// Reads `count` numbers, fewer than a vector has lanes; zeros in the other lanes.
///
/// # Safety
///
/// `count` numbers can be read.
#[inline(always)]
unsafe fn load_rest<S: Arithmetic, T: Element>(s: S, from: *const T, count: usize) -> S::F {
    // SAFETY: the caller's promise.
    s.load_some(unsafe { std::slice::from_raw_parts(from, count) }, 0.0)
}

/// Replaces scores by their softmax, each rounded to `T`. A sink counts in the sum only.
#[inline(always)]
fn softmax<S: Arithmetic, T: Element>(s: S, scores: &mut [f32], sink: Option<f32>) {
    let mut largest = s.splat(sink.unwrap_or(f32::NEG_INFINITY));
    for scores in scores.chunks(S::LANES) {
        largest = s.max(load(s, scores, f32::NEG_INFINITY), largest);
    }
    let largest = s.splat(s.largest(largest));
    let mut sums = s.zero();
    for scores in scores.chunks_mut(S::LANES) {
        let power = formula::weight(s, s.sub(load(s, scores, f32::NEG_INFINITY), largest));
        sums = s.add(sums, power);
        store(s, scores, power);
    }
    let mut sum = s.sum(sums);
    if let Some(sink) = sink {
        let mut power = [0.0_f32; MAX_LANES];
        s.store(&mut power, formula::exp(s, s.sub(s.splat(sink), largest)));
        sum += power[0];
    }
    let factor = s.splat(1.0 / sum);
    for scores in scores.chunks_mut(S::LANES) {
        let weight = s.mul(load(s, scores, 0.0), factor);
        store(s, scores, T::rounded(s, weight));
    }
}
