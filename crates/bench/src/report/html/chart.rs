//! Draws a chart as an SVG picture to embed in a page.
//!
//! The picture has no view box, so text has the same size on every screen: positions are shares of
//! the plotting area. Only the lines are in an inner picture that is stretched over it; their
//! strokes are not.
//!
//! Invariants: everything is drawn inside the axes; no names overlap at any width from
//! [`NARROW_PX`] up; every line differs from its neighbours by its dashes, not only by its colour.
//! Colours and dashes are in page.css, one class for each position of a line. It must not know the
//! meaning of the lines.

use std::fmt::Write as _;

use super::axis::Axis;
use super::page::escaped;

/// Height of the plotting area.
const HEIGHT_PX: f64 = 240.0;

/// Minimum width of a page for which everything fits.
const NARROW_PX: f64 = 360.0;

/// Width of a page from which the names of class `wide` are shown; also in page.css.
const WIDE_PX: f64 = 640.0;

/// Width of the page beside its figures.
const PAGE_MARGINS_PX: f64 = 32.0;

/// Estimated maximum of the mean width of a letter.
const LETTER_PX: f64 = 7.8;

/// Minimum space between two names.
const SPACE_PX: f64 = 10.0;

/// Height of a line of text.
const TEXT_PX: f64 = 16.0;

/// Maximum length of a line's name beside its end, in characters.
const NAME_MAX: usize = 12;

/// Side of the inner picture, in its own units.
const INNER: f64 = 1000.0;

/// Styles in page.css; more lines repeat them.
const STYLES: [&str; 3] = ["first", "second", "third"];

/// A chart with its title and note.
#[derive(Debug)]
pub(super) struct Figure {
    pub(super) title: String,
    pub(super) note: String,
    pub(super) chart: Chart,
}

/// A chart.
#[derive(Debug)]
pub(super) struct Chart {
    pub(super) x: Axis,
    pub(super) y: Axis,
    /// Neighbours in this list differ most in their style.
    pub(super) lines: Vec<Line>,
    pub(super) marks: Vec<Span>,
}

/// A line, in several pieces if it has gaps. Coordinates are values on the axes.
#[derive(Debug)]
pub(super) struct Line {
    /// Its name, shown at its end; may be empty.
    pub(super) name: String,
    pub(super) kind: Kind,
    pub(super) pieces: Vec<Vec<(f64, f64)>>,
}

/// The form of a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Line,
    /// With the area below it.
    Area,
    /// Only the points, without a name.
    Dots,
}

/// A named span of time.
#[derive(Debug)]
pub(super) struct Span {
    pub(super) from: f64,
    pub(super) to: f64,
    pub(super) name: String,
}

/// Returns the figures one below the other.
pub(super) fn elements(figures: &[Figure]) -> String {
    let numbered = figures.iter().enumerate();
    let elements = numbered.map(|(number, figure)| figure.element(number));
    elements.collect()
}

impl Figure {
    /// Returns the figure as an element of the page; `number` is unique on the page.
    fn element(&self, number: usize) -> String {
        let Chart { x, y, .. } = &self.chart;
        let name = |class: &str, name: &str| match name {
            "" => String::new(),
            name => format!("<p class=\"axis {class}\">{}</p>\n", escaped(name)),
        };
        format!(
            "<figure>\n<figcaption><h2>{}</h2><p>{}</p></figcaption>\n{}{}{}</figure>\n",
            escaped(&self.title),
            escaped(&self.note),
            name("y", &y.name),
            self.picture(number),
            name("x", &x.name),
        )
    }

    fn picture(&self, number: usize) -> String {
        let chart = &self.chart;
        let margins = Margins::of(chart);
        let mut svg = format!(
            "<svg role=\"img\" aria-labelledby=\"title-{number} description-{number}\" \
             style=\"margin:24px {:.0}px 30px {:.0}px;width:calc(100% - {:.0}px)\">\n\
             <title id=\"title-{number}\">{}</title>\n\
             <desc id=\"description-{number}\">{}</desc>\n",
            margins.right,
            margins.left,
            margins.left + margins.right,
            escaped(&self.title),
            escaped(&chart.description())
        );
        chart.draw_axes(&margins, &mut svg);
        chart.draw_marks(&margins, &mut svg);
        chart.draw_lines(&mut svg);
        chart.draw_names(&mut svg);
        svg + "</svg>\n"
    }
}

