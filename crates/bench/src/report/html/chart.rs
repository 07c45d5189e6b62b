//! Draws a chart as an SVG picture to embed in a page.
//!
//! Invariants: the colours are those of [`Ink`] and the constants here, which the page's style
//! sheet replaces in dark mode; everything is drawn inside the axes. It must not know the meaning
//! of the lines.

use std::ops::Range;

use plotters::coord::ranged1d::{KeyPointHint, NoDefaultFormatting, ValueFormatter};
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

/// Size of the picture; the page scales it.
const WIDTH: u32 = 960;
const HEIGHT: u32 = 280;

const FONT: &str = "sans-serif";
const FONT_SIZE: f64 = 15.0;
const LEFT: u32 = 76;
const BOTTOM: u32 = 40;
const MARGIN: u32 = 12;
/// Half of the width of the last label on the x-axis.
const RIGHT: u32 = 28;

/// Room above the highest line for the names of the marks, as a share of the height.
const HEADROOM: f64 = 0.09;

/// Maximum number of names of marks side by side.
const NAMES_MAX: usize = 30;

// The same colours, in the same notation, are in page.css.
const TEXT: RGBColor = RGBColor(0x24, 0x29, 0x2F);
const GRID: RGBColor = RGBColor(0xDD, 0xE1, 0xE6);
const MARK: RGBColor = RGBColor(0x6E, 0x77, 0x81);

/// A chart. Coordinates are finite and in the space of the axes.
#[derive(Debug)]
pub(super) struct Chart {
    pub(super) x: Axis,
    pub(super) y: Axis,
    pub(super) lines: Vec<Line>,
    pub(super) marks: Vec<Span>,
}

/// An axis: its range and its labels.
#[derive(Debug)]
pub(super) struct Axis {
    pub(super) from: f64,
    pub(super) to: f64,
    pub(super) ticks: Vec<(f64, String)>,
    pub(super) name: &'static str,
}

/// A line, in several pieces if it has gaps.
#[derive(Debug)]
pub(super) struct Line {
    pub(super) name: &'static str,
    pub(super) ink: Ink,
    pub(super) kind: Kind,
    pub(super) pieces: Vec<Vec<(f64, f64)>>,
}

/// The style of a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Line,
    /// With the area below it.
    Area,
    /// Only the points.
    Dots,
}

/// A labelled span of time.
#[derive(Debug)]
pub(super) struct Span {
    pub(super) from: f64,
    pub(super) to: f64,
    pub(super) name: String,
}

/// The colour of a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ink {
    Blue,
    Orange,
    Red,
}

impl Ink {
    /// Returns the class of its patch in a legend.
    pub(super) const fn class(self) -> &'static str {
        match self {
            Self::Blue => "blue",
            Self::Orange => "orange",
            Self::Red => "red",
        }
    }

    const fn color(self) -> RGBColor {
        match self {
            Self::Blue => RGBColor(0x1F, 0x6F, 0xD6),
            Self::Orange => RGBColor(0xD9, 0x7A, 0x06),
            Self::Red => RGBColor(0xC9, 0x2A, 0x3B),
        }
    }
}

/// Returns the picture, or the error.
pub(super) fn draw(chart: &Chart) -> Result<String, String> {
    let mut svg = String::new();
    paint(chart, &mut svg).map_err(|why| why.to_string())?;
    Ok(svg)
}

type Failure = Box<dyn std::error::Error>;

fn paint(chart: &Chart, svg: &mut String) -> Result<(), Failure> {
    let Chart { x, y, lines, marks } = chart;
    let top = if marks.is_empty() {
        y.to
    } else {
        y.to + (y.to - y.from) * HEADROOM
    };
    let area = SVGBackend::with_string(svg, (WIDTH, HEIGHT)).into_drawing_area();
    let mut canvas = ChartBuilder::on(&area)
        .margin(MARGIN)
        .margin_right(RIGHT)
        .x_label_area_size(BOTTOM)
        .y_label_area_size(LEFT)
        .build_cartesian_2d(Scale { axis: x, to: x.to }, Scale { axis: y, to: top })?;
    let text = (FONT, FONT_SIZE).into_font().color(&TEXT);
    canvas
        .configure_mesh()
        .bold_line_style(GRID)
        .axis_style(GRID)
        .label_style(text.clone())
        .x_desc(x.name)
        .draw()?;

    // Bands and their names are drawn below the lines.
    let named_every = marks.len().div_ceil(NAMES_MAX).max(1);
    let name_style = text.pos(Pos::new(HPos::Center, VPos::Top));
    for (position, Span { from, to, name }) in marks.iter().enumerate() {
        let band = Rectangle::new([(*from, y.from), (*to, top)], MARK.mix(0.15).filled());
        canvas.draw_series([band])?;
        let line = PathElement::new(vec![(*from, y.from), (*from, top)], MARK);
        canvas.draw_series([line])?;
        if position % named_every == 0 {
            let name = Text::new(name.clone(), (*from, top), name_style.clone());
            canvas.plotting_area().draw(&name)?;
        }
    }
    for line in lines {
        let color = line.ink.color();
        for piece in &line.pieces {
            let ends = piece.first().zip(piece.last());
            if line.kind == Kind::Area
                && let Some((first, last)) = ends
            {
                let mut outline = piece.clone();
                outline.extend([(last.0, y.from), (first.0, y.from)]);
                canvas.draw_series([Polygon::new(outline, color.mix(0.12))])?;
            }
            if line.kind == Kind::Dots || piece.len() == 1 {
                let dots = piece.iter().map(|at| Circle::new(*at, 3, color.filled()));
                canvas.draw_series(dots)?;
            } else {
                canvas.draw_series(LineSeries::new(piece.clone(), color.stroke_width(2)))?;
            }
        }
    }
    area.present()?;
    Ok(())
}

/// The scale of an axis for the plotting crate.
struct Scale<'a> {
    axis: &'a Axis,
    to: f64,
}

impl Ranged for Scale<'_> {
    type FormatOption = NoDefaultFormatting;
    type ValueType = f64;

    fn map(&self, value: &f64, limit: (i32, i32)) -> i32 {
        let share = (value - self.axis.from) / (self.to - self.axis.from);
        let length = f64::from(limit.1 - limit.0);
        // Points outside are drawn at the edge.
        limit.0 + (share.clamp(0.0, 1.0) * length).round() as i32
    }

    fn key_points<Hint: KeyPointHint>(&self, hint: Hint) -> Vec<f64> {
        if hint.weight().allow_light_points() {
            return Vec::new();
        }
        let inside = |at: &f64| (self.axis.from..=self.axis.to).contains(at);
        let ticks = self.axis.ticks.iter().map(|(at, _)| *at);
        ticks.filter(inside).collect()
    }

    fn range(&self) -> Range<f64> {
        self.axis.from..self.to
    }
}

impl ValueFormatter<f64> for Scale<'_> {
    fn format_ext(&self, at: &f64) -> String {
        let found = self.axis.ticks.iter().find(|(tick, _)| tick == at);
        found.map_or_else(String::new, |(_, label)| label.clone())
    }
}
