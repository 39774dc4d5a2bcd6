//! Draws one plot as SVG: curves over the number of clients or over the share of calls.

use std::ops::Range;

use anyhow::anyhow;
use plotters::chart::ChartBuilder;
use plotters::coord::ranged1d::{AsRangedCoord, Ranged, ValueFormatter};
use plotters::prelude::{Circle, Color, IntoDrawingArea, IntoLogRange, LineSeries, RGBColor, SVGBackend};

use crate::perf::report::number;

/// In pixels; the page may scale it.
const SIZE: (u32, u32) = (520, 300);
/// Distinguishable on white, also with red-green colour blindness.
const COLOURS: [(u8, u8, u8); 14] = [
    (0, 114, 178),
    (213, 94, 0),
    (0, 158, 115),
    (204, 121, 167),
    (86, 140, 233),
    (150, 120, 0),
    (90, 90, 90),
    (148, 52, 110),
    (0, 0, 0),
    (120, 190, 60),
    (250, 120, 130),
    (0, 70, 90),
    (185, 140, 90),
    (150, 110, 230),
];
const AXIS: RGBColor = RGBColor(70, 70, 70);
const GRID: RGBColor = RGBColor(225, 225, 225);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum XAxis {
    Clients,
    /// `1 / (1 - quantile)`: 10 is the 90th percentile, 100 the 99th.
    Slowest,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum YScale {
    Logarithmic,
    /// Linear from zero.
    FromZero,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Curve {
    pub name: String,
    /// Index of the colour; the same in every plot.
    pub colour: usize,
    /// From left to right. Values that are not above zero are left out on a logarithmic axis.
    pub points: Vec<(f64, f64)>,
}

pub fn css_colour(colour: usize) -> String {
    let (red, green, blue) = COLOURS[colour % COLOURS.len()];
    format!("#{red:02x}{green:02x}{blue:02x}")
}

/// `None` if the curves have no points.
pub fn draw(x_axis: XAxis, y_scale: YScale, unit: &str, curves: &[Curve]) -> anyhow::Result<Option<String>> {
    let is_drawn = |(x, y): &(f64, f64)| *x > 0.0 && y.is_finite() && (*y > 0.0 || y_scale == YScale::FromZero);
    let curves: Vec<Curve> = curves
        .iter()
        .map(|curve| Curve { points: curve.points.iter().copied().filter(is_drawn).collect(), ..curve.clone() })
        .filter(|curve| !curve.points.is_empty())
        .collect();
    let all = || curves.iter().flat_map(|curve| &curve.points);
    let Some(y) = bounds(all().map(|point| point.1)) else { return Ok(None) };
    let Some(x) = bounds(all().map(|point| point.0)) else { return Ok(None) };
    // A margin around the outermost points, also if there is only one.
    let x = x.start / 1.15..x.end * 1.15;
    let mut svg = String::new();
    let drawn = match y_scale {
        YScale::Logarithmic => over(&mut svg, x_axis, unit, x, (y.start / 1.4..y.end * 1.4).log_scale(), &curves),
        YScale::FromZero => over(&mut svg, x_axis, unit, x, 0.0..(y.end * 1.1).max(1e-9), &curves),
    };
    drawn.map_err(|error| anyhow!("cannot draw a plot: {error}"))?;
    Ok(Some(svg))
}

type DrawError = Box<dyn std::error::Error>;

fn over<Y>(svg: &mut String, x_axis: XAxis, unit: &str, x: Range<f64>, y: Y, curves: &[Curve]) -> Result<(), DrawError>
where
    Y: AsRangedCoord<Value = f64>,
    Y::CoordDescType: Ranged<ValueType = f64> + ValueFormatter<f64>,
{
    let area = SVGBackend::with_string(svg, SIZE).into_drawing_area();
    let mut chart = ChartBuilder::on(&area)
        .margin(12)
        .x_label_area_size(40)
        .y_label_area_size(70)
        .build_cartesian_2d(x.log_scale(), y)?;
    chart
        .configure_mesh()
        .axis_style(AXIS)
        .bold_line_style(GRID)
        .light_line_style(GRID.mix(0.4))
        .label_style(("sans-serif", 14, &AXIS))
        .x_desc(match x_axis {
            XAxis::Clients => "clients at once",
            XAxis::Slowest => "share of calls that were no slower",
        })
        .y_desc(unit)
        .x_label_formatter(&|x| match x_axis {
            XAxis::Clients => number(Some(x.round()), 0),
            XAxis::Slowest => share_text(*x),
        })
        .y_label_formatter(&|y| value_text(*y))
        .draw()?;
    for curve in curves {
        let (red, green, blue) = COLOURS[curve.colour % COLOURS.len()];
        let colour = RGBColor(red, green, blue);
        chart.draw_series(LineSeries::new(curve.points.iter().copied(), colour.stroke_width(2)))?;
        // A line of one point is invisible, and the measured points should be seen.
        if x_axis == XAxis::Clients {
            chart.draw_series(curve.points.iter().map(|point| Circle::new(*point, 4, colour.filled())))?;
        }
    }
    area.present()?;
    Ok(())
}

fn bounds(values: impl Iterator<Item = f64>) -> Option<Range<f64>> {
    values.fold(None, |bounds: Option<Range<f64>>, value| {
        Some(bounds.map_or(value..value, |bounds| bounds.start.min(value)..bounds.end.max(value)))
    })
}

/// 10 is 90 %, 1000 is 99.9 %.
fn share_text(slowest: f64) -> String {
    let share = 100.0 * (1.0 - 1.0 / slowest.max(1.0));
    let decimals = (slowest.log10().ceil() as usize).saturating_sub(2);
    format!("{share:.decimals$} %")
}

fn value_text(value: f64) -> String {
    let decimals = match value.abs() {
        0.0 => 0,
        below if below < 0.01 => 3,
        below if below < 0.1 => 2,
        below if below < 10.0 => 1,
        _ => 0,
    };
    number(Some(value), decimals)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn curve(points: &[(f64, f64)]) -> Curve {
        Curve { name: "one".to_owned(), colour: 0, points: points.to_vec() }
    }

    #[test]
    fn each_point_is_drawn() {
        for y_scale in [YScale::Logarithmic, YScale::FromZero] {
            let three = curve(&[(1.0, 100.0), (10.0, 400.0), (100.0, 350.0)]);
            let svg = draw(XAxis::Clients, y_scale, "calls", &[three]).unwrap().unwrap();
            assert!(svg.starts_with("<svg") && svg.contains("clients at once"), "{svg}");
            assert_eq!(
                (svg.matches("<circle").count(), svg.contains(&css_colour(0).to_uppercase())),
                (3, true),
                "{svg}"
            );
            assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
        }
    }

    #[test]
    fn one_point_has_room_and_nothing_is_nothing() {
        let svg = draw(XAxis::Clients, YScale::Logarithmic, "µs", &[curve(&[(1.0, 7.0)])]).unwrap().unwrap();
        assert_eq!(svg.matches("<circle").count(), 1);
        assert_eq!(draw(XAxis::Clients, YScale::Logarithmic, "µs", &[]).unwrap(), None);
        let nowhere = [(1.0, 0.0), (0.0, 3.0), (1.0, f64::NAN)];
        assert_eq!(draw(XAxis::Clients, YScale::Logarithmic, "µs", &[curve(&nowhere)]).unwrap(), None);
        // Zero can be drawn on an axis that starts there.
        let svg = draw(XAxis::Clients, YScale::FromZero, "share", &[curve(&nowhere)]).unwrap().unwrap();
        assert_eq!(svg.matches("<circle").count(), 1);
    }

    #[test]
    fn labels_say_what_people_say() {
        let texts = [1.0, 2.0, 10.0, 100.0, 1000.0, 10_000.0].map(share_text);
        assert_eq!(texts, ["0 %", "50 %", "90 %", "99 %", "99.9 %", "99.99 %"]);
        assert_eq!([0.0, 0.001, 0.05, 0.5, 25.0].map(value_text), ["0", "0.001", "0.05", "0.5", "25"]);
        assert_eq!(value_text(12_000.0), "12 000");
    }
}
