//! A latency chart: how many answers came within what time.

use std::fmt::Write;

use hdrhistogram::Histogram;

const WIDTH: f64 = 860.0;
const HEIGHT: f64 = 460.0;
const LEFT: f64 = 70.0;
const RIGHT: f64 = 30.0;
const TOP: f64 = 50.0;
const BOTTOM: f64 = 60.0;
const COLOURS: [&str; 6] = ["#1f6feb", "#d1495b", "#2e8540", "#8250df", "#bc6c25", "#444444"];

/// The quantiles named on the axis: each mark is ten times rarer than the one before.
const MARKS: [(f64, &str); 6] =
    [(0.0, "0%"), (0.9, "90%"), (0.99, "99%"), (0.999, "99.9%"), (0.9999, "99.99%"), (0.99999, "99.999%")];

/// Draws histograms of nanoseconds as lines, in SVG.
pub fn latency(title: &str, lines: &[(String, &Histogram<u64>)]) -> String {
    let most = lines.iter().map(|(_, histogram)| histogram.max()).max().unwrap_or(1);
    let least = lines.iter().map(|(_, histogram)| histogram.min()).min().unwrap_or(1);
    let (low, high) = ((least.max(1_000) as f64).log10().floor(), (most.max(10_000) as f64).log10().ceil());
    let nines = (MARKS.len() - 1) as f64;
    let x = |quantile: f64| LEFT + (WIDTH - LEFT - RIGHT) * (-(1.0 - quantile).log10() / nines).min(1.0);
    let y = |nanos: f64| {
        let share = (nanos.max(1.0).log10() - low) / (high - low);
        HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * share.clamp(0.0, 1.0)
    };
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"{WIDTH}\" height=\"{HEIGHT}\" fill=\"white\"/>\n\
         <text x=\"{LEFT}\" y=\"24\" font-size=\"15\">{}</text>\n",
        escaped(title)
    );
    // Writing to a string does not fail.
    for (quantile, name) in MARKS {
        let at = x(quantile);
        let _ = writeln!(
            svg,
            "<line x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"{TOP}\" y2=\"{:.1}\" stroke=\"#ddd\"/>\
             <text x=\"{at:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{name}</text>",
            HEIGHT - BOTTOM,
            HEIGHT - BOTTOM + 18.0
        );
    }
    let mut decade = low;
    while decade <= high {
        let (at, nanos) = (y(10_f64.powf(decade)), 10_f64.powf(decade));
        let name = if nanos < 1e6 { format!("{} µs", nanos / 1e3) } else { format!("{} ms", nanos / 1e6) };
        let _ = writeln!(
            svg,
            "<line x1=\"{LEFT}\" x2=\"{:.1}\" y1=\"{at:.1}\" y2=\"{at:.1}\" stroke=\"#ddd\"/>\
             <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{name}</text>",
            WIDTH - RIGHT,
            LEFT - 6.0,
            at + 4.0
        );
        decade += 1.0;
    }
    for (index, ((name, histogram), colour)) in lines.iter().zip(COLOURS.iter().cycle()).enumerate() {
        let mut points = String::new();
        for value in histogram.iter_quantiles(8) {
            let quantile = value.quantile_iterated_to().min(1.0 - 1e-9);
            let _ = write!(points, "{:.1},{:.1} ", x(quantile), y(value.value_iterated_to() as f64));
        }
        let place = TOP + 16.0 + 18.0 * index as f64;
        let _ = writeln!(
            svg,
            "<polyline points=\"{points}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>\
             <text x=\"{:.1}\" y=\"{place:.1}\" fill=\"{colour}\">{}</text>",
            LEFT + 12.0,
            escaped(name)
        );
    }
    let _ = writeln!(
        svg,
        "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">share of answers that came within the time</text>\n</svg>",
        WIDTH / 2.0,
        HEIGHT - 16.0
    );
    svg
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_chart_stays_within_its_frame() {
        let mut histogram = crate::load::histogram().unwrap();
        for us in 1..10_000_u64 {
            histogram.record(us * 1000).unwrap();
        }
        let svg = latency("a < b", &[("one".into(), &histogram)]);
        assert!(svg.contains("a &lt; b"));
        let points = svg.split("points=\"").nth(1).unwrap().split('"').next().unwrap();
        for point in points.split_ascii_whitespace() {
            let (x, y) = point.split_once(',').unwrap();
            let (x, y): (f64, f64) = (x.parse().unwrap(), y.parse().unwrap());
            assert!((LEFT..=WIDTH).contains(&x) && (TOP..=HEIGHT).contains(&y), "{point}");
        }
    }
}
