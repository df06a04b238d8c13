//! Many points as the few that a plot can show: none that stands out is lost.

use super::axis::Scale;

/// Stretches that a line is divided into; of each, the lowest and the highest point stay.
const N_STRETCHES: usize = 300;

/// Points of a line, at most two a stretch, in order.
pub fn thin(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    if points.len() <= 2 * N_STRETCHES {
        return points.to_vec();
    }
    let mut kept = Vec::with_capacity(2 * N_STRETCHES);
    for stretch in 0..N_STRETCHES {
        let at = |index: usize| index * points.len() / N_STRETCHES;
        let range = at(stretch)..at(stretch + 1);
        let by_value = |a: &usize, b: &usize| points[*a].1.total_cmp(&points[*b].1);
        let (Some(lowest), Some(highest)) = (range.clone().min_by(by_value), range.max_by(by_value)) else {
            continue;
        };
        kept.push(points[lowest.min(highest)]);
        if lowest != highest {
            kept.push(points[lowest.max(highest)]);
        }
    }
    // The end is what a reader looks for.
    if let Some(last) = points.last().filter(|last| kept.last() != Some(last)) {
        kept.push(*last);
    }
    kept
}

/// The exponential mean over about `window` points, of the points so far where they are fewer; of the logarithms where
/// these are drawn, since one high value would lift the plain mean far above all others.
pub fn smooth(points: &[(f64, f64)], window: usize, scale: Scale) -> Vec<(f64, f64)> {
    let decay = 1.0 - 2.0 / (window as f64 + 1.0);
    let (mut sum, mut weight) = (0.0, 0.0);
    let mut mean = |&(x, y): &(f64, f64)| {
        let drawn = if scale == Scale::Log { y.max(f64::MIN_POSITIVE).ln() } else { y };
        (sum, weight) = (decay * sum + drawn, decay * weight + 1.0);
        let mean = sum / weight;
        (x, if scale == Scale::Log { f64::exp(mean) } else { mean })
    };
    points.iter().map(&mut mean).collect()
}

/// Points that are smoothed over: a twentieth of the line, or one where that would hardly be a mean.
pub fn window(n_points: usize) -> usize {
    match n_points / 20 {
        0..3 => 1,
        window => window,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peaks_and_the_end_survive_thinning() {
        let mut points: Vec<(f64, f64)> = (0..100_000).map(|x| (f64::from(x), 1.0)).collect();
        (points[77_777].1, points[12_345].1) = (9.0, -9.0);
        let thinned = thin(&points);
        assert!(thinned.len() <= 2 * N_STRETCHES + 1, "{}", thinned.len());
        assert!(thinned.contains(&(77_777.0, 9.0)) && thinned.contains(&(12_345.0, -9.0)));
        assert_eq!(thinned.last(), points.last());
        assert!(thinned.is_sorted_by(|a, b| a.0 < b.0));
        assert_eq!(thin(&points[..600]), &points[..600]);
    }

    #[test]
    fn the_mean_begins_at_the_first_point_and_follows() {
        let points = [(1.0, 4.0), (2.0, 4.0), (3.0, 0.0), (4.0, 0.0)];
        assert_eq!(smooth(&points, 1, Scale::Linear), points);
        let means: Vec<f64> = smooth(&points, 3, Scale::Linear).iter().map(|(_, y)| *y).collect();
        // decay 1/2: 4, 4, 6/1.75 - ..., worked out by hand.
        assert_eq!(means, [4.0, 4.0, 3.0 / 1.75, 1.5 / 1.875]);
        let orders = [(1.0, 100.0), (2.0, 1.0)];
        let last = smooth(&orders, 3, Scale::Log)[1].1;
        // Half the weight on what is before: 100^(1/3) · 1^(2/3).
        assert!((last - 100_f64.cbrt()).abs() < 1e-9, "{last}");
    }
}