/// The space beside the plotting area.
struct Margins {
    left: f64,
    right: f64,
}

impl Margins {
    fn of(chart: &Chart) -> Self {
        let widest = |names: &mut dyn Iterator<Item = &str>| names.map(width).fold(0.0, f64::max);
        let y = widest(&mut chart.y.ticks.iter().map(|(_, name)| name.as_str()));
        let x = widest(&mut chart.x.ticks.iter().map(|(_, name)| name.as_str()));
        let ends = chart.ends().map(|(_, name, _)| width(&name));
        let ends = ends.fold(0.0, f64::max);
        Self {
            left: y.max(x / 2.0) + SPACE_PX,
            right: ends.max(x / 2.0) + 2.0 * SPACE_PX,
        }
    }

    /// Returns the width of the plotting area on a page of this width.
    fn plot(&self, page: f64) -> f64 {
        page - PAGE_MARGINS_PX - self.left - self.right
    }
}

/// Estimates the width of a text.
fn width(text: &str) -> f64 {
    text.chars().count() as f64 * LETTER_PX
}

/// Returns a position in percent.
fn percent(place: f64) -> String {
    format!("{}%", rounded(place * 100.0))
}

/// Returns a number with at most one decimal place.
fn rounded(number: f64) -> f64 {
    (number * 10.0).round() / 10.0
}

/// The names along an axis that fit side by side: omitted, or shown on wide pages only.
struct Row<'a> {
    margins: &'a Margins,
    /// The end of the last name on a narrow and on a wide page, in pixels.
    ends: [f64; 2],
}

impl<'a> Row<'a> {
    const fn new(margins: &'a Margins) -> Self {
        Self {
            margins,
            ends: [f64::NEG_INFINITY; 2],
        }
    }

    /// Returns a name's class if it fits beside those before it.
    fn class(&mut self, place: f64, name: &str) -> Option<&'static str> {
        let half = width(name) / 2.0;
        let mut fits = |at: usize, page: f64| {
            let middle = place * self.margins.plot(page);
            let fits = middle - half >= self.ends[at] + SPACE_PX;
            if fits {
                self.ends[at] = middle + half;
            }
            fits
        };
        match (fits(0, NARROW_PX), fits(1, WIDE_PX)) {
            (true, true) => Some("x"),
            (false, true) => Some("x wide"),
            // Shown on narrow pages only, it would be a name that a wide page lacks.
            (_, false) => None,
        }
    }
}

impl Chart {
    /// Describes the chart in words.
    fn description(&self) -> String {
        let Self { x, y, lines, marks } = self;
        let mut parts = Vec::new();
        for line in lines {
            let points = line.pieces.concat();
            let values = points.iter().map(|(_, value)| *value);
            let least = values.clone().fold(f64::INFINITY, f64::min);
            let most = values.fold(f64::NEG_INFINITY, f64::max);
            let Some((first, last)) = points.first().zip(points.last()) else {
                continue;
            };
            let name = match line.name.as_str() {
                "" => String::new(),
                name => format!("{name}: "),
            };
            parts.push(match line.kind {
                Kind::Dots => format!("{name}{} points", points.len()),
                Kind::Line | Kind::Area => format!(
                    "{name}{} to {}, from {} at {} to {} at {}",
                    y.label(least),
                    y.label(most),
                    y.label(first.1),
                    x.label(first.0),
                    y.label(last.1),
                    x.label(last.0)
                ),
            });
        }
        if !marks.is_empty() {
            parts.push(format!("{} numbered marks", marks.len()));
        }
        parts.join("; ") + "."
    }

    /// Draws the grid and the names of the ticks. Writing to a `String` cannot fail.
    fn draw_axes(&self, margins: &Margins, svg: &mut String) {
        let mut row = Row::new(margins);
        for (value, name) in self.x.inner_ticks() {
            let place = self.x.place(*value);
            let at = percent(place);
            let _ = writeln!(
                svg,
                "<line class=\"grid\" x1=\"{at}\" x2=\"{at}\" y2=\"100%\"/>"
            );
            if let Some(class) = row.class(place, name) {
                let _ = writeln!(
                    svg,
                    "<text class=\"{class}\" x=\"{at}\" y=\"100%\" dy=\"22\">{}</text>",
                    escaped(name)
                );
            }
        }
        for (value, name) in self.y.inner_ticks() {
            let at = percent(1.0 - self.y.place(*value));
            let _ = writeln!(
                svg,
                "<line class=\"grid\" x2=\"100%\" y1=\"{at}\" y2=\"{at}\"/>\
                 <text class=\"y\" x=\"-8\" y=\"{at}\" dy=\"5\">{}</text>",
                escaped(name)
            );
        }
    }

