//! Packing to whole numbers: 64 neighbours along a sum share a scale, their largest magnitude over the largest whole number.
//!
//! A group takes a correction, the words of its terms, and its scale: (groups, words, rows) of a tile, (groups, words,
//! columns) of a panel. Bytes of a right side are moved up by 128, since processors multiply unsigned by signed ones;
//! what that adds to the sums is the left side's correction, −128 · Σ q.
//! A number that is not finite makes its group's scale so, and with it all sums that the group is part of.

use std::mem::MaybeUninit;

use super::rows::Rows;
use super::vectors::Vectors;

/// Terms that share a scale.
pub(super) const GROUP: usize = 64;
/// Vectors of neighbours that become words together.
const QUARTERS: usize = 4;
/// Most words of a vector, and of a group's terms.
const MOST_LANES: usize = 16;
const MOST_DATA: usize = 32;

/// Whole numbers of some size.
pub(super) trait Whole {
    /// Numbers in a word.
    const TERMS: usize;
    /// The largest of them, the smallest being its negative: sums of a group's products stay below 2^31.
    const MOST: f32;
    /// What a right side's numbers are moved up by.
    const RISE: i32;
    /// Words of a group's terms.
    const DATA: usize = GROUP / Self::TERMS;
    /// Words of a group.
    const WORDS: usize = Self::DATA + 2;
    /// Place of its scale.
    const SCALE: usize = Self::DATA + 1;

    /// Four vectors, neighbours along the sum, as words: the first one or two are filled.
    ///
    /// # Safety
    /// The processor has the vectors, here and below.
    unsafe fn narrowed<V: Vectors>(x: [V::Words; QUARTERS]) -> [V::Words; 2];

    /// Words as a right side has them.
    unsafe fn right<V: Vectors>(words: V::Words) -> V::Words;
}

/// Of eight bits.
pub(super) enum Int8 {}

/// Of thirteen bits, in sixteen.
pub(super) enum Int16 {}

impl Whole for Int8 {
    const TERMS: usize = 4;
    const MOST: f32 = 127.0;
    const RISE: i32 = 128;

    #[inline(always)]
    unsafe fn narrowed<V: Vectors>(x: [V::Words; QUARTERS]) -> [V::Words; 2] {
        // SAFETY: the caller's promise.
        unsafe { [V::to_bytes(x), V::set_word(0)] }
    }

    #[inline(always)]
    unsafe fn right<V: Vectors>(words: V::Words) -> V::Words {
        // SAFETY: the caller's promise.
        unsafe { V::xor(words, V::set_word(i32::from_ne_bytes([0x80; 4]))) }
    }
}

impl Whole for Int16 {
    const TERMS: usize = 2;
    const MOST: f32 = 4095.0;
    const RISE: i32 = 0;

    #[inline(always)]
    unsafe fn narrowed<V: Vectors>([a, b, c, d]: [V::Words; QUARTERS]) -> [V::Words; 2] {
        // SAFETY: the caller's promise.
        unsafe { [V::to_halves([a, b]), V::to_halves([c, d])] }
    }

    #[inline(always)]
    unsafe fn right<V: Vectors>(words: V::Words) -> V::Words {
        words
    }
}

/// Which side of a product is packed, for which vectors.
pub(super) trait Side {
    type Vectors: Vectors;
    /// Rows of a tile or columns of a panel: words of a line, a multiple of a vector's.
    const WIDTH: usize;
    /// Whether it is the right one.
    const IS_RIGHT: bool;
}

/// Tiles of rows: whole blocks of as many as registers have room for.
pub(super) struct Left<V>(std::marker::PhantomData<V>);

/// Panels of columns: two vectors.
pub(super) struct Right<V>(std::marker::PhantomData<V>);

impl<V: Vectors> Side for Left<V> {
    type Vectors = V;
    const WIDTH: usize = if V::REGISTERS == 32 { 16 } else { 24 };
    const IS_RIGHT: bool = false;
}

impl<V: Vectors> Side for Right<V> {
    type Vectors = V;
    const WIDTH: usize = 2 * V::LANES;
    const IS_RIGHT: bool = true;
}

