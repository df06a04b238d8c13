//! Grids of points with D coordinates of BITS bits, and for each other place the points that lie nearest.
//!
//! A coordinate's number l stands for 2·l + 1 in searches, and for a value of the format in its blocks.

use std::sync::LazyLock;

use super::super::lanes::Lanes;
use super::tables;

/// Neighbours that are measured together, at most.
const TOGETHER: usize = 16;

/// Points of IQ2: eight weights each.
pub(super) type Grid2 = Grid<8, 2>;
/// Points of IQ3: four weights each.
pub(super) type Grid3 = Grid<4, 3>;

pub(super) static IQ2_XXS: LazyLock<Grid2> = LazyLock::new(|| Grid::new(&tables::IQ2_XXS, 3, 2));
pub(super) static IQ2_XS: LazyLock<Grid2> = LazyLock::new(|| Grid::new(&tables::IQ2_XS, 3, 2));
pub(super) static IQ2_S: LazyLock<Grid2> = LazyLock::new(|| Grid::new(&tables::IQ2_S, 3, 1));
pub(super) static IQ3_XXS: LazyLock<Grid3> = LazyLock::new(|| Grid::new(&tables::IQ3_XXS, 8, 2));
pub(super) static IQ3_S: LazyLock<Grid3> = LazyLock::new(|| Grid::new(&tables::IQ3_S, 8, 3));

pub(super) struct Grid<const D: usize, const BITS: u32> {
    points: &'static [u16],
    /// Of each place: a point's number, or where its neighbours begin, and how many bunches they are.
    places: Vec<Place>,
    neighbours: Vec<Bunch<D>>,
}

/// 2·l + 1 of each coordinate of some neighbours; the last one fills up the last bunch.
type Bunch<const D: usize> = [[u8; TOGETHER]; D];

#[derive(Clone, Copy)]
enum Place {
    Point(u16),
    Between { first: u32, n: u16 },
}

impl<const D: usize, const BITS: u32> Grid<D, BITS> {
    /// Coordinates are below `levels`. A place's neighbours are the points at its `distances` least distances, nearer ones
    /// first, and of those as near the earlier ones.
    fn new(points: &'static [u16], levels: u8, distances: usize) -> Self {
        let n_places = 1usize << (BITS as usize * D);
        let mut places = vec![Place::Between { first: 0, n: 0 }; n_places];
        for (number, point) in points.iter().enumerate() {
            places[usize::from(*point)] = Place::Point(number as u16);
        }
        let of_points: Vec<[u8; D]> = points.iter().map(|&point| Self::coordinates(point)).collect();
        let mut neighbours = Vec::new();
        for (index, place) in places.iter_mut().enumerate() {
            let here = Self::coordinates(index as u16);
            if matches!(place, Place::Point(_)) || here.iter().any(|&l| l >= levels) {
                continue;
            }
            let distance = |point: &[u8; D]| -> u32 {
                point.iter().zip(&here).map(|(a, b)| u32::from(a.abs_diff(*b)).pow(2)).sum()
            };
            let mut nearest = Vec::new();
            let mut beyond = None;
            for _ in 0..distances {
                let next =
                    of_points.iter().map(distance).filter(|&d| beyond.is_none_or(|beyond| d > beyond)).min();
                let Some(next) = next else { break };
                nearest.extend(of_points.iter().filter(|point| distance(point) == next));
                beyond = Some(next);
            }
            let first = neighbours.len();
            neighbours.extend(nearest.chunks(TOGETHER).map(Self::bunch));
            *place = Place::Between { first: first as u32, n: (neighbours.len() - first) as u16 };
        }
        Self { points, places, neighbours }
    }

    fn bunch(points: &[[u8; D]]) -> Bunch<D> {
        std::array::from_fn(|i| std::array::from_fn(|lane| 2 * points[lane.min(points.len() - 1)][i] + 1))
    }

    fn coordinates(point: u16) -> [u8; D] {
        std::array::from_fn(|i| (point >> (BITS as usize * i)) as u8 & ((1 << BITS) - 1))
    }

    /// The coordinates of a point by its number.
    pub(super) fn point(&self, number: usize) -> [u8; D] {
        Self::coordinates(self.points[number])
    }

    /// The number of the point whose coordinates are the first D.
    ///
    /// # Panics
    /// When there is no such point.
    pub(super) fn number(&self, coordinates: &[u8]) -> u16 {
        match self.places[Self::index(coordinates.first_chunk().expect("a coordinate for each weight"))] {
            Place::Point(number) => number,
            Place::Between { .. } => panic!("coordinates that were not moved to the grid"),
        }
    }

    fn index(coordinates: &[u8; D]) -> usize {
        coordinates.iter().enumerate().fold(0, |index, (i, &l)| index | usize::from(l) << (BITS as usize * i))
    }

    /// Of coordinates between points, which lie at the place `index`, the neighbour with the least Σ w·(scale·(2·l + 1) - x)²:
    /// the first of several, and where no distance is a number, the first neighbour. `None` where they are a point.
    #[inline(always)]
    pub(super) fn neighbour<V: Lanes>(
        &self,
        index: usize,
        x: &[f32; D],
        weights: &[f32; D],
        scale: f32,
    ) -> Option<[u8; D]> {
        let Place::Between { first, n } = self.places[index] else { return None };
        let bunches = &self.neighbours[first as usize..][..usize::from(n)];
        let (most, scale) = (V::splat(f32::MAX), V::splat(scale));
        let mut best = (f32::MAX, 0, 0);
        for (number, bunch) in bunches.iter().enumerate() {
            for begin in (0..TOGETHER).step_by(V::N) {
                let mut distance = V::splat(0.0);
                for i in 0..D {
                    let difference = scale * V::load_bytes(&bunch[i][begin..]) - V::splat(x[i]);
                    distance = distance + V::splat(weights[i]) * difference * difference;
                }
                let (least, lane) = V::choose(distance.below(most), distance, most).first_least();
                if least < best.0 {
                    best = (least, number, begin + lane);
                }
            }
        }
        let bunch = &bunches[best.1];
        let mut coordinates = [0; D];
        for (l, of_neighbours) in coordinates.iter_mut().zip(bunch) {
            *l = of_neighbours[best.2] / 2;
        }
        Some(coordinates)
    }
}
