//! The syntax of values: grammars shared by all sources of settings.
//!
//! Invariants: each kind of value has one grammar, so [`Grammar::parse`] reads back the output of
//! [`Grammar::show`]; its `Display` describes the accepted values, and help, documentation and
//! errors quote it. Must not: touch a descriptor, the clock or the environment (names are resolved
//! through [`Facts`]), or accept a number without a unit where the unit is ambiguous.

use std::fmt;
use std::marker::PhantomData;
use std::net::SocketAddr;
use std::time::Duration;

use super::types::Control;
use uppercased_ctl::limits::SOCKET_PATH_MAX_BYTES;
use uppercased_ctl::words::Word;

/// Resolves a host name: returns its addresses with the given port, or why there are none.
pub type Lookup<'a> = &'a dyn Fn(&str, u16) -> Result<Vec<SocketAddr>, String>;

/// Properties of the machine that the configuration needs, passed in by the caller.
#[derive(Clone, Copy)]
pub struct Facts<'a> {
    /// CPUs available to this process: the value of `workers = "auto"`.
    pub cpus: u16,
    /// Resolves a host name in `listen`.
    pub lookup: Lookup<'a>,
}

impl Facts<'static> {
    /// Facts that depend on no machine: one CPU and no name service.
    pub const NONE: Self = Self {
        cpus: 1,
        lookup: &|_, _| Err("it is a name, not an address".to_owned()),
    };
}

impl fmt::Debug for Facts<'_> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Facts")
            .field("cpus", &self.cpus)
            .finish_non_exhaustive()
    }
}

/// The grammar of a kind of value. `Display` completes the sentence "write …".
pub(crate) trait Grammar {
    /// The parsed value.
    type Value;

    /// Parses `text`. The error is a clause that begins with the text and describes the fault; the
    /// caller appends the accepted values.
    fn parse(&self, text: &str, facts: &Facts<'_>) -> Result<Self::Value, String>;

    /// Formats `value` so that `parse` reads it back.
    fn show(&self, value: &Self::Value) -> String;

    /// Returns the accepted values, as the end of the sentence "use …".
    fn accepts(&self) -> String;

    /// Returns all accepted texts if they are keywords; none otherwise.
    fn words(&self) -> Vec<&'static str> {
        Vec::new()
    }
}

/// A count, from `least` to `most`.
#[derive(Clone, Copy, Debug)]
pub struct Count<T> {
    /// The lowest number accepted.
    pub least: T,
    /// The highest number accepted.
    pub most: T,
}

impl<T> Count<T> {
    /// Returns the range that includes both bounds.
    pub(crate) const fn new(least: T, most: T) -> Self {
        Self { least, most }
    }
}

/// A duration, from `least` to `most`, written with its unit (`30s`, `1m30s`).
#[derive(Clone, Copy, Debug)]
pub struct Span {
    /// The shortest accepted.
    pub least: Duration,
    /// The longest accepted.
    pub most: Duration,
}

impl Span {
    /// Returns the range that includes both bounds.
    pub(crate) const fn new(least: Duration, most: Duration) -> Self {
        Self { least, most }
    }
}

/// A number of bytes, from `least` to `most`, plain or in binary units (`65536`, `64k`, `64KiB`).
#[derive(Clone, Copy, Debug)]
pub struct Size {
    /// The fewest bytes accepted.
    pub least: u32,
    /// The most bytes accepted.
    pub most: u32,
}

impl Size {
    /// Returns the range that includes both bounds.
    pub(crate) const fn new(least: u32, most: u32) -> Self {
        Self { least, most }
    }
}

