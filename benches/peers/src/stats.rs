//! Medians and ranges.

use std::fmt;

/// A median and its range.
#[derive(Clone, Copy, Debug)]
pub struct Spread {
    pub median: f64,
    pub least: f64,
    pub most: f64,
}

impl Spread {
    pub fn of(values: impl IntoIterator<Item = f64>) -> Self {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        let at = |place: usize| values.get(place).copied().unwrap_or(f64::NAN);
        let middle = values.len() / 2;
        let median = match values.len() % 2 {
            0 if middle > 0 => f64::midpoint(at(middle - 1), at(middle)),
            _ => at(middle),
        };
        Spread {
            median,
            least: at(0),
            most: at(values.len().saturating_sub(1)),
        }
    }
}

impl fmt::Display for Spread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.median.is_nan() {
            return f.write_str("–");
        }
        let digits = f.precision().unwrap_or(2);
        let Spread {
            median,
            least,
            most,
        } = self;
        write!(f, "{median:.digits$} [{least:.digits$}..{most:.digits$}]")
    }
}

/// The line through points that misses them least: where it begins, and how it rises.
pub fn fit(points: &[(f64, f64)]) -> (f64, f64) {
    let count = points.len() as f64;
    let mean = |of: fn(&(f64, f64)) -> f64| points.iter().map(of).sum::<f64>() / count;
    let (x, y) = (mean(|point| point.0), mean(|point| point.1));
    let rise: f64 = points
        .iter()
        .map(|point| (point.0 - x) * (point.1 - y))
        .sum();
    let run: f64 = points.iter().map(|point| (point.0 - x).powi(2)).sum();
    (y - rise / run * x, rise / run)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_of_odd_and_even_counts() {
        assert_eq!(Spread::of([3.0, 1.0, 2.0]).to_string(), "2.00 [1.00..3.00]");
        assert_eq!(Spread::of([4.0, 1.0, 2.0, 3.0]).median, 2.5);
        assert_eq!(Spread::of([]).to_string(), "–");
    }

    #[test]
    fn a_line_through_points_on_a_line() {
        let (start, slope) = fit(&[(1.0, 5.0), (2.0, 7.0), (4.0, 11.0)]);
        assert!((start - 3.0).abs() < 1e-9 && (slope - 2.0).abs() < 1e-9);
    }
}
