//! The plots: what the other commands wrote as lines, drawn as SVG.

use std::path::Path;

use plotters::coord::ranged1d::{AsRangedCoord, ValueFormatter};
use plotters::prelude::*;

use crate::Fallible;
use crate::options::Options;
use crate::record::{Echo, Record, Seed, read};
use crate::seed::medians;
use crate::servers;
use crate::stats::{Spread, fit};

const SIZE: (u32, u32) = (960, 540);
const LEGEND_WIDTH: u32 = 250;

/// The command.
pub fn run(options: &Options) -> Fallible<()> {
    draw_all(&options.from, &options.out)
}

/// Draws what there are lines for.
pub fn draw_all(from: &Path, out: &Path) -> Fallible<()> {
    std::fs::create_dir_all(out)?;
    let sweep: Vec<Echo> = read(&from.join("sweep.jsonl"))?
        .into_iter()
        .filter_map(|record| match record {
            Record::Echo(echo) => Some(echo),
            _ => None,
        })
        .collect();
    let seeds: Vec<Seed> = read(&from.join("seed.jsonl"))?
        .into_iter()
        .filter_map(|record| match record {
            Record::Seed(seed) => Some(seed),
            _ => None,
        })
        .collect();
    if !sweep.is_empty() {
        draw_sweep(&sweep, out)?;
    }
    if !seeds.is_empty() {
        draw_seeds(&seeds, out)?;
    }
    Ok(())
}

/// Throughput and CPU against connections.
fn draw_sweep(samples: &[Echo], out: &Path) -> Fallible<()> {
    let per_second: fn(&Echo) -> f64 = |sample| sample.per_second;
    let cpu: fn(&Echo) -> f64 = |sample| sample.cpu_us;
    for (file, title, y, of) in [
        (
            "throughput.svg",
            "Messages a second, 128 bytes",
            "messages/s",
            per_second,
        ),
        (
            "cpu.svg",
            "CPU of the server for each message, 128 bytes",
            "µs",
            cpu,
        ),
    ] {
        let figure = Figure {
            title,
            x: "connections",
            y,
            curves: curves(samples, of),
        };
        let (x, (least, most)) = figure.ranges();
        let (x, y) = ((1.0..x).log_scale(), (least..most).log_scale());
        figure.draw(&out.join(file), x, y)?;
    }
    Ok(())
}

/// The medians of each server by connections.
fn curves(samples: &[Echo], of: fn(&Echo) -> f64) -> Vec<Curve> {
    let mut counts: Vec<usize> = samples.iter().map(|sample| sample.connections).collect();
    counts.sort_unstable();
    counts.dedup();
    let curve = |name: &'static str| {
        let median = |&count: &usize| {
            let own = samples
                .iter()
                .filter(|sample| sample.server == name && sample.connections == count);
            (count as f64, Spread::of(own.map(of)).median)
        };
        let points: Vec<_> = counts
            .iter()
            .map(median)
            .filter(|point| !point.1.is_nan())
            .collect();
        Curve {
            name,
            label: name.into(),
            line: points.clone(),
            points,
        }
    };
    present(servers::ALL.iter().map(|server| curve(server.name)))
}

/// The time until everything is back against connections, and the line that fits it.
fn draw_seeds(seeds: &[Seed], out: &Path) -> Fallible<()> {
    let curve = |name: &'static str| {
        let points = medians(seeds, name);
        let (start, slope) = fit(&points);
        Curve {
            name,
            label: format!("{name}: {:.1} µs each", slope * 1e3),
            line: points
                .iter()
                .map(|point| (point.0, start + slope * point.0))
                .collect(),
            points,
        }
    };
    let figure = Figure {
        title: "1 KiB echoed on each connection, and the fitted line",
        x: "connections",
        y: "ms until all are back",
        curves: present(servers::ALL.iter().map(|server| curve(server.name))),
    };
    let (x, y) = figure.ranges();
    figure.draw(&out.join("seed.svg"), 0.0..x * 1.03, 0.0..y.1)
}

fn present(curves: impl Iterator<Item = Curve>) -> Vec<Curve> {
    curves.filter(|curve| !curve.points.is_empty()).collect()
}

