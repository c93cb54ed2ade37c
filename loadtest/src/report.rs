//! Figures, tables and files for people and programs.

use std::fmt;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use hdrhistogram::Histogram;
use serde::Serialize;

/// Several measurements of one thing.
#[derive(Clone, Debug, Serialize)]
pub struct Figures {
    /// The one in the middle.
    pub median: f64,
    /// The least.
    pub least: f64,
    /// The most.
    pub most: f64,
}

impl Figures {
    /// Of these; of none, zeros.
    pub fn of(values: impl IntoIterator<Item = f64>) -> Self {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        let middle = values.len() / 2;
        let at = |place: usize| values.get(place).copied().unwrap_or_default();
        let median =
            if values.len() % 2 == 1 { at(middle) } else { (at(middle.wrapping_sub(1)) + at(middle)) / 2.0 };
        Self { median, least: at(0), most: values.last().copied().unwrap_or_default() }
    }

    /// The distance between least and most, in hundredths of the median.
    pub fn spread_percent(&self) -> f64 {
        if self.median == 0.0 { 0.0 } else { (self.most - self.least) / self.median * 100.0 }
    }

    /// A whole number with the spread behind it.
    pub fn text(&self) -> String {
        format!("{} ±{:.0}%", thousands(self.median.round() as u64), self.spread_percent() / 2.0)
    }
}

/// A latency distribution in microseconds.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Latency {
    /// Half of the answers came within this.
    pub p50_us: u64,
    /// 99% did.
    pub p99_us: u64,
    /// 99.9% did.
    pub p999_us: u64,
    /// The slowest.
    pub worst_us: u64,
}

impl Latency {
    /// Of a histogram of nanoseconds.
    pub fn of(histogram: &Histogram<u64>) -> Self {
        let at = |quantile| histogram.value_at_quantile(quantile) / 1000;
        Self { p50_us: at(0.5), p99_us: at(0.99), p999_us: at(0.999), worst_us: histogram.max() / 1000 }
    }
}

/// Milliseconds with two decimals.
pub fn ms(us: u64) -> String {
    format!("{}.{:02}", us / 1000, us % 1000 / 10)
}

/// A number with its thousands apart.
pub fn thousands(n: u64) -> String {
    let digits = n.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A table with its columns aligned: the first to the left, the others to the right.
pub struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with these heads.
    pub fn new(heads: &[&str]) -> Self {
        Self { rows: vec![heads.iter().map(|head| (*head).to_owned()).collect()] }
    }

    /// One row more.
    pub fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows.push(cells.into_iter().collect());
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or_default();
        let width = |column: usize| {
            self.rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max()
        };
        let widths: Vec<usize> = (0..columns).map(|column| width(column).unwrap_or_default()).collect();
        for (index, row) in self.rows.iter().enumerate() {
            for (column, width) in widths.iter().enumerate() {
                let cell = row.get(column).map_or("", String::as_str);
                if column == 0 {
                    write!(f, "{cell:<width$}")?;
                } else {
                    write!(f, "  {cell:>width$}")?;
                }
            }
            writeln!(f)?;
            if index == 0 {
                let line = widths.iter().sum::<usize>() + 2 * widths.len().saturating_sub(1);
                writeln!(f, "{}", "-".repeat(line))?;
            }
        }
        Ok(())
    }
}

/// Writes a file into the directory of results.
pub fn write(directory: &Path, name: &str, content: &str) -> Result<()> {
    fs::create_dir_all(directory)?;
    let path = directory.join(name);
    fs::write(&path, content).with_context(|| path.display().to_string())?;
    println!("written: {}", path.display());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_one_in_the_middle() {
        let figures = Figures::of([3.0, 1.0, 2.0]);
        assert_eq!((figures.least, figures.median, figures.most), (1.0, 2.0, 3.0));
        assert_eq!(Figures::of([1.0, 2.0]).median, 1.5);
        assert_eq!(Figures::of([]).median, 0.0);
    }

    #[test]
    fn numbers_are_readable() {
        assert_eq!(thousands(1_234_567), "1,234,567");
        assert_eq!(thousands(12), "12");
        assert_eq!(ms(1_234), "1.23");
    }
}