/// Scale of groups and what their numbers are multiplied by, from their largest magnitudes.
#[inline(always)]
unsafe fn scales<F: Whole, V: Vectors>(largest: V::Words) -> (V::Floats, V::Floats) {
    // SAFETY: the caller's promise, here and below.
    unsafe {
        let (largest, most) = (V::floats_of(largest), V::set_float(F::MOST));
        let factor = V::divide(most, largest);
        let least = V::set_float(f32::MIN_POSITIVE * F::MOST);
        (V::divide(largest, most), V::unless_below(factor, largest, least))
    }
}

/// |x| as bits, in the order of the numbers, and above all of them what is none.
#[inline(always)]
unsafe fn magnitude<V: Vectors>(x: V::Floats) -> V::Words {
    // SAFETY: as above.
    unsafe { V::and(V::words_of(x), V::set_word(i32::MAX)) }
}

#[inline(always)]
unsafe fn rounded<V: Vectors>(x: V::Floats, factor: V::Floats) -> V::Words {
    // SAFETY: as above.
    unsafe { V::rounded(V::multiply(x, factor)) }
}

/// Four vectors of a group's row: those after the first `skipped` numbers.
#[inline(always)]
unsafe fn quarters<V: Vectors>(row: &[f32], skipped: usize) -> [V::Floats; QUARTERS] {
    let part = |quarter: usize| &row[(skipped + quarter * V::LANES).min(row.len())..];
    // SAFETY: as above.
    unsafe { [V::floats(part(0)), V::floats(part(1)), V::floats(part(2)), V::floats(part(3))] }
}

/// A side whose rows or columns from `first` on, a multiple of a vector's, are x's rows.
///
/// # Safety
/// The processor has the vectors.
#[inline(always)]
pub(super) unsafe fn of_rows<F: Whole, S: Side>(x: Rows<'_, f32>, first: usize, to: &mut [u32]) {
    let (words, lanes) = (x.cols.div_ceil(GROUP) * F::WORDS, S::Vectors::LANES);
    for row in (0..x.rows).step_by(lanes) {
        let (rows, place) = (row..(row + lanes).min(x.rows), first + row);
        let lines = &mut to[place / S::WIDTH * words * S::WIDTH + place % S::WIDTH..];
        for (group, start) in (0..x.cols).step_by(GROUP).enumerate() {
            let terms = start..(start + GROUP).min(x.cols);
            // SAFETY: the caller's promise.
            unsafe {
                group_of_rows::<F, S, S::Vectors>(
                    x.part(rows.clone(), terms),
                    &mut lines[group * F::WORDS * S::WIDTH..],
                )
            };
        }
    }
}

/// A group of up to a vector's rows.
#[inline(always)]
unsafe fn group_of_rows<F: Whole, S: Side<Vectors = V>, V: Vectors>(x: Rows<'_, f32>, to: &mut [u32]) {
    let lanes = V::LANES;
    let parts = (0..GROUP).step_by(QUARTERS * lanes);
    assert!(to.len() >= F::SCALE * S::WIDTH + lanes, "the group ends inside of its tile or panel");
    let to = to.as_mut_ptr();
    let (mut largest, mut sums, mut factors) = ([0u32; MOST_LANES], [0i32; MOST_LANES], [0f32; MOST_LANES]);
    let mut words = MaybeUninit::<[u32; MOST_LANES * MOST_DATA]>::uninit();
    let words = words.as_mut_ptr().cast::<u32>();
    // SAFETY: the caller's promise; a row of `words` holds a group's, `to` the lines of one.
    unsafe {
        for (i, largest) in largest.iter_mut().enumerate().take(x.rows) {
            let mut of_row = V::set_word(0);
            for part in parts.clone() {
                let [a, b, c, d] = quarters::<V>(x.row(i), part);
                let left = V::larger(magnitude::<V>(a), magnitude::<V>(b));
                let right = V::larger(magnitude::<V>(c), magnitude::<V>(d));
                of_row = V::larger(of_row, V::larger(left, right));
            }
            *largest = V::largest(of_row);
        }
        let (scale, factor) = scales::<F, V>(V::load_words(largest.as_ptr()));
        V::store_floats(factor, factors.as_mut_ptr());
        for i in 0..x.rows {
            let factor = V::set_float(factors[i]);
            let mut of_row = V::set_word(0);
            let mut line = words.add(i * MOST_DATA);
            for part in parts.clone() {
                let [a, b, c, d] = quarters::<V>(x.row(i), part);
                let (a, b) = (rounded::<V>(a, factor), rounded::<V>(b, factor));
                let (c, d) = (rounded::<V>(c, factor), rounded::<V>(d, factor));
                of_row = V::add(of_row, V::add(V::add(a, b), V::add(c, d)));
                for narrow in F::narrowed::<V>([a, b, c, d]).into_iter().take(QUARTERS / F::TERMS) {
                    let narrow = if S::IS_RIGHT { F::right::<V>(narrow) } else { narrow };
                    V::store_words(narrow, line);
                    line = line.add(lanes);
                }
            }
            if !S::IS_RIGHT && F::RISE != 0 {
                sums[i] = -F::RISE * V::sum(of_row);
            }
        }
        V::store_words(V::load_words(sums.as_ptr().cast()), to);
        for i in x.rows..lanes {
            words.add(i * MOST_DATA).write_bytes(0, F::DATA);
        }
        for word in (0..F::DATA).step_by(lanes) {
            V::turn(words.add(word), MOST_DATA, to.add((1 + word) * S::WIDTH), S::WIDTH);
        }
        V::store_words(V::words_of(scale), to.add(F::SCALE * S::WIDTH));
    }
}

