//! A tiny writer of line plots as SVG. Nothing but what the benchmarks need.

use std::fmt::Write;

const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 320.0;
const LEFT: f64 = 70.0;
const BOTTOM: f64 = 40.0;
const TOP: f64 = 40.0;
const COLOURS: [&str; 4] = ["#1f77b4", "#d62728", "#2ca02c", "#9467bd"];

/// One line of a plot.
#[derive(Debug, Clone, Default)]
pub struct Series {
    /// Its name in the legend.
    pub name: String,
    /// Its points, in order of x.
    pub points: Vec<(f64, f64)>,
}

/// A plot with lines.
#[derive(Debug, Clone, Default)]
pub struct Plot {
    /// Above it.
    pub title: String,
    /// Below it.
    pub x_label: String,
    /// Beside it.
    pub y_label: String,
    /// The lines; at most four are told apart by colour.
    pub series: Vec<Series>,
}

impl Plot {
    /// The plot as an SVG document.
    pub fn svg(&self) -> String {
        let (x_max, y_max) = self.extent();
        let x = |value: f64| LEFT + value / x_max * (WIDTH - LEFT - 20.0);
        let y = |value: f64| HEIGHT - BOTTOM - value / y_max * (HEIGHT - BOTTOM - TOP);
        let mut out = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" \
             font-family=\"sans-serif\" font-size=\"11\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n"
        );
        text(&mut out, LEFT, 18.0, "start", &self.title);
        text(&mut out, WIDTH / 2.0, HEIGHT - 6.0, "middle", &self.x_label);
        text(&mut out, 6.0, 32.0, "start", &self.y_label);
        for step in 0..=4 {
            let share = f64::from(step) / 4.0;
            let (at_x, at_y) = (x(x_max * share), y(y_max * share));
            line(&mut out, (LEFT, at_y), (WIDTH - 20.0, at_y));
            text(&mut out, LEFT - 4.0, at_y + 4.0, "end", &tick(y_max * share));
            text(&mut out, at_x, HEIGHT - BOTTOM + 14.0, "middle", &tick(x_max * share));
        }
        for (n, series) in self.series.iter().enumerate() {
            let colour = COLOURS[n % COLOURS.len()];
            let points: Vec<_> =
                series.points.iter().map(|(px, py)| format!("{:.1},{:.1}", x(*px), y(*py))).collect();
            let _ = writeln!(
                out,
                "<polyline fill=\"none\" stroke=\"{colour}\" stroke-width=\"1.5\" points=\"{}\"/>",
                points.join(" ")
            );
            let at = 18.0 + 14.0 * n as f64;
            let _ = write!(out, "<g fill=\"{colour}\">");
            text(&mut out, WIDTH - 20.0, at, "end", &series.name);
            out.push_str("</g>\n");
        }
        out.push_str("</svg>\n");
        out
    }

    fn extent(&self) -> (f64, f64) {
        let points = || self.series.iter().flat_map(|series| &series.points);
        let most = |of: fn(&(f64, f64)) -> f64| points().map(of).fold(0.0, f64::max);
        let positive = |value: f64| if value > 0.0 { value } else { 1.0 };
        (positive(most(|p| p.0)), positive(most(|p| p.1)))
    }
}

fn tick(value: f64) -> String {
    if value >= 10.0 || value == 0.0 { format!("{value:.0}") } else { format!("{value:.2}") }
}

fn line(out: &mut String, from: (f64, f64), to: (f64, f64)) {
    let _ = writeln!(
        out,
        "<line x1=\"{:.1}\" y1=\"{:.1}\" x2=\"{:.1}\" y2=\"{:.1}\" stroke=\"#ddd\"/>",
        from.0, from.1, to.0, to.1
    );
}

fn text(out: &mut String, x: f64, y: f64, anchor: &str, words: &str) {
    let words = words.replace('&', "&amp;").replace('<', "&lt;");
    let _ = writeln!(out, "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{words}</text>");
}