    fn draw_marks(&self, margins: &Margins, svg: &mut String) {
        let mut row = Row::new(margins);
        for Span { from, to, name } in &self.marks {
            let (from, to) = (self.x.place(*from), self.x.place(*to));
            let at = percent(from);
            let _ = writeln!(
                svg,
                "<rect class=\"band\" x=\"{at}\" width=\"{}\" height=\"100%\"/>\
                 <line class=\"mark\" x1=\"{at}\" x2=\"{at}\" y2=\"100%\"/>",
                percent((to - from).max(0.0))
            );
            if let Some(class) = row.class(from, name) {
                let _ = writeln!(
                    svg,
                    "<text class=\"{class}\" x=\"{at}\" dy=\"-8\">{}</text>",
                    escaped(name)
                );
            }
        }
    }

    fn draw_lines(&self, svg: &mut String) {
        let _ = writeln!(
            svg,
            "<svg viewBox=\"0 0 {INNER} {INNER}\" preserveAspectRatio=\"none\">"
        );
        for (position, line) in self.lines.iter().enumerate() {
            let style = style(position);
            for piece in &line.pieces {
                let points: Vec<String> = piece.iter().map(|at| self.inner(*at)).collect();
                if let Some((x, _)) = piece.first().filter(|_| line.kind == Kind::Area) {
                    let x = rounded(self.x.place(*x) * INNER);
                    let _ = writeln!(
                        svg,
                        "<path class=\"area {style}\" d=\"M{}V{INNER}H{x}Z\"/>",
                        points.join("L")
                    );
                }
                let (class, path) = if line.kind == Kind::Dots || points.len() == 1 {
                    // A line without length has round ends: a dot.
                    let dots = points.iter().map(|at| format!("M{at}h0"));
                    ("dots", dots.collect::<String>())
                } else {
                    ("line", format!("M{}", points.join("L")))
                };
                let _ = writeln!(svg, "<path class=\"{class} {style}\" d=\"{path}\"/>");
            }
        }
        svg.push_str("</svg>\n");
    }

    /// Returns a point in the inner picture.
    fn inner(&self, (x, y): (f64, f64)) -> String {
        let x = rounded(self.x.place(x) * INNER);
        let y = rounded((1.0 - self.y.place(y)) * INNER);
        format!("{x} {y}")
    }

    /// Returns the position, the name and the last height of each line whose name is shown, in
    /// order of the height.
    fn ends(&self) -> impl Iterator<Item = (usize, String, f64)> {
        let named = self.lines.iter().enumerate();
        let named = named.filter(|(_, line)| line.kind != Kind::Dots && !line.name.is_empty());
        let mut ends: Vec<_> = named
            .filter_map(|(position, line)| {
                let (_, last) = line.pieces.last()?.last()?;
                let name = uppercased_ctl::units::cut(&line.name, NAME_MAX);
                Some((position, name, (1.0 - self.y.place(*last)) * HEIGHT_PX))
            })
            .collect();
        ends.sort_by(|a, b| a.2.total_cmp(&b.2));
        ends.into_iter()
    }

    /// Draws each line's name beside its end, moved where it would overlap another.
    fn draw_names(&self, svg: &mut String) {
        let mut ends: Vec<_> = self.ends().collect();
        let mut above = -TEXT_PX;
        for end in &mut ends {
            end.2 = end.2.max(above + TEXT_PX);
            above = end.2;
        }
        let mut below = HEIGHT_PX + TEXT_PX;
        for end in ends.iter_mut().rev() {
            end.2 = end.2.min(below - TEXT_PX);
            below = end.2;
        }
        for (position, name, height) in ends {
            let _ = writeln!(
                svg,
                "<text class=\"name {}\" x=\"100%\" dx=\"8\" y=\"{height:.0}\" dy=\"5\">{}</text>",
                style(position),
                escaped(&name)
            );
        }
    }
}

fn style(position: usize) -> &'static str {
    STYLES[position % STYLES.len()]
}