/// The part of a side whose terms from `first` on, a multiple of [`GROUP`], are x's rows, of `terms` terms in all.
///
/// # Safety
/// The processor has the vectors.
#[inline(always)]
pub(super) unsafe fn of_columns<F: Whole, S: Side>(
    x: Rows<'_, f32>,
    first: usize,
    terms: usize,
    to: &mut [u32],
) {
    let (words, lanes) = (terms.div_ceil(GROUP) * F::WORDS, S::Vectors::LANES);
    for (group, row) in (0..x.rows).step_by(GROUP).enumerate() {
        let rows = row..(row + GROUP).min(x.rows);
        for column in (0..x.cols).step_by(lanes) {
            let columns = column..(column + lanes).min(x.cols);
            let line = column / S::WIDTH * words + (first / GROUP + group) * F::WORDS;
            let part = x.part(rows.clone(), columns);
            // SAFETY: the caller's promise.
            unsafe {
                group_of_columns::<F, S, S::Vectors>(part, &mut to[line * S::WIDTH + column % S::WIDTH..])
            };
        }
    }
}

/// A group of up to a vector's columns.
#[inline(always)]
unsafe fn group_of_columns<F: Whole, S: Side<Vectors = V>, V: Vectors>(x: Rows<'_, f32>, to: &mut [u32]) {
    assert!(to.len() >= F::SCALE * S::WIDTH + V::LANES, "the group ends inside of its tile or panel");
    let to = to.as_mut_ptr();
    // SAFETY: the caller's promise; `to` holds the lines of a group.
    unsafe {
        let row = |i: usize| if i < x.rows { V::floats(x.row(i)) } else { V::set_float(0.0) };
        let mut largest = V::set_word(0);
        for i in 0..x.rows {
            largest = V::larger(largest, magnitude::<V>(row(i)));
        }
        let (scale, factor) = scales::<F, V>(largest);
        let bits = 32 / F::TERMS;
        let mask = V::set_word(((1u64 << bits) - 1) as i32);
        let mut sums = V::set_word(0);
        for word in 0..F::DATA {
            let mut line = V::set_word(0);
            for term in 0..F::TERMS {
                let whole = rounded::<V>(row(word * F::TERMS + term), factor);
                sums = V::add(sums, whole);
                let whole = V::and(whole, mask);
                line = V::or(line, V::shifted_left(whole, (term * bits) as i32));
            }
            let line = if S::IS_RIGHT { F::right::<V>(line) } else { line };
            V::store_words(line, to.add((1 + word) * S::WIDTH));
        }
        let correction = V::multiply_words(sums, V::set_word(-F::RISE));
        V::store_words(correction, to);
        V::store_words(V::words_of(scale), to.add(F::SCALE * S::WIDTH));
    }
}