/// A value of the inner grammar, or a keyword for none.
#[derive(Clone, Copy, Debug)]
pub(crate) struct OrWord<G>(pub(crate) &'static str, pub(crate) G);

/// The word for a number of workers that follows the CPUs.
pub(crate) const PER_CPU: &str = "auto";

/// A number of workers, or `auto`: one per available CPU.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PerCpu(pub(crate) Count<u16>);

/// `true` or `false`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Switch;

/// The path of the control socket, or a keyword for the default path or none.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ControlSocket;

/// A keyword from a list.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Choice<T>(PhantomData<T>);

impl<T> Choice<T> {
    pub(crate) const fn new() -> Self {
        Self(PhantomData)
    }
}

impl<T: Copy + fmt::Display + Into<u64> + TryFrom<u64>> Grammar for Count<T> {
    type Value = T;

    fn parse(&self, text: &str, _: &Facts<'_>) -> Result<T, String> {
        let digits = text.strip_prefix('-').unwrap_or(text);
        if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(format!("{text:?} is not a whole number"));
        }
        // A number that exceeds u64 is still a number, and too high.
        let number = text.parse::<u64>().unwrap_or(u64::MAX);
        if text.starts_with('-') || number < self.least.into() {
            return Err(format!("{text} is too low"));
        }
        T::try_from(number)
            .ok()
            .filter(|_| number <= self.most.into())
            .ok_or_else(|| format!("{text} is too high"))
    }

    fn show(&self, value: &T) -> String {
        value.to_string()
    }

    fn accepts(&self) -> String {
        self.to_string()
    }
}

impl<T: fmt::Display> fmt::Display for Count<T> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{} to {}", self.least, self.most)
    }
}

impl Grammar for Span {
    type Value = Duration;

    fn parse(&self, text: &str, _: &Facts<'_>) -> Result<Duration, String> {
        use humantime::DurationError as Wrong;
        let span = humantime::parse_duration(text).map_err(|error| match error {
            Wrong::UnknownUnit { unit, .. } if unit.is_empty() => {
                format!("{text:?} is not a duration: it has no unit")
            }
            Wrong::UnknownUnit { unit, .. } => {
                format!("{text:?} is not a duration: {unit:?} is not a unit of time")
            }
            Wrong::NumberOverflow => format!("{text:?} is too long"),
            _ => format!("{text:?} is not a duration"),
        })?;
        if span < self.least {
            Err(format!("{text} is too short"))
        } else if span > self.most {
            Err(format!("{text} is too long"))
        } else {
            Ok(span)
        }
    }

    fn show(&self, value: &Duration) -> String {
        show_span(*value)
    }

    fn accepts(&self) -> String {
        format!("{} to {}", show_span(self.least), show_span(self.most))
    }
}

/// Returns a duration as `1m30s`: exact, and without spaces, which a command line would need to
/// quote.
fn show_span(span: Duration) -> String {
    humantime::format_duration(span)
        .to_string()
        .replace(' ', "")
}

/// The units of a size, largest first; the first spelling is the one written.
const SIZE_UNITS: [(u64, [&str; 3]); 4] = [
    (1 << 30, ["GiB", "G", "g"]),
    (1 << 20, ["MiB", "M", "m"]),
    (1 << 10, ["KiB", "K", "k"]),
    (1, ["", "B", "B"]),
];

impl Grammar for Size {
    type Value = u32;

    fn parse(&self, text: &str, _: &Facts<'_>) -> Result<u32, String> {
        let end = text
            .find(|letter: char| !letter.is_ascii_digit())
            .unwrap_or(text.len());
        let (digits, unit) = text.split_at(end);
        let scale = SIZE_UNITS
            .iter()
            .find(|(_, names)| names.contains(&unit.trim_start()))
            .map(|(scale, _)| *scale)
            .filter(|_| !digits.is_empty())
            .ok_or_else(|| format!("{text:?} is not a size in bytes, KiB, MiB or GiB"))?;
        let bytes = digits
            .parse::<u64>()
            .unwrap_or(u64::MAX)
            .saturating_mul(scale);
        if bytes < u64::from(self.least) {
            return Err(format!("{text} is too small"));
        }
        u32::try_from(bytes)
            .ok()
            .filter(|bytes| *bytes <= self.most)
            .ok_or_else(|| format!("{text} is too large"))
    }

    fn show(&self, value: &u32) -> String {
        show_size(*value)
    }