struct Figure {
    title: &'static str,
    x: &'static str,
    y: &'static str,
    curves: Vec<Curve>,
}

/// One server.
struct Curve {
    name: &'static str,
    label: String,
    points: Vec<(f64, f64)>,
    line: Vec<(f64, f64)>,
}

impl Figure {
    /// The greatest x, and the range of y, with some air.
    fn ranges(&self) -> (f64, (f64, f64)) {
        let points = || self.curves.iter().flat_map(|curve| &curve.points);
        let x = points().map(|point| point.0).fold(0.0, f64::max);
        let most = points().map(|point| point.1).fold(0.0, f64::max);
        let least = points().map(|point| point.1).fold(f64::MAX, f64::min);
        (x, (least * 0.8, most * 1.15))
    }

    fn draw<X, Y>(&self, path: &Path, x: X, y: Y) -> Fallible<()>
    where
        X: AsRangedCoord<Value = f64>,
        Y: AsRangedCoord<Value = f64>,
        X::CoordDescType: ValueFormatter<f64>,
        Y::CoordDescType: ValueFormatter<f64>,
    {
        let root = SVGBackend::new(path, SIZE).into_drawing_area();
        root.fill(&WHITE)?;
        let (area, legend) = root.split_horizontally(SIZE.0 - LEGEND_WIDTH);
        let mut chart = ChartBuilder::on(&area)
            .caption(self.title, ("sans-serif", 20))
            .margin(12)
            .x_label_area_size(44)
            .y_label_area_size(72)
            .build_cartesian_2d(x, y)?;
        chart
            .configure_mesh()
            .x_desc(self.x)
            .y_desc(self.y)
            .x_label_formatter(&|value| number(*value))
            .y_label_formatter(&|value| number(*value))
            .label_style(("sans-serif", 14))
            .light_line_style(WHITE)
            .draw()?;
        for (place, curve) in self.curves.iter().enumerate() {
            let (color, width) = look(curve.name);
            let style = color.stroke_width(width);
            let dots = curve
                .points
                .iter()
                .map(|&at| Circle::new(at, width + 1, color.filled()));
            if is_floor(curve.name) {
                chart.draw_series(DashedLineSeries::new(curve.line.clone(), 6, 4, style))?;
            } else {
                chart.draw_series(LineSeries::new(curve.line.clone(), style))?;
            }
            chart.draw_series(dots)?;
            let at = 50 + 24 * place as i32;
            legend.draw(&PathElement::new([(0, at), (28, at)], style))?;
            legend.draw(&Text::new(
                curve.label.clone(),
                (36, at - 8),
                ("sans-serif", 14),
            ))?;
        }
        root.present()?;
        Ok(())
    }
}

/// A number of an axis, without what it does not need.
fn number(value: f64) -> String {
    match value {
        1_000.0.. => format!("{:.0}k", value / 1e3),
        10.0.. => format!("{value:.0}"),
        _ => format!("{value:.1}").trim_end_matches(".0").into(),
    }
}

fn is_floor(name: &str) -> bool {
    servers::find(name).is_some_and(|server| server.floor)
}

/// The colour of a server, and how strong its line is: ours stand out. The colours differ for those
/// who see fewer of them, too.
fn look(name: &str) -> (RGBColor, u32) {
    match name {
        "gaio-uring-once" => (RGBColor(0, 90, 181), 3),
        "gaio-uring-stream" => (RGBColor(86, 180, 233), 3),
        "gaio-epoll-once" => (RGBColor(213, 94, 0), 3),
        "gaio-epoll-stream" => (RGBColor(240, 170, 0), 3),
        "floor-uring-once" => (RGBColor(20, 20, 20), 1),
        "floor-uring-stream" => (RGBColor(110, 110, 110), 1),
        "floor-epoll" => (RGBColor(170, 120, 90), 1),
        "mio" => (RGBColor(0, 158, 115), 1),
        "tokio" => (RGBColor(204, 60, 140), 1),
        "monoio" => (RGBColor(120, 80, 200), 1),
        _ => (RGBColor(130, 150, 0), 1),
    }
}