    fn accepts(&self) -> String {
        format!("{} to {}", show_size(self.least), show_size(self.most))
    }
}

/// Returns a size as `64KiB`: exact, in the largest unit that divides it.
fn show_size(bytes: u32) -> String {
    let bytes = u64::from(bytes);
    let (scale, names) = SIZE_UNITS
        .iter()
        .find(|(scale, _)| bytes != 0 && bytes.is_multiple_of(*scale))
        .unwrap_or(&SIZE_UNITS[SIZE_UNITS.len() - 1]);
    format!("{}{}", bytes / scale, names[0])
}

impl<G: Grammar> Grammar for OrWord<G> {
    type Value = Option<G::Value>;

    fn parse(&self, text: &str, facts: &Facts<'_>) -> Result<Self::Value, String> {
        if text == self.0 {
            return Ok(None);
        }
        self.1.parse(text, facts).map(Some)
    }

    fn show(&self, value: &Self::Value) -> String {
        value
            .as_ref()
            .map_or_else(|| self.0.to_owned(), |value| self.1.show(value))
    }

    fn accepts(&self) -> String {
        format!("{}, or {}", self.1.accepts(), self.0)
    }
}

impl Grammar for PerCpu {
    type Value = u16;

    fn parse(&self, text: &str, facts: &Facts<'_>) -> Result<u16, String> {
        if text == PER_CPU {
            return Ok(facts.cpus.clamp(self.0.least, self.0.most));
        }
        self.0.parse(text, facts)
    }

    fn show(&self, value: &u16) -> String {
        value.to_string()
    }

    fn accepts(&self) -> String {
        format!("{}, or auto", self.0.accepts())
    }
}

impl Grammar for Switch {
    type Value = bool;

    fn parse(&self, text: &str, _: &Facts<'_>) -> Result<bool, String> {
        match text {
            "true" | "on" => Ok(true),
            // Other settings accept `off`, so it is accepted here too.
            "false" | "off" => Ok(false),
            _ => Err(format!("{text:?} is neither true nor false")),
        }
    }

    fn show(&self, value: &bool) -> String {
        value.to_string()
    }

    fn words(&self) -> Vec<&'static str> {
        vec!["true", "false"]
    }

    fn accepts(&self) -> String {
        "true or false".to_owned()
    }
}

impl Grammar for ControlSocket {
    type Value = Control;

    fn parse(&self, text: &str, _: &Facts<'_>) -> Result<Control, String> {
        match text {
            "auto" => Ok(Control::Auto),
            "off" => Ok(Control::Off),
            path if path.len() > SOCKET_PATH_MAX_BYTES => Err(format!(
                "{path:?} is {} bytes long, more than the {SOCKET_PATH_MAX_BYTES} of a socket path",
                path.len()
            )),
            path if path.starts_with('/') && !path.contains('\0') => Ok(Control::Path(path.into())),
            other => Err(format!("{other:?} is not an absolute path")),
        }
    }

    fn show(&self, value: &Control) -> String {
        match value {
            Control::Auto => "auto".to_owned(),
            Control::Off => "off".to_owned(),
            Control::Path(path) => path.display().to_string(),
        }
    }

    fn accepts(&self) -> String {
        "an absolute path, auto or off".to_owned()
    }
}

impl<T: Word> Grammar for Choice<T> {
    type Value = T;

    fn parse(&self, text: &str, _: &Facts<'_>) -> Result<T, String> {
        T::find(text).ok_or_else(|| format!("{text:?} is not a valid choice"))
    }

    fn show(&self, value: &T) -> String {
        value.word().to_owned()
    }

    fn words(&self) -> Vec<&'static str> {
        T::VARIANTS.iter().map(|one| one.word()).collect()
    }

    fn accepts(&self) -> String {
        let words = self.words();
        let (last, others) = words.split_last().expect("invariant: a choice has words");
        format!("{} or {last}", others.join(", "))
    }
}

#[cfg(test)]
mod tests;
